"""From settings to the method that runs and the anchor it is given."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.methods import build
from nonpareil.methods.base import Method
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig
from nonpareil.user_code.load import is_function_path, load_function

METHOD_PARTS = ("policy_draws", "anchor_draws", "anchor_ema_rate", "targets", "loss", "metrics")


def method_of(args: DistillationConfig, *, stored: bool) -> Method:
    """The method named by the settings, one of ours or a user's own class; `stored`: groups are given.

    Raises:
        ConfigError: an unknown method, or a setting that it does not read or that is out of its range.
    """
    cls = _own_class(args.method) if is_function_path(args.method) else args.method
    return check_method(args, build(cls, args.method_settings(), stored=stored), stored=stored)


def given_method(args: DistillationConfig, method: Method, *, stored: bool) -> Method:
    """A method that was made by the caller: the settings may not describe another one.

    Raises:
        ConfigError: settings of the method beside it, or as `check_method`.
    """
    if settings := args.method_settings():
        name = next(iter(settings))
        raise ConfigError(
            f"{name}={settings[name]!r} is not read beside a method object; set it where the object is made"
        )
    return check_method(args, method, stored=stored)


def check_method(args: DistillationConfig, method: Method, *, stored: bool) -> Method:
    """The method itself, where the other settings let it run.

    Raises:
        ConfigError: groups beside fresh anchor draws, or none where they are needed; an anchor that would move
            against the method, or steps on the same draws that could not be resumed.
    """
    label = type(method).__name__
    if stored and method.anchor_draws:
        raise ConfigError(
            f"groups: {label} draws {method.anchor_draws} fresh reference completions a prompt, and groups would "
            "be counted beside them; make it with stored=True, or leave groups out"
        )
    needs = getattr(method, "stored", False) or getattr(method, "stored_groups", "refused") == "required"
    if needs and not stored:
        raise ConfigError(f"groups is missing: {label} learns from stored groups; give them")
    iterations = getattr(method, "num_iterations", 1)
    if iterations > 1:
        _check_iterations(args, iterations)
    anchor_motion(args, method)
    return method


def check_group_rewards(
    reward: CombinedReward, method: Method, args: DistillationConfig, *, stored: bool
) -> None:
    """Refuse a reward that compares within groups where the training would compare its scores across them.

    Raises:
        ConfigError: naming it and the setting; or groups of a size that it cannot score.
    """
    names = reward.names_within_groups
    if not names:
        return
    label = type(method).__name__
    if args.eval_strategy != "no":
        when = getattr(args.eval_strategy, "value", args.eval_strategy)
        raise ConfigError(
            f"reward {names[0]!r} compares completions of one group, and eval_strategy={when!r} "
            "scores one completion a prompt; give eval_strategy=no"
        )
    if stored and method.policy_draws:
        raise ConfigError(
            f"reward {names[0]!r} compares completions of one group, and {label} compares fresh draws with stored "
            "groups, which were judged apart; leave groups out, or give a reward model, function or endpoint"
        )
    if size := method.policy_draws + method.anchor_draws:
        reward.check_group_size(size)


def _own_class(spec: str) -> type:
    """A user's class, once it has the parts of a `Method`; docs/own-method.md describes them."""
    cls: Any = load_function(spec)
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise ConfigError(f"method={spec!r} must be a dataclass, whose fields are its settings")
    bare = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if bare:
        raise ConfigError(f"method={spec!r}: the setting {bare[0]!r} has no default; give it one")
    missing = [name for name in METHOD_PARTS if not hasattr(cls, name)]
    if missing:
        raise ConfigError(f"method={spec!r} has no {', '.join(missing)}; see docs/own-method.md")
    return cls


def _check_iterations(args: DistillationConfig, iterations: int) -> None:
    if args.save_strategy == "steps" and args.save_steps % iterations:
        raise ConfigError(
            f"save_steps={args.save_steps:g} is no multiple of num_iterations={iterations}: a checkpoint between "
            "two steps on the same draws could not be resumed exactly"
        )


def anchor_motion(args: DistillationConfig, method: Method) -> tuple[float, int]:
    """The anchor's EMA rate and refresh interval; both 0 for the fixed reference.

    Raises:
        ConfigError: motion for a method whose reference is fixed.
    """
    default = method.anchor_ema_rate
    given = {name: getattr(args, name) for name in ("anchor_ema_rate", "anchor_refresh_steps")}
    for name, value in given.items():
        if default is None and value is not None:
            raise ConfigError(
                f"{name}={value} is not read by method={args.method}, whose reference is fixed; remove {name}"
            )
    if args.anchor_refresh_steps is not None:
        return 0.0, args.anchor_refresh_steps
    return (default or 0.0) if args.anchor_ema_rate is None else args.anchor_ema_rate, 0
