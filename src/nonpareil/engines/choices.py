"""What an OpenAI-compatible server answers, checked: as many choices as can be used, and nothing made up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from nonpareil.answers import is_text, shown
from nonpareil.engines.decoding import completion_texts, first_stop
from nonpareil.errors import RemoteError
from nonpareil.records import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Json = Mapping[str, Any]
MOST_IDS = 2**31
"""Token ids lie below it: they are kept as int32."""
LEAST_LOGPROB = -1e30
"""Nats; log-probs are kept as float32, and one below it is no number of a model's."""


@dataclass(frozen=True)
class ServedChoice:
    """One completion as the server gave it; what it did not give is empty."""

    text: str
    finish_reason: FinishReason
    token_ids: list[int]
    """Empty unless the ids of the prompt are known too: alone they are of no use."""
    logprobs: list[float]
    """One per token id, in nats; empty without ids."""
    prompt_token_ids: list[int]


def read_choices(
    answer: Any,
    asked: int,
    max_tokens: int,
    prompt_ids: list[int],
    mask: Callable[[str], str] = str,
    tokenizer: "Tokenizer | None" = None,
    stop: Sequence[str] = (),
) -> list[ServedChoice]:
    """The choices of an answer of either endpoint, in the order of their index; from one to `asked` of them.

    Args:
        answer: the parsed JSON.
        asked: the n of the request.
        max_tokens: of one completion.
        prompt_ids: as sent; empty where text was sent.
        mask: takes the key out of what is quoted of the answer.
        tokenizer: of the served model, where it is known here: ids are then held against the text, and read as
            every engine reads them.
        stop: texts that end a completion, which is cut there whatever the server did. Ids are not kept then:
            servers differ in how many of them they leave.

    Raises:
        RemoteError: no choices or more than asked, or two of one index; no text, or one that no file can hold; a
            finish reason other than stop and length; more tokens than were allowed; ids that are no token's, or
            not the text's; or other prompt ids than those sent.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RemoteError(f"the answer has no list of choices: {mask(shown(answer)):.200}")
    if not 1 <= len(choices) <= asked:
        raise RemoteError(f"the answer has {len(choices)} choices, and n={asked} were asked for")
    _check_usage(answer.get("usage"), asked, max_tokens)
    ordered = _ordered(choices, asked, mask)
    found = [_choice(one, answer, max_tokens, prompt_ids, mask, tokenizer) for one in ordered]
    return [_stopped(one, stop) for one in found] if stop else found


def _stopped(choice: ServedChoice, stop: Sequence[str]) -> ServedChoice:
    place = first_stop(choice.text, stop)
    reason: FinishReason = choice.finish_reason if place is None else "stop"
    return replace(choice, text=choice.text[:place], finish_reason=reason, token_ids=[], logprobs=[])


def _ordered(choices: Sequence[Json], asked: int, mask: Callable[[str], str]) -> Sequence[Json]:
    given = [choice.get("index") for choice in choices]
    if all(index is None for index in given):  # a server that does not number them
        return choices
    numbers = {index for index in map(_whole, given) if index is not None and 0 <= index < asked}
    if len(numbers) < len(given):
        raise RemoteError(
            f"the choices are numbered {mask(shown(given)):.80}; n={asked} different ones are numbered from 0"
        )
    return sorted(choices, key=lambda choice: choice["index"])


def _choice(
    choice: Json,
    answer: Json,
    max_tokens: int,
    sent: list[int],
    mask: Callable[[str], str],
    tokenizer: "Tokenizer | None",
) -> ServedChoice:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RemoteError(
            f"finish_reason={mask(shown(reason)):.80}: a completion ends with stop or length; anything else is no "
            "draw of the policy. Change what is asked or how the model is served"
        )
    text, whole = _text(choice, mask)
    # vLLM has the prompt's ids in each choice of a completion, and once in a chat's answer.
    size = MOST_IDS if tokenizer is None else len(tokenizer)
    read = _ids(choice, "prompt_token_ids", size) or _ids(answer, "prompt_token_ids", size)
    if sent and read and read != sent:
        raise RemoteError(f"the server read other prompt ids than were sent: {len(read)}, not {len(sent)}")
    prompt_ids = sent or read
    ids = _ids(choice, "token_ids", size) if prompt_ids and whole else []
    if len(ids) > max_tokens:
        raise RemoteError(f"a completion has {len(ids)} tokens, over max_completion_length={max_tokens}")
    if ids and tokenizer is not None:
        given, text = text, _read(prompt_ids, ids, reason, tokenizer)
        _check_read(ids, given, text, tokenizer, mask)
    logprobs = _logprobs(choice.get("logprobs"))
    return ServedChoice(
        text, cast(FinishReason, reason), ids, logprobs if len(logprobs) == len(ids) else [], prompt_ids
    )


def _text(choice: Json, mask: Callable[[str], str]) -> tuple[str, bool]:
    """The completion, and whether it is all that was sampled: a server may keep the reasoning apart."""
    if "message" not in choice:
        text, whole = choice.get("text"), True
    else:
        message = choice["message"] if isinstance(choice["message"], dict) else {"content": 0}
        if message.get("tool_calls"):
            raise RemoteError(
                "the model called a tool, which is no completion; serve it without a tool parser"
            )
        whole = not (message.get("reasoning_content") or message.get("reasoning"))
        text = message.get("content")
        text = "" if text is None else text  # how an empty message is written
    if not isinstance(text, str):
        raise RemoteError(f"a choice has no text: {mask(shown(choice)):.200}")
    if not is_text(text):
        raise RemoteError(
            f"a completion holds half a character, which no file can: {mask(shown(text)):.80}; the server, or a "
            "proxy before it, cuts text within characters"
        )
    return text, whole


def _read(prompt_ids: list[int], ids: list[int], reason: str, tokenizer: "Tokenizer") -> str:
    """The text as every engine's; what ends the served model is told by the answer's end."""
    ended = reason == "stop" and ids[-1] in tokenizer.added_tokens_decoder
    return completion_texts(tokenizer, prompt_ids, [ids], ids[-1:] if ended else [])[0]


def _check_read(
    ids: list[int], given: str, ours: str, tokenizer: "Tokenizer", mask: Callable[[str], str]
) -> None:
    """Refuse ids that the tokenizer reads as another text than the server gave.

    Spaces do not count, nor do characters cut in half: a server that decodes token by token has its own ways. Nor
    does whether special tokens are in the text.
    """
    kinds: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    read = [ours, *(str(tokenizer.decode(ids, skip_special_tokens=skip, **kinds)) for skip in (True, False))]
    if _bare(given) not in map(_bare, read):
        raise RemoteError(
            f"the server's ids of a completion read {ours[:60]!r} and its text is {mask(shown(given)):.60}: the "
            "tokenizer is not the served model's; give its own as tokenizer_name_or_path"
        )


def _bare(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())


def _check_usage(usage: Any, asked: int, max_tokens: int) -> None:
    spent = _whole(usage.get("completion_tokens")) if isinstance(usage, dict) else None
    if spent is not None and spent > asked * max_tokens:
        raise RemoteError(
            f"the server drew {spent} tokens for n={asked} and max_completion_length={max_tokens}: it does not "
            "keep to the limit"
        )


def _logprobs(given: Any) -> list[float]:
    """Of completions (`token_logprobs`) or of a chat (`content`); empty where any is missing or none."""
    if not isinstance(given, dict):
        return []
    values = given.get("token_logprobs")
    if values is None:
        content = given.get("content")
        rows = content if isinstance(content, list) else []
        values = [row.get("logprob") if isinstance(row, dict) else None for row in rows]
    known = isinstance(values, list) and all(map(is_logprob, values))
    return [float(value) for value in values] if known else []


def _ids(holder: Json, name: str, size: int) -> list[int]:
    """The token ids of that name, below `size`; empty where there are none."""
    given = holder.get(name)
    if given is None:
        return []
    for one in given if isinstance(given, list) else [given]:
        if not is_token_id(one, size) or not isinstance(given, list):
            raise RemoteError(
                f"{name} holds {shown(one):.40}; they must be token ids, whole numbers from 0 to {size - 1}"
            )
    return given


def is_token_id(value: Any, size: int) -> bool:
    """Whether a parsed value is the id of a token of a vocabulary of that size."""
    number = _whole(value)
    return number is not None and 0 <= number < size


def is_logprob(value: Any) -> bool:
    """Whether a parsed value is a number that a probability's logarithm can be: above 0 by rounding at most."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and LEAST_LOGPROB < value <= 1e-4


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
