"""Scored groups as TRL's datasets: preference, SFT and unpaired preference."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, Message, PromptText
from nonpareil.rollouts.columns import ESCAPE
from nonpareil.rollouts.row_files import write_rows
from nonpareil.rollouts.select import Choice, Truncated, best, chosen, eligible, worst
from nonpareil.selection.rule import Rule
from nonpareil.setting_types import check_value

ExportFormat = Literal["preference", "sft", "unpaired"]
FIELDS: dict[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    "sft": ("prompt", "completion", "score"),
    "unpaired": ("prompt", "completion", "label", "score"),
}
"""Scores are the rewards, under the names that UltraFeedback's binarised datasets have for TRL."""
_TOLD_BY = ("chosen", "rejected", "completion", "messages")
TAKEN: dict[str, tuple[str, ...]] = {
    "preference": _TOLD_BY,
    "sft": (
        *_TOLD_BY,
        *("conversations", "text", "input_ids", "labels", "completion_mask", "assistant_masks"),
    ),
    "unpaired": _TOLD_BY,
}
"""Columns that TRL reads where it finds them: by any of `_TOLD_BY` it tells conversations from text, a row with a
pair it makes two of, and the end token it puts behind `text` in place of `completion`."""
UNREAD = ("prompt_token_ids", "completion_token_ids", "logprobs")
"""Columns of groups that no format has."""


def unread_by(rule: Rule | None) -> list[str]:
    """Columns of groups that neither a format has nor the rule reads."""
    needs = () if rule is None else rule.needs
    read = {"logprobs": "logprobs" in needs, "completion_token_ids": "lengths" in needs}
    return [name for name in UNREAD if not read.get(name)]


NO_REWARD = "without a reward that is known"
ALL_CUT = "whose completions with a reward were all cut (--truncated allow writes them)"
BELOW_BAR = "whose best is below min_reward"
SINGLE = "with a single completion to choose from"
ALL_EQUAL = "with all rewards equal"
UNDECIDED = "in which the rule tells no completion from another"
NONE_CHOSEN = "of which the rule can choose none: too few completions, or none with what it reads"
BELOW_MARGIN = "whose margin is below min_margin"
SAME_TEXT = "whose best and worst have the same text"
"""Why a group gives no row."""


@dataclass(frozen=True)
class Bars:
    """What is asked of the completions that are written, beside that the best has won."""

    min_reward: float | None = None
    """Of the reward of what is written as good."""
    min_margin: float | None = None
    """Of the best's reward over the worst's."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what was not."""

    path: Path
    format: ExportFormat
    groups: int
    rows: int
    skipped: dict[str, int]
    """Groups that gave no row, by reason."""


