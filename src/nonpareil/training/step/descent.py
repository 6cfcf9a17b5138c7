"""A step's gradient of the prompts that give numbers; the others are as if they were not of the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nonpareil.errors import DivergedError, NotFiniteError
from nonpareil.methods.base import Method, Targets
from nonpareil.models.adapters import adapter_dropout
from nonpareil.models.anchors import Anchor
from nonpareil.models.distributed import any_process, process_index
from nonpareil.models.modes import training_mode
from nonpareil.models.sharding import local
from nonpareil.models.zero import engine_of
from nonpareil.training.config import DistillationConfig
from nonpareil.training.costs import Spent
from nonpareil.training.step.accumulate import Accumulator, Outcome
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.step.not_finite import METRIC, Dropped, NotFinite
from nonpareil.training.step.scaling import scaled
from nonpareil.training.step.signal import Signal, resting_scaler

LARGE_LOSS = 1e12
"""Nats; a larger one comes of rewards, whose gradient float32 may not hold though the model is sound."""


@dataclass(frozen=True)
class Descended:
    """What a step was made of in the end."""

    loss: float
    """The mean over the prompts trained on, nats, also of a step that is not taken; NaN where there was none."""
    batch: StepBatch
    targets: Targets
    dropped: Sequence[NotFinite]

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {"loss": self.loss, METRIC: float(len(self.dropped))}


@dataclass
class Descent:
    """Makes gradients with an accumulator, and never one that is no number."""

    method: Method
    accumulator: Accumulator
    signal: Signal
    scale: str = "none"
    """Of rewards: `scale_rewards`."""
    scaler: Any = None
    """fp16's: it looks at the gradient itself, and skips a step whose is infinite."""
    dropped: Dropped = field(default_factory=Dropped)
    seed: int = 0
    """Of the dropout of a step's passes, with the step and the process."""

    @classmethod
    def of(
        cls,
        method: Method,
        config: DistillationConfig,
        accelerator: Any,
        spent: Spent,
        signal: Signal,
        anchor: Anchor | None = None,
    ) -> "Descent":
        """The descent of a training."""
        accumulator = Accumulator.of(method, config, accelerator, spent, anchor)
        scaler = resting_scaler(accelerator, signal)
        return cls(method, accumulator, signal, config.scale_rewards, scaler, seed=config.seed)

    def step(self, model: nn.Module, batch: StepBatch, step: int) -> Descended:
        """The step's gradient, without the prompts whose log-probs, loss or gradient are no numbers; see `Dropped`.

        Leaving out is drawing nothing for them: baselines and means are those of the others alone. There is no
        gradient where no prompt's rewards tell anything; see `Signal`.

        Raises:
            NotFiniteError: as `Dropped.note`, or a gradient that is infinite while that of no prompt is.
        """
        if self.scaler is not None and self.scaler.get_scale() < 1:
            raise NotFiniteError(
                f"step {step}: the gradient is infinite in float16 at every scale; give bf16=true"
            )
        training_mode(model)
        dropped = list(batch.dropped)
        while True:
            targets = self._targets(batch)
            outcome = self._gradient(model, batch, targets, step)
            bad = outcome.bad or self._bad_gradients(model, batch, targets, step)
            dropped += bad.values()
            kept = outcome.used - len(bad)
            if not bad or not kept:
                break
            batch = batch.without(bad)
        self.dropped.note(step, dropped, kept)
        if not self.signal.note(step, batch.draws, targets, kept, len(dropped)):
            self.accumulator.forget_gradients(model)
        loss = outcome.loss if kept else float("nan")
        self.accumulator.spent.add_loss(loss)
        return Descended(loss, batch, targets, dropped)

    def _gradient(self, model: nn.Module, batch: StepBatch, targets: Targets, step: int) -> Outcome:
        """The accumulator's, with an adapter's dropout, which a resumed training draws anew as it was."""
        with adapter_dropout(model, ((self.seed * 1_000_003 + step) * 4096 + process_index()) % 2**63):
            return self.accumulator.step(model, batch, targets)

    def _targets(self, batch: StepBatch) -> Targets:
        """The method's; a prompt whose completions were all cut tells nothing where those are masked."""
        targets: Targets = self.method.targets(scaled(batch.draws, self.scale))
        if not self.accumulator.mask_truncated:
            return targets
        trained = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
        whole = (trained & batch.ended()).any(-1)
        return replace(targets, signal=whole if targets.signal is None else targets.signal & whole)

    def _bad_gradients(
        self, model: nn.Module, batch: StepBatch, targets: Targets, step: int
    ) -> dict[int, NotFinite]:
        """The prompts, by row, whose own gradient is not finite; asked one by one where the step's is not."""
        if self.scaler is not None or _is_finite(model):
            return {}
        whose = _first_of(model)
        bad = {}
        rows = range(len(batch.groups))
        for row in rows:
            self.accumulator.forget_gradients(model)
            alone = batch.without({*rows} - {row})
            loss = self._gradient(model, alone, targets.select([row]), step).loss
            if not _is_finite(model):
                what = f"the gradient{whose}, of a loss of {loss:g},"
                bad[row] = NotFinite(batch.groups[row].prompt_id, what, of_model=abs(loss) < LARGE_LOSS)
        self.accumulator.forget_gradients(model)
        if not bad:
            raise NotFiniteError(
                f"step {step}: the gradient{whose} is infinite, though that of each prompt is not"
            )
        return bad


def _is_finite(model: nn.Module) -> bool:
    """Whether the gradient's norm is a number, on every process."""
    return not any_process(not gradient_norm(model) < torch.inf)


@torch.no_grad()
def gradient_norm(model: nn.Module) -> float:
    """Of the whole gradient, or of this process's shards of it; inf where float32 has no number for it."""
    if zero := engine_of(model):
        return float(zero.clip(None, torch.inf))
    gradients = [local(weight.grad) for weight in model.parameters() if weight.grad is not None]
    if not gradients:
        return 0.0
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    return torch.linalg.vector_norm(norms).item()


def _first_of(model: nn.Module) -> str:
    """The first weight whose gradient has a number that is none."""
    for name, weight in model.named_parameters():
        gradient: Tensor | None = weight.grad
        if gradient is not None and not local(gradient).isfinite().all():
            return f" of {name}"
    return ""


@torch.no_grad()
def check_policy(model: nn.Module, anchor: Anchor | None, accumulator: Accumulator, step: int) -> None:
    """Refuse to keep weights that are no numbers, or that give none for a completion which had some.

    Called by all processes together.

    Raises:
        DivergedError: naming the step, and the first such weight where there is one.
    """
    weights: dict[str, Tensor] = dict(model.named_parameters())
    if anchor is not None and anchor.moves:
        weights |= {f"{name} of the anchor": weight for name, weight in anchor.weights().items()}
    bad = next((name for name, weight in weights.items() if not _finite(local(weight))), None)
    if any_process(bad is not None):
        raise DivergedError(f"step {step}: weights are NaN or infinite{f' (first: {bad})' if bad else ''}")
    values = accumulator.probe(model)
    if any_process(values is not None and not bool(values.isfinite().all())):
        raise DivergedError(
            f"step {step}: the policy's log-probs of a completion are NaN or infinite, and were not before it"
        )


def _finite(weight: Tensor) -> bool:
    return not weight.numel() or bool(torch.stack(weight.detach().aminmax()).isfinite().all())
