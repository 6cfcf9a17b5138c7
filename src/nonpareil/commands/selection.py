"""What commands share that choose among stored completions: rules and the gold reward, as the options name them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.options.selection import READS_ANSWERS, READS_SIMILARITY, ChoiceOptions
from nonpareil.records import Group, ScoreRequest, prompt_of
from nonpareil.selection.rule import Rule, needs_of
from nonpareil.settings import refuse_unread

if TYPE_CHECKING:
    from nonpareil.rewards.combine import CombinedReward

_SCORED_HERE = ("function", "verifier")


def check_reads(options: ChoiceOptions, rules: Sequence[Rule]) -> None:
    """Refuse how answers and similarities are read where no rule reads them, and a package that is not there.

    Raises:
        ConfigError: naming the option.
    """
    needs = needs_of(rules)
    names = ", ".join(map(str, rules)) or "none is given"
    absent = {
        reader: f"the rules are: {names}" if rules else "there is none"
        for need, reader in (("answers", READS_ANSWERS), ("similarity", READS_SIMILARITY))
        if need not in needs
    }
    refuse_unread(options, absent)
    if "similarity" in needs:
        from nonpareil.selection.texts import check_similarity

        check_similarity(options.similarity)


def gold_scores(spec: Any, groups: Sequence[Group]) -> tuple[str, list[list[float | None]]]:
    """The name of a gold reward and its values, a list a group: stored ones, or a function's or verifier's.

    Raises:
        ConfigError: no such stored reward, and no function or verifier that can score the groups.
        DataError: stored for some groups alone.
        RewardError: a function that breaks its contract.
    """
    from nonpareil.rewards.specs import kind_of

    name = str(spec)
    having = [name in group.rewards_by_name for group in groups]
    if all(having):
        return name, [group.rewards_by_name[name] for group in groups]
    if any(having):
        raise DataError(
            f"gold_reward={name!r} is stored for {sum(having)} of {len(groups)} groups; score the others"
        )
    stored = ", ".join(dict.fromkeys(one for group in groups for one in group.rewards_by_name)) or "none"
    try:
        kind = kind_of(spec)
    except ConfigError as error:
        raise ConfigError(
            f"gold_reward={name!r} is no stored reward (there are: {stored}): {error}"
        ) from error
    if kind not in _SCORED_HERE:
        raise ConfigError(
            f"gold_reward={name!r} is no stored reward (there are: {stored}), and no function or verifier; score "
            "the groups with it first (nonpareil sample into the same folder, then again with the first reward)"
        )
    reward = _loaded(spec, groups, name)
    scores = reward.score(ScoreRequest.of(groups)).values
    if all(value is None for value in scores):
        raise DataError(
            f"gold_reward={name!r} gave no value for any of {len(scores)} completions; see its reasons"
        )
    places = iter(scores)
    return reward.name, [[next(places) for _ in group.completions] for group in groups]


def _loaded(spec: Any, groups: Sequence[Group], name: str) -> "CombinedReward":
    from nonpareil.rewards.specs import load_rewards

    prompts = [prompt_of(group) for group in groups]
    longest = max(len(ids) for group in groups for ids in group.completion_token_ids or [[]])
    try:
        return load_rewards([spec], check=lambda reward: reward.check_prompts(prompts, longest, None))
    except ConfigError as error:
        raise ConfigError(f"gold_reward={name!r}: {error}") from error
