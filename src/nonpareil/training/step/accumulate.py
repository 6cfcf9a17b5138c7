"""The gradient of a whole step's mean loss, in passes that fit the token budget, on one process or many."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method, Targets
from nonpareil.methods.credited import CreditedMethod
from nonpareil.models.anchors import Anchor
from nonpareil.models.attention import products_on
from nonpareil.models.devices import device_of
from nonpareil.models.distributed import num_processes, of_each_process, process_index, sum_gradients
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, token_budget_batches
from nonpareil.models.packing import even_sizes
from nonpareil.models.packing_check import per_row
from nonpareil.models.sharding import is_sharded
from nonpareil.models.zero import engine_of
from nonpareil.records import Group
from nonpareil.training.config import DistillationConfig
from nonpareil.training.costs import Spent
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.step.credited import CreditedPasses
from nonpareil.training.step.not_finite import NotFinite, logprob_at

Pass = dict[int, list[int]]
"""One forward and backward pass: rows of the batch, and of each the completions that are trained on."""


class Plan(NamedTuple):
    """A step's passes."""

    passes: list[list[Pass]]
    """Of each process."""
    per_row: int
    """How many completions of a prompt share a row, at most."""


class PromptLoss(NamedTuple):
    """What a pass gave for one prompt."""

    row: int
    loss: float
    """Nats."""
    bad_place: float
    """Where its first log-prob that is no number is, counted in tokens, `StepBatch.width` per completion; or -1."""


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
    mask_truncated: bool = False
    """Whether completions that the length limit cut have no gradient."""
    credited: CreditedPasses | None = None
    """What makes the passes of a method that reads candidate next tokens."""
    _probe: TokenSequences | None = None
    """A completion whose log-probs were numbers in the last step; the same on every process."""

    @classmethod
    def of(
        cls,
        method: Method,
        config: DistillationConfig,
        accelerator: Any,
        spent: Spent,
        anchor: Anchor | None = None,
    ) -> "Accumulator":
        """The accumulator of a training; `anchor` is read where the method's loss reads the reference itself."""
        credited = None
        if isinstance(method, CreditedMethod):
            assert anchor is not None
            credited = CreditedPasses(method, anchor, config.temperature, accelerator.autocast)
        return cls(
            method,
            config.max_tokens_per_batch,
            config.temperature,
            accelerator.autocast,  # transformers' own does nothing, where the model's inner part is called
            accelerator.backward,
            spent,
            config.importance_cap,
            config.mask_truncated_completions,
            credited,
        )

    def step(self, model: nn.Module, batch: StepBatch, targets: Targets) -> Outcome:
        """The gradient of an optimizer step, the same on every process as the outcome that is returned."""
        plan = self._plan(model, batch, targets)
        slots = {row: places for passes in plan.passes for part in passes for row, places in part.items()}
        self.spent.tokens_trained += sum(
            batch.tokens(row, places, plan.per_row) for row, places in slots.items()
        )
        with adapters_take_what_comes(model, self.autocast):
            mine = self._descend(model, batch, targets, plan)
        outcome = self._outcome(batch, [each for share in of_each_process(mine) for each in share])
        if outcome.bad:
            self.forget_gradients(model)
        elif not is_sharded(model):  # else each pass has summed them
            sum_gradients(model.parameters())
        if good := [row for row in slots if row not in outcome.bad]:
            group, first = batch.groups[good[0]], slots[good[0]][0]
            self._probe = TokenSequences([group.prompt_token_ids], [group.completion_token_ids[first]])
        return outcome

    def _descend(self, model: nn.Module, batch: StepBatch, targets: Targets, plan: Plan) -> list[PromptLoss]:
        """This process's passes, whose gradients add up in the weights."""
        mine, used = plan.passes[process_index()], sum(len(part) for each in plan.passes for part in each)
        sharded, zero = is_sharded(model), engine_of(model)
        backward = zero.backward if zero else self.backward
        # FSDP2 and DeepSpeed take the mean over processes where the sum is meant.
        scale = num_processes() if sharded else 1
        seen: list[Tensor] = []
        for part in mine:
            with products_on(device_of(model)):
                losses, bad_places = self._losses(model, batch, targets, part, plan.per_row)
                backward(losses.sum() / used * scale)
            seen.append(torch.stack([losses.detach().float(), bad_places.float()]))
        # Every pass gathers shards from all processes: one that has no rows left takes part with none.
        for _ in range(max(map(len, plan.passes)) - len(mine) if sharded else 0):
            backward(self._no_loss(model))
        values = torch.cat(seen, dim=1).tolist() if seen else [[], []]
        rows = [row for part in mine for row in part]
        return [PromptLoss(*each) for each in zip(rows, *values, strict=True)]

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

    def _outcome(self, batch: StepBatch, losses: list[PromptLoss]) -> Outcome:
        bad = {}
        for row, loss, place in sorted(losses):
            group = batch.groups[row]
            if place >= 0:
                completion, token = divmod(int(place), batch.width)
                bad[row] = logprob_at(group.prompt_id, "of the policy", completion, token)
            elif not math.isfinite(loss):
                bad[row] = NotFinite(group.prompt_id, f"the loss{_of(group)}", of_model=False)
        total = sum(each.loss for each in sorted(losses))  # in one order, however many processes there are
        return Outcome(total / max(len(losses), 1), len(losses), bad)

    def _plan(self, model: Any, batch: StepBatch, targets: Targets) -> Plan:
        """Each process's passes over the usable rows, dealt out so that all have about as many tokens."""
        wanted = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
        slots = {row: wanted[row].nonzero()[:, 0].tolist() for row in wanted.any(-1).nonzero()[:, 0].tolist()}
        together = min(of_each_process(per_row(model, _sequences(batch, slots))))
        costs = {row: batch.padded_tokens(row, places, together) for row, places in slots.items()}
        by_cost = sorted(slots, key=lambda row: (-costs[row], row))
        plan = []
        for process in range(num_processes()):
            rows = sorted(by_cost[process :: num_processes()])
            batches = token_budget_batches([costs[row] for row in rows], self.max_tokens_per_batch)
            plan.append([{rows[i]: slots[rows[i]] for i in one} for one in batches])
        return Plan(plan, together)

    def _losses(
        self, model: Any, batch: StepBatch, targets: Targets, part: Pass, per_row: int
    ) -> tuple[Tensor, Tensor]:
        """The loss of each of a pass's prompts, and its bad place; see `PromptLoss`."""
        rows = list(part)
        places = [(i, j) for i, slots in enumerate(part.values()) for j in slots]
        sizes = [size for slots in part.values() for size in even_sizes(len(slots), per_row)]
        sequences = _sequences(batch, part)
        if self.credited is not None:
            return self.credited.losses(model, batch, part, sequences, sizes)
        with self.autocast():
            values = completion_token_logprobs(model, sequences, self.temperature, sizes)
        index = tuple(torch.tensor(places, device=values.device).T)
        values = nn.functional.pad(values, (0, batch.width - values.shape[1]))
        completions = targets.train_policy.shape[1] + targets.train_anchor.shape[1]
        logprobs = values.new_zeros(len(rows), completions, batch.width).index_put(index, values)
        if self.mask_truncated:
            ended = batch.ended()[rows].to(values.device, values.dtype)
            logprobs = weighted_gradient(logprobs, ended[..., None])
        ours, theirs = logprobs[:, : batch.num_policy], logprobs[:, batch.num_policy :]
        if self.importance_cap is not None:
            weights = batch.importance_weights(self.importance_cap)[rows].to(values.device)
            ours = weighted_gradient(ours, weights[..., None])
        losses = self.method.loss(ours, theirs, targets.select(rows).to(values.device))
        if losses.shape != (len(rows),):
            raise ConfigError(
                f"the loss of {type(self.method).__name__} has shape {list(losses.shape)}, and must be one number "
                f"per prompt, [{len(rows)}]: take sums and means over a prompt's completions and tokens alone"
            )
        bad = ~logprobs.detach().isfinite().flatten(1)
        return losses, torch.where(bad.any(1), bad.int().argmax(1), -1)

    def _no_loss(self, model: nn.Module) -> Tensor:
        """Zero, by way of every weight."""
        if self.credited is not None:
            return self.credited.no_loss(model)
        with self.autocast():
            values = completion_token_logprobs(model, TokenSequences([[0]], [[0]]), self.temperature)  # type: ignore[arg-type]
        return values.sum() * 0.0


def _sequences(batch: StepBatch, part: Pass) -> TokenSequences:
    """The completions that are trained on, prompt by prompt."""
    pairs = [(batch.groups[row], place) for row, slots in part.items() for place in slots]
    return TokenSequences(
        [group.prompt_token_ids for group, _ in pairs],
        [group.completion_token_ids[place] for group, place in pairs],
    )


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
