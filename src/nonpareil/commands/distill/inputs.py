"""What a distillation reads: the policy, prompts or stored groups to train on, held-out prompts, the rewards."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nonpareil.commands.distill.checks import held_out_source, needs_held_out
from nonpareil.commands.distill.credits import load_credits
from nonpareil.commands.distill.folder import asked_place
from nonpareil.commands.distill.stored_rewards import loaded_or_stored
from nonpareil.commands.inputs import (
    check_reward,
    load_prompts,
    load_reward,
    load_second_reward,
)
from nonpareil.options.distill import DistillOptions
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.held_out import eval_split
from nonpareil.options.rewards import RewardInputOptions, RewardOptions
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.settings import values_of
from nonpareil.terminal import tell
from nonpareil.training.settings.template import template_kwargs
from nonpareil.training.stored_folder import check_stored_rewards, load_groups

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.credits import CreditsByPrompt
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


SHARED = 0.2
"""Of held-out prompts that are training prompts too: the share from which that is told. Short ones repeat by
themselves, 12% of the demo's."""


class TrainingData(NamedTuple):
    """What is trained on."""

    groups: list[Group] | None
    """None where completions are drawn in training."""
    prompts: list[Prompt]
    credits: "CreditsByPrompt | None" = None
    """Of the groups' completions, where they are given."""


def trained_policy(options: DistillOptions, config: "DistillationConfig", dtype: str) -> "LocalPolicy":
    """The policy to train, by its path; checked for being drawable where it is drawn from in this process.

    Raises:
        ModelError: no such model, no tokenizer, or an architecture that cannot be drawn from.
        ConfigError: a policy at a strength is asked for, and there is none of this model; or an adapter is to be
            trained on a folder that is one.
    """
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.models.quantized import check_plain_after, check_quantized
    from nonpareil.training.adapter_checks import check_scalable, refuse_adapter_on_adapter

    name, revision = options.model_name_or_path or "", options.model_revision
    bits = config.init().quantization
    check_quantized(bits, adapted=config.use_peft)
    if options.merge or asked_place(options) is not None:
        check_plain_after(bits, "merge" if options.merge else "a policy at a strength of its training")
    policy = LocalPolicy(
        name, revision, dtype, trust_remote_code=config.trust_remote_code, init=config.init()
    )
    if config.use_peft:
        refuse_adapter_on_adapter(policy.name_or_path)
    if options.evaluate_after or not (options.groups or config.use_vllm):
        policy.check_drawable()
    if asked_place(options) is not None:
        from nonpareil.commands.evaluate.dtypes import training_dtype
        from nonpareil.models.interpolation import check_interpolable

        check_scalable(config, training_dtype(config, options.kl_dtype))
        own = policy.config, policy.tokenizer
        check_interpolable(own, own, (policy.name_or_path, policy.name_or_path))
    return policy


def training_data(
    options: DistillOptions, config: "DistillationConfig", method: "Method", policy: "LocalPolicy"
) -> TrainingData:
    """The stored groups, where there are some, with their credits, and the prompts.

    Raises:
        NonpareilError: no such prompts, groups or credits, or some that this policy or method cannot be trained on;
            a policy that cannot begin as the method asks.
    """
    from nonpareil.training.tilted_start import check_tiltable, starts_tilted

    if starts_tilted(method):
        check_tiltable(policy.name_or_path, policy.config, trust_remote_code=policy.trust_remote_code)
    sampling = config.sampling(config.seed)
    if options.groups is None:
        prompts = load_prompts(
            options,
            policy,
            sampling,
            source=options.prompt_source,
            split=options.dataset_train_split,
            limit=options.max_train_prompts,
        )
        return TrainingData(None, prompts)
    credits = None if options.credits is None else load_credits(options.credits, options.groups, policy)
    limit, kwargs = options.max_train_prompts, template_kwargs(options.chat_template_kwargs)
    groups = load_groups(options.groups, policy, config, method, limit, kwargs, credits)
    prompts = [prompt_of(group) for group in groups]
    policy.check(prompts, sampling)
    return TrainingData(groups, prompts, credits)


def held_out_prompts(
    options: DistillOptions,
    config: "DistillationConfig",
    policy: "LocalPolicy",
    training: Sequence[Prompt],
) -> list[Prompt] | None:
    """The prompts to evaluate on, in training or after it; None where there is neither.

    Tells where many of them are `training` prompts too.

    Raises:
        NonpareilError: as `load_prompts`.
    """
    if not needs_held_out(options, config):
        return None
    held_out = load_prompts(
        options,
        policy,
        config.sampling(config.seed),
        source=held_out_source(options),
        split=eval_split(options),
        limit=options.max_eval_prompts,
        held_out=True,
    )
    _tell_shared(training, held_out, stored=options.groups is not None)
    return held_out


def _tell_shared(training: Sequence[Prompt], held_out: Sequence[Prompt], *, stored: bool) -> None:
    """Once, in the first process: of these the evaluation says what was learnt by heart, and not more."""
    from nonpareil.models.distributed import process_index

    known = {json.dumps(prompt.prompt, sort_keys=True) for prompt in training}
    shared = sum(json.dumps(prompt.prompt, sort_keys=True) in known for prompt in held_out)
    if shared >= SHARED * len(held_out) and process_index() == 0:
        way = "draw the groups with the same test_split_size" if stored else "test_split_size holds some out"
        tell(
            f"{shared} of {len(held_out)} held-out prompts are training prompts too, so that the policy is "
            f"measured on what it is trained on; give others ({way})"
        )


def reward_options(options: DistillOptions, config: "DistillationConfig") -> RewardOptions:
    """All that is said of the rewards, part of which is the trainer's."""
    return RewardOptions(
        **values_of(options, RewardInputOptions),
        reward_weights=config.reward_weights,
        reward_timeout=config.reward_timeout,
        trust_remote_code=config.trust_remote_code,
    )


def training_reward(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    policy: "LocalPolicy",
    data: TrainingData,
) -> "CombinedReward":
    """The rewards to train on, loaded where they score; those of stored groups must be the ones that scored them.

    Functions and verifiers that cannot score completions of the prompts are refused before a model is read.

    Raises:
        NonpareilError: a reward that cannot be loaded, or another than the stored one.
    """
    stored, asked = data.groups is not None, reward_options(options, config)
    prompts = () if stored else data.prompts
    reward = loaded_or_stored(
        lambda: load_reward(asked, policy.tokenizer, prompts, config.max_completion_length),
        options,
        config,
        method,
        asked,
    )
    if stored:
        check_stored_rewards(options.groups or "", reward)
    return reward


def check_evaluable(
    evaluation: EvaluateOptions, reward: "CombinedReward", held_out: list[Prompt], policy: "LocalPolicy"
) -> None:
    """Refuse rewards that could not score the held-out prompts, which would fail only after training.

    Raises:
        NonpareilError: the unseen reward cannot be loaded, or one of them cannot score the prompts.
    """
    for name in reward.names_reading_state:
        tell(
            f"reward {name!r} reads trainer_state, which is None in the evaluation that follows: it must score "
            "without one, and what is measured is that score"
        )
    length, tokenizer = evaluation.max_completion_length, policy.tokenizer
    reward.check_prompts(held_out, length, tokenizer)
    if evaluation.unseen_reward:
        unseen = load_second_reward("unseen_reward", evaluation.unseen_reward, evaluation, reward)
        check_reward(unseen, held_out, length, tokenizer, errors_in=evaluation.output_dir)
