"""What a rule is: its parameters, what it reads, and its law."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nonpareil.selection.needs import Need
from nonpareil.settings import CheckedOptions, settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from nonpareil.selection.candidates import Candidates


@dataclass(frozen=True)
class Rule(CheckedOptions):
    """A rule with its parameters, which are its fields. Its law is the function of its name in `module`."""

    name: ClassVar[str]
    module: ClassVar[str] = "laws"
    reads_rewards: ClassVar[bool] = True
    """Whether it looks at rewards at all; a completion whose reward is null is left out either way."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What of the candidates it reads beside the rewards."""
        return ()

    @property
    def least(self) -> int:
        """Fewest candidates that it chooses from."""
        return 1

    def draws(self, size: int) -> float:
        """How many draws it takes in the mean, of a group of this size."""
        return size

    def law(self, candidates: "Candidates") -> "Tensor":
        """The probability of each candidate [b, m]; rows sum to 1.

        A row is 0 throughout where the rule has no candidate: no reward is known, or fewer than it asks for.

        Raises:
            ConfigError: a parameter that the groups are too small for.
            DataError: an infinite or, for `weighted_majority`, a negative reward; something that it reads is not
                there at all.
        """
        function = getattr(importlib.import_module(f"nonpareil.selection.{self.module}"), self.name)
        read = {need: candidates.need(need, self.name) for need in self.needs}
        return function(candidates.rewards, **read, **self.parameters())

    def parameters(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def __str__(self) -> str:
        """As `parse_rule` reads it, without what is the default."""
        settings = settings_of(type(self))
        given = [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.parameters().items()
            if value != settings[name].default
        ]
        return f"{self.name}:{','.join(given)}" if given else self.name


def needs_of(rules: Sequence[Rule]) -> tuple[Need, ...]:
    """What any of the rules reads beside rewards."""
    return tuple(dict.fromkeys(need for rule in rules for need in rule.needs))
