"""What a training would do and need: its settings, data and memory, its rewards tried, a short draw timed."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.credits import makes_credits
from nonpareil.commands.distill.evaluation import evaluation_options
from nonpareil.commands.distill.fits import memory_warning
from nonpareil.commands.distill.inputs import (
    check_evaluable,
    held_out_prompts,
    trained_policy,
    training_data,
    training_reward,
)
from nonpareil.commands.distill.rehearsal import (
    check_repository,
    hub_warnings,
    timed_draw,
    try_rewards,
    unmeasured,
)
from nonpareil.commands.distill.stages import check_stages, cost_of_stages
from nonpareil.options.distill import DistillOptions
from nonpareil.records import Prompt

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZER_BYTES = {"sgd": 0, "rmsprop": 4, "adagrad": 4, "adafactor": 0}
"""Of state a trained parameter; what is not named here is taken for Adam's two moments in float32."""


def dry_run(options: DistillOptions, config: "DistillationConfig", method: "Method") -> dict[str, Any]:
    """What would be trained on what, and how long it may take; checks and tries all that a training would.

    The rewards are loaded and score a made-up completion. The policy is loaded last, where it draws in training.

    Raises:
        NonpareilError: as a training, before it trains.
    """
    from nonpareil.training.arguments import check_best_metric
    from nonpareil.training.method import check_aggregation, check_group_rewards
    from nonpareil.training.prompt_order import planned_steps

    check_repository(config)
    evaluation = evaluation_options(options, config, method) if options.evaluate_after else None
    policy = trained_policy(options, config, "float32")
    data = training_data(options, config, method, policy)
    stored = data.groups is not None
    reward = training_reward(options, config, method, policy, data)
    check_group_rewards(reward, method, config, stored=stored)
    check_aggregation(reward, method, config, data.groups or ())
    check_best_metric(config, reward)
    held_out = held_out_prompts(options, config, policy, data.prompts) or []
    if evaluation is not None:
        check_evaluable(evaluation, reward, held_out, policy)
    if method.policy_draws + method.anchor_draws > 0:
        reward.check_prompts(data.prompts, config.max_completion_length, policy.tokenizer)
    if config.eval_strategy != "no":
        reward.check_prompts(held_out, config.max_completion_length, policy.tokenizer)
    steps = planned_steps(config, method, len(data.prompts))
    plan = {**_plan(policy, config, method, data.prompts), "steps": steps}
    makes_groups = makes_credits(options, config)
    if makes_groups:
        check_stages(options, config, policy, data, reward)
        plan |= cost_of_stages(options, config, method, data)
    tried, warnings = try_rewards(
        reward, data.prompts, config, policy.tokenizer, steps=steps, evaluated=evaluation is not None
    )
    plan |= {"rewards": tried, "warnings": [*plan["warnings"], *warnings, *hub_warnings(config)]}
    why = unmeasured(config, method, stored=stored, makes_groups=makes_groups)
    speed = {"not_measured": why} if why else timed_draw(policy, config, method, data.prompts, steps)
    return {**plan, "speed": speed}


