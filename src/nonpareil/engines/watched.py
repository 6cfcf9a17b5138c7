"""What a draw looks back at: the tokens that each row has, for a penalty, and its text, for stop strings."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.engines.penalties import Repetitions
from nonpareil.engines.rows import Rows
from nonpareil.engines.stop_strings import StopStrings
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


class Watched:
    """The rows of a batch; where the sampling has neither penalty nor stop strings, nothing is looked at."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        end_ids: Collection[int],
        sampling: SamplingParams,
        prompts: Sequence[Prompt],
        logits: Float[Tensor, "r v"],
    ):
        """`prompts`: of each row."""
        self.repetitions = self.stops = None
        if sampling.repetition_penalty != 1:
            ids = [prompt.token_ids for prompt in prompts]
            self.repetitions = Repetitions(sampling.repetition_penalty, ids, logits)
        if sampling.stop:
            self.stops = StopStrings(tokenizer, sampling.stop, end_ids, prompts)

    def penalised(self, logits: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """The logits of the distribution that is drawn from, before temperature."""
        return logits if self.repetitions is None else self.repetitions.applied(logits)

    def saw(self, rows: Rows, tokens: Int[Tensor, " r"]) -> None:
        """The step that the rows have just kept; those whose text has a stop string end."""
        if self.repetitions is not None:
            self.repetitions.add(tokens)
        if self.stops is not None:
            rows.end(self.stops.ended(rows.members[-1].tolist(), rows.tokens[-1].tolist()))

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these rows go on."""
        if self.repetitions is not None:
            self.repetitions.keep(alive)
