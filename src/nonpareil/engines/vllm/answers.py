"""What vLLM's server answers, checked: an answer of another form is told as one, whatever it holds."""

from typing import Any, TypeVar

from nonpareil.answers import shown
from nonpareil.engines.choices import is_logprob, is_token_id
from nonpareil.engines.vllm.requests import VLLMChoice
from nonpareil.errors import EngineError

T = TypeVar("T")


def field_of(answer: Any, kind: type[T], *path: str | int) -> T:
    """What lies at the end of a path of names and places.

    Raises:
        EngineError: it is not there, or of another kind.
    """
    value = answer
    for step in path:
        held = isinstance(value, list if isinstance(step, int) else dict)
        if not held or (step not in value if isinstance(step, str) else step >= len(value)):
            raise EngineError(f"the vLLM server answered without {_name(path)}: {shown(answer):.200}")
        value = value[step]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise EngineError(
            f"the vLLM server answered {_name(path)}={shown(value):.80}, which is no {kind.__name__}"
        )
    return value


def choices_of(answer: Any, count: int, token_ids: list[int]) -> list[dict[str, Any]]:
    """The choices of a completion by their index.

    Raises:
        EngineError: another number of them than asked for, or of another prompt.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != count:
        seen = len(choices) if isinstance(choices, list) else "no"
        raise EngineError(f"answered {seen} choices where n={count} were asked for")
    by_index = {field_of(choice, int, "index"): choice for choice in choices}
    if set(by_index) != set(range(count)):
        raise EngineError(f"answered choices numbered {sorted(by_index)!r:.80}, and not 0 to {count - 1}")
    if by_index[0].get("prompt_token_ids") != token_ids:
        raise EngineError("answered another prompt than the one it was sent")
    return [by_index[index] for index in range(count)]


def read_choice(answer: dict[str, Any], vocabulary: int) -> VLLMChoice:
    """A choice's ids and log-probs; what is missing stays empty, and is refused where choices are checked.

    Raises:
        EngineError: ids that are no token's of a vocabulary of that size, or log-probs that are none.
    """
    ids = answer.get("token_ids") or []
    for one in ids if isinstance(ids, list) else [ids]:
        if not is_token_id(one, vocabulary) or not isinstance(ids, list):
            raise EngineError(
                f"the vLLM server answered token_ids that hold {shown(one):.40}; they must be token ids, whole "
                f"numbers from 0 to {vocabulary - 1}"
            )
    logprobs = answer.get("logprobs") or {}
    values = (logprobs.get("token_logprobs") or []) if isinstance(logprobs, dict) else [logprobs]
    numbers = [_logprob(one) for one in (values if isinstance(values, list) else [values])]
    reason = answer.get("finish_reason")
    return VLLMChoice(ids, numbers, reason if isinstance(reason, str) else None)


def read_score(choice: dict[str, Any], prompt: list[int], completion: list[int]) -> float:
    """The summed log-prob, in nats, of a completion that was sent as the end of a prompt.

    Raises:
        EngineError: one that is missing or none.
    """
    rows = field_of(choice, list, "prompt_logprobs")
    if len(rows) != len(prompt) + len(completion):
        raise EngineError(
            f"the vLLM server answered {len(rows)} log-probs for {len(prompt) + len(completion)} tokens"
        )
    pairs = zip(completion, rows[len(prompt) :], strict=True)
    return sum(_logprob(field_of(row, object, str(token), "logprob")) for token, row in pairs)


def _logprob(value: Any) -> float:
    if not is_logprob(value):
        raise EngineError(
            f"the vLLM server answered {shown(value):.40} as a log-prob; it must be a number up to 0"
        )
    return float(value)


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path)) or "what was asked"