def export(
    groups: Iterable[Group],
    path: str | Path,
    format: ExportFormat,
    *,
    n: int | None = None,
    seed: int = 0,
    truncated: Truncated = "exclude",
    min_reward: float | None = None,
    min_margin: float | None = None,
    choice: Choice | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write what the best (and worst) completions of the groups are to a .jsonl or .parquet file.

    `preference` has prompt, chosen, rejected; `sft` prompt, completion; `unpaired` prompt, completion, label,
    True for the best and False for the worst; each with the rewards as scores. Conversations stay lists of
    messages. Dataset columns ride along; one that has the name of a field, or that TRL would train on in its place
    (`TAKEN`), is called `columns/<name>`.

    A group without a winner gives no row of any format: where all known rewards are equal, the best of an all-wrong
    group is a wrong answer. `min_reward` says what is right whatever the others are: of a group that ties at or
    above it, `sft` and `unpaired` write a completion all the same.

    Args:
        groups: scored. They are gone through one by one, for a large Parquet file twice; `reading.stored_groups`
            gives them without holding them all.
        path: its suffix says which kind of file.
        format: one of the three above.
        n: look at the first n completions of each group, so that one pass gives best-of-n for several n.
        seed: of the draw among ties.
        truncated: "exclude" leaves out completions that were cut; "allow" writes them too. Their rewards count
            either way where it is asked whether the best has beaten any.
        min_reward: leave out groups whose best has less; `unpaired` then writes no completion as bad that reaches
            it.
        min_margin: leave out groups whose best has not so much more than its worst (pairs only).
        choice: the rule that says which completion is written as the good one, in place of the highest reward: the
            one that it most likely chooses.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: an unknown format or suffix, an n that the groups do not have or that is too small for a
            winner, a bar that the format does not read, or a file that exists.
        DataError: groups without rewards, or none that gives a row.
    """
    path, bars = Path(path), Bars(min_reward, min_margin)
    _check(path, format, n, bars, overwrite)
    if path.suffix == ".parquet" and iter(groups) is groups:  # they can be gone through once
        groups = list(groups)
    count = written = 0
    taken = (*FIELDS[format], *TAKEN[format])
    skipped: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, written
        count = written = 0
        skipped.clear()
        for group in groups:
            count += 1
            made = _rows(group, format, _Picks.of(group, n, seed, truncated, choice), bars)
            if isinstance(made, str):
                skipped[made] += 1
                continue
            written += len(made)
            for row in made:
                yield {name: row[name] for name in FIELDS[format]} | _further(group, taken)
        if not written:
            reasons = "; ".join(f"{number} {reason}" for reason, number in skipped.items())
            raise DataError(
                f"none of the {count} groups gives a row of {format}: {reasons or 'there are none'}"
            )

    write_rows(path, rows)
    return ExportReport(path, format, count, written, dict(skipped))


def _check(path: Path, format: str, n: int | None, bars: Bars, overwrite: bool) -> None:
    if format not in FIELDS:
        raise ConfigError(f"format={format!r} must be one of {', '.join(get_args(ExportFormat))}")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"output={str(path)!r} must end in .jsonl or .parquet")
    check_value("min_reward", bars.min_reward, float | None)
    check_value("min_margin", bars.min_margin, float | None, above=0, why="the best has more than the worst")
    if format == "sft" and bars.min_margin is not None:
        raise ConfigError(
            f"min_margin={bars.min_margin} is of pairs, and sft writes the best alone; remove it"
        )
    least = 2 if format == "preference" or bars.min_reward is None else 1
    if n is not None and n < least:
        alone = "" if format == "preference" else ", or 1 with min_reward"
        raise ConfigError(f"n={n} is too small for {format}: nothing wins alone; it takes at least 2{alone}")
    if path.exists() and not overwrite:
        raise ConfigError(f"output={str(path)!r} exists; give another path, or overwrite (--overwrite)")


@dataclass(frozen=True)
class _Picks:
    """What of a group is written as good and as bad."""

    rewards: dict[int, float]
    """Of those that may be written, by place."""
    known: dict[int, float]
    top: int | None
    low: int | None
    undecided: str | None
    """Why the top is no winner; None where it is one."""

    @classmethod
    def of(
        cls, group: Group, n: int | None, seed: int, truncated: Truncated, choice: Choice | None
    ) -> "_Picks":
        rewards, known = eligible(group, n, truncated), eligible(group, n, "allow")
        low = worst(group, n, seed=seed, truncated=truncated)
        if choice is None or not rewards:
            top, decided, by_reward = best(group, n, seed=seed, truncated=truncated), False, True
        else:
            top, decided = chosen(group, choice, n, seed=seed, truncated=truncated)
            by_reward = choice.rule.reads_rewards
        why = None
        if top is not None and not decided and not (by_reward and rewards[top] > min(known.values())):
            why = SINGLE if len(known) == 1 else ALL_EQUAL if by_reward else UNDECIDED
        return cls(rewards, known, top, low, why)


def _rows(group: Group, format: ExportFormat, picks: _Picks, bars: Bars) -> list[dict[str, Any]] | str:
    """The group's rows, or why it has none."""
    rewards, top, low = picks.rewards, picks.top, picks.low
    if low is None:
        return ALL_CUT if picks.known else NO_REWARD
    if top is None:
        return NONE_CHOSEN
    if bars.min_reward is not None and rewards[top] < bars.min_reward:
        return BELOW_BAR
    prompt, chosen = _turns(group.prompt, group.completions[top])
    good = {"prompt": prompt, "completion": chosen, "score": rewards[top]}
    if format == "sft":
        if bars.min_reward is None and picks.undecided is not None:
            return picks.undecided
        return [good]
    if format == "unpaired" and bars.min_reward is not None and rewards[low] >= bars.min_reward:
        return [{**good, "label": True}] if bars.min_margin is None else BELOW_MARGIN
    if (why := _no_pair(group, rewards, top, low, bars)) is not None:
        return why
    _, rejected = _turns(group.prompt, group.completions[low])
    if format == "preference":
        scores = {"score_chosen": rewards[top], "score_rejected": rewards[low]}
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}]
    bad = {"prompt": prompt, "completion": rejected, "score": rewards[low]}
    return [{**good, "label": True}, {**bad, "label": False}]


def _no_pair(group: Group, rewards: Mapping[int, float], top: int, low: int, bars: Bars) -> str | None:
    """Why the best and the worst are no pair; None where they are one."""
    if len(rewards) < 2:
        return SINGLE
    if rewards[top] == rewards[low]:
        return ALL_EQUAL
    if bars.min_margin is not None and rewards[top] - rewards[low] < bars.min_margin:
        return BELOW_MARGIN
    return SAME_TEXT if group.completions[top] == group.completions[low] else None


def _turns(prompt: PromptText, completion: str) -> tuple[PromptText, str | list[Message]]:
    if isinstance(prompt, str):
        return prompt, completion
    answer = {"role": "assistant", "content": completion}
    if prompt[-1]["role"] == "assistant":
        # The completion went on from these words; as two messages a chat template would part them.
        return prompt[:-1], [{**answer, "content": prompt[-1]["content"] + completion}]
    return prompt, [answer]


def _further(group: Group, taken: tuple[str, ...]) -> dict[str, Any]:
    return {ESCAPE + name if name in taken else name: value for name, value in group.columns.items()}
