"""A few sequences whose log-probs tell whether an engine has the trainer's weights."""

from collections.abc import Callable, Mapping, Sequence

from nonpareil.errors import ConfigError, SyncError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Prompt

CANARIES, CANARY_TOKENS = 3, 8

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.05, "float16": 0.02}
"""Nats per token, averaged over a sequence: what two right implementations of one model differ by at most."""
MOVED = 0.1
"""A trainer that moved by this share of the tolerance must move the engine by at least something."""


class Canary:
    """Compares an engine's log-probs with the trainer's after each push.

    Args:
        sequences: short ones, of prompts that are drawn from; at least one.
        dtype: the engine's, which sets the tolerance.
        tolerance: nats per token, in place of the dtype's.

    Raises:
        ConfigError: no sequences, an empty completion, or a dtype without a tolerance.
    """

    def __init__(self, sequences: TokenSequences, dtype: str, tolerance: float | None = None):
        """See the class."""
        if not len(sequences) or not all(sequences.completion_ids):
            raise ConfigError("a canary needs at least one sequence, and completions that are not empty")
        if tolerance is None and dtype not in TOLERANCE:
            raise ConfigError(
                f"dtype={dtype!r} has no canary tolerance; give one, or use {', '.join(TOLERANCE)}"
            )
        self.sequences = sequences
        self.tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        self._before: dict[str, tuple[list[float], list[float]]] = {}

    def check(
        self,
        engine_logprobs: Sequence[float],
        trainer_logprobs: Sequence[float],
        pushed: str = "weights",
        others: Mapping[str, Callable[[], Sequence[float]]] | None = None,
    ) -> float:
        """The largest difference, nats per token; call it after each push.

        Args:
            engine_logprobs: of each sequence's completion, nats, summed, under the weights just pushed.
            trainer_logprobs: the same by the model that was pushed.
            pushed: what was pushed, where there are several; each has its own history.
            others: what makes the trainer's log-probs of the other models that the engine holds, by name;
                asked on a mismatch alone, to tell a mix-up from a stale copy.

        Raises:
            SyncError: they differ, or the trainer has moved and the engine has not.
        """
        ours, theirs = [float(v) for v in trainer_logprobs], [float(v) for v in engine_logprobs]
        before, self._before[pushed] = self._before.get(pushed), (theirs, ours)
        worst, at = self._distance(theirs, ours)
        unmoved = before is not None and theirs == before[0]
        stale = unmoved and before is not None and self._distance(ours, before[1])[0] > MOVED * self.tolerance
        if worst <= self.tolerance and not stale:
            return worst
        raise SyncError(
            f"after pushing {pushed}, the engine's log-probs are not the trainer's: sequence {at} has "
            f"{theirs[at]:.4f} in the engine and {ours[at]:.4f} in the trainer, {worst:.2g} nats per token apart "
            f"(at most {self.tolerance:g}). {self._cause(theirs, pushed, unmoved, others or {})}"
        )

    def _cause(
        self,
        engine: list[float],
        pushed: str,
        unmoved: bool,
        others: Mapping[str, Callable[[], Sequence[float]]],
    ) -> str:
        if unmoved:
            return (
                f"The engine answers exactly as before the push: {pushed} never arrived, or an adapter was "
                "pushed under an id that the engine already held"
            )
        for name, logprobs in others.items():
            if self._distance(engine, [float(v) for v in logprobs()])[0] <= self.tolerance:
                return (
                    f"They are those of {name}: the engine mixes its models up; do not draw with and without "
                    "adapters in one call, and give each adapter an id of its own"
                )
        return (
            "Only a part of the weights arrived, most often an output head tied to the embeddings that was not "
            "packed anew, or the engine reads the model in another way than transformers; "
            "use an untied model, another vLLM version, or draw with transformers"
        )

    def _distance(self, ones: Sequence[float], others: Sequence[float]) -> tuple[float, int]:
        """Largest difference in nats per token, and its sequence; a NaN counts as infinitely far."""
        gaps = []
        for one, other, ids in zip(ones, others, self.sequences.completion_ids, strict=True):
            gap = abs(one - other) / len(ids)
            gaps.append(gap if gap == gap else float("inf"))
        worst = max(gaps)
        return worst, gaps.index(worst)


def canary_sequences(prompts: Sequence[Prompt], max_completion_length: int) -> TokenSequences:
    """A few short prompts, each followed by the beginning of another: any tokens will do.

    One token of the window stays free, which vLLM needs for scoring.
    """
    length = min(CANARY_TOKENS, max_completion_length - 1)  # at least 1: `check_vllm` refuses less
    shortest = sorted(prompts, key=lambda prompt: len(prompt.token_ids))[:CANARIES]
    ids = [prompt.token_ids for prompt in shortest]
    return TokenSequences(ids, [other[:length] for other in reversed(ids)])
