"""How long the passes of a training may take, from the speed of a short one: which completions, in which rows."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.records import Prompt

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.models.logprobs import TokenSequences
    from nonpareil.training.config import DistillationConfig

PASSES, ADAPTER_PASSES = 3, 2
"""Forward passes that a forward and backward one cost, about; with an adapter the base needs no gradient."""
PROMPTS_LOOKED_AT = 8
STEPS_LOOKED_AT = 64


def passed_speed(model: Any, sequences: "TokenSequences", config: "DistillationConfig") -> float:
    """Tokens per second of forward passes over these sequences, in rows as a step has them."""
    from nonpareil.models.packing_check import per_row
    from nonpareil.training.actors.base import token_logprobs

    together = per_row(model, sequences, config.max_tokens_per_batch)  # which tries the model, the first time
    start = time.perf_counter()
    token_logprobs(model, sequences, config.temperature, config.max_tokens_per_batch)
    seconds = time.perf_counter() - start
    return sum(map(sequences.width, sequences.in_rows(together))) / max(seconds, 1e-9)


def passed_tokens(
    model: Any, config: "DistillationConfig", method: "Method", prompts: Sequence[Prompt]
) -> tuple[float, float]:
    """Tokens of a prompt's rows: those that policy and anchor score, and those that are descended.

    If every completion is as long as it may be.
    """
    most = min(PROMPTS_LOOKED_AT, config.per_device_train_batch_size * config.gradient_accumulation_steps)
    some = prompts[:: len(prompts) // most or 1][:most]
    counts = method.policy_draws, max(1, round(trained_completions(method)))
    scored, descended = (_row_tokens(model, config, some, count) for count in counts)
    return scored, descended


def trained_completions(method: "Method") -> float:
    """Of a prompt's fresh draws, how many the loss reads on average, where all rewards differ."""
    import torch

    from nonpareil.methods.base import ScoredDraws

    k, m, b = method.policy_draws, method.anchor_draws, STEPS_LOOKED_AT
    uniform = torch.rand(b, k + 2 * m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = ScoredDraws(
        policy_rewards=uniform[:, :k],
        anchor_rewards=uniform[:, k : k + m],
        policy_token_logprobs=torch.zeros(b, k, 1),
        completion_mask=torch.ones(b, k, 1, dtype=torch.bool),
        anchor_logprobs_of_policy=torch.zeros(b, k),
        anchor_token_logprobs=torch.zeros(b, m, 1),
        tie_breaker=uniform[:, k + m :],
    )
    targets = method.targets(draws)
    return float(targets.train_policy.sum() + targets.train_anchor.sum()) / b


def hours(
    config: "DistillationConfig",
    method: "Method",
    steps: int,
    drawn_speed: float,
    passed_speed: float,
    tokens: tuple[float, float],
) -> dict[str, float]:
    """Of the whole training, if every completion is as long as it may be; `tokens` as `passed_tokens` has them."""
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    fresh = steps / method.num_iterations * a_step
    drawing = fresh * (method.policy_draws + method.anchor_draws) * config.max_completion_length / drawn_speed
    scored, descended = tokens
    each = (ADAPTER_PASSES if config.use_peft else PASSES) + bool(config.gradient_checkpointing)
    passes = (2 * fresh * scored + each * steps * a_step * descended) / passed_speed
    found = {"drawing": drawing / 3600, "passes": passes / 3600}
    return {name: float(f"{value:.3g}") for name, value in {**found, "total": sum(found.values())}.items()}


def _row_tokens(model: Any, config: "DistillationConfig", prompts: Sequence[Prompt], count: int) -> float:
    """Tokens of the rows that so many completions of a prompt take, as long as they may be."""
    from nonpareil.models.logprobs import TokenSequences
    from nonpareil.models.packing_check import per_row

    if count == 0:
        return 0.0
    length = config.max_completion_length
    every = [prompt for prompt in prompts for _ in range(count)]
    sequences = TokenSequences([p.token_ids for p in every], [[p.token_ids[-1]] * length for p in every])
    together = per_row(model, sequences, config.max_tokens_per_batch)
    return sum(map(sequences.width, sequences.in_rows(together))) / len(prompts)
