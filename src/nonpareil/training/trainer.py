"""`DistillationTrainer`: a `transformers.Trainer` whose batch is a set of prompts."""

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.trainer_callback import ProgressCallback

from nonpareil.credits import CreditsByPrompt
from nonpareil.errors import ConfigError
from nonpareil.models.adapters import is_adapted, plain_model
from nonpareil.models.loading import stated_limits
from nonpareil.models.quantized import refuse_quantization_config
from nonpareil.models.saving import prepare_saving
from nonpareil.records import Group, Prompt
from nonpareil.training.actors.choose import make_actors
from nonpareil.training.adapter_checks import check_adapter
from nonpareil.training.arguments import check_arguments, check_best_metric, check_fit, check_scorable
from nonpareil.training.callbacks import AnchorCallback, CompactProgress, MetricsFile, StopCleanly
from nonpareil.training.checkpoints.identity import model_identity, run_identity
from nonpareil.training.checkpoints.output_folder import ListingTrainer
from nonpareil.training.config import DistillationConfig
from nonpareil.training.costs import Spent
from nonpareil.training.given import (
    check_datasets,
    default_config,
    given_data,
    given_prompts,
    given_reward,
    given_tokenizer,
)
from nonpareil.training.method import check_aggregation, check_group_rewards, draws_here, method_of
from nonpareil.training.phases import StepPhases
from nonpareil.training.policy import make_anchor, prepare_policy, read_policy
from nonpareil.training.prompt_order import RepeatedBatches, planned_steps, whole_batches
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.step.completions import log_completions
from nonpareil.training.step.descent import Descended, Descent
from nonpareil.training.step.logged import logged_metrics
from nonpareil.training.step.metrics import evaluation_metrics, known_mean, step_metrics
from nonpareil.training.step.sampler import StepSampler
from nonpareil.training.step.signal import Signal
from nonpareil.training.stored_credits import check_candidate_ids
from nonpareil.training.tilted_start import check_tilted_start, start_tilted

if TYPE_CHECKING:
    from peft import LoraConfig


