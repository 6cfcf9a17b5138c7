"""A sandbox for programs that a model wrote: one process each, which can compute for a while and no more."""

from nonpareil.user_code.sandbox.client import Ran, Sandbox, Verdict
from nonpareil.user_code.sandbox.judging import Tests

__all__ = ["Ran", "Sandbox", "Tests", "Verdict", "run_program"]


def run_program(
    source: str,
    *,
    stdin: str = "",
    timeout: float = 10.0,
    memory_mb: int = 1024,
    allow_unsandboxed: bool = False,
) -> Ran:
    """Run one program of Python and say what it did; for many, keep a `Sandbox`, which starts once.

    Raises:
        ConfigError: as `Sandbox`.
        RewardError: the sandbox failed, which says nothing of the program.
    """
    limits = {"timeout": timeout, "memory_mb": memory_mb}
    with Sandbox(**limits, workers=1, allow_unsandboxed=allow_unsandboxed) as sandbox:  # type: ignore[arg-type]
        return sandbox.run(source, stdin=stdin)
