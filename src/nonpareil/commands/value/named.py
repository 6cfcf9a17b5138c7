"""What the option `value` names: a folder of `nonpareil value`, or a user's function that makes a value."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.value.doubt import tell_doubt
from nonpareil.errors import ConfigError
from nonpareil.terminal import tell
from nonpareil.training.stored_folder import differing_rewards
from nonpareil.user_code.load import is_function_path, load_function
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.values.base import PrefixValue
    from nonpareil.values.model import ValueNotes


SHORT = 0.02
"""Of a win rate: what is missing of the one asked for, and told."""


def check_named(
    value: str,
    policy: "LocalPolicy",
    temperature: float | None = None,
    rewards: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what is no value, or one of another policy or reward; no weight is read. A function does not say.

    `temperature`: of the draws that it is to tell of, where they are known yet. `rewards`: of the groups that are
    to be credited, as their manifest describes them; None compares none.

    Raises:
        ModelError, DataError: a folder that holds no value.
        ConfigError: a value of another policy or reward, or of draws at another temperature, or no such function.
    """
    from nonpareil.values.model import check_temperature_of, check_value_of, read_notes

    if _is_function(value):
        load_function(value)
        return
    notes, where = read_notes(value), f"value={value!r}"
    check_value_of(notes, policy.info()["fingerprint"], where)
    if temperature is not None:
        check_temperature_of(notes, temperature, where)
    for key, (theirs, ours) in differing_from(notes, rewards).items():
        raise ConfigError(
            f"{where} is of another reward than the groups', whose {key} is {ours!r}, and not {theirs!r}; "
            "fit a value anew on these groups: `nonpareil value`"
        )


def rewards_of_value(value: str) -> Any:
    """What scored the groups that it was fitted on, as their manifest has it; None where nobody knows.

    Raises:
        ModelError, DataError: a folder that holds no value.
    """
    from nonpareil.values.model import read_notes

    return None if _is_function(value) else read_notes(value).rewards


def differing_from(notes: "ValueNotes", rewards: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """The settings in which a value's reward is another than this, with both values; all where nobody knows its.

    `rewards` None, of groups that do not say what scored them, differs in nothing.
    """
    if rewards is None:
        return {}
    return differing_rewards(notes.rewards or {"rewards": [], "weights": None}, rewards)


def described(value: str, settings: CreditSettings) -> dict[str, Any]:
    """What decides the value, without its target, as JSON has it.

    Raises:
        ConfigError: a function that makes no value.
    """
    from nonpareil.models.fingerprint import fingerprint

    if _is_function(value):
        return {"function": value, **_made(value, settings).describe()}
    return {"fingerprint": fingerprint(value)}


def tell_limits(value: str, settings: CreditSettings, temperature: float) -> None:
    """What is to be known of a value before credits are made of it, of groups drawn at this temperature."""
    if _is_function(value):
        tell(
            f"value={value!r} is a function, which does not say of which temperature and reward it is: credits "
            f"take it to be of the groups' own, temperature {temperature:g} among them"
        )
        return
    tell_doubt(value)
    _tell_reach(value, settings)


def _tell_reach(value: str, settings: CreditSettings) -> None:
    """Say how often the target wins that the value's groups and bins can tell, where that is too little."""
    from nonpareil.maths.best_of_n import win_rate
    from nonpareil.maths.target_weights import reachable_win_rate
    from nonpareil.values.model import read_notes

    notes = read_notes(value)
    if not notes.fitted.get("prompts"):
        return
    m = round(notes.fitted["completions"] / notes.fitted["prompts"])
    reached = reachable_win_rate(settings.target, settings.target_n, notes.bins, m)  # type: ignore[arg-type]
    asked = float(win_rate(settings.target_n))
    if asked - reached > SHORT:
        tell(
            f"target_n={settings.target_n:g} wins {asked:.3f}, and of groups of {m} in {notes.bins} bins a policy "
            f"learns to win {reached:.3f} at most; draw more completions a prompt, fit with more bins, or take a "
            "lower target_n (with a higher strength)"
        )


def load_named(value: str, settings: CreditSettings, policy: "LocalPolicy", max_tokens: int) -> "PrefixValue":
    """The value for the settings' target, in the policy's dtype.

    Raises:
        NonpareilError: one that cannot be loaded.
    """
    from nonpareil.values.model import load_value

    if _is_function(value):
        return _made(value, settings)
    loaded = load_value(value, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)
    return loaded.at(settings.target_n, settings.target, max_tokens_per_batch=max_tokens)  # type: ignore[arg-type]


def _is_function(value: str) -> bool:
    return is_function_path(value) and not Path(value).expanduser().is_dir()


def _made(value: str, settings: CreditSettings) -> "PrefixValue":
    from nonpareil.values.base import PrefixValue

    made = load_function(value)(settings.target_n, settings.target)
    if not isinstance(made, PrefixValue):
        raise ConfigError(
            f"value={value!r} made a {type(made).__name__}, without prefix_values, candidate_values or describe; "
            "see docs/value.md"
        )
    return made
