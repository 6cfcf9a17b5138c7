"""From settings to the method that runs and the anchor it is given."""

from collections.abc import Iterable

from nonpareil.errors import ConfigError
from nonpareil.methods import build, check_class, name_of
from nonpareil.methods.base import Method
from nonpareil.methods.credited import CreditedMethod
from nonpareil.models.zero import zero_requested
from nonpareil.records import Group
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig
from nonpareil.training.settings.rewards import EACH_FIRST
from nonpareil.training.tilted_start import check_tilted_start


def method_of(args: DistillationConfig, *, stored: bool, credited: bool = False) -> Method:
    """The method of the settings: the object itself, or the one they name, with its defaults.

    `stored`: groups are given; `credited`: credits are.

    Raises:
        ConfigError: an unknown method, or as `check_method`.
    """
    method = build(args.method, {}, stored=stored) if isinstance(args.method, str) else args.method
    return check_method(args, method, stored=stored, credited=credited)


def check_method(args: DistillationConfig, method: Method, *, stored: bool, credited: bool = False) -> Method:
    """The method itself, where the other settings let it run.

    Raises:
        ConfigError: no dataclass; groups beside fresh anchor draws, or none where they are needed; credits that are
            missing or not read; an anchor that would move against the method, or steps on the same draws that could
            not be resumed.
    """
    label = type(method).__name__
    check_class(type(method), label)
    if stored and method.stored_groups == "refused":
        raise ConfigError(f"groups is not read by method={label}, which draws its own; remove groups")
    if stored and method.anchor_draws:
        raise ConfigError(
            f"groups: {label} draws {method.anchor_draws} fresh reference completions per prompt, and groups would "
            "be counted beside them; make it with stored=True, or leave groups out"
        )
    if (method.stored or method.stored_groups == "required") and not stored:
        raise ConfigError(f"groups is missing: {label} learns from stored groups; give them")
    _check_credited(args, method, credited=credited)
    if args.scale_rewards != "none" and not method.follows_reward_scale:
        raise ConfigError(
            f"scale_rewards={args.scale_rewards} is not read by method={name_of(type(method))}, which compares the "
            "ranks of a prompt's rewards, and no scale changes those; remove it (of several rewards, "
            f"multi_objective_aggregation={EACH_FIRST} changes what they add up to)"
        )
    if method.num_iterations > 1:
        _check_iterations(args, method.num_iterations)
    anchor_motion(args, method)
    return method


def draws_here(method: Method, args: DistillationConfig) -> bool:
    """Whether a training draws completions: for its steps, or to evaluate on its way.

    Raises:
        ConfigError: it does not, and vLLM is to draw them.
    """
    draws = method.policy_draws + method.anchor_draws > 0 or args.eval_strategy != "no"
    if args.use_vllm and not draws:
        raise ConfigError(
            f"use_vllm: {name_of(type(method))} draws nothing here, and nothing would use it; remove it"
        )
    return draws


def check_group_rewards(
    reward: CombinedReward, method: Method, args: DistillationConfig, *, stored: bool
) -> None:
    """Refuse a reward whose scores are of one group, or one step, where they would be compared with others.

    Raises:
        ConfigError: naming it and the setting; or groups of a size that it cannot score.
    """
    names, label = reward.names_within_groups, type(method).__name__
    if stored and method.policy_draws and (changing := reward.names_reading_state):
        raise ConfigError(
            f"reward {changing[0]!r} reads trainer_state, and {label} would compare its scores of this training's "
            "draws with those of the stored groups, which were scored without a training; leave groups out, or let "
            "the function not name trainer_state"
        )
    if not names:
        return
    if args.eval_strategy != "no":
        when = getattr(args.eval_strategy, "value", args.eval_strategy)
        raise ConfigError(
            f"reward {names[0]!r} compares completions of one group, and eval_strategy={when!r} "
            "scores one completion per prompt; give eval_strategy=no"
        )
    if stored and method.policy_draws:
        raise ConfigError(
            f"reward {names[0]!r} compares completions of one group, and {label} compares fresh draws with stored "
            "groups, which were judged apart; leave groups out, or give a reward model, function or endpoint"
        )
    if size := method.policy_draws + method.anchor_draws:
        reward.check_group_size(size)


def check_aggregation(
    reward: CombinedReward, method: Method, args: DistillationConfig, groups: Iterable[Group] = ()
) -> None:
    """Refuse to standardize rewards where that changes nothing, or where stored groups lack what is to be.

    Raises:
        ConfigError: naming the setting.
    """
    given = f"multi_objective_aggregation={args.multi_objective_aggregation}"
    if args.multi_objective_aggregation != EACH_FIRST:
        return
    if len(reward.names) < 2:
        other = "scale_rewards=group" if method.follows_reward_scale else "nothing"
        raise ConfigError(
            f"{given} puts several rewards on one scale, and there is one, {reward.names[0]!r}; for one it is "
            f"{other}: remove it"
        )
    if isinstance(method, CreditedMethod):
        raise ConfigError(
            f"{given} is not read by method={name_of(type(method))}, which learns from credits, not from rewards; "
            "remove it"
        )
    for group in groups:
        if lacks := [name for name in reward.names if name not in group.rewards_by_name]:
            raise ConfigError(
                f"{given} needs each reward of the stored groups, and {group.prompt_id!r} has none of "
                f"{', '.join(lacks)}; score them with `nonpareil sample`, or remove it"
            )


def _check_credited(args: DistillationConfig, method: Method, *, credited: bool) -> None:
    label = name_of(type(method))
    if not isinstance(method, CreditedMethod):
        if credited:
            raise ConfigError(f"credits is not read by method={label}; remove credits")
        return
    if args.mask_truncated_completions:
        raise ConfigError(
            f"mask_truncated_completions=true with method={label}: it learns what follows each prefix, "
            "and a prefix is whole whatever became of its completion; remove it"
        )
    if not credited:
        raise ConfigError(
            f"credits is missing: method={label} learns from credits of the groups' completions"
        )
    if zero_requested():
        raise ConfigError(
            f"method={label} with ZeRO-3 is not supported: its reference makes no passes in shards; take "
            "distributed_type: MULTI_GPU and --shard_weights true"
        )
    check_tilted_start(method, args, adapted=args.use_peft)
    draws = method.policy_draws + method.anchor_draws
    if draws or method.anchor_ema_rate is not None or method.stored_groups != "required":
        raise ConfigError(
            f"method={label} is a CreditedMethod, which draws nothing, has a fixed reference and needs stored "
            "groups; leave policy_draws, anchor_draws, anchor_ema_rate and stored_groups as they are"
        )


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
                f"{name}={value} is not read by method={name_of(type(method))}, whose reference is fixed; "
                f"remove {name}"
            )
    if args.anchor_refresh_steps is not None:
        return 0.0, args.anchor_refresh_steps
    return (default or 0.0) if args.anchor_ema_rate is None else args.anchor_ema_rate, 0
