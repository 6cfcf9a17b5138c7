"""How the rewards of a training are put together."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import option

SCALES = ("none", "group", "batch")
SUM_FIRST, EACH_FIRST = "sum_then_normalize", "normalize_then_sum"
"""TRL's words."""


@dataclass
class RewardSettings:
    """Of the rewards that the trainer is given."""

    HEADING: ClassVar = "Rewards"

    reward_weights: list[float] | None = option(None, "One weight per reward. Default: 1 each.")
    scale_rewards: str = option(
        "none",
        "Divide rewards by their standard deviation: group (within a prompt's draws), batch (the step's), or none. "
        "For rloo; the others compare ranks, which no scale changes.",
        choices=SCALES,
        also=(True, False),
    )
    multi_objective_aggregation: str = option(
        SUM_FIRST,
        f"Of several rewards: {SUM_FIRST} (the weighted sum is what is compared), or {EACH_FIRST} (each less its "
        "mean, over its standard deviation within the prompt's draws, then weighted and summed). Metrics and "
        "evaluation have the weighted sum.",
        choices=(SUM_FIRST, EACH_FIRST),
    )
    reward_timeout: float | None = option(
        None,
        "Seconds a Python reward may take, or a verifier for one completion; then its rewards are null.",
        above=0,
        reader="reward functions, verifiers, endpoints and the judge",
    )
    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )
