"""Text to the ids a reward model scores: its own tokenizer, one beginning token, nothing cut silently."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.models.chat import check_template_arguments, template_failure
from nonpareil.records import Message, Prompt, ScoreRequest, content_of, text_of
from nonpareil.rewards.models.template_check import check_words
from nonpareil.rewards.models.text_options import TextOptions

_ARGUMENTS = "reward_chat_template_kwargs"
PROMPT_CHARACTERS = 60
"""Of a prompt that a message names."""


@dataclass(frozen=True)
class EncodedText:
    """What one prompt and completion became."""

    token_ids: list[int]
    failure: str | None = None
    """Why this text cannot be scored (None where it can)."""
    truncated: bool = False


@dataclass(frozen=True)
class RewardEncoder:
    """How a reward model reads text.

    String prompts are `prompt + completion`, tokenised once with the tokenizer's own special tokens;
    conversations go through its chat template, which writes the special tokens itself.
    """

    tokenizer: Any
    name: str
    """Of the reward, for messages."""
    options: TextOptions = field(default_factory=TextOptions)
    """Their `max_length` is the limit, None where there is none."""

    @classmethod
    def of(cls, tokenizer: Any, config: Any, name: str, options: TextOptions) -> "RewardEncoder":
        """The encoder of a model with this configuration, which states how long a text may be.

        Raises:
            ConfigError: a `max_length` beyond the model's positions.
                Or an argument of the chat template that it never mentions.
            ModelError: a token to be added that the tokenizer does not have.
        """
        _check_special_tokens(tokenizer, name, options)
        if options.chat_template_kwargs:
            whose = f"the chat template of reward model {name!r}"
            check_template_arguments(options.chat_template_kwargs, tokenizer, _ARGUMENTS, whose)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if options.max_length is None:
            options = replace(options, max_length=length_limit(tokenizer, config))
        elif positions and options.max_length > positions:
            raise ConfigError(
                f"max_length={options.max_length} must be at most the model's {positions} positions"
            )
        return cls(tokenizer, name, options)

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse prompts that leave no room for a completion or lose words in the template, before any is drawn.

        Where the policy's tokenizer has this one's vocabulary, there must be room for `max_completion_length`
        tokens. Otherwise how many tokens a completion becomes is known only when it is there: a prompt that fills
        the window alone is refused, and one whose completions may not fit is warned of.

        Raises:
            DataError: naming the prompt and the lengths; none is too long under `overlong="truncate"`.
            DataError, ModelError: as `encode` and `check_words`.
            ConfigError: arguments of the chat template, and the prompts are strings.
        """
        if self.options.chat_template_kwargs and prompts and all(isinstance(p.prompt, str) for p in prompts):
            raise ConfigError(
                f"{_ARGUMENTS}={self.options.chat_template_kwargs!r} is not read: the prompts are strings, which "
                "go through no chat template; remove it"
            )
        check_words(prompts, self._render, self.name, tokenizer)
        if self.options.max_length is None or self.options.overlong == "truncate" or not prompts:
            return
        texts = ScoreRequest(
            [prompt.prompt for prompt in prompts], [""] * len(prompts), [[]] * len(prompts), {}
        )
        lengths = [len(ids) for ids in self._token_ids(texts)]
        row = max(range(len(prompts)), key=lambda place: lengths[place])
        longest, needed = lengths[row], lengths[row] + max_completion_length
        known = tokenizer is not None and tokenizer.get_vocab() == self.tokenizer.get_vocab()
        if needed <= self.options.max_length:
            return
        said = (
            f"prompt {prompts[row].prompt_id} ({_beginning(prompts[row].prompt)}) has {longest} tokens for reward "
            f"model {self.name!r}, which takes {self.options.max_length}, and max_completion_length="
            f"{max_completion_length}"
        )
        if known or longest >= self.options.max_length:
            too_long = sum(
                length + max_completion_length * known > self.options.max_length for length in lengths
            )
            others = f" (nor beside {too_long - 1} others)" if too_long > 1 else ""
            raise DataError(
                f"{said} does not fit beside it{others}; lower max_completion_length, drop the prompt, or give "
                "reward_overlong=truncate to drop its left"
            )
        logging.getLogger(__name__).warning(
            f"{said} may not fit beside it, as another tokenizer counts; a text that does not fit ends the run. "
            "Lower max_completion_length, or give reward_overlong=truncate to drop the left of the prompt"
        )

    def encode(self, request: ScoreRequest) -> list[EncodedText]:
        """The ids of every completion of the request, in order.

        Raises:
            ModelError: a conversation, and the tokenizer has no chat template.
            DataError: a text over `max_length` under `overlong="error"`, or one the chat template refuses.
        """
        finished = zip(self._token_ids(request), request.prompts, request.completions, strict=True)
        return [self._fit(ids, prompt, text_of(completion)) for ids, prompt, completion in finished]

    def _token_ids(self, request: ScoreRequest) -> list[list[int]]:
        """The ids of prompt and completion together, whatever their length."""
        texts: dict[bool, list[str]] = {False: [], True: []}
        conversational = [not isinstance(prompt, str) for prompt in request.prompts]
        for prompt, completion in zip(request.prompts, request.completions, strict=True):
            if isinstance(prompt, str):
                texts[False].append(prompt + text_of(completion))
            else:
                texts[True].append(self._render(prompt, completion))
        plain = iter(self._tokenize(texts[False], add_special_tokens=True))
        chats = iter(self._tokenize(texts[True], add_special_tokens=False))
        ids = [next(chats if is_chat else plain) for is_chat in conversational]
        return [self._with_ends(row) for row in ids]

    def _render(self, prompt: list[Message], completion: str | list[Message]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                f"the tokenizer of reward model {self.name!r} has no chat template, but the prompts are "
                "conversations; set tokenizer.chat_template to the one the reward model was trained with"
            )
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        messages = [*prompt, *answer]
        if prompt and prompt[-1]["role"] == "assistant":
            # A prefilled turn: the completion goes on from it, and templates refuse two such turns in a row.
            joined = {**prompt[-1], "content": prompt[-1]["content"] + text_of(completion)}
            messages = [*prompt[:-1], joined]
        try:
            further = self.options.chat_template_kwargs or {}
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **further)
        except Exception as error:  # a template is a program of others, and raises what it likes
            what = f"the chat template of reward model {self.name!r}"
            raise DataError(template_failure(what, messages, error)) from error

    def _tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,  # we judge the length ourselves
        )
        return [list(ids) for ids in batch["input_ids"]]

    def _with_ends(self, ids: list[int]) -> list[int]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.options.prepend_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:  # the prompt's text already began with it
            ids = ids[1:]
        if self.options.append_eos and ids[-1:] != [eos]:
            ids = [*ids, eos]
        return ids

    def _fit(self, ids: list[int], prompt: str | list[Message], completion: str) -> EncodedText:
        if not ids:
            return EncodedText(ids, failure="no tokens to score")
        if self.options.max_length is None or len(ids) <= self.options.max_length:
            return EncodedText(ids)
        if self.options.overlong == "error":
            raise DataError(
                f"a prompt and completion of {len(ids)} tokens is longer than the {self.options.max_length} that "
                f"reward model {self.name!r} takes ({_beginning(prompt)}); shorten the prompts or "
                "max_completion_length, or set reward_overlong=truncate (overlong='truncate' in Python) to drop "
                "the left of the prompt"
            )
        return self._drop_left(ids, completion, self.options.max_length)

    def _drop_left(self, ids: list[int], completion: str, limit: int) -> EncodedText:
        """Drop the left of the prompt, never its beginning token, and never a part of the completion."""
        head = 1 if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else 0
        special = set(self.tokenizer.all_special_ids)
        ending = next((i for i, token in enumerate(reversed(ids)) if token not in special), len(ids))
        needed = len(self._tokenize([completion], add_special_tokens=False)[0]) + ending
        room = limit - head
        if needed > room:
            # The score of half a completion would be a number that stands for something else.
            return EncodedText(
                [], failure=f"completion alone is over the limit of {limit} tokens", truncated=True
            )
        return EncodedText(ids[:head] + ids[len(ids) - room :], truncated=True)


def _beginning(prompt: str | list[Message]) -> str:
    """How a prompt is named in a message."""
    text = prompt if isinstance(prompt, str) else next((content_of(m) for m in reversed(prompt)), "")
    return repr(text[:PROMPT_CHARACTERS]) + "..." * (len(text) > PROMPT_CHARACTERS)


def without_end_pads(ids: Sequence[int], pad: int | None) -> list[int]:
    """The ids up to where transformers pools a decoder: the last one, or the first, that is no pad.

    A decoder's pad is often its end token; vLLM by itself pools at the last id, whatever it is.
    """
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return list(ids[:end])


def _check_special_tokens(tokenizer: Any, name: str, options: TextOptions) -> None:
    """Refuse to add a token that the tokenizer does not have."""
    for option, token in (("prepend_bos", "bos"), ("append_eos", "eos")):
        if getattr(options, option) and getattr(tokenizer, f"{token}_token_id") is None:
            raise ModelError(
                f"{option}=True, but the tokenizer of reward model {name!r} has no {token}_token"
            )


def length_limit(tokenizer: Any, config: Any) -> int | None:
    """The most tokens a model takes: the least of its positions and its tokenizer's `model_max_length`."""
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    limits = []
    if isinstance(positions, int) and positions > 0:
        # RoBERTa's position ids begin after its padding id, so that many positions are never used.
        roberta = "roberta" in text_config.model_type or text_config.model_type == "camembert"
        limits.append(positions - (text_config.pad_token_id + 1 if roberta else 0))
    if tokenizer.model_max_length < 10**9:  # transformers writes 1e30 for "not stated"
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=None)
