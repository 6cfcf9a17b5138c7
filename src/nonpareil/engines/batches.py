"""What is drawn together: requests, and the batches that they are drawn in."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nonpareil.records import Prompt, SamplingParams


@dataclass(frozen=True)
class DrawRequest:
    """Completions to draw for some prompts, from the model as it is or from one of its adapters."""

    prompts: Sequence[Prompt]
    num_generations: int
    sampling: SamplingParams
    adapter: str = ""
    """`models.adapters.POLICY`, `ANCHOR` or `REFERENCE`; only of a model that has them."""
    first: int = 0
    """The completions before it are not drawn: they are there already."""


@dataclass(frozen=True)
class Unit:
    """Some samples of one prompt of one request."""

    request: int
    prompt: int
    samples: range


def batches(requests: Sequence[DrawRequest], max_tokens: int, queries: int = 0) -> Iterator[list[Unit]]:
    """Prompts of about one length together, each with the samples to draw; a large group is split.

    `max_tokens` bounds rows x (longest prompt + max_completion_length + `queries`) of one batch; `queries`: tokens
    that a row looks at in one step, besides.
    """
    lengths = {
        (r, p): len(prompt.token_ids)
        for r, request in enumerate(requests)
        for p, prompt in enumerate(request.prompts)
    }
    longest_completion = max(request.sampling.max_completion_length for request in requests)

    def rows_within(prompt_length: int) -> int:
        return max(1, max_tokens // (prompt_length + longest_completion + queries))

    batch: list[Unit] = []
    rows = 0
    for (r, p), length in sorted(lengths.items(), key=lambda item: -item[1]):
        count = requests[r].num_generations
        for start in range(requests[r].first, count, step := rows_within(length)):
            samples = range(start, min(start + step, count))
            # Longest first: the batch's first prompt sets its width.
            first = lengths[batch[0].request, batch[0].prompt] if batch else 0
            if batch and rows + len(samples) > rows_within(first):
                yield batch
                batch, rows = [], 0
            batch.append(Unit(r, p, samples))
            rows += len(samples)
    if batch:
        yield batch


class BatchProgress:
    """Tells of a batch's prompts as the last of their samples end, and of tokens; each once.

    `on_progress` is that of `Engine.draw`. A prompt whose samples are split is told of with its last ones.
    """

    def __init__(
        self, requests: Sequence[DrawRequest], units: Sequence[Unit], on_progress: Callable[[int, int], None]
    ):
        """Nothing told yet."""
        self._prompts = [(unit.request, unit.prompt) for unit in units for _ in unit.samples]
        self._waiting = {
            (unit.request, unit.prompt)
            for unit in units
            if unit.samples[-1] == requests[unit.request].num_generations - 1
        }
        self._tokens = 0
        self._on_progress = on_progress

    def update(self, running: Iterable[int], tokens: int) -> None:
        """These rows of the batch still run, and so many tokens are drawn in all."""
        still = self._waiting & {self._prompts[row] for row in running}
        self._on_progress(len(self._waiting) - len(still), tokens - self._tokens)
        self._waiting, self._tokens = still, tokens
