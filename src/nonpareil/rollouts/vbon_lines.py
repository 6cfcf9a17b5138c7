"""Read vBoN's JSON lines (arXiv:2407.06057) as groups."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import DataError
from nonpareil.records import Group, prompt_id_of
from nonpareil.text_files import check_characters, parse_json, read_lines


def is_vbon(path: Path) -> bool:
    """Whether a file of groups is of this kind, by its name; the others are Parquet."""
    return path.suffix in (".json", ".jsonl")


def read_vbon(path: str | Path) -> list[Group]:
    """The groups of a file of `{prompt, text, reward}` or `{prompt, responses, rewards}` lines.

    The first kind has one completion per line and no id, so lines of equal prompt text become one group, in
    the order the prompts first appear; two equal prompts cannot be told apart. A line of the second kind is
    a group. Token ids and log-probs are not in these files: they are empty, and every finish reason is given
    as "stop". A reward that is null or NaN is None.

    Raises:
        DataError: no file, or a line of neither kind, naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    groups: list[Group] = []
    by_prompt: dict[str, Group] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parsed(line, where)
        single = "text" in row
        texts, rewards = _completions(row, where)
        prompt = row["prompt"]
        group = by_prompt.get(prompt) if single else None
        if group is None:
            group = Group(prompt_id_of(prompt, len(groups)), prompt, [], [], [], [], [], rewards=[])
            groups.append(group)
            if single:
                by_prompt[prompt] = group
        _extend(group, texts, rewards)
    if not groups:
        raise DataError(f"{path} has no lines")
    return groups


def _parsed(line: str, where: str) -> Mapping[str, Any]:
    row = parse_json(line, where)
    check_characters(row, where)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise DataError(f"{where} has no prompt string")
    return row


def _completions(row: Mapping[str, Any], where: str) -> tuple[list[str], list[float | None]]:
    if "text" in row and "reward" in row:
        texts, rewards = [row["text"]], [row["reward"]]
    elif "responses" in row and "rewards" in row:
        texts, rewards = row["responses"], row["rewards"]
    else:
        raise DataError(
            f"{where} has neither text and reward nor responses and rewards (it has: {', '.join(row)})"
        )
    if not isinstance(texts, list) or not isinstance(rewards, list) or len(texts) != len(rewards):
        raise DataError(f"{where}: responses and rewards must be lists of one length")
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: a completion is no string")
    return texts, [_reward(value, where) for value in rewards]


def _reward(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: the reward {value!r:.40} is no number")
    return float(value) if math.isfinite(value) else None


def _extend(group: Group, texts: list[str], rewards: list[float | None]) -> None:
    assert group.rewards is not None
    group.completions.extend(texts)
    group.rewards.extend(rewards)
    group.completion_token_ids.extend([] for _ in texts)
    group.logprobs.extend([] for _ in texts)
    group.finish_reasons.extend("stop" for _ in texts)
