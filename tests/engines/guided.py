"""Values of prefixes for tiny models: the true one, by enumeration, and a network's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nonpareil.maths.best_of_n import distribution
from nonpareil.models.candidate_states import score_candidates
from nonpareil.models.logprobs import TokenSequences
from tests.tiny import CONFIGS, END, forced_logits


class Enumerated:
    """Everything that a tiny model can say behind a prompt in two tokens, and best-of-n's value of it."""

    def __init__(self, model: PreTrainedModel, prompt: list[int], n: float, temperature: float = 1.0):
        first = (forced_logits(model, prompt, [0])[0] / temperature).double().log_softmax(-1)
        self.vocabulary, self.logprobs = len(first), {(END,): first[END].item()}
        for a in range(self.vocabulary):
            if a != END:
                second = (forced_logits(model, [*prompt, a], [0])[0] / temperature).double().log_softmax(-1)
                for b, logprob in enumerate(second.tolist()):
                    self.logprobs[a, b] = first[a].item() + logprob
        probs = torch.tensor([*self.logprobs.values()], dtype=torch.float64).exp()
        rewards = torch.rand(len(probs), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        best = distribution(probs, rewards, n)
        self.target = dict(zip(self.logprobs, best.log().tolist(), strict=True))
        """Log-probs of best-of-n."""
        self._values: dict[tuple[int, ...], float] = {}
        for prefix in {y[:length] for y in self.logprobs for length in (0, 1, 2)}:
            kept = [y for y in self.logprobs if y[: len(prefix)] == prefix]
            worth = sum(math.exp(self.target[y]) for y in kept)
            self._values[prefix] = math.log(worth / sum(math.exp(self.logprobs[y]) for y in kept))

    def value(self, prefix: tuple[int, ...]) -> float:
        return self._values[prefix]

    def prefix_values(self, sequences: TokenSequences) -> Float[Tensor, "b t"]:
        """A prefix that cannot be, such as one behind an end, is not known, and must not be asked for."""
        longest = max(map(len, sequences.completion_ids))
        values = torch.zeros(len(sequences), longest + 1)
        for row, ids in enumerate(sequences.completion_ids):
            values[row, : len(ids) + 1] = torch.tensor([self.value((*ids[:i],)) for i in range(len(ids) + 1)])
        return values

    def candidate_values(
        self, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
    ) -> Float[Tensor, "b t k"]:
        values = torch.zeros(token_ids.shape)
        for row, ids in enumerate(sequences.completion_ids):
            for i in range(len(ids)):
                found = [self.value((*ids[:i], a)) for a in token_ids[row, i].tolist()]
                values[row, i] = torch.tensor(found)
        return values

    def describe(self) -> dict[str, Any]:
        return {"kind": "enumerated"}


class Separate:
    """Of a network, without telling that it is one: every prefix has a pass of its own."""

    def __init__(self, value: "Network"):
        self.network_value = value

    def prefix_values(self, sequences: TokenSequences) -> Float[Tensor, "b t"]:
        return self.network_value.prefix_values(sequences)

    def candidate_values(
        self, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
    ) -> Float[Tensor, "b t k"]:
        return self.network_value.candidate_values(sequences, token_ids)

    def describe(self) -> dict[str, Any]:
        return {"kind": "separate"}


class Network:
    """Random weights: wrong as a value, but one of every prefix. `first_ids` begin what the network reads."""

    def __init__(
        self,
        kind: str = "llama_grouped_heads",
        seed: int = 1,
        first_ids: tuple[int, ...] = (),
        **changes: Any,
    ):
        torch.manual_seed(seed)
        self.first_ids = first_ids
        config = CONFIGS[kind]()
        for name, value in (changes | {"num_labels": 1}).items():
            setattr(config, name, value)
        self.network = AutoModelForSequenceClassification.from_config(config).float().eval()

    def read(self, states: Float[Tensor, "*s d"]) -> Float[Tensor, "*s"]:
        head: Any = getattr(self.network, "score", None)
        return 2.0 * torch.tanh(head(states)[..., 0])

    def as_read(self, prompt_ids: Sequence[int]) -> list[int]:
        return [*self.first_ids, *prompt_ids]

    @torch.no_grad()
    def prefix_values(self, sequences: TokenSequences) -> Float[Tensor, "b t"]:
        """One unpadded pass a sequence."""
        values = torch.zeros(len(sequences), max(map(len, sequences.completion_ids)) + 1)
        for row, (prompt, ids) in enumerate(zip(sequences.prompt_ids, sequences.completion_ids, strict=True)):
            prompt = self.as_read(prompt)
            whole = torch.tensor([prompt + ids])
            states = self.network.base_model(input_ids=whole, use_cache=False).last_hidden_state
            found = self.read(states[0, len(prompt) - 1 :])
            values[row, : len(found)] = found - found[0]
        return values

    def candidate_values(
        self, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
    ) -> Float[Tensor, "b t k"]:
        alone = TokenSequences(sequences.prompt_ids, [[] for _ in sequences.prompt_ids])
        with torch.no_grad():
            ends = [
                self.network.base_model(input_ids=torch.tensor([self.as_read(p)])).last_hidden_state
                for p in alone.prompt_ids
            ]
            prompts = torch.stack([self.read(states[0, -1]) for states in ends])
        read = TokenSequences([self.as_read(p) for p in sequences.prompt_ids], sequences.completion_ids)
        found = score_candidates(self.network, read, token_ids, self.read)
        return found - prompts[:, None, None]

    def describe(self) -> dict[str, Any]:
        return {"kind": "network"}
