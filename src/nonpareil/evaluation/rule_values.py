"""What rules of selection are worth, off stored groups: exact sums over their laws, no drawing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.maths.bootstrap import Interval, Scale
from nonpareil.selection.candidates import Candidates
from nonpareil.selection.rule import Rule


@dataclass(frozen=True)
class RuleValue:
    """One rule on the groups; all rules rest on the same prompts."""

    rule: str
    draws: float
    """In the mean, an answer; what the rule chooses from."""
    tokens_per_prompt: float
    """Mean tokens drawn for one answer; NaN where token ids are not known."""
    reward: Interval
    """Of the answer: sum of law times reward."""
    win_rate: Interval | None
    """Against one further draw, ties one half: each completion in turn is that draw, and the rule chooses among the
    others. So it is that of a rule on the whole group with one draw less. None where the rule needs all draws."""
    kl_upper_bound: float
    """KL, nats, of the law to an even draw among the group's known completions, mean over prompts. The answers'
    KL to one draw of the policy is that at most."""
    gold: Interval | None
    """As `reward`, of the gold reward; None without one."""


@dataclass(frozen=True)
class RuleValues:
    """Rules side by side."""

    rules: tuple[RuleValue, ...]
    num_prompts: int
    num_prompts_used: int
    """Those with as many known rewards as asked for, of which every rule chooses a completion."""
    too_few: dict[str, int] = field(default_factory=dict)
    """Of a rule that takes more completions than a prompt has known rewards: how many prompts it leaves out so."""

    def notes(self) -> list[str]:
        """What to know of the prompts that are left out, a sentence each."""
        if self.num_prompts_used == self.num_prompts:
            return []
        said = [
            f"{self.num_prompts_used} of {self.num_prompts} prompts take part, the same for every rule; of the "
            "others too few rewards, or no answers, are known."
        ]
        return said + [
            f"{rule} leaves out {count} of them, which have fewer known rewards than it takes."
            for rule, count in self.too_few.items()
        ]


def rule_values(
    rules: Sequence[Rule],
    candidates: Candidates,
    mean_length: float,
    bootstrap: Bootstrap,
    *,
    least: int = 1,
    gold: Float[Tensor, "b m"] | None = None,
    scales: tuple[Scale, Scale] = ("real", "real"),
) -> RuleValues:
    """Every rule's value on the same prompts.

    Args:
        rules: to compare.
        candidates: with all that the rules need; a completion that is NaN in `gold` is left out of everything.
        mean_length: tokens of a completion.
        bootstrap: of the intervals.
        least: known rewards that a prompt must have to take part.
        gold: a second reward, by which choices are valued.
        scales: of reward and gold.

    Raises:
        ConfigError: a rule that takes more candidates than there are.
        DataError: something that a rule reads is not there, or no prompt of which every rule chooses.
    """
    size = candidates.rewards.shape[1]
    for rule in rules:
        if rule.least > size:
            raise ConfigError(
                f"rules: {str(rule)!r} takes {rule.least} completions, and the groups have {size} each"
            )
    laws = [rule.law(candidates) for rule in rules]
    known = (~candidates.rewards.isnan()).sum(1)
    too_few = {str(rule): count for rule in rules if (count := int((known < rule.least).sum()))}
    _refuse_too_large(rules, known)
    used = known >= least
    for law in laws:
        used &= law.sum(1) > 0
    if not used.any():
        names = ", ".join(map(str, rules))
        raise DataError(
            f"rules: of no prompt can all of {names} choose a completion; see that what they read is there "
            "(answers, log-probs), or ask for fewer rules at once"
        )
    kept = candidates.rows(used)
    values = [
        _value(rule, law[used], kept, mean_length, bootstrap, None if gold is None else gold[used], scales)
        for rule, law in zip(rules, laws, strict=True)
    ]
    return RuleValues(tuple(values), len(used), int(used.sum()), too_few)


def _refuse_too_large(rules: Sequence[Rule], known: Tensor) -> None:
    most = int(known.max())
    for rule in rules:
        if rule.least > most > 0:
            raise DataError(
                f"rules: {str(rule)!r} takes {rule.least} completions with a known reward, and no prompt has more "
                f"than {most}; take {most} at most, or score the groups anew"
            )


def _value(
    rule: Rule,
    law: Float[Tensor, "b m"],
    candidates: Candidates,
    mean_length: float,
    bootstrap: Bootstrap,
    gold: Tensor | None,
    scales: tuple[Scale, Scale],
) -> RuleValue:
    known = ~candidates.rewards.isnan()
    draws = sum(rule.draws(int(count)) for count in known.sum(1)) / len(law)
    win = _win_rate(rule, candidates)
    return RuleValue(
        rule=str(rule),
        draws=draws,
        tokens_per_prompt=draws * mean_length,
        reward=bootstrap.mean(_expected(law, candidates.rewards), scales[0]),
        win_rate=None if win is None else bootstrap.mean_or_none(win, "share"),
        kl_upper_bound=_kl_to_even(law, known).mean().item(),
        gold=None if gold is None else bootstrap.mean(_expected(law, gold), scales[1]),
    )


def _expected(law: Float[Tensor, "b m"], values: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    centre = values.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)  # equal values have exactly that mean
    return (law * torch.where(law > 0, values - centre, 0.0)).sum(1) + centre[:, 0]


def _kl_to_even(law: Float[Tensor, "b m"], known: Bool[Tensor, "b m"]) -> Float[Tensor, " b"]:
    return torch.xlogy(law, law * known.sum(1, keepdim=True)).sum(1)


def _win_rate(rule: Rule, candidates: Candidates) -> Float[Tensor, " b"] | None:
    """Each prompt's, the mean over completions that the rule, without one, is held against; NaN without any."""
    rewards = candidates.rewards
    size = rewards.shape[1]
    if size - 1 < max(rule.least, 1):
        return None
    wins, held = torch.zeros(len(rewards)).double(), torch.zeros(len(rewards)).double()
    for place in range(size):
        others = candidates.without(place)
        law, one = rule.law(others), rewards[:, place : place + 1]
        beats = (others.rewards > one).double() + (others.rewards == one).double() / 2
        counts = (law.sum(1) > 0) & ~one[:, 0].isnan()
        wins += torch.where(counts, (law * beats).sum(1), 0.0)
        held += counts
    return torch.where(held > 0, wins / held, torch.nan)
