"""How the rewards of a training are put together."""

from dataclasses import dataclass

from nonpareil.settings import option


@dataclass
class RewardSettings:
    """Of the rewards that the trainer is given."""

    reward_weights: list[float] | None = option(None, "One weight a reward; default 1 each.")
    reward_timeout: float | None = option(
        None,
        "Seconds a Python reward may take; then its rewards are null.",
        above=0,
        reader="reward functions, endpoints and the judge",
    )
    trust_remote_code: bool = option(
        False, "Run the code that a model, tokenizer or reward model brings along (auto_map)."
    )
