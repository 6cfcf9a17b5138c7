"""`length`: how far a completion's number of tokens is from the one asked for."""

from dataclasses import dataclass

from nonpareil.errors import ConfigError
from nonpareil.rewards.verifiers.base import CannotTell, Row, Verifier
from nonpareil.settings import option


@dataclass(eq=False)
class Length(Verifier):
    """0 at the target, or anywhere up to the limit, and -1 for each further target or limit of tokens beyond it.

    Tokens are those that were sampled; the end token counts for nothing. Without token ids it is null.
    """

    name = "length"

    target: int | None = option(None, "Tokens that a completion should have.", at_least=1)
    at_most: int | None = option(None, "Tokens that a completion may have.", at_least=1)

    def __post_init__(self) -> None:
        """Refuse both numbers, or none.

        Raises:
            ConfigError: as `Verifier`, or that.
        """
        super().__post_init__()
        if (self.target is None) == (self.at_most is None):
            raise ConfigError("give one of target and at_most, in tokens: length:at_most=200")

    def judge(self, row: Row) -> float:
        """The negative distance, as a share of the number asked for.

        Raises:
            CannotTell: a server gave no token ids.
        """
        if not row.completion_ids and row.completion:
            raise CannotTell("the token ids are not known, as of a server that gives none")
        ended = row.finish_reason == "stop" and bool(row.completion_ids)
        tokens = len(row.completion_ids) - ended
        if self.target is not None:
            return -abs(tokens - self.target) / self.target
        assert self.at_most is not None
        return -max(0, tokens - self.at_most) / self.at_most
