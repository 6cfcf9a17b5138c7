"""The reward model as functions that judge whole texts alone, for rewards that cannot score prefixes.

    nonpareil compare --config recipes/imdb-verifier.yaml

`sentiment` gives its logit, `positive` 1 where that is above 0 and else 0, as a verifier would. Both read
`models/imdb-rm` from the repository's root.
"""

from functools import cache
from typing import Any

from nonpareil.records import ScoreRequest
from nonpareil.rewards.models.transformers import RewardModel


@cache
def _model() -> RewardModel:
    return RewardModel("models/imdb-rm", prepend_bos=True)


def sentiment(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
) -> list[float | None]:
    """How positive prompt and completion read; None where the model cannot score them."""
    return _model().score(ScoreRequest(prompts, completions, completion_ids, {})).values


def positive(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
) -> list[float | None]:
    """1 where they read positive, else 0."""
    scores = sentiment(prompts, completions, completion_ids)
    return [None if score is None else float(score > 0) for score in scores]
