"""The strengths at which a policy is evaluated: a path has points enough, each of them once."""

from collections.abc import Sequence

from nonpareil.errors import ConfigError

FEWEST_POINTS = 2


def path_strengths(given: Sequence[float]) -> list[float]:
    """In order.

    Raises:
        ConfigError: one twice, or fewer than two beside the reference's own, 0.
    """
    strengths = ascending("strengths", given)
    if len([each for each in strengths if each > 0]) < FEWEST_POINTS:
        raise ConfigError(
            f"strengths={list(given)} is no path: what lies between the reference (strength 0) and a single point "
            "would be guessed; give two or more above 0, or leave strengths out to evaluate the policy alone"
        )
    return strengths


def ascending(name: str, given: Sequence[float]) -> list[float]:
    """In order.

    Raises:
        ConfigError: one is there twice.
    """
    values = [float(value) for value in given]
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}={list(given)} has one of them twice; give each once")
    return sorted(values)
