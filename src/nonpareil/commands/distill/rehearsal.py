"""What a dry run tries: the rewards on a made-up completion, the hub's token, a short draw against the clock."""

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.records import Draws, Group, Prompt, ScoreRequest, Scores
from nonpareil.terminal import reason_of

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig

MADE_UP = "This completion is made up."
TRIED_PROMPTS = 2
DRAW_SECONDS = 8.0
"""What the timed draws take together, about."""
DRAWN_TOKENS = 8
"""Of each completion there."""
HUB_SECONDS = 5.0
PASSES = 3
"""A forward and backward pass costs about three forward passes."""


def try_rewards(
    reward: "CombinedReward",
    prompts: Sequence[Prompt],
    config: "DistillationConfig",
    tokenizer: Any,
    *,
    steps: int,
    evaluated: bool,
) -> tuple[dict[str, Any], list[str]]:
    """What each reward gives a made-up completion of two prompts, and what is to be said of it.

    A reward that compares the completions of a group is not asked, which may cost something. `evaluated`: whether
    the policy is evaluated after training, where there is no trainer's state.

    Raises:
        NonpareilError: as scoring does.
    """
    from transformers import TrainerState

    from nonpareil.rewards.stored import StoredReward
    from nonpareil.training.step.logged import merged_log

    request = ScoreRequest.of([_made_up(prompt, config, tokenizer) for prompt in prompts[:TRIED_PROMPTS]])
    told: dict[str, Any] = {}
    warnings: list[str] = []
    scores: dict[str, Scores] = {}
    for name, one in zip(reward.names, reward.rewards, strict=True):
        if isinstance(one, StoredReward):
            told[name] = {"not_tried": "its stored scores are trained on"}
            continue
        if one.compares_within_groups:
            told[name] = {"not_tried": "it compares the completions of a group, and may cost something"}
            continue
        times: dict[str, Any] = {"": TrainerState(max_steps=steps)}
        if evaluated and one.reads_trainer_state:
            times |= {" without a training (trainer_state is None in the evaluation)": None}
        for when, state in times.items():
            start = time.perf_counter()
            found = reward.score_one(name, replace(request, trainer_state=state))
            if not when:
                scores[name] = found
                told[name] = {"scores": found.values, "seconds": round(time.perf_counter() - start, 3)}
            if failure := next((reason for reason in found.failures if reason), None):
                warnings.append(f"reward {name!r} gave a made-up completion no score{when}: {failure}")
    merged_log(scores)
    reward.release()
    return told, warnings


def _made_up(prompt: Prompt, config: "DistillationConfig", tokenizer: Any) -> Group:
    """One completion of a prompt, as if it had been drawn."""
    ids = tokenizer(MADE_UP, add_special_tokens=False).input_ids[: config.max_completion_length]
    return Group.of(prompt, Draws([MADE_UP], [ids], ["stop"], [[0.0] * len(ids)]))


def hub_warnings(config: "DistillationConfig") -> list[str]:
    """Whether the hub knows the token, where the model is to be pushed; asked for a few seconds at most."""
    if not config.push_to_hub:
        return []
    from huggingface_hub import whoami

    said: list[str] = []

    def ask() -> None:
        try:
            whoami(token=config.hub_token or None)
            said.append("")
        except Exception as error:  # noqa: BLE001  (a network's or a server's)
            said.append(f"push_to_hub: the hub does not take the token: {reason_of(error)}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    known = said or [
        f"push_to_hub: the hub did not answer within {HUB_SECONDS:g} s, so the token is unchecked"
    ]
    return [line for line in known if line]


def unmeasured(
    config: "DistillationConfig", method: "Method", *, stored: bool, makes_groups: bool
) -> str | None:
    """Why the speed of a training is not measured by a short draw; None where it can be."""
    if stored or makes_groups or not method.policy_draws + method.anchor_draws:
        return "the training draws nothing" if not makes_groups else "groups are drawn before the training"
    if config.use_vllm:
        return "vLLM draws"
    return "it runs in several processes" if config.world_size > 1 else None


