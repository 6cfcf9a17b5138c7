"""The one reader of what a user writes for a rule: `soft:temperature=0.5`."""

import re
from collections.abc import Sequence
from dataclasses import MISSING

from nonpareil.errors import ConfigError
from nonpareil.selection.rule import Rule
from nonpareil.selection.rules import RULES
from nonpareil.setting_types import nearest
from nonpareil.settings import read_settings, settings_of

_WRITTEN = re.compile(r"(?P<name>[^:]*)(:(?P<settings>.*))?", re.DOTALL)


def parse_rules(written: Sequence[str], setting: str = "rules") -> list[Rule]:
    """Each rule once, in their order.

    Raises:
        ConfigError: as `parse_rule`; one that is given twice.
    """
    rules = [parse_rule(one, setting) for one in written]
    for place, rule in enumerate(rules):
        if rule in rules[:place]:
            raise ConfigError(f"{setting}: {str(rule)!r} is given twice; remove one")
    return rules


def parse_rule(written: str, setting: str = "rule") -> Rule:
    """The rule of `name` or `name:parameter=value,parameter=value`; `setting`: what a message calls it.

    Raises:
        ConfigError: no such rule or parameter, one that is missing, or a value that cannot be.
    """
    found = _WRITTEN.fullmatch(written)
    name = (found["name"] if found else written).strip()
    if found is None or name not in RULES:
        hint = nearest(name, RULES, quoted=True) or f"; there are: {', '.join(RULES)}"
        raise ConfigError(f"{setting}={written!r} is no rule{hint}")
    cls = RULES[name]
    given = _parameters(found["settings"] or "", written, cls, setting)
    where = f"{setting}={written!r}: "
    values = read_settings(cls, given, where)
    for key, known in settings_of(cls).items():
        if known.default is MISSING and key not in values:
            raise ConfigError(f"{where}{key} is missing; write {name}:{key}=... ({known.help})")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _parameters(text: str, written: str, cls: type[Rule], setting: str) -> dict[str, str]:
    known, given = [*settings_of(cls)], {}
    for part in text.split(",") if text else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not key or not value:
            raise ConfigError(
                f"{setting}={written!r}: {part!r} is no parameter=value; "
                f"write {cls.name}:parameter=value,parameter=value"
            )
        if key not in known:
            has = f"; it has: {', '.join(known)}" if known else ", and has none"
            hint = nearest(key, known, quoted=True) or has
            raise ConfigError(f"{setting}={written!r}: {cls.name} has no parameter {key!r}{hint}")
        if key in given:
            raise ConfigError(f"{setting}={written!r}: {key} is given twice")
        given[key] = value
    return given
