"""`DistillationTrainer`: a `transformers.Trainer` whose batch is a set of prompts."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from nonpareil.engines.transformers import TransformersEngine, check_prompts
from nonpareil.errors import ConfigError, DataError
from nonpareil.methods.base import Method, Targets
from nonpareil.methods.jbond import JBOND
from nonpareil.models.anchors import EMAAnchor, WorkingCopy
from nonpareil.models.loading import context_window, load_policy
from nonpareil.models.logprobs import TokenSequences, completion_logprobs, token_budget_batches
from nonpareil.records import Prompt
from nonpareil.rewards import CombinedReward, load_rewards
from nonpareil.training.callbacks import (
    AnchorCallback,
    CompactProgress,
    MetricsFile,
    StopCleanly,
    last_whole_checkpoint,
)
from nonpareil.training.config import DistillationConfig
from nonpareil.training.steps import StepDrawer, StepDraws, reward_tensor


class DistillationTrainer(Trainer):
    """Distils best-of-N into the policy with J-BOND (arXiv:2407.14622).

    Each step draws one completion of the policy and two of the anchor for every prompt of the batch, scores
    them, and descends the Jeffreys divergence to best-of-2 of the anchor, which follows the policy.

    Arguments follow TRL. `train_dataset` and `eval_dataset` hold tokenised prompts (`list[Prompt]`, from
    `rollouts.prompts.tokenize_prompts`). `reward_funcs` is a reward, or a list of model paths, functions and
    reward objects. The policy should be in float32: bfloat16 weights lose small updates.

    Raises:
        ConfigError: several processes or an empty train_dataset.
        DataError: a prompt that does not fit the model's window.
        ModelError: a model or reward model that cannot be used.
    """

    args: DistillationConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: Any,
        args: DistillationConfig,
        train_dataset: Sequence[Prompt],
        eval_dataset: Sequence[Prompt] | None = None,
        processing_class: Tokenizer | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        if args.world_size > 1:
            raise ConfigError(
                f"{args.world_size} processes were started, but this version trains in one; start it without "
                "torchrun or accelerate launch"
            )
        if not train_dataset:
            raise ConfigError("train_dataset is empty; give at least one prompt")
        if isinstance(model, str):
            model, tokenizer = load_policy(model, dtype="float32", device=args.device)
            processing_class = processing_class or tokenizer
        if processing_class is None:
            raise ConfigError("processing_class=None: a model object needs its tokenizer beside it")
        for prompts in (train_dataset, eval_dataset or ()):
            check_prompts(prompts, args.max_completion_length, context_window(model))
        self.reward = (
            reward_funcs
            if isinstance(reward_funcs, CombinedReward)
            else load_rewards(
                reward_funcs,
                tokenizers=reward_processing_classes,
                weights=args.reward_weights,
                timeout=args.reward_timeout,
            )
        )
        disable_dropout(model)
        self.method: Method = JBOND(args.jeffreys_weight, args.kl_coef)
        self.stopper = StopCleanly()
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(train_dataset),
            eval_dataset=None if eval_dataset is None else list(eval_dataset),
            processing_class=processing_class,
            data_collator=_as_they_are,
            callbacks=[MetricsFile(), self.stopper, *(callbacks or [])],
            optimizers=optimizers,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CompactProgress())
        # A step's loss is a mean over its own prompts, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = False
        self.anchor = EMAAnchor(model, args.anchor_ema_rate)
        self.add_callback(AnchorCallback(self.anchor))
        working = WorkingCopy(
            model, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
        )
        engine = TransformersEngine(
            working.model, processing_class, max_tokens_per_batch=args.max_tokens_per_batch
        )
        self.drawer = StepDrawer(engine, working, self.method, self.reward, args)
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._completions: dict[int, list[dict[str, Any]]] = {}

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a checkpoint's path, or True for the last whole one.

        Raises:
            DataError: there is no checkpoint to resume from, or it lacks its anchor.
        """
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(Path(str(self.args.output_dir)))
            if last is None:
                raise DataError(
                    f"resume_from_checkpoint=true, but {self.args.output_dir} holds no whole checkpoint; "
                    "start without it"
                )
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint:
            self.anchor.load(Path(resume_from_checkpoint))
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.stopper.restore()

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: list[Prompt], num_items_in_batch: Any = None
    ) -> Tensor:
        """Draw, score, and accumulate the gradient of one batch of prompts; returns its mean loss, nats."""
        start = time.perf_counter()
        drawn = self.drawer.draw(model, self.anchor, inputs, self.state.global_step)
        targets = self.method.targets(drawn.numbers)
        model.train()
        loss = self._accumulate(model, drawn, targets)
        self._record(drawn, targets, time.perf_counter() - start)
        return loss

    def _accumulate(self, model: nn.Module, drawn: StepDraws, targets: Targets) -> Tensor:
        """Backward passes within the token budget; their sum is the gradient of the whole batch's mean."""
        wanted = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
        used = wanted.any(-1).nonzero()[:, 0].tolist()
        if not used:
            # Some rewards succeeded, but no prompt has all it needs: a step without gradient, counted in the log.
            return torch.zeros((), device=self.args.device)
        slots = [wanted[row].nonzero()[:, 0].tolist() for row in used]
        costs = [
            len(mine)
            * max(
                len(drawn.groups[row].prompt_token_ids) + len(drawn.groups[row].completion_token_ids[j])
                for j in mine
            )
            for row, mine in zip(used, slots, strict=True)
        ]
        total = torch.zeros((), device=self.args.device)
        for batch in token_budget_batches(costs, self.args.max_tokens_per_batch):
            rows = [used[i] for i in batch]
            places = [(i, j) for i, b in enumerate(batch) for j in slots[b]]
            sequences = TokenSequences(
                [drawn.groups[rows[i]].prompt_token_ids for i, _ in places],
                [drawn.groups[rows[i]].completion_token_ids[j] for i, j in places],
            )
            with self.compute_loss_context_manager():
                values = completion_logprobs(self._plain(model), sequences, self.args.temperature)
            index = tuple(torch.tensor(places, device=values.device).T)
            logprobs = values.new_zeros(len(rows), wanted.shape[1]).index_put(index, values)
            k = drawn.num_policy
            here = _to_device(targets.select(rows), values.device)
            loss = self.method.loss(logprobs[:, :k], logprobs[:, k:], here).sum() / len(used)
            self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
            total += loss.detach()
        return total / self.current_gradient_accumulation_steps

    def _plain(self, model: nn.Module) -> PreTrainedModel:
        return self.accelerator.unwrap_model(model)

    def _record(self, drawn: StepDraws, targets: Targets, seconds: float) -> None:
        """Gather the step's figures, under TRL's names; they are logged as means over `logging_steps`."""
        k = drawn.num_policy
        rewards, log_ratio = drawn.numbers.policy_rewards, drawn.numbers.log_ratio
        lengths = torch.tensor([float(len(ids)) for g in drawn.groups for ids in g.completion_token_ids[:k]])
        clipped = [reason == "length" for g in drawn.groups for reason in g.finish_reasons[:k]]
        sampled = sum(sum(values) for g in drawn.groups for values in g.logprobs[:k])
        self.state.num_input_tokens_seen += sum(
            len(g.prompt_token_ids) + len(ids) for g in drawn.groups for ids in g.completion_token_ids
        )
        figures = {
            "reward": rewards.nanmean().item(),
            "reward_std": rewards[~rewards.isnan()].std(unbiased=False).item(),
            "anchor_reward": drawn.numbers.anchor_rewards.nanmean().item(),
            "kl": log_ratio.mean().item(),
            "entropy": -sampled / lengths.sum().item(),
            "completions/mean_length": lengths.mean().item(),
            "completions/clipped_ratio": sum(clipped) / len(clipped),
            "rewards/failed_ratio": reward_tensor(drawn.groups).isnan().float().mean().item(),
            "step_time": seconds,
            **self.method.metrics(drawn.numbers),
        }
        for name in self.reward.names:
            values = [v for g in drawn.groups for v in g.rewards_by_name[name][:k] if v is not None]
            if values:
                figures[f"rewards/{name}/mean"] = sum(values) / len(values)
                figures[f"rewards/{name}/std"] = torch.tensor(values).std(unbiased=False).item()
        for name, value in figures.items():
            self._figures[name].append(value)
        step = self.state.global_step + 1
        if self.args.log_completions and step % max(1, int(self.state.logging_steps)) == 0:
            advantages = getattr(targets, "advantages", torch.full((len(drawn.groups),), torch.nan))
            self._write_completions(step, drawn, advantages.tolist())

    def _write_completions(self, step: int, drawn: StepDraws, advantages: list[float]) -> None:
        rows = [
            {
                "step": step,
                "prompt": str(g.prompt),
                "completion": g.completions[j],
                "drawn_by": "policy" if j < drawn.num_policy else "anchor",
                **{name: values[j] for name, values in g.rewards_by_name.items()},
                "advantage": advantage if j < drawn.num_policy else None,
            }
            for g, advantage in zip(drawn.groups, advantages, strict=True)
            for j in range(len(g))
        ]
        # A step's earlier micro-batches, under gradient accumulation, belong to the same file.
        self._completions = {step: [*self._completions.get(step, []), *rows]}
        directory = Path(str(self.args.output_dir)) / "completions"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"completions_{step:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(self._completions[step]), path)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures gathered since the last log."""
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._figures.items()}
            logs = {**logs, **means, "num_tokens": self.state.num_input_tokens_seen}
            self._figures.clear()
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Sequence[Prompt] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """One completion a held-out prompt: `eval_reward` and `eval_completions/mean_length`.

        The yardstick (win rate, KL, frontier) is `nonpareil evaluate`; this is a cheap look during training.
        """
        prompts: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        if not prompts:
            raise ConfigError(
                "eval_dataset is empty, but evaluation was asked for; give prompts or eval_strategy=no"
            )
        groups = self.drawer.draw_policy(self._plain(self.model_wrapped), prompts, seed=self.args.seed)
        lengths = [len(group.completion_token_ids[0]) for group in groups]
        metrics = {
            f"{metric_key_prefix}_reward": reward_tensor(groups).nanmean().item(),
            f"{metric_key_prefix}_completions/mean_length": sum(lengths) / len(lengths),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _as_they_are(prompts: list[Prompt]) -> Any:
    """A batch of prompts stays a list: engines pad, each in its own way."""
    return prompts


def disable_dropout(model: nn.Module) -> None:
    """Dropout off for good: the policy that is trained must be the one that draws."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates handed to functional.dropout, as OPT does
            if isinstance(value, float) and any(part in name for part in ("dropout", "pdrop", "layerdrop")):
                setattr(module, name, 0.0)


def _to_device(targets: Targets, device: torch.device) -> Targets:
    return replace(targets, **{name: value.to(device) for name, value in vars(targets).items()})
