"""`DistillationTrainer`: a `transformers.Trainer` whose batch is a set of prompts."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from nonpareil.engines.transformers import check_prompts
from nonpareil.errors import ConfigError, DataError
from nonpareil.methods.base import Method, Targets
from nonpareil.models.anchors import Anchor
from nonpareil.models.loading import context_window, disable_dropout, freeze, load_policy
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, token_budget_batches
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.rewards import CombinedReward, load_rewards
from nonpareil.training.callbacks import (
    AnchorCallback,
    CompactProgress,
    MetricsFile,
    StopCleanly,
    is_finished,
    last_whole_checkpoint,
)
from nonpareil.training.config import DistillationConfig
from nonpareil.training.figures import completion_rows, step_figures, write_completions
from nonpareil.training.method import anchor_motion, given_method, method_of
from nonpareil.training.sampler import RepeatedBatches
from nonpareil.training.spent import Spent
from nonpareil.training.steps import StepDrawer, StepDraws, reward_tensor
from nonpareil.training.stored import check_stored


class DistillationTrainer(Trainer):
    """Distils best-of-N into the policy, by the method that `args.method` names (J-BOND unless told otherwise).

    Each step draws what the method asks for of the policy and of the anchor for every prompt of the batch, scores
    it, and descends the method's loss; or it takes stored groups in the anchor's place.

    Arguments follow TRL. `train_dataset` and `eval_dataset` hold tokenised prompts (`list[Prompt]`, from
    `rollouts.prompts.tokenize_prompts`). `reward_funcs` is a reward, or a list of model paths, functions and
    reward objects. The policy should be in float32: bfloat16 weights lose small updates. `groups`: stored, drawn
    from this policy as it is now at the same temperature; then `train_dataset` follows from them. `method`: an
    object, in place of the one that `args` describes.

    Raises:
        ConfigError: several processes, an empty train_dataset, or settings the method does not read.
        DataError: a prompt that does not fit the model's window, or groups that cannot be trained on.
        ModelError: a model or reward model that cannot be used.
    """

    args: DistillationConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: Any,
        args: DistillationConfig,
        train_dataset: Sequence[Prompt] | None = None,
        eval_dataset: Sequence[Prompt] | None = None,
        processing_class: Tokenizer | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        groups: Sequence[Group] | None = None,
        method: Method | None = None,
    ):
        if args.world_size > 1:
            raise ConfigError(
                f"{args.world_size} processes were started, but this version trains in one; start it without "
                "torchrun or accelerate launch"
            )
        stored = groups is not None
        self.method = given_method(args, method, stored=stored) if method else method_of(args, stored=stored)
        if groups is not None:
            check_stored(groups, self.method)
            train_dataset = [prompt_of(group) for group in groups]
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
        freeze(model, args.frozen_parameters or [])
        self.repeats: int = getattr(self.method, "num_iterations", 1)
        self.stopper, self.spent = StopCleanly(self.repeats), Spent(args.max_train_seconds)
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(train_dataset),
            eval_dataset=None if eval_dataset is None else list(eval_dataset),
            processing_class=processing_class,
            data_collator=_as_they_are,
            callbacks=[MetricsFile(), self.stopper, self.spent, *(callbacks or [])],
            optimizers=optimizers,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CompactProgress())
        # A step's loss is a mean over its own prompts, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = False
        self.anchor = self._make_anchor(model)
        by_id = {group.prompt_id: group for group in groups or ()}
        self.drawer = StepDrawer(model, processing_class, self.method, self.reward, args, by_id)
        self._last_draw: tuple[int, StepDraws] | None = None
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._completions: dict[int, list[dict[str, Any]]] = {}

    def _make_anchor(self, model: PreTrainedModel) -> Anchor | None:
        """None where nothing is compared with it: stored groups hold their reference log-probs."""
        if not self.method.policy_draws + self.method.anchor_draws:
            return None
        anchor = Anchor(model, *anchor_motion(self.args, self.method))
        self.add_callback(AnchorCallback(anchor))
        return anchor

    @property
    def _moving_anchor(self) -> Anchor | None:
        return self.anchor if self.anchor is not None and self.anchor.moves else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The usual order, or each batch several times where it serves several steps."""
        if self.repeats == 1:
            return super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return RepeatedBatches(len(data), self._train_batch_size, self.repeats, self.args.seed)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The anchor is saved with them, before transformers deletes an older checkpoint."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._moving_anchor is not None and self.args.should_save:
            self._moving_anchor.save(Path(output_dir))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a checkpoint's path, or True for the last whole one.

        Raises:
            DataError: there is no checkpoint to resume from, or it lacks its anchor.
        """
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(Path(str(self.args.output_dir)), self._moving_anchor is not None)
            if last is None:
                raise DataError(
                    f"resume_from_checkpoint=true, but {self.args.output_dir} holds no whole checkpoint; "
                    "start without it"
                )
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint and self._moving_anchor is not None:
            self._moving_anchor.load(Path(resume_from_checkpoint))
        if resume_from_checkpoint and is_finished(Path(resume_from_checkpoint), self.args.max_steps):
            return self._take_up_finished(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        finally:
            self.stopper.restore()

    def _take_up_finished(self, checkpoint: str) -> TrainOutput:
        """The end of a run whose last checkpoint was its last step; transformers would take one step more."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.stopper.restore()
        return TrainOutput(self.state.global_step, 0.0, {})

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: list[Prompt], num_items_in_batch: Any = None
    ) -> Tensor:
        """Draw, score, and accumulate the gradient of one batch of prompts; returns its mean loss, nats."""
        start = time.perf_counter()
        drawn = self._draw(model, inputs)
        targets = self.method.targets(drawn.numbers)
        model.train()
        loss = self._accumulate(model, drawn, targets)
        self._record(drawn, targets, time.perf_counter() - start)
        return loss

    def _draw(self, model: nn.Module, prompts: list[Prompt]) -> StepDraws:
        """This step's draws; those of the step before where one batch of draws serves several steps."""
        step = self.state.global_step
        if self.repeats > 1 and self._last_draw is not None and self._last_draw[0] == step // self.repeats:
            return self._last_draw[1]
        drawn = self.drawer.draw(model, self.anchor, prompts, step)
        fresh = self.method.policy_draws + self.method.anchor_draws
        self.spent.completions_drawn += fresh * len(prompts)
        tokens = sum(
            len(g.prompt_token_ids) + len(ids) for g in drawn.groups for ids in g.completion_token_ids[:fresh]
        )
        self.spent.tokens_drawn += tokens
        self.state.num_input_tokens_seen += tokens
        self._last_draw = (step // self.repeats, drawn) if self.repeats > 1 else None
        return drawn

    def _accumulate(self, model: nn.Module, drawn: StepDraws, targets: Targets) -> Tensor:
        """Backward passes within the token budget; their sum is the gradient of the whole batch's mean."""
        wanted = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
        used = wanted.any(-1).nonzero()[:, 0].tolist()
        if not used:
            # Some rewards succeeded, but no prompt has all it needs: a step without gradient, counted in the log.
            return torch.zeros((), device=self.args.device)
        slots = [wanted[row].nonzero()[:, 0].tolist() for row in used]
        costs = [drawn.padded_tokens(row, mine) for row, mine in zip(used, slots, strict=True)]
        total = torch.zeros((), device=self.args.device)
        width = max(len(ids) for group in drawn.groups for ids in group.completion_token_ids)
        for batch in token_budget_batches(costs, self.args.max_tokens_per_batch):
            rows = [used[i] for i in batch]
            places = [(i, j) for i, b in enumerate(batch) for j in slots[b]]
            sequences = TokenSequences(
                [drawn.groups[rows[i]].prompt_token_ids for i, _ in places],
                [drawn.groups[rows[i]].completion_token_ids[j] for i, j in places],
            )
            with self.compute_loss_context_manager():
                values = completion_token_logprobs(self._plain(model), sequences, self.args.temperature)
            self.spent.tokens_trained += sum(sequences.lengths())
            index = tuple(torch.tensor(places, device=values.device).T)
            values = nn.functional.pad(values, (0, width - values.shape[1]))
            logprobs = values.new_zeros(len(rows), wanted.shape[1], width).index_put(index, values)
            k = drawn.num_policy
            here = targets.select(rows).to(values.device)
            loss = self.method.loss(logprobs[:, :k], logprobs[:, k:], here).sum() / len(used)
            self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
            total += loss.detach()
        return total / self.current_gradient_accumulation_steps

    def _plain(self, model: nn.Module) -> PreTrainedModel:
        return self.accelerator.unwrap_model(model)

    def _record(self, drawn: StepDraws, targets: Targets, seconds: float) -> None:
        """Gather the step's figures; they are logged as means over `logging_steps`."""
        figures = {**step_figures(drawn, self.reward.names), **self.method.metrics(drawn.numbers)}
        for name, value in {**figures, "step_time": seconds}.items():
            self._figures[name].append(value)
        step = self.state.global_step + 1
        if self.args.log_completions and step % max(1, int(self.state.logging_steps)) == 0:
            # A step's earlier micro-batches, under gradient accumulation, belong to the same file.
            rows = [*self._completions.get(step, []), *completion_rows(drawn, targets, step)]
            self._completions = {step: rows}
            write_completions(Path(str(self.args.output_dir)), step, rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures gathered since the last log."""
        if "loss" in logs:
            # NaN: every reward of that step failed, which rewards/failed_ratio counts.
            means = {name: torch.tensor(values).nanmean().item() for name, values in self._figures.items()}
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
