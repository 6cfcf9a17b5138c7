"""The gradient of a whole step's mean loss, in passes that fit the token budget, on one process or many."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonpareil.methods.base import Method, Targets
from nonpareil.models.distributed import num_processes, process_index, sum_gradients, sum_over_processes
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, token_budget_batches
from nonpareil.models.sharding import is_sharded
from nonpareil.models.zero import engine_of
from nonpareil.training.spent import Spent
from nonpareil.training.steps import StepDraws


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: rows of the batch, and the completions of each that are trained on."""

    rows: list[int]
    slots: list[list[int]]


@dataclass
class Accumulator:
    """Forward and backward passes whose gradients add up to that of the batch's mean over usable prompts."""

    method: Method
    max_tokens_per_batch: int
    temperature: float
    autocast: Callable[[], AbstractContextManager[Any]]
    backward: Callable[[Tensor], Any]
    spent: Spent
    importance_cap: float | None = None
    """Largest weight of a completion that another engine drew; None trains on its draws as they are."""

    def step(self, model: nn.Module, drawn: StepDraws, targets: Targets) -> Tensor:
        """The gradient of an optimizer step, the same on every process as the loss that is returned."""
        used, passes = self._plan(drawn, targets)
        total = torch.zeros((), device=next(model.parameters()).device)
        sharded = is_sharded(model)
        zero = engine_of(model)
        backward = zero.backward if zero else self.backward
        mine = passes[process_index()]
        # Every pass gathers shards from all processes: one that has no rows left takes part with none.
        count = max(map(len, passes)) if sharded else len(mine)
        with adapters_take_what_comes(model, self.autocast):
            for index in range(count):
                here = mine[index] if index < len(mine) else None
                loss = self._loss(model, drawn, targets, here) if here else self._no_loss(model)
                loss = loss / max(used, 1)
                # FSDP2 and DeepSpeed take the mean over processes where the sum is meant.
                backward(loss * (num_processes() if sharded else 1))
                total += loss.detach()
        if not sharded:
            sum_gradients(model.parameters())
        return torch.full_like(total, sum_over_processes(total.item())) if num_processes() > 1 else total

    def _plan(self, drawn: StepDraws, targets: Targets) -> tuple[int, list[list[Pass]]]:
        """How many prompts can be used, and each process's passes: alike in number and length of rows."""
        wanted = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
        used = wanted.any(-1).nonzero()[:, 0].tolist()
        slots = {row: wanted[row].nonzero()[:, 0].tolist() for row in used}
        costs = {row: drawn.padded_tokens(row, slots[row]) for row in used}
        self.spent.tokens_trained += sum(drawn.tokens(row, slots[row]) for row in used)
        by_cost = sorted(used, key=lambda row: (-costs[row], row))
        plans = []
        for process in range(num_processes()):
            rows = sorted(by_cost[process :: num_processes()])
            batches = token_budget_batches([costs[row] for row in rows], self.max_tokens_per_batch)
            plans.append(
                [Pass([rows[i] for i in batch], [slots[rows[i]] for i in batch]) for batch in batches]
            )
        return len(used), plans

    def _loss(self, model: nn.Module, drawn: StepDraws, targets: Targets, mine: Pass) -> Tensor:
        """The sum of the losses of a pass's prompts."""
        places = [(i, j) for i, slots in enumerate(mine.slots) for j in slots]
        groups = [drawn.groups[row] for row in mine.rows]
        sequences = TokenSequences(
            [groups[i].prompt_token_ids for i, _ in places],
            [groups[i].completion_token_ids[j] for i, j in places],
        )
        with self.autocast():
            values = completion_token_logprobs(model, sequences, self.temperature)  # type: ignore[arg-type]
        index = tuple(torch.tensor(places, device=values.device).T)
        values = nn.functional.pad(values, (0, drawn.width - values.shape[1]))
        slots = targets.train_policy.shape[1] + targets.train_anchor.shape[1]
        logprobs = values.new_zeros(len(groups), slots, drawn.width).index_put(index, values)
        here = targets.select(mine.rows).to(values.device)
        ours, theirs = logprobs[:, : drawn.num_policy], logprobs[:, drawn.num_policy :]
        if self.importance_cap is not None:
            weights = drawn.importance_weights(self.importance_cap)[mine.rows].to(values.device)
            ours = weighted_gradient(ours, weights[..., None])
        return self.method.loss(ours, theirs, here).sum()

    def _no_loss(self, model: nn.Module) -> Tensor:
        """Zero, by way of every weight."""
        with self.autocast():
            values = completion_token_logprobs(model, TokenSequences([[0]], [[0]]), self.temperature)  # type: ignore[arg-type]
        return values.sum() * 0.0


def weighted_gradient(values: Tensor, weights: Tensor) -> Tensor:
    """The same values, with their gradients times `weights`.

    A method's loss is a sum over draws of a coefficient times the draw's log-prob; this weights each draw's part,
    whatever the method, and leaves the coefficients as they are.
    """
    return weights * values + ((1 - weights) * values).detach()


@contextmanager
def adapters_take_what_comes(
    model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Under autocast, adapters in float32 take the activations as they are.

    PEFT would cast them to float32, and autocast back: the same numbers in a new tensor, which each adapted layer
    would keep for the backward pass. That pass belongs inside too, since checkpointing repeats the forward there.
    """
    with autocast():
        casts = torch.is_autocast_enabled(next(model.parameters()).device.type)
    layers: list[Any] = [
        module for module in model.modules() if casts and getattr(module, "cast_input_dtype_enabled", False)
    ]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True
