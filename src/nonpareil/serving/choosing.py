"""Which of the drawn answers are returned."""

import random
from collections import Counter
from collections.abc import Sequence

from nonpareil.serving.records import Scored, UpstreamError

BEST_OF_N = "best_of_n"
RULES = (BEST_OF_N,)
FALLBACKS = ("none", "first")
"""What is returned where no answer has a reward: an error, or the first that were drawn."""


def chosen(scored: Scored, n: int, seed: int) -> list[int]:
    """The places of the n best answers, best first; ties are broken by the seed. A null reward is never chosen.

    Raises:
        UpstreamError: 502: fewer than n have a reward; with the reasons.
    """
    dice = random.Random(seed)
    tickets = [dice.random() for _ in scored.rewards]
    known = [(-reward, ticket, i) for i, (reward, ticket) in enumerate(zip(scored.rewards, tickets, strict=True))
             if reward is not None]  # fmt: skip
    if len(known) < n:
        raise UpstreamError(
            502,
            "reward_error",
            f"{len(known)} of {len(scored.rewards)} answers have a reward, n={n} must: {reasons(scored.failures)}",
        )
    return [place for _, _, place in sorted(known)[:n]]


def reasons(failures: Sequence[str | None]) -> str:
    """Why rewards are null, each reason with its count."""
    counted = Counter(reason for reason in failures if reason is not None)
    return (
        "; ".join(f"{count} times {reason}" for reason, count in counted.most_common())
        or "no reason was given"
    )
