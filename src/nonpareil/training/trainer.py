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
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.trainer_callback import ProgressCallback

from nonpareil.engines.checks import check_prompts, check_token_ids
from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method
from nonpareil.models.adapters import AdapterAnchor, add_policy_adapter, is_adapted, plain_model
from nonpareil.models.anchors import Anchor
from nonpareil.models.loading import disable_dropout, freeze, stated_limits
from nonpareil.models.saving import prepare_saving
from nonpareil.records import Group, Prompt, refuse_repeated
from nonpareil.rewards import CombinedReward, load_rewards
from nonpareil.training.accumulate import Accumulator
from nonpareil.training.actors.choose import make_actors
from nonpareil.training.adapter_checks import check_adapter
from nonpareil.training.arguments import check_arguments, check_scorable, read_policy
from nonpareil.training.batch import StepBatch, reward_tensor
from nonpareil.training.callbacks import AnchorCallback, CompactProgress, MetricsFile, StopCleanly
from nonpareil.training.config import DistillationConfig
from nonpareil.training.costs import Spent
from nonpareil.training.descent import Descended, Descent
from nonpareil.training.identity import model_identity, run_identity
from nonpareil.training.method import anchor_motion, given_method, method_of
from nonpareil.training.output import ListingTrainer
from nonpareil.training.placement import place
from nonpareil.training.prompt_order import RepeatedBatches, planned_steps, whole_batches
from nonpareil.training.signal import Signal, resting_scaler
from nonpareil.training.step import StepSampler
from nonpareil.training.step_metrics import completion_rows, known_mean, step_figures, write_completions
from nonpareil.training.stored import prompts_of_stored

if TYPE_CHECKING:
    from peft import LoraConfig


