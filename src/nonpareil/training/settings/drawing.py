"""How completions are drawn from policy and anchor."""

from dataclasses import dataclass

from nonpareil.records import SamplingParams
from nonpareil.settings import option

CUT = (
    "draws from a part of the vocabulary, whose log-probs are not the policy's: the KL and the policy gradient "
    "would be wrong without an error. Remove {}; use temperature to sharpen"
)
"""Why nothing but the whole vocabulary is drawn from."""


@dataclass
class DrawingSettings:
    """Under TRL's names. What would cut off a part of the vocabulary is refused."""

    max_completion_length: int = option(256, "Most tokens drawn a completion.", at_least=1)
    temperature: float = option(
        1.0,
        "Of the policy: drawing, log-probs and loss all apply it.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(1.0, "Refused below 1.", above=0, at_most=1, refused=CUT.format("top_p"))
    top_k: int = option(0, "Refused above 0.", at_least=0, refused=CUT.format("top_k"))
    min_p: float = option(0.0, "Refused above 0.", at_least=0, below=1, refused=CUT.format("min_p"))

    def sampling(self, seed: int) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(self.max_completion_length, self.temperature, seed=seed)
