"""Draws in rounds: what of the options can be refused at once, and the groups that tell what a quantile is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError, DataError
from nonpareil.terminal import printable, tell

if TYPE_CHECKING:
    from nonpareil.commands.serve.upstreams import LocalSource, ServedSource
    from nonpareil.options.serve import ServeOptions
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.serving.calibration import Calibration
    from nonpareil.serving.stopping import Stopping

GOALS = ("stop_at_reward", "stop_at_quantile")


def check_rounds(options: "ServeOptions") -> None:
    """What can be refused before anything is read.

    Raises:
        ConfigError: naming the setting that is missing, unread or cannot be.
    """
    most, given = options.max_draws, [name for name in GOALS if getattr(options, name) is not None]
    if options.stop_at_quantile is not None and options.calibration is None:
        raise ConfigError(
            f"stop_at_quantile={options.stop_at_quantile} is told by groups of this policy and these rewards: give "
            "calibration, a folder of `nonpareil sample` or of an earlier server's groups; or stop_at_reward"
        )
    if most is None and not given:
        return
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(GOALS)} are two ways to say one thing; give one of them")
    if most is None:
        name = given[0]
        raise ConfigError(
            f"{name}={getattr(options, name)} is read with max_draws; give both, or remove {name}"
        )
    if not given:
        raise ConfigError(
            f"max_draws={most} is read with {' or '.join(GOALS)}; give one of them, or remove max_draws"
        )
    if not options.best_of < most <= options.max_best_of:
        raise ConfigError(
            f"max_draws={most} must be more than best_of={options.best_of}, a round of it, and at most "
            f"max_best_of={options.max_best_of}"
        )
    if options.rule != "best_of_n":
        raise ConfigError(
            f"max_draws={most} draws until one answer is good enough, and rule={options.rule!r} chooses among a "
            "fixed number; give rule=best_of_n, or remove max_draws"
        )
    if options.judge_model is not None:
        raise ConfigError(
            f"max_draws={most}: a judge compares the answers of one round with one another, and no answer with "
            f"{given[0]}; remove max_draws"
        )


def stopping_of(
    options: "ServeOptions", source: "LocalSource | ServedSource", reward: "CombinedReward | None"
) -> "Stopping":
    """What requests have by default, with the calibration read.

    Raises:
        ConfigError, DataError: groups that tell nothing of what is served.
    """
    from nonpareil.serving.stopping import Goal, Stopping, too_fine

    calibration = None
    if options.calibration is not None and reward is not None:
        calibration = calibration_of(options.calibration, options.max_completion_length, source, reward)
        calibration.prepare(options.max_best_of)
    if options.stop_at_reward is not None:
        return Stopping(options.max_draws, Goal(options.stop_at_reward), calibration)
    if options.stop_at_quantile is None or calibration is None:
        return Stopping(calibration=calibration)
    if (words := too_fine(options.stop_at_quantile, calibration)) is not None:
        raise ConfigError(words)
    return Stopping(options.max_draws, Goal(options.stop_at_quantile, calibration), calibration)


def calibration_of(
    folder: str, limit: int, source: "LocalSource | ServedSource", reward: "CombinedReward"
) -> "Calibration":
    """The groups of a folder as what tells quantiles; `limit`: tokens of an answer that requests have by default.

    Raises:
        ConfigError, DataError: no such groups, or groups of another policy, other rewards or another length.
    """

    from nonpareil.records import GroupNumbers
    from nonpareil.rollouts.manifest import read_manifest
    from nonpareil.rollouts.numbers import read_numbers
    from nonpareil.serving.calibration import Calibration

    where = f"calibration={folder!r}"
    path = Path(folder).expanduser()
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is None:
        raise DataError(
            f"{where} has no manifest, so that nobody knows what was drawn there; give a folder of `nonpareil "
            "sample`, or one of those that a server keeps in its folder of groups"
        )
    _check_same(where, manifest, source, reward)
    sampling: dict[str, Any] = manifest["draw"]["sampling"]
    if (there := sampling["max_completion_length"]) != limit:
        raise ConfigError(
            f"{where} was drawn with max_completion_length={there}, and here it is {limit}; they must be equal"
        )
    groups, lacking = read_numbers(path)
    if lacking:
        tell(f"{where}: {printable(lacking)}")
    if not isinstance(groups, GroupNumbers):
        raise DataError(f"{where} holds groups without rewards, or of unequal sizes; score or draw them anew")
    try:
        return Calibration(groups.rewards, sampling)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_same(
    where: str, manifest: dict[str, Any], source: "LocalSource | ServedSource", reward: "CombinedReward"
) -> None:
    from nonpareil.rollouts.scoring import reward_settings
    from nonpareil.serving.sameness import first_difference

    weights = dict(zip(reward.names, reward.weights, strict=True))
    scoring = manifest.get("scoring") or {}
    names = sorted(scoring.get("rewards") or {})
    there = {
        "names": names,
        "rewards": scoring.get("rewards") or {},
        "weights": scoring.get("aggregate") or {},
    }
    here = {"names": sorted(reward.names), "rewards": reward_settings(reward), "weights": weights}
    if (first := first_difference(there, here)) is not None:
        raise ConfigError(
            f"{where} was scored by other rewards: {first}; give groups that the served rewards scored"
        )
    drawn, served = manifest["draw"]["model"], source.info()
    known = "fingerprint" in drawn and "fingerprint" in served
    name = "fingerprint" if known else "path"
    if drawn.get(name) == served.get(name):
        return
    words = f"{where} was drawn from the model {drawn.get('path')!r}, and {served.get('path')!r} is served"
    if known:
        raise ConfigError(f"{words}, which are other weights; give groups of this policy")
    tell(f"{words}; nobody here knows whether they are the same weights")