class DistillationTrainer(ListingTrainer):
    """Distils best-of-N into the policy, by the method that `args.method` names (J-BOND unless told otherwise).

    Each step draws what the method asks for of the policy and of the anchor for every prompt of the batch, scores
    it, and descends the method's loss; or it takes stored groups in the anchor's place.

    Arguments follow TRL. `train_dataset` and `eval_dataset` hold tokenised prompts (`list[Prompt]`, from
    `rollouts.prompts.tokenize_prompts`). `reward_funcs` is a reward, or a list of model paths, functions and
    reward objects. The policy should be in float32: bfloat16 weights lose small updates. `groups`: stored, drawn
    from this policy as it is now at the same temperature; then `train_dataset` follows from them. `method`: an
    object, in place of the one that `args` describes.

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
        args: DistillationConfig,
        train_dataset: Sequence[Prompt] | None = None,
        eval_dataset: Sequence[Prompt] | None = None,
        processing_class: Tokenizer | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: "LoraConfig | None" = None,
        groups: Sequence[Group] | None = None,
        method: Method | None = None,
    ):
        check_arguments(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            groups=groups,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        stored = groups is not None
        self.method = given_method(args, method, stored=stored) if method else method_of(args, stored=stored)
        lora = peft_config or args.lora_config()
        check_adapter(args, lora is not None, peft_config, model)
        self.draws = self.method.policy_draws + self.method.anchor_draws > 0 or args.eval_strategy != "no"
        if args.use_vllm and not self.draws:
            raise ConfigError(
                f"use_vllm: {args.method} draws nothing here, and nothing would use it; remove it"
            )
        if groups is not None:
            train_dataset = prompts_of_stored(groups, self.method)
        if not train_dataset:
            raise ConfigError("train_dataset is empty; give at least one prompt")
        self.repeats: int = getattr(self.method, "num_iterations", 1)
        self.planned = planned_steps(args, self.method, len(train_dataset))
        given, weights = model, None  # the folder to read them from, shard by shard
        if isinstance(model, str):
            model, weights, tokenizer = read_policy(model, args)
            processing_class = processing_class or tokenizer
        if processing_class is None:
            raise ConfigError("processing_class=None: a model object needs its tokenizer beside it")
        for name, prompts in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset or ())):
            refuse_repeated((prompt.prompt_id for prompt in prompts), name)
            window, vocabulary = stated_limits(model.config)
            check_prompts(prompts, args.max_completion_length, window)
            check_token_ids(prompts, vocabulary, "the model")
        self.reward = (
            reward_funcs
            if isinstance(reward_funcs, CombinedReward)
            else load_rewards(
                reward_funcs,
                tokenizers=reward_processing_classes,
                weights=args.reward_weights,
                timeout=args.reward_timeout,
                trust_remote_code=args.trust_remote_code,
            )
        )
        check_scorable(self.reward, self.method, args, train_dataset, eval_dataset or (), processing_class)
        prepare_saving(model, processing_class, train_dataset)
        self.identity = run_identity(
            args, self.method, train_dataset, self.reward, model_identity(given, model), groups, peft_config
        )
        disable_dropout(model)
        freeze(model, args.frozen_parameters or [])
        set_seed(args.seed)  # an adapter begins at random
        policy: Any = model if lora is None else add_policy_adapter(model, lora)
        place(policy, args.device)
        self.stopper, self.spent = StopCleanly(self.repeats), Spent(args.max_train_seconds)
        self.signal = Signal(self.method, self.stopper)
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
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CompactProgress())
        # A step's loss is a mean over its own prompts, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = False
        # Gradients are summed by the accumulator; DDP's wrapper would hold them a second time.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.anchor = self._make_anchor(policy)
        self.watch(self.spent, self.signal)  # behind the anchor's callback
        self.step_sampler = StepSampler(
            partial(make_actors, policy, self.anchor, processing_class, args, train_dataset),
            self.method,
            self.reward,
            args,
            {group.prompt_id: group for group in groups or ()},
        )
        self.accumulator = Accumulator.of(self.method, args, self.accelerator, self.spent)
        scaler = resting_scaler(self.accelerator, self.signal)
        self.descent = Descent(self.method, self.accumulator, self.signal, scaler)
        if self.draws and not args.use_vllm:
            _ = self.step_sampler.actors  # copies a whole model, and asks whether it can be drawn from
        if args.shard_weights:
            self.shard(policy, weights)
        self._last_draw: tuple[int, StepBatch] | None = None
        self._figures: dict[str, list[float]] = defaultdict(list)

    def _make_anchor(self, policy: Any) -> Anchor | None:
        """None where nothing is compared with it: stored groups hold their reference log-probs."""
        if not self.method.policy_draws + self.method.anchor_draws:
            return None
        kind = AdapterAnchor if is_adapted(policy) else Anchor
        anchor = kind(policy, *anchor_motion(self.args, self.method))
        self.add_callback(AnchorCallback(anchor, lambda: self.signal.moves))
        return anchor

    def release(self) -> None:
        """End what draws beside the trainer, and holds memory for it; nothing can be drawn afterwards."""
        engine = getattr(vars(self.step_sampler).get("actors"), "engine", None)
        if self.args.use_vllm and engine is not None:
            engine.release()

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
        drawn = self._draw(inputs)
        descended = self.descent.step(plain_model(model), drawn, self.state.global_step + 1)
        self._record(descended, time.perf_counter() - start)
        loss = torch.tensor(descended.loss, device=self.args.device)
        return loss.nan_to_num()  # of the log `_figures` has it

    def _draw(self, prompts: list[Prompt]) -> StepBatch:
        """This step's draws; those of the step before where one batch of draws serves several steps."""
        step = self.state.global_step
        if self.repeats > 1 and self._last_draw is not None and self._last_draw[0] == step // self.repeats:
            return self._last_draw[1]
        drawn = self.step_sampler.draw(prompts, step)
        fresh = self.method.policy_draws + self.method.anchor_draws
        self.spent.completions_drawn += fresh * len(prompts)
        tokens = sum(
            len(g.prompt_token_ids) + len(ids) for g in drawn.groups for ids in g.completion_token_ids[:fresh]
        )
        self.spent.tokens_drawn += tokens
        self.state.num_input_tokens_seen += tokens
        self._last_draw = (step // self.repeats, drawn) if self.repeats > 1 else None
        return drawn

    def _record(self, descended: Descended, seconds: float) -> None:
        """Gather the step's figures; they are logged as means over `logging_steps`."""
        drawn, targets = descended.drawn, descended.targets
        figures = step_figures(drawn, self.reward.names, anchor_moves=self._moving_anchor is not None)
        figures |= {**self.method.metrics(drawn.draws), **descended.figures, **self.signal.figures}
        figures["step_time"] = seconds
        for name, value in figures.items():
            self._figures[name].append(value)
        step = self.state.global_step + 1
        logged = self.args.log_completions and step % max(1, int(self.state.logging_steps)) == 0
        if logged and self.args.should_save:
            rows = completion_rows(drawn, targets, step)
            write_completions(Path(str(self.args.output_dir)), step, rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures gathered since the last log."""
        if "loss" in logs:
            # NaN: every reward of that step failed, or no prompt was trained on; both are counted.
            means = {name: known_mean(values) for name, values in self._figures.items()}
            logs = {**logs, **means, "num_tokens": self.state.num_input_tokens_seen}
            self._figures.clear()
        elif "train_loss" in logs:
            logs = self.spent.summary(logs, self.state)
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
        groups = self.step_sampler.draw_policy(prompts, seed=self.args.seed)
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
