"""A user's own function that takes out of a group what must not be kept, before anything of it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group
from nonpareil.rollouts.checked_rows import checked_prompt
from nonpareil.serving.group_kinds import NotStored
from nonpareil.user_code.load import load_function

Redact = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Takes `{"prompt", "completions"}` (and `tools`), a string or messages and a list of texts, as they would be kept;
returns the same with other words, or None to keep nothing of the request."""


def load_redaction(spec: str, setting: str = "groups_redact") -> Redact:
    """The function that is named by `module:function`, `pkg.mod.fn` or `file.py:fn`.

    Raises:
        ConfigError: there is none, or it cannot be called; `setting` names the option.
    """
    try:
        return load_function(spec)
    except ConfigError as error:
        raise ConfigError(f"{setting}={spec!r}: {error}") from error


def redacted(group: Group, redact: Redact) -> Group:
    """The group as it may be kept.

    Where a word was changed, token ids and log-probs go, too: they are those of the words that were there.

    Raises:
        NotStored: the function failed, wants nothing kept, or returned something else. The group is not kept then.
    """
    given: dict[str, Any] = {"prompt": _own(group.prompt), "completions": list(group.completions)}
    if "tools" in group.columns:
        given["tools"] = _own(group.columns["tools"])
    before = {name: _own(value) for name, value in given.items()}
    try:
        found = redact(given)  # a user's code, which raises what it likes
    except (Exception, SystemExit) as error:
        raise NotStored(
            f"groups_redact failed: {type(error).__name__}"
        ) from error  # its words may quote the group
    if found is None:
        raise NotStored("groups_redact kept nothing of it")
    if found == before:
        return group
    return _with(group, found, before)


def _with(group: Group, found: Any, before: dict[str, Any]) -> Group:
    try:
        texts = found["completions"]
        prompt = checked_prompt(found["prompt"], "groups_redact")
    except (TypeError, KeyError, DataError) as error:
        raise NotStored("groups_redact returned no prompt and completions") from error
    alike = (
        isinstance(texts, list) and len(texts) == len(group) and all(isinstance(one, str) for one in texts)
    )
    if not alike or isinstance(prompt, str) != isinstance(group.prompt, str):
        raise NotStored("groups_redact returned another kind of prompt or another number of completions")
    columns = dict(group.columns)
    if "tools" in before:
        columns["tools"] = found.get("tools")
    nothing: list[list[Any]] = [[] for _ in texts]
    return replace(
        group,
        prompt=prompt,
        prompt_token_ids=[],
        completions=texts,
        completion_token_ids=nothing,
        logprobs=[[] for _ in texts],
        columns=columns,
    )


def _own(value: Any) -> Any:
    if isinstance(value, list):
        return [_own(one) for one in value]
    return {key: _own(one) for key, one in value.items()} if isinstance(value, dict) else value