def _plan(
    policy: "LocalPolicy", config: "DistillationConfig", method: "Method", prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What would be trained on what, and the memory it needs; raises as `memory_estimate`."""
    from nonpareil.methods import plain_settings, spec_of
    from nonpareil.models.memory import memory_of

    estimate, device = memory_estimate(policy, config, method), memory_of(config.device)
    needed, checkpointed = (
        estimate["memory_bytes"] | passing_memory(policy.config, each, method, prompts)
        for each in (config, with_checkpointing(config))
    )
    warning = memory_warning(needed, checkpointed, device)
    return {
        "dry_run": True,
        "method": spec_of(type(method)),
        "settings": plain_settings(method),
        **estimate,
        "memory_gib": in_gib(needed),
        "device_gib": None if device is None else float(f"{device / 2**30:.3g}"),
        "warnings": [] if warning is None else [warning],
        "prompts": len(prompts),
        "columns": sorted({name for prompt in prompts for name in prompt.columns}),
        "completions_a_step": (method.policy_draws + method.anchor_draws)
        * config.per_device_train_batch_size
        * config.gradient_accumulation_steps,
        "output_dir": str(config.output_dir),
    }


def with_checkpointing(config: "DistillationConfig") -> "DistillationConfig":
    """The same training with gradient checkpointing."""
    changed = copy.copy(config)
    changed.gradient_checkpointing = True
    return changed


def memory_estimate(policy: "LocalPolicy", config: "DistillationConfig", method: "Method") -> dict[str, Any]:
    """The model's class, its parameters, and the bytes that training holds for good, in each process.

    In float32: weights, gradients and optimizer state of what is trained, and the anchor where there is one; in the
    compute dtype the working copy that draws. With LoRA the base is there once, in the compute dtype, and what is
    trained is an adapter; the anchor is a second one, or none where it never moves; nothing is copied. With
    `shard_weights` all but the working copy is divided by the processes. Activations and the key cache come on
    top; they follow `max_tokens_per_batch`. `parameters` are the model's own, without adapters, and with an output
    layer of its own where it begins tilted.

    Raises:
        ModelError: a config that cannot be read, or is of no causal language model.
        ConfigError: frozen parameters or LoRA target modules that the model has not.
    """
    from nonpareil.training.method import anchor_motion

    model, parameters, trained = _on_paper(policy, config, method)
    draws = method.policy_draws + method.anchor_draws > 0
    adapters = trained if config.use_peft else 0
    share = config.world_size if config.shard_weights else 1
    if config.use_peft:
        anchor = adapters if draws and any(anchor_motion(config, method)) else 0
    else:
        anchor = parameters * method.needs_anchor
    optimizer = str(getattr(config.optim, "value", config.optim))  # an enum, whose str() is not its value
    compute = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    copied = 0 if config.use_peft else parameters * draws
    held = {
        "weights": (BYTES[config.policy_dtype()] * parameters + 4 * adapters) // share,
        "gradients": 4 * trained // share,
        "optimizer": OPTIMIZER_BYTES.get(optimizer, 8) * trained // share,
        "anchor": 4 * anchor // share,
        "working_copy": BYTES[compute] * copied,
    }
    return {
        "model_class": model,
        "parameters": parameters,
        "trained_parameters": trained,
        "memory_bytes": {**held, "total": sum(held.values())},
    }


def passing_memory(
    model: Any, config: "DistillationConfig", method: "Method", prompts: Sequence[Prompt]
) -> dict[str, int | None]:
    """Bytes that come and go in a step, an estimate: of a pass what it keeps to go back, of drawing its key cache.

    Logits are formed in chunks of a fixed size; going back through one takes about four float32 tensors of
    them, whatever the model's dtype.

    `model` is the policy's config; None where that does not say. A decoder of the usual kind is meant; a pass has
    `max_tokens_per_batch` tokens, or all that a step has, with keys and values for each head, as completions that
    share a row have them. With gradient checkpointing one layer is kept whole, and of the others what goes in.
    """
    from nonpareil.engines.draw_memory import cache_bytes, tokens_on
    from nonpareil.models.logprobs import chunk_elements

    size = BYTES["bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"]
    cached = cache_bytes(model, size)
    if cached is None:
        return {"activations": None, "logits": None, "cache": None}
    model = model.get_text_config()
    layers, hidden = model.num_hidden_layers, model.hidden_size
    inner = getattr(model, "intermediate_size", None) or getattr(model, "n_inner", None) or 4 * hidden
    each = config.max_completion_length + max(len(prompt.token_ids) for prompt in prompts)
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    fresh = method.policy_draws + method.anchor_draws
    tokens = min(config.max_tokens_per_batch, a_step * max(fresh, method.smallest_group) * each)
    heads = model.num_attention_heads
    keys = 2 * heads * (getattr(model, "head_dim", None) or hidden // heads)
    in_float32 = 2 * hidden if size < BYTES["float32"] else 0  # what both norms of a layer read
    of_layer = 8 * hidden + in_float32 + keys + 4 * inner
    kept = hidden * layers + of_layer if config.gradient_checkpointing else of_layer * layers
    return {
        "activations": tokens * kept * size,
        "logits": 4 * BYTES["float32"] * min(chunk_elements(config.device), tokens * model.vocab_size),
        "cache": cached
        * min(tokens_on(config.device, cached, config.max_tokens_per_batch), a_step * fresh * each),
    }


def in_gib(parts: dict[str, int | None]) -> dict[str, float | None]:
    """Bytes as GiB, the total last."""
    known = {name: value for name, value in parts.items() if name != "total"}
    total = sum(value for value in known.values() if value is not None)
    return {
        name: None if value is None else float(f"{value / 2**30:.3g}")
        for name, value in {**known, "total": total}.items()
    }


def _on_paper(policy: "LocalPolicy", config: "DistillationConfig", method: "Method") -> tuple[str, int, int]:
    """The model's class, its parameters without adapters, and those that are trained; no weight is made."""
    import torch
    from transformers import AutoModelForCausalLM

    from nonpareil.models.adapters import add_policy_adapter
    from nonpareil.models.loading import freeze
    from nonpareil.models.output_bias import untie_head
    from nonpareil.models.pretrained import reading
    from nonpareil.training.tilted_start import INSTEAD, starts_tilted

    subject = f"model_name_or_path={policy.name_or_path!r} cannot be trained"
    with reading(policy.name_or_path, subject), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(policy.config), trust_remote_code=policy.trust_remote_code
        )
    if starts_tilted(method):
        untie_head(policy.name_or_path, model, INSTEAD)
    name, parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
    lora = config.lora_config()
    if lora is None:
        freeze(model, config.frozen_parameters or [])
    else:
        with torch.device("meta"):
            model = add_policy_adapter(model, lora)
    return name, parameters, sum(p.numel() for p in model.parameters() if p.requires_grad)