class DistillationTrainer(ListingTrainer):
    """Distils best-of-N into the policy, by `args.method`: a name, or an object as BOND(n=4).

    Each step draws what the method asks for of the policy and of the anchor for every prompt of the batch, scores
    it, and descends the method's loss; or it takes stored groups in the anchor's place.

    Arguments follow TRL. `train_dataset` and `eval_dataset`: a `datasets.Dataset` or a list of rows, each with a
    `prompt` (text or messages; further columns go to the rewards), or what `tokenize_prompts` made of them. Of an
    `IterableDataset` to train on, as many rows are read as `max_steps` needs. `reward_funcs` is a reward, or a list
    of model paths, functions and reward objects. A model object should be in float32: bfloat16 weights lose small
    updates. `groups`: stored, drawn from this policy as it is now at the same temperature, or the path of their
    folder; the training prompts are theirs. `credits`: of their completions, for a method that reads them.
    `quantization_config`: None, as TRL's scripts pass it; `args` say what a base is read in (`load_in_4bit`).

    Its bases, from the top: `ListingTrainer` (a folder of its own), `CardedTrainer` (model card and hub),
    `CheckpointingTrainer` (exact resume), `ShardingTrainer` (weights in shards). A step: see `training.step`.

    Raises:
        ConfigError: an empty train_dataset, or settings that nothing reads or that do not go together.
        DataError: data of another kind, a prompt that does not fit the model, or groups that cannot be trained on.
        ModelError: a model or reward model that cannot be used.
    """

    args: DistillationConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: Any,
        args: DistillationConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Tokenizer | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: "LoraConfig | None" = None,
        groups: Sequence[Group] | str | Path | None = None,
        credits: CreditsByPrompt | None = None,
        quantization_config: None = None,
    ):
        args = default_config(model) if args is None else args
        refuse_quantization_config(quantization_config)
        check_arguments(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            groups=groups,
            credits=credits,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        stored = groups is not None
        self.method = method_of(args, stored=stored, credited=credits is not None)
        lora = peft_config or args.lora_config()
        check_adapter(args, lora is not None, peft_config, model)
        adapted = lora is not None or (not isinstance(model, str) and is_adapted(model))
        check_tilted_start(self.method, args, adapted=adapted, optimizer=optimizers[0])
        needs_draws = draws_here(self.method, args)
        processing_class = given_tokenizer(model, processing_class, args)
        folder = str(groups) if isinstance(groups, str | Path) else None
        datasets = train_dataset, eval_dataset, groups, credits
        data = given_data(model, args, self.method, processing_class, *datasets)
        train_dataset, eval_dataset, groups = data.prompts, data.held_out, data.groups
        self.repeats: int = self.method.num_iterations
        self.planned = planned_steps(args, self.method, len(train_dataset))
        asked = reward_funcs, reward_processing_classes
        self.reward = given_reward(*asked, args, folder, scores=needs_draws)
        check_group_rewards(self.reward, self.method, args, stored=stored)
        check_aggregation(self.reward, self.method, args, groups or ())
        check_best_metric(args, self.reward)
        check_scorable(self.reward, self.method, args, train_dataset, eval_dataset or (), processing_class)
        given, weights = model, None  # the folder to read them from, shard by shard
        if isinstance(model, str):
            model, weights, _ = read_policy(model, args)
        for name, prompts in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset or ())):
            check_fit(name, prompts, model, args)
        if credits is not None:
            check_candidate_ids(groups or (), credits, stated_limits(model.config)[1])
        prepare_saving(model, processing_class, train_dataset)
        trained = model_identity(given, model, args.init())
        self.identity = run_identity(
            args, self.method, train_dataset, self.reward, trained, groups, peft_config, credits=credits
        )
        policy = prepare_policy(model, args, self.method, lora)
        self.stopper, self.spent = StopCleanly(self.repeats), Spent(args.max_train_seconds)
        self.signal = Signal(self.method, self.stopper, masks_truncated=args.mask_truncated_completions)
        super().__init__(
            model=policy,
            args=args.with_whole_steps(),
            train_dataset=list(train_dataset),
            eval_dataset=None if eval_dataset is None else list(eval_dataset),
            processing_class=processing_class,
            data_collator=_as_they_are,
            callbacks=[MetricsFile(), self.stopper, self.spent, self.signal, *(callbacks or [])],
            optimizers=optimizers,
        )
        self.phases = StepPhases()
        if self.pop_callback(ProgressCallback) is not None:
            self.phases.bar = CompactProgress()
            self.add_callback(self.phases.bar)
        # A step's loss is a mean over its own prompts, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = False
        # Gradients are summed by the accumulator; DDP's wrapper would hold them a second time.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.anchor = make_anchor(policy, args, self.method)
        start_tilted(policy, self.method, groups, credits, processing_class, args)
        if self.anchor is not None:
            self.add_callback(AnchorCallback(self.anchor, lambda: self.signal.moves))
        self.watch(self.spent, self.signal)  # behind the anchor's callback
        self.step_sampler = StepSampler(
            partial(make_actors, policy, self.anchor, processing_class, args, train_dataset),
            self.method,
            self.reward,
            args,
            {group.prompt_id: group for group in groups or ()},
            credits=credits,
            phases=self.phases,
            trainer_state=lambda: self.state,
        )
        self.descent = Descent.of(self.method, args, self.accelerator, self.spent, self.signal, self.anchor)
        self.accumulator = self.descent.accumulator
        if needs_draws and not args.use_vllm:
            self.step_sampler.start()  # copies a whole model, and asks whether it can be drawn from
        if args.shard_weights:
            self.shard(policy, weights)
        self._last_draw: tuple[Any, int, StepBatch] | None = None
        self._metrics: dict[str, list[float]] = defaultdict(list)
        """Of the steps since the last log."""

    def release(self) -> None:
        """End what draws beside the trainer, and holds memory for it; nothing can be drawn afterwards."""
        self.step_sampler.release()

    def get_train_dataloader(self) -> DataLoader:
        """Whole batches, of all processes together: each knows all prompts and draws for its share."""
        return whole_batches(
            DataLoader(
                self.train_dataset,  # type: ignore[arg-type]
                batch_size=self._train_batch_size * self.args.world_size,
                sampler=self._get_train_sampler(),
                collate_fn=self.data_collator,
                drop_last=self.args.dataloader_drop_last,
            ),
            self.args.data_seed,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The usual order, or each batch several times where it serves several steps."""
        if self.repeats == 1:
            return super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        size = self._train_batch_size * self.args.world_size
        return RepeatedBatches(len(data), size, self.repeats, self.args.seed)

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: list[Prompt], num_items_in_batch: Any = None
    ) -> Tensor:
        """Draw, score, and compute the gradient of a whole optimizer step; returns its mean loss, nats."""
        start = time.perf_counter()
        batch = self._draw(inputs)
        self.phases.begin("train", self.state.global_step)
        descended = self.descent.step(plain_model(model), batch, self.state.global_step + 1)
        self._record(descended, time.perf_counter() - start)
        loss = torch.tensor(descended.loss, device=self.args.device)
        return loss.nan_to_num()  # what is logged is in `_metrics`

    def _draw(self, prompts: list[Prompt]) -> StepBatch:
        """This step's draws; those of the step before where one batch of draws serves several steps."""
        training, turn = self.state, self.state.global_step // self.repeats
        if self._last_draw is not None and self._last_draw[0] is training and self._last_draw[1] == turn:
            return self._last_draw[2]  # of this very call of `train`, which has a state of its own
        batch = self.step_sampler.draw(prompts, self.state.global_step)
        fresh = self.method.policy_draws + self.method.anchor_draws
        tokens = sum(batch.tokens(row, range(fresh)) for row in range(len(batch.groups)))
        self.spent.add_draws(fresh * len(prompts), tokens)
        self.state.num_input_tokens_seen += tokens
        self._last_draw = (training, turn, batch) if self.repeats > 1 else None
        return batch

    def _record(self, descended: Descended, seconds: float) -> None:
        """Gather the step's metrics, which are logged as means over `logging_steps`, and write its completions."""
        batch, step = descended.batch, self.state.global_step + 1
        metrics = {
            **step_metrics(batch, self.reward.names, anchor_moves=self._moving_anchor is not None),
            **self.method.metrics(batch.draws),
            **descended.metrics,
            **self.signal.metrics,
            "step_time": seconds,
        }
        metrics |= logged_metrics(batch.logged, metrics)
        for name, value in metrics.items():
            self._metrics[name].append(value)
        logged = self.args.log_completions and step % max(1, int(self.state.logging_steps)) == 0
        if logged and self.args.should_save:
            log_completions(self.args, step, batch, descended.targets, self.phases.show)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log."""
        if "loss" in logs:
            # NaN: every reward of that step failed, or no prompt was trained on; both are counted.
            means = {name: known_mean(values) for name, values in self._metrics.items()}
            logs = {**logs, **means, "num_tokens": self.state.num_input_tokens_seen}
            self._metrics.clear()
        elif "train_loss" in logs:
            logs = self.spent.summary(logs, self.state)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """One completion per held-out prompt: `eval_reward`, that of each reward, `eval_completions/mean_length`.

        The yardstick (win rate, KL, frontier) is `nonpareil evaluate`; this is a cheap look during training.
        `eval_dataset`: in the forms that the trainer itself takes; by default what it was given.
        """
        prompts: Any = self.eval_dataset
        if eval_dataset is not None:
            check_datasets(None, eval_dataset, None)
            tokenizer: Any = self.processing_class
            prompts = given_prompts("eval_dataset", eval_dataset, self.args, tokenizer)
        if not prompts:
            raise ConfigError(
                "eval_dataset is empty, but evaluation was asked for; give prompts or eval_strategy=no"
            )
        groups, logged = self.step_sampler.draw_policy(prompts, seed=self.args.seed)
        metrics = evaluation_metrics(groups, self.reward.names, logged, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _as_they_are(prompts: list[Prompt]) -> Any:
    """A batch of prompts stays a list: engines pad, each in its own way."""
    return prompts
