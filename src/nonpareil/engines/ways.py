"""In which of three ways the samples of a prompt read its keys: what a model takes, and what suits a batch."""

from collections.abc import Callable, Sequence

from transformers import Cache, PreTrainedModel

from nonpareil.engines.attention import attention_configs
from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.branches import BRANCHES, Forward, Prefilled, branches_for
from nonpareil.engines.cache import in_place_cache, is_in_place, takes_branches
from nonpareil.engines.key_order import KeyOrder
from nonpareil.engines.load_check import LONGEST
from nonpareil.models.devices import device_of

SHARED, BRANCHED, COPIED = "shared", "branches", "copied"
"""A prompt's keys once, attended apart; once a row of several samples, behind one mask; a copy per sample."""
MOST_MASKED_ON_GPU = 4
"""A GPU takes branches as long as a row holds so many times the keys that each of its samples sees at most."""


class Ways:
    """Of one model. `taken`: what it takes besides copies, the quickest first; asked when it is loaded."""

    def __init__(self, model: PreTrainedModel, forward: Callable[[Cache], Forward]):
        """`forward`: of passes that fill a cache."""
        self.model = model
        self.taken: list[str] = []
        self.on_gpu = device_of(model).type != "cpu"
        self.key_order = KeyOrder(model, forward)

    @property
    def first(self) -> str:
        """The quickest."""
        return (self.taken or [COPIED])[0]

    def to_try(self) -> list[str]:
        """What the model might take, the quickest first."""
        config = self.model.config
        layers = in_place_cache(config, LONGEST)  # else the answer would be that of copies
        if not takes_branches(type(self.model), config) or not is_in_place(layers):
            return []
        return [SHARED, BRANCHED] if attention_configs(self.model) else [BRANCHED]

    def ask(self, requests: Sequence[DrawRequest]) -> None:
        """What only rows as wide as these requests make them can tell; before rows have adapters of their own."""
        lengths = [len(prompt.token_ids) for request in requests for prompt in request.prompts]
        most = max((request.num_generations for request in requests), default=0)
        if lengths and most:
            budget = max(request.sampling.max_completion_length for request in requests)
            self.key_order.ask(self._masked_keys(max(lengths), budget, branches_for([most], BRANCHES)))

    def of(self, prompts: Prefilled, counts: list[int]) -> str:
        """The way of one batch, with so many samples of each prompt."""
        if not is_in_place(prompts.cache):
            return COPIED
        branches = branches_for(counts, BRANCHES)
        if 0 < self._masked_keys(prompts.width, prompts.budget, branches) <= self.key_order.most:
            return BRANCHED
        return SHARED if SHARED in self.taken and (max(counts) > 1 or not self.on_gpu) else COPIED

    def _masked_keys(self, prompt: int, budget: int, branches: int) -> int:
        """Keys of a row of branches; 0 where the model does not take them, or has a quicker way.

        A GPU waits for the host to start its kernels: there, few of them outdo little work.
        """
        keys = prompt + branches * budget
        quicker = keys > MOST_MASKED_ON_GPU * (prompt + budget) if self.on_gpu else SHARED in self.taken
        return 0 if quicker or branches == 1 or BRANCHED not in self.taken else keys
