"""How the rewards of a training are put together."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import option


@dataclass
class RewardSettings:
    """Of the rewards that the trainer is given."""

    HEADING: ClassVar = "Rewards"

    reward_weights: list[float] | None = option(None, "One weight per reward. Default: 1 each.")
    reward_timeout: float | None = option(
        None,
        "Seconds a Python reward may take, or a verifier for one completion; then its rewards are null.",
        above=0,
        reader="reward functions, verifiers, endpoints and the judge",
    )
    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )
