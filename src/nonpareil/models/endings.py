"""Where a completion ends, decided once: by the model, else the tokenizer, and where a chat turn closes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.models.distributed import process_index
from nonpareil.models.loading import end_token_ids, stored_end_token_ids
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.records import Message, Prompt
from nonpareil.terminal import printable, tell

_WORD = "nonpareil"
"""Said by the assistant of a trial conversation, and found again in what the template makes of it."""


@dataclass(frozen=True)
class Endings:
    """The ids that end a completion of a policy on some prompts."""

    ids: frozenset[int]
    turn_end: int | None = None
    """The one of them that the chat template alone names, by closing an assistant's turn with it."""

    def describe(self) -> dict[str, Any]:
        """For manifests. Those of earlier versions knew of no turn's end, and do not say where they ended."""
        turn = {} if self.turn_end is None else {"turn_end_token_id": self.turn_end}
        return {"end_token_ids": sorted(self.ids), **turn}


def endings_of(own: frozenset[int], tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Endings:
    """A policy's endings: its `own` ids, and for conversations the end of a turn."""
    chat = next((prompt for prompt in prompts if not isinstance(prompt.prompt, str)), None)
    if chat is None or isinstance(chat.prompt, str):
        return Endings(own)
    options = chat.rendering.chat_template_kwargs if chat.rendering else {}
    turn_end = turn_end_id(tokenizer, chat.prompt, options)
    return Endings(own) if turn_end is None or turn_end in own else Endings(own | {turn_end}, turn_end)


def stored_endings(
    name_or_path: str,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> Endings:
    """The same of a model that is not loaded, or of an adapter.

    Raises:
        ModelError, ConfigError: a config that cannot be read.
    """
    own = stored_end_token_ids(
        name_or_path, tokenizer, revision, trust_remote_code=trust_remote_code, init=init
    )
    return endings_of(own, tokenizer, prompts)


def turn_end_id(tokenizer: Tokenizer, talk: Sequence[Message], options: Mapping[str, Any]) -> int | None:
    """The token with which the chat template closes an assistant's turn; None where none of its own closes it.

    `talk` is a conversation that the template renders, `options` the template's further arguments.
    """
    messages: list[Any] = list(talk)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    messages.append({"role": "assistant", "content": _WORD})
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # noqa: BLE001  (a template is a program of others, and raises what it likes)
        return None  # it has no assistant's turn; what it refuses of the prompts is told where they are read
    _, found, closing = text.rpartition(_WORD)
    closing = closing.lstrip()
    tokens = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    tokens |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    closes_with = [token for token in tokens if token and found and closing.startswith(token)]
    return tokens[max(closes_with, key=len)] if closes_with else None


def end_at(model: PreTrainedModel, tokenizer: Tokenizer, ids: frozenset[int]) -> None:
    """Write the ids into the model's generation config, which engines read and which is saved with the model."""
    if getattr(model, "generation_config", None) is None:
        model.generation_config = GenerationConfig()
    config: Any = model.generation_config
    held = config.eos_token_id
    if ids and ids != frozenset(held if isinstance(held, list | tuple) else [held]):
        own = end_token_ids(model, tokenizer) & ids
        ends = [*sorted(own), *sorted(ids - own)]  # a reader that takes one takes the first
        config.eos_token_id = ends if len(ends) > 1 else ends[0]


def settle_endings(model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
    """Decide where completions of these prompts end, for drawing and for what is saved; tells of a turn's end."""
    endings = endings_of(end_token_ids(model, tokenizer), tokenizer, prompts)
    end_at(model, tokenizer, endings.ids)
    if endings.turn_end is not None:
        tell_endings(endings, tokenizer, model.name_or_path or type(model).__name__)


def tell_endings(endings: Endings, tokenizer: Tokenizer, name: str) -> None:
    """Say where the template adds an end, and where the tokenizer's own is none."""
    if process_index() > 0:
        return
    model = printable(name)
    if endings.turn_end is not None:
        turn = shown({endings.turn_end}, tokenizer)
        tell(
            f"{model}: a completion also ends with {turn}, with which the chat template closes a turn; the model's "
            "generation config does not name it"
        )
    own = tokenizer.eos_token_id
    if endings.ids and isinstance(own, int) and own not in endings.ids:
        tell(
            f"{model}: a completion ends with {shown(endings.ids, tokenizer)}, as the model's configs say, and not "
            f"with the tokenizer's {shown({own}, tokenizer)}; add that to eos_token_id in generation_config.json "
            "where it should"
        )


def shown(ids: "frozenset[int] | set[int]", tokenizer: Tokenizer) -> str:
    """Ids with their tokens: 2 ('</s>') and 7 ('<|im_end|>')."""
    tokens: Any = tokenizer.convert_ids_to_tokens(sorted(ids))
    return " and ".join(f"{i} ({t!r})" for i, t in zip(sorted(ids), tokens, strict=True)) or "no token"