def timed_draw(
    policy: "LocalPolicy",
    config: "DistillationConfig",
    method: "Method",
    prompts: Sequence[Prompt],
    steps: int,
) -> dict[str, Any]:
    """Tokens per second of a short draw and of forward passes over it, and the hours that the training may take.

    The hours are an estimate: every completion is taken to be as long as it may be, and scoring, evaluation and
    checkpoints come on top.

    Raises:
        NonpareilError: a model that cannot be loaded, or that gives no numbers.
    """
    import torch

    from nonpareil.models.memory import free_memory

    drawer = copy.copy(policy)
    drawer.dtype = str(config.compute_dtype(torch.float32)).removeprefix("torch.")
    engine = drawer.engine(config.max_tokens_per_batch)
    draws = method.policy_draws + method.anchor_draws
    most = min(config.per_device_train_batch_size * config.gradient_accumulation_steps, len(prompts))
    length = min(DRAWN_TOKENS, config.max_completion_length)
    short = replace(config.sampling(config.seed), max_completion_length=min(2, length))
    engine.draw(prompts[:1], 1, short)  # what is done once is not counted
    width, spent, sampling = 1, 0.0, replace(short, max_completion_length=length)
    while True:
        chosen = prompts[:width]
        start = time.perf_counter()
        drawn = engine.draw(chosen, draws, sampling)
        seconds = time.perf_counter() - start
        spent += seconds
        if width >= most or spent + 3 * seconds > DRAW_SECONDS:
            break
        width = min(2 * width, most)
    tokens = sum(len(ids) for each in drawn for ids in each.completion_token_ids)
    passed, pass_seconds = _timed_pass(engine.model, chosen, drawn, config)
    del engine
    free_memory()
    speed = {"drawn": tokens / max(seconds, 1e-9), "passed": passed / max(pass_seconds, 1e-9)}
    return {
        "tokens_per_second": {name: float(f"{value:.3g}") for name, value in speed.items()},
        "timed_completions": width * draws,
        "estimated_hours": _hours(config, method, prompts, steps, speed),
    }


def _timed_pass(
    model: Any, prompts: Sequence[Prompt], drawn: Any, config: "DistillationConfig"
) -> tuple[int, float]:
    """Tokens of prompts and completions, and the seconds that one forward pass of them takes."""
    import torch

    from nonpareil.models.logprobs import TokenSequences, completion_logprobs, token_budget_batches

    sequences = TokenSequences.of(prompts, drawn)
    with torch.no_grad():
        start = time.perf_counter()
        for rows in token_budget_batches(sequences.lengths(), config.max_tokens_per_batch):
            completion_logprobs(model, sequences.select(rows)).sum().item()
        return sum(sequences.lengths()), time.perf_counter() - start


def _hours(
    config: "DistillationConfig",
    method: "Method",
    prompts: Sequence[Prompt],
    steps: int,
    speed: dict[str, float],
) -> dict[str, float]:
    """Of the whole training, if every completion is as long as it may be."""
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    completion = config.max_completion_length
    sequence = completion + sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)
    k, m = method.policy_draws, method.anchor_draws
    fresh = steps / method.num_iterations * a_step
    drawing = fresh * (k + m) * completion / speed["drawn"]
    passes = (fresh * k + PASSES * steps * a_step * (k + m)) * sequence / speed["passed"]
    hours = {"drawing": drawing / 3600, "passes": passes / 3600}
    return {name: float(f"{value:.3g}") for name, value in {**hours, "total": sum(hours.values())}.items()}


def check_repository(config: "DistillationConfig") -> None:
    """Refuse a name that the hub does not take, where the model is to be pushed.

    Raises:
        NonpareilError: naming it.
    """
    if not config.push_to_hub:
        return
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = config.hub_model_id or Path(str(config.output_dir)).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        given = f"hub_model_id={name!r}" if config.hub_model_id else f"output_dir: its name {name!r}"
        raise ConfigError(f"{given} cannot be a repository of the hub: {reason_of(error)}") from error
