"""How completions are drawn from policy and anchor."""

from dataclasses import dataclass

from nonpareil.errors import ConfigError
from nonpareil.records import SamplingParams
from nonpareil.settings import option


@dataclass
class DrawingSettings:
    """Under TRL's names. What would cut off a part of the vocabulary is refused; see `check_drawing`."""

    max_completion_length: int = option(256, "Most tokens drawn per completion.", at_least=1)
    temperature: float = option(
        1.0,
        "Of the policy: drawing, log-probs and loss all apply it.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(
        1.0, "Refused below 1: log-probs would not be those drawn from.", above=0, at_most=1
    )
    top_k: int = option(0, "Refused above 0, for the same reason.", at_least=0)
    min_p: float = option(0.0, "Refused above 0, for the same reason.", at_least=0, below=1)

    def sampling(self, seed: int) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(self.max_completion_length, self.temperature, seed=seed)


def check_drawing(settings: DrawingSettings) -> None:
    """Refuse draws whose log-probs would not be the policy's.

    Raises:
        ConfigError: naming the setting that cuts off a part of the vocabulary.
    """
    truncates = {"top_p": settings.top_p < 1, "top_k": settings.top_k > 0, "min_p": settings.min_p > 0}
    for name in (name for name, does in truncates.items() if does):
        raise ConfigError(
            f"{name}={getattr(settings, name)} draws from a part of the vocabulary, whose log-probs are not "
            "the policy's: the KL and the policy gradient would be wrong without an error. "
            f"Remove {name}; use temperature to sharpen"
        )
