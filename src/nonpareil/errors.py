"""Errors a user can mend. Each says what is wrong, the value seen, and the remedy."""


class NonpareilError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""


class ConfigError(NonpareilError, ValueError):
    """A setting, flag or argument that cannot work."""


class DataError(NonpareilError, ValueError):
    """Prompts, groups or files that are not what they must be."""


class ModelError(NonpareilError, ValueError):
    """A model, tokenizer or reward model that cannot be used as asked."""


class NotFiniteError(NonpareilError, ArithmeticError):
    """NaN or infinity where a model, or training it, must give numbers; never drawn from, averaged or saved."""


class DivergedError(NotFiniteError):
    """A policy that gives no numbers any more: its weights are worth nothing."""


class RewardError(NonpareilError, RuntimeError):
    """A reward that breaks its contract (as opposed to one that fails on a sample, which is a null)."""


class EngineError(NonpareilError, RuntimeError):
    """An engine that does not answer what it was asked."""


class SyncError(EngineError):
    """An engine whose weights are not the trainer's after a push."""


class RemoteError(NonpareilError, RuntimeError):
    """A server that was not reached, refused, or answered what cannot be used. No key stands in it."""

    def __init__(self, reason: str, address: str = "", status: int | None = None) -> None:
        """`address` is for the reader and part of the message; `reason` is without it; `status` is HTTP's."""
        super().__init__(f"{address}: {reason}" if address else reason)
        self.reason, self.status = reason, status
