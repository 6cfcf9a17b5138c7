"""The gradient of a whole step's mean loss, in passes that fit the token budget, on one process or many."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonpareil.methods.base import Method, Targets
from nonpareil.models.distributed import num_processes, of_each_process, process_index, sum_gradients
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, token_budget_batches
from nonpareil.models.sharding import is_sharded
from nonpareil.models.zero import engine_of
from nonpareil.records import Group
from nonpareil.training.batch import StepBatch
from nonpareil.training.config import DistillationConfig
from nonpareil.training.costs import Spent
from nonpareil.training.not_finite import NotFinite, logprob_at


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: rows of the batch, and the completions of each that are trained on."""

    rows: list[int]
    slots: list[list[int]]


@dataclass(frozen=True)
class Outcome:
    """What the passes of a step gave, the same on every process."""

    loss: float
    """The mean over usable prompts, nats."""
    used: int
    """Usable prompts."""
    bad: dict[int, NotFinite]
    """Those whose log-probs or loss are no numbers, by row; where there is one, no gradient is left."""


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
    _probe: TokenSequences | None = None
    """A completion whose log-probs were numbers in the last step; the same on every process."""

    @classmethod
    def of(cls, method: Method, config: DistillationConfig, accelerator: Any, spent: Spent) -> "Accumulator":
        """The accumulator of a training."""
        return cls(
            method,
            config.max_tokens_per_batch,
            config.temperature,
            accelerator.autocast,  # transformers' own does nothing, where the model's inner part is called
            accelerator.backward,
            spent,
            config.importance_cap,
        )

    def step(self, model: nn.Module, drawn: StepBatch, targets: Targets) -> Outcome:
        """The gradient of an optimizer step, the same on every process as the outcome that is returned."""
        used, passes = self._plan(drawn, targets)
        total = torch.zeros((), device=next(model.parameters()).device)
        sharded = is_sharded(model)
        zero = engine_of(model)
        backward = zero.backward if zero else self.backward
        mine = passes[process_index()]
        seen: list[Tensor] = []
        # Every pass gathers shards from all processes: one that has no rows left takes part with none.
        count = max(map(len, passes)) if sharded else len(mine)
        with adapters_take_what_comes(model, self.autocast):
            for index in range(count):
                here = mine[index] if index < len(mine) else None
                if here:
                    losses, places = self._losses(model, drawn, targets, here)
                    seen.append(torch.stack([losses.detach().float(), places.float()]))
                loss = (losses.sum() if here else self._no_loss(model)) / max(used, 1)
                # FSDP2 and DeepSpeed take the mean over processes where the sum is meant.
                backward(loss * (num_processes() if sharded else 1))
                total += loss.detach()
        rows = [row for part in mine for row in part.rows]
        parts = of_each_process((total.item(), rows, torch.cat(seen, dim=1).tolist() if seen else [[], []]))
        outcome = self._outcome(drawn, used, parts)
        if outcome.bad:
            self.forget_gradients(model)
        elif not sharded:
            sum_gradients(model.parameters())
        trained = (at for each in passes for part in each for at in zip(part.rows, part.slots, strict=True))
        for row, slots in trained:
            if row not in outcome.bad:
                group = drawn.groups[row]
                self._probe = TokenSequences([group.prompt_token_ids], [group.completion_token_ids[slots[0]]])
                break
        return outcome

    def forget_gradients(self, model: nn.Module) -> None:
        """As if no pass had been made since the last step."""
        if zero := engine_of(model):
            zero.forget_gradients()
        else:
            model.zero_grad()

    def probe(self, model: nn.Module) -> Tensor | None:
        """The log-probs of a completion that had some in the last step; None before the first one."""
        if self._probe is None:
            return None
        with self.autocast():
            return completion_token_logprobs(model, self._probe, self.temperature)  # type: ignore[arg-type]

    def _outcome(
        self, drawn: StepBatch, used: int, parts: list[tuple[float, list[int], list[list[float]]]]
    ) -> Outcome:
        """`parts`: of each process its share of the loss, its rows, and each row's loss and bad place."""
        losses = {row: loss for _, rows, (values, _) in parts for row, loss in zip(rows, values, strict=True)}
        places = {
            row: place for _, rows, (_, values) in parts for row, place in zip(rows, values, strict=True)
        }
        bad = {}
        for row, loss in sorted(losses.items()):
            group = drawn.groups[row]
            prompt_id = group.prompt_id
            if places[row] >= 0:
                bad[row] = logprob_at(prompt_id, "of the policy", *divmod(int(places[row]), drawn.width))
            elif not math.isfinite(loss):
                bad[row] = NotFinite(prompt_id, f"the loss{_of(group)}", of_model=False)
        return Outcome(sum(part[0] for part in parts), used, bad)

    def _plan(self, drawn: StepBatch, targets: Targets) -> tuple[int, list[list[Pass]]]:
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

    def _losses(
        self, model: nn.Module, drawn: StepBatch, targets: Targets, mine: Pass
    ) -> tuple[Tensor, Tensor]:
        """The loss of each of a pass's prompts, and where its first log-prob that is no number is; -1 for nowhere.

        The place counts tokens, `drawn.width` a completion.
        """
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
        bad = ~logprobs.detach().isfinite().flatten(1)
        return self.method.loss(ours, theirs, here), torch.where(bad.any(1), bad.int().argmax(1), -1)

    def _no_loss(self, model: nn.Module) -> Tensor:
        """Zero, by way of every weight."""
        with self.autocast():
            values = completion_token_logprobs(model, TokenSequences([[0]], [[0]]), self.temperature)  # type: ignore[arg-type]
        return values.sum() * 0.0


def _of(group: Group) -> str:
    """The rewards that a loss was made of, which tell where its size comes from."""
    rewards = [reward for reward in group.rewards or () if reward is not None]
    return f", of rewards from {min(rewards):g} to {max(rewards):g}," if rewards else ""


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
