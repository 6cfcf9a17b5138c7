"""The samples of a batch as a value reads them: what stands so far, and what each candidate would be worth.

A causal network reads token by token, from a cache of its own beside the policy's. One pass a step is enough: the
token that was drawn, whose keys stay, and behind it all candidates. Each of them sees what stands, the drawn token
and itself, and its keys are written over by the next step. Any other value is asked for every candidate's whole
prefix.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.engines.cache import InPlaceLayer, expand_cache, in_place_cache, is_in_place
from nonpareil.models.candidate_states import last_states, shares_sequences
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.modes import generation_mode

Values = tuple[Float[Tensor, " r"], Float[Tensor, "r k"]]
"""Of what stands, and of each candidate behind it, nats."""


def shares_rows(network: PreTrainedModel, prompt_ids: Sequence[list[int]], budget: int) -> bool:
    """Whether the network can read candidates as `CachedRows` does, behind completions of up to `budget` tokens."""
    longest = max(prompt_ids, key=len)
    if not is_in_place(in_place_cache(network.config, len(longest) + budget)):
        return False
    text = TokenSequences([longest], [[longest[-1]] * budget])
    with generation_mode(network):
        return shares_sequences(network, text, torch.arange(2).expand(1, budget, 2))


class CachedRows:
    """A causal network's values, from its own cache."""

    def __init__(
        self,
        network: PreTrainedModel,
        read: Callable[[Float[Tensor, "*s d"]], Float[Tensor, "*s"]],
        prompt_ids: Sequence[list[int]],
        counts: Sequence[int],
        room: int,
    ):
        """Reads the prompts, once each; `counts` samples of each prompt follow one another.

        `room`: tokens behind a prompt, those of one pass included, that there is to be place for.
        """
        self.network, self.read = network, read
        device = device_of(network)
        lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)
        self.width = max(map(len, prompt_ids))
        # Right padding needs no attention mask: under causal attention no real token sees what comes behind it.
        ids = torch.tensor([ids + [0] * (self.width - len(ids)) for ids in prompt_ids], device=device)
        self.cache = in_place_cache(network.config, self.width)  # all layers are plain: `shares_rows`
        with generation_mode(network):
            states = last_states(network, ids, self.cache)
        ends = states[torch.arange(len(ids), device=device), lengths - 1]
        of = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        self.before = read(ends).float()[of]
        self.lengths = lengths[of]
        self.filled = 0
        """Tokens of each completion that are in the cache."""
        expand_cache(self.cache, of, self.width + room)

    def values(
        self, tokens: Int[Tensor, " r"] | None, candidates: Int[Tensor, "r k"], running: Bool[Tensor, " r"]
    ) -> Values:
        """Of what stands with `tokens` behind it (None at first), and of each candidate behind that."""
        drawn = 0 if tokens is None else 1
        ids = candidates if tokens is None else torch.cat([tokens[:, None], candidates], -1)
        positions = (self.lengths + self.filled)[:, None].expand_as(ids).clone()
        positions[:, drawn:] += drawn
        with generation_mode(self.network):
            states = last_states(self.network, ids, self.cache, self._seen(ids.shape[1], drawn), positions)
        self.filled += drawn
        for layer in self.cache.layers:
            assert isinstance(layer, InPlaceLayer)
            layer.cut_back(self.width + self.filled)
        values = self.read(states).float()
        if drawn:
            self.before = values[:, 0]
        return self.before, values[:, drawn:]

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on."""
        self.before, self.lengths = self.before[alive], self.lengths[alive]
        self.cache.reorder_cache(alive)  # type: ignore[arg-type]

    def _seen(self, queries: int, drawn: int) -> Bool[Tensor, "r q c"]:
        """What stands, without the padding behind prompts; the drawn token; and each itself."""
        columns = torch.arange(self.width + self.filled, device=self.lengths.device)
        stands = (columns < self.lengths[:, None]) | (columns >= self.width)
        own = torch.eye(queries, dtype=torch.bool, device=columns.device)
        own[:, :drawn] = True
        rows = len(self.lengths)
        return torch.cat([stands[:, None].expand(-1, queries, -1), own.expand(rows, -1, -1)], -1)


class SeparateRows:
    """Any value: prompt, completion and candidate anew for every candidate of every step."""

    def __init__(
        self,
        prefix_values: Callable[[TokenSequences], Float[Tensor, "b t"]],
        prompt_ids: Sequence[list[int]],
        counts: Sequence[int],
    ):
        """`counts` samples of each prompt follow one another."""
        self.prefix_values = prefix_values
        self.prompts = [ids for ids, count in zip(prompt_ids, counts, strict=True) for _ in range(count)]
        self.completions: list[list[int]] = [[] for _ in self.prompts]

    def values(
        self, tokens: Int[Tensor, " r"] | None, candidates: Int[Tensor, "r k"], running: Bool[Tensor, " r"]
    ) -> Values:
        """As `CachedRows.values`; 0 of samples that have ended, which the value is not asked for."""
        if tokens is not None:
            self.completions = [
                [*ids, token] for ids, token in zip(self.completions, tokens.tolist(), strict=True)
            ]
        rows, values = (
            running.nonzero()[:, 0].tolist(),
            torch.zeros(len(self.prompts), 1 + candidates.shape[1]),
        )
        texts = TokenSequences(
            [self.prompts[row] for row in rows for _ in candidates[row]],
            [[*self.completions[row], token] for row in rows for token in candidates[row].tolist()],
        )
        if rows:
            # Behind a candidate, and before it.
            last = self.prefix_values(texts)[:, -2:].float().cpu().unflatten(0, (len(rows), -1))
            values[rows] = torch.cat([last[:, :1, 0], last[..., 1]], -1)
        values = values.to(candidates.device)
        return values[:, 0], values[:, 1:]

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on."""
        rows = alive.tolist()
        self.prompts, self.completions = [self.prompts[i] for i in rows], [self.completions[i] for i in rows]
