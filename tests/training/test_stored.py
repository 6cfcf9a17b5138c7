"""Stored groups as training data: what is refused, with the field, the value and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.methods import build
from nonpareil.records import Group
from nonpareil.training.stored import check_stored
from tests.training.conftest import make_trainer, stored_groups


def without_rewards(groups: list[Group]) -> None:
    for group in groups:
        group.rewards = [None] * len(group)


def all_equal(groups: list[Group]) -> None:
    for i, group in enumerate(groups):
        group.rewards = [float(i)] * len(group)


def unscored(groups: list[Group]) -> None:
    groups[2].rewards = None


def twice(groups: list[Group]) -> None:
    groups.append(groups[1])


def without_ids(groups: list[Group]) -> None:
    groups[0].completion_token_ids = [[] for _ in groups[0].completions]


def without_logprobs(groups: list[Group]) -> None:
    groups[0].logprobs = [[] for _ in groups[0].completions]


def some_failed(groups: list[Group]) -> None:
    for group in groups:
        group.rewards = [None, *(group.rewards or [])[1:]]


def nothing(groups: list[Group]) -> None:
    groups.clear()


@pytest.mark.parametrize(
    ("change", "method", "n", "says"),
    [
        (nothing, "sft_bon", 4, "groups is empty; draw groups with"),
        (without_rewards, "sft_bon", 4, r"every reward is null; see the reasons in manifest\.json"),
        (all_equal, "sft_bon", 4, "all rewards of each prompt are equal.*give a reward that tells"),
        (all_equal, "vbon", 4, "all rewards of each prompt are equal"),
        (unscored, "bonbon", 4, "'p2-5' is not scored; score it with `nonpareil sample`"),
        (twice, "regression", 4, "2 of them have the prompt id 'p1-2'; ids must differ"),
        (without_ids, "bonbon", 4, "'p0-3' has no token ids or log-probs .*BoNBoN trains on"),
        (without_logprobs, "regression", 4, "'p0-3' has no token ids or log-probs"),
        (lambda groups: None, "bonbon", 5, "'p0-3' has 4 completions, and BoNBoN needs 5.*lower n"),
        (lambda groups: None, "sft_bon", 9, "has 4 completions, and SFTBoN needs 9"),
        (some_failed, "sft_bon", 4, "no prompt has more than 3 rewards that are not null, and 4 are"),
        (some_failed, "bonbon", 4, "no prompt has more than 3 rewards"),
    ],
)
def test_groups_that_teach_nothing_are_refused(
    change: Callable[[list[Group]], Any], method: str, n: int, says: str, tmp_path: Path
) -> None:
    groups = stored_groups(4)
    change(groups)
    with pytest.raises(DataError, match=says):
        check_stored(groups, build(method, {"n": n}, stored=True))


def test_groups_that_can_be_trained_on_are_not_refused() -> None:
    for name in ("sft_bon", "bonbon", "regression", "vbon"):
        check_stored(stored_groups(4), build(name, {"n": 3}, stored=True))
    lines = stored_groups(4)
    without_ids(lines)
    some_failed(lines)
    check_stored(lines, build("vbon", {"n": 8}, stored=True))  # rewards are all it needs, for any n
    few = stored_groups(4)
    all_equal(few[:-1])
    check_stored(few, build("sft_bon", {"n": 4}, stored=True))


@pytest.mark.parametrize("method", ["jbond", "bond", "rloo"])
def test_methods_that_draw_their_own_refuse_groups(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"groups is not read by method={method}.*remove groups"):
        make_trainer(tmp_path, method=method, groups=stored_groups(4))


@pytest.mark.parametrize("method", ["bonbon", "sft_bon"])
def test_offline_methods_need_groups(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"groups is missing: method={method} trains on stored groups"):
        make_trainer(tmp_path, method=method)


@pytest.mark.parametrize(
    ("method", "setting"),
    [("vbon", "num_reference_samples"), ("regression", "num_generations"), ("sft_bon", "num_generations")],
)
def test_what_is_not_read_with_groups_is_refused(method: str, setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{setting}=3 is not read by method={method}.*remove {setting}"):
        make_trainer(tmp_path, method=method, groups=stored_groups(8), **{setting: 3})
