"""What the option `value` names: a folder of `nonpareil value`, or a user's function that makes a value."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.user_code.load import is_function_path, load_function
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.values.base import PrefixValue


def check_named(value: str, policy: "LocalPolicy", temperature: float | None = None) -> None:
    """Refuse what is no value, or one of another policy; no weight is read. Of a function nobody knows the policy.

    `temperature`: of the draws that it is to tell of, where they are known yet.

    Raises:
        ModelError, DataError: a folder that holds no value.
        ConfigError: a value of another policy, or of draws at another temperature, or no such function.
    """
    from nonpareil.values.model import check_temperature_of, check_value_of, read_notes

    if _is_function(value):
        load_function(value)
    else:
        notes, where = read_notes(value), f"value={value!r}"
        check_value_of(notes, policy.info()["fingerprint"], where)
        if temperature is not None:
            check_temperature_of(notes, temperature, where)


def rewards_of_value(value: str) -> Any:
    """What scored the groups that it was fitted on, as their manifest has it; None where nobody knows.

    Raises:
        ModelError, DataError: a folder that holds no value.
    """
    from nonpareil.values.model import read_notes

    return None if _is_function(value) else read_notes(value).rewards


def described(value: str, settings: CreditSettings) -> dict[str, Any]:
    """What decides the value, without its target, as JSON has it.

    Raises:
        ConfigError: a function that makes no value.
    """
    from nonpareil.models.fingerprint import fingerprint

    if _is_function(value):
        return {"function": value, **_made(value, settings).describe()}
    return {"fingerprint": fingerprint(value)}


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
