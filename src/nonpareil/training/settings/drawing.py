"""How completions are drawn from policy and anchor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.errors import ConfigError
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

    HEADING: ClassVar = "Drawing"

    max_completion_length: int = option(256, "Most tokens drawn per completion.", at_least=1)
    temperature: float = option(
        1.0,
        "Of the policy: drawing, log-probs and loss all apply it.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(1.0, "Refused below 1.", above=0, at_most=1, refused=CUT.format("top_p"))
    top_k: int = option(0, "Refused above 0.", at_least=0, refused=CUT.format("top_k"))
    min_p: float = option(0.0, "Refused above 0.", at_least=0, below=1, refused=CUT.format("min_p"))
    repetition_penalty: float = option(
        1.0,
        "Refused unless 1.",
        above=0,
        refused="makes each next token depend on those before in a way that the policy does not, so that every KL "
        "and gradient would be another policy's. Remove it; `nonpareil sample` takes it",
    )
    mask_truncated_completions: bool = option(
        False,
        "No gradient from completions that max_completion_length cut. Their rewards still count for the others: in "
        "quantiles, baselines and means.",
    )

    def sampling(self, seed: int) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(self.max_completion_length, self.temperature, seed=seed)


def refuse_changed_groups(path: str, sampling: Mapping[str, Any]) -> None:
    """Refuse stored groups whose completions are no draws of the policy, by how a manifest says they were drawn.

    Raises:
        ConfigError: a penalty on repetitions, or stop strings, each with the reason.
    """
    if (penalty := sampling.get("repetition_penalty", 1)) != 1:
        raise ConfigError(
            f"groups={path!r} was drawn with repetition_penalty={penalty}, which makes each next token depend on "
            "those before in a way that the policy does not: their log-probs are another policy's, and so would be "
            "every KL and gradient. Draw groups without it; `curve` and `export` take these"
        )
    if stop := sampling.get("stop"):
        raise ConfigError(
            f"groups={path!r} was drawn with stop={list(stop)!r}: completions end where the policy would have gone "
            "on, with no end token drawn, so that what is trained on them would not learn to end, and its KL would "
            "be that of texts which nobody draws without the same stop. Draw groups without it; `curve` and "
            "`export` take these"
        )


def refuse_cut_groups(path: str, sampling: Mapping[str, Any]) -> None:
    """Refuse, for training, stored groups that were drawn from a part of the vocabulary.

    Raises:
        ConfigError: naming the setting.
    """
    for name, whole in (("top_p", 1), ("top_k", 0), ("min_p", 0)):
        if (there := sampling.get(name, whole)) != whole:
            raise ConfigError(
                f"groups={path!r} was drawn with {name}={there}, from a part of the vocabulary, whose log-probs "
                "are not the policy's: the KL and the gradient would be wrong without an error. Draw groups with "
                f"{name}={whole}; `curve` and `export` take these"
            )
