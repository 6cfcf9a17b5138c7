"""Whether chat templates write every word of a conversation: a reward model must read what the policy read."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from nonpareil.errors import DataError, ModelError
from nonpareil.models.chat import check_messages_written, held_clock
from nonpareil.records import Message, Prompt, content_of

Render = Callable[[list[Message], str], str]
"""A conversation and its completion, as the reward model's template writes them."""
REMEDY = "set its tokenizer's chat_template to one that writes every message"
_DAYS = datetime(2001, 2, 3), datetime(2022, 11, 12)


def check_words(prompts: Sequence[Prompt], render: Render, name: str, tokenizer: Any) -> None:
    """Refuse a template that loses words of these conversations or of an answer; spaces do not count.

    The policy's is asked too: a reward model would otherwise score answers to what the policy never read.

    Warns of a template that leaves out an answer's reasoning, where the policy may write some, and of one that
    writes the date.

    Args:
        prompts: strings among them go through no template.
        render: may refuse a conversation with a `DataError`.
        name: of the reward, for messages.
        tokenizer: the policy's; None where a server has it.

    Raises:
        ModelError: it, or the policy's, loses whatever a role says.
        DataError: it loses words of a prompt, naming it; or as `render`.
    """
    seen: set[tuple[str, ...]] = set()
    for prompt in prompts:
        if isinstance(prompt.prompt, str):
            continue
        _check_own(prompt, prompt.prompt, render, name)
        roles = tuple(message["role"] for message in prompt.prompt)
        if roles not in seen:
            if not seen:
                _tell_date(prompt.prompt, render, name)
                _tell_reasoning(prompt.prompt, render, name, tokenizer)
            seen.add(roles)
            _check_roles(prompt.prompt, render, name)
            if tokenizer is not None:
                _check_policys(prompt, prompt.prompt, tokenizer, name)


def _check_own(prompt: Prompt, messages: list[Message], render: Render, name: str) -> None:
    answer = "an answer"
    whose = f"prompt {prompt.prompt_id}: the chat template of reward model {name!r}"
    check_messages_written(messages, lambda told: render(list(told), answer), whose)
    texts = [*(content_of(message) for message in messages), answer]
    lost = _first_lost(texts, render(messages, answer))
    if lost is not None:
        role = messages[lost]["role"] if lost < len(messages) else "assistant"
        raise DataError(
            f"the chat template of reward model {name!r} does not write all that {role!r} says in prompt "
            f"{prompt.prompt_id} ({texts[lost][:60]!r}), so it would score an answer to something else; {REMEDY}"
        )


def _check_roles(messages: list[Message], render: Render, name: str) -> None:
    """With words that stand nowhere else: a message's own may be found in the template's."""
    probed = _probed(messages)
    probes = [*(content_of(message) for message in probed), "answerword"]
    try:
        lost = _first_lost(probes, render(probed, probes[-1]))
    except DataError:  # it takes the prompts' own words and not these
        return
    if lost is not None:
        roles = [message["role"] for message in messages] + ["assistant"]
        raise ModelError(
            f"the chat template of reward model {name!r} leaves out what {roles[lost]!r} says in a conversation of "
            f"{roles}, so it would score answers to other prompts than the policy reads; {REMEDY}"
        )


def _check_policys(prompt: Prompt, messages: list[Message], tokenizer: Any, name: str) -> None:
    probed = _probed(messages)
    options = prompt.rendering.chat_template_kwargs if prompt.rendering else {}
    continues = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            probed, tokenize=False, add_generation_prompt=not continues, **options
        )
    except Exception:  # noqa: BLE001  (what it refuses of the prompts is told where they are read)
        return
    lost = _first_lost([content_of(message) for message in probed], text)
    if lost is not None:
        roles = [message["role"] for message in messages]
        raise ModelError(
            f"the policy's chat template leaves out what {roles[lost]!r} says in a conversation of {roles}, so "
            f"reward model {name!r} would score answers to words that the policy never reads; take those messages "
            "out of the prompts, or set the policy's chat_template to one that writes every message"
        )


def _probed(messages: list[Message]) -> list[Message]:
    """The same roles with words that stand nowhere else."""
    return [
        {**message, "content": f"probe{place}word"} if content_of(message) else message
        for place, message in enumerate(messages)
    ]


def _tell_reasoning(messages: list[Message], render: Render, name: str, tokenizer: Any) -> None:
    if tokenizer is not None and not _may_reason(tokenizer):
        return
    text = render(messages, "<think>\nprobe1word\n</think>\n\nprobe2word")
    if "probe1word" not in text:
        _warn_once(
            f"the chat template of reward model {name!r} leaves out what an answer says before </think>: reasoning "
            "is not scored. Many reward models are trained so; if this one is not, give its tokenizer a "
            "chat_template that writes it"
        )


def _may_reason(tokenizer: Any) -> bool:
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return "</think>" in template or "</think>" in tokenizer.get_vocab()


def _tell_date(messages: list[Message], render: Render, name: str) -> None:
    written = []
    for day in _DAYS:
        with held_clock(day):
            written.append(render(messages, "an answer"))
    if written[0] != written[1]:
        _warn_once(
            f"the chat template of reward model {name!r} writes the date: a text may score otherwise on another "
            "day; give its tokenizer a chat_template with a date that stays"
        )


@cache
def _warn_once(message: str) -> None:
    """A run asks several times whether its rewards can score."""
    logging.getLogger(__name__).warning(message)


def _first_lost(texts: Sequence[str], written: str) -> int | None:
    """The place of the first text that does not stand behind the one before it; None where all do."""
    whole, start = _unspaced(written), 0
    for place, text in enumerate(texts):
        # Templates leave out the reasoning of earlier turns, the policy's too.
        kinds = (_unspaced(text), _unspaced(text.rpartition("</think>")[2]))
        ends = [found + len(kind) for kind in kinds if (found := whole.find(kind, start)) >= 0]
        if not ends:
            return place
        start = ends[0]
    return None


def _unspaced(text: str) -> str:
    return "".join(text.split())
