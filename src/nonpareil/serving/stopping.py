"""When draws in rounds end: a request's `max_draws`, and the reward or quantile that is good enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.serving.fields import is_number, whole
from nonpareil.serving.problems import refused

if TYPE_CHECKING:
    from nonpareil.serving.calibration import Calibration

REWARD, QUANTILE = "stop_at_reward", "stop_at_quantile"


@dataclass(frozen=True)
class Goal:
    """An answer is good enough by its reward, or by its quantile among the policy's answers to the prompt."""

    at: float
    """It is, from here on."""
    calibration: "Calibration | None" = None
    """What tells quantiles; None takes the reward itself."""

    @property
    def field(self) -> str:
        """The body's, that says it."""
        return REWARD if self.calibration is None else QUANTILE

    @property
    def why(self) -> str:
        """What a request is said to have been stopped by."""
        return self.field.removeprefix("stop_at_")

    def standings(self, rewards: Sequence[float | None]) -> Sequence[float | None]:
        """What is held against the goal, of all answers of a request so far."""
        return rewards if self.calibration is None else self.calibration.quantiles(rewards)

    def reached(self, rewards: Sequence[float | None]) -> int:
        """How many answers are good enough; one with a null reward never is."""
        return sum(one is not None and one >= self.at for one in self.standings(rewards))


@dataclass(frozen=True)
class Stopping:
    """What a server has draws in rounds by, where a request does not say."""

    max_draws: int | None = None
    goal: Goal | None = None
    calibration: "Calibration | None" = None
    """Without one, no request may name a quantile."""


def rounds_of(
    body: Mapping[str, Any], defaults: Stopping, best_of: int, most_allowed: int, rule: str
) -> tuple[int, Goal | None]:
    """Most draws, and when they end; 0 and None where so many are drawn, whatever they are like.

    Raises:
        UpstreamError: 400: what cannot be, by the field's name.
    """
    most = whole(body, "max_draws", max(defaults.max_draws or 0, best_of))
    own, goal = _own_goal(body, defaults), defaults.goal
    if own is not None:
        goal = own
    if most < best_of:
        raise refused(
            f"max_draws={most} is less than best_of={best_of}, which are drawn at once", "max_draws"
        )
    if most > most_allowed:
        raise refused(f"max_draws={most} is more than this server draws, {most_allowed}", "max_draws")
    if most == best_of:
        if own is not None and body.get("max_draws") is None:
            raise refused(f"{own.field} is read with max_draws; give both", own.field)
        return 0, None
    if goal is None:
        raise refused(f"max_draws={most} is read with {REWARD} or {QUANTILE}; give one of them", "max_draws")
    if rule.partition(":")[0] != "best_of_n":
        raise refused(
            f"rule={rule!r} chooses among a fixed number of answers; give max_draws={best_of}, as best_of is, "
            "with it",
            "rule",
        )
    return most, goal


def _own_goal(body: Mapping[str, Any], defaults: Stopping) -> Goal | None:
    given = [name for name in (REWARD, QUANTILE) if body.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise refused(f"{REWARD} and {QUANTILE} are two ways to say one thing; give one of them", QUANTILE)
    (name,) = given
    value = body[name]
    if not is_number(value):
        raise refused(f"{name}={value!r:.80} must be a number", name)
    if name == REWARD:
        return Goal(float(value))
    if not 0 <= value < 1:
        raise refused(f"{name}={value!r} must be at least 0 and below 1", name)
    if defaults.calibration is None:
        raise refused(
            f"{name}={value!r}: this server has no groups that tell quantiles (calibration); give {REWARD}",
            name,
        )
    if (words := too_fine(value, defaults.calibration)) is not None:
        raise refused(words, name)
    return Goal(float(value), defaults.calibration)


def too_fine(quantile: float, calibration: "Calibration") -> str | None:
    """Why the groups cannot tell a quantile, or None."""
    if quantile <= calibration.finest:
        return None
    return (
        f"{QUANTILE}={quantile!r} is beyond what the calibration's rewards can tell, {calibration.finest:.6g}; "
        "lower it, or give more groups"
    )
