"""Begin a training at a tilt of the vocabulary that is counted from its credits, folded into the output layer.

The count is a training's cheapest part (`maths.vocabulary_tilt`): one number per token, the same at every position.
Only the policy begins there; the reference that it is compared with is what it was.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.credits import Credits, CreditsByPrompt
from nonpareil.errors import ConfigError, DataError
from nonpareil.maths.token_sums import CREDITED_DAMPING, TokenSums
from nonpareil.methods import name_of
from nonpareil.methods.base import Method
from nonpareil.methods.credited import CreditedMethod
from nonpareil.models.distributed import make_equal, process_index
from nonpareil.models.loading import end_token_ids
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.output_bias import (
    STATES_PER_DIMENSION,
    check_foldable,
    check_head,
    fold_bias,
    fold_error,
    logits_at,
    unit_direction,
    untie_head,
)
from nonpareil.models.pretrained import reading
from nonpareil.records import Group
from nonpareil.terminal import tell
from nonpareil.training.config import DistillationConfig

INSTEAD = "; leave tilted_start out"
CHECKED_TOKENS = 256
"""Positions at which the policy is held against the tilt; all their logits are in memory at once."""
LARGE_SHARE = 0.25
"""Of the tilt, that the output layer misses; above it is said that the start may be no help."""


def starts_tilted(method: Method) -> bool:
    """Whether the method's setting asks for it."""
    return isinstance(method, CreditedMethod) and method.tilted_start


def check_tilted_start(
    method: Method, config: DistillationConfig, *, adapted: bool, optimizer: Any = None
) -> None:
    """Refuse what a tilted start does not go with, where the method asks for one.

    `adapted`: a LoRA adapter is trained, or there already; `optimizer`: the caller's own.

    Raises:
        ConfigError: naming it.
    """
    if not starts_tilted(method):
        return
    name = f"{name_of(type(method))}'s tilted_start"
    if adapted:
        raise ConfigError(
            f"{name} with a LoRA adapter is not supported: the tilt is in the base's output layer, which no "
            "adapter holds; leave tilted_start out, or train without LoRA"
        )
    if config.shard_weights:
        raise ConfigError(
            f"{name} with shard_weights is not supported: it changes a whole output layer; remove one"
        )
    if config.use_vllm:
        raise ConfigError(
            f"{name} with use_vllm is not supported: vLLM would hold the policy's output layer as the base has it; "
            "remove one"
        )
    if optimizer is not None:
        raise ConfigError(
            f"{name} with an optimizer of one's own is not supported: the output layer gets weights that it was "
            "not given; leave optimizers out, or tilted_start"
        )


def check_tiltable(name: str, config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Refuse a model that cannot begin tilted, by its config alone.

    Raises:
        ModelError: naming why.
    """
    check_foldable(name, config, INSTEAD)
    with reading(name, f"model_name_or_path={name!r} cannot be trained"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    untie_head(name, model, INSTEAD)


def start_tilted(
    policy: PreTrainedModel,
    method: Method,
    groups: Sequence[Group] | None,
    credits: CreditsByPrompt | None,
    tokenizer: Tokenizer | None,
    config: DistillationConfig,
) -> None:
    """Fold the tilt into the policy's output layer, alike in all processes, where the method asks for it.

    The layer has a weight of its own (`prepare_policy` sees to it). Special tokens and those that end a completion
    stay as they are. The first process says how near the policy is to the tilt.

    Raises:
        DataError: a tilt that is 0 for every token.
        ModelError: as `output_bias.check_head`.
    """
    if not starts_tilted(method):
        return
    assert isinstance(method, CreditedMethod)
    assert tokenizer is not None
    name = policy.name_or_path or type(policy).__name__
    head: Any = check_head(name, policy, INSTEAD)
    kept = {*end_token_ids(policy, tokenizer), *tokenizer.all_special_ids}
    trained = list(_trained(groups or (), credits or {}))
    tilt = counted_tilt([each for _, _, each in trained], method, head.weight.shape[0], kept)
    bias = config.temperature * tilt  # of the logits, which the temperature then divides
    fitted, checked = _split([(group, place) for group, place, _ in trained], head.weight.shape[1])
    with evaluation_mode(policy):
        has_bias = getattr(head, "bias", None) is not None
        direction = None if has_bias else unit_direction(policy, fitted, config.max_tokens_per_batch)
        states, before = logits_at(policy, checked)
        fold_bias(head, policy, bias, direction)
        make_equal(head)
        if process_index() == 0:
            units = None if direction is None else states.double() @ direction
            fold = fold_error(before, logits_at(policy, checked)[1], bias, config.temperature, units)
            _tell(int((tilt != 0).sum()), fold.tilt_kl, fold.share)


def counted_tilt(
    credits: Sequence[Credits], method: CreditedMethod, vocabulary: int, kept: set[int]
) -> Float[Tensor, " v"]:
    """What is added to each token's log-prob, nats: the mean over candidates of the method's own tilt; float64.

    Raises:
        DataError: it is 0 for every token.
    """
    sums = TokenSums.zeros(1, vocabulary, CREDITED_DAMPING)
    for each in credits:
        ids, weights, advantages = (
            torch.from_numpy(array).flatten() for array in (each.token_ids, each.weights, each.advantages)
        )
        sums.add(0, ids, weights, method.target_tilt(advantages.double()))
    sums.keep(kept)
    tilt = sums.tilt()
    if not bool(tilt.any()):
        raise DataError(
            f"tilted_start: no token is worth more than another on average in these credits{INSTEAD}"
        )
    return tilt


def _trained(groups: Sequence[Group], credits: CreditsByPrompt) -> Iterator[tuple[Group, int, Credits]]:
    """Of each completion that is trained on its group, its place in it and its credits."""
    for group in groups:
        rewards = group.rewards or ()
        for place, each in enumerate(credits.get(group.prompt_id, ())):
            if each is not None and len(each) and rewards[place] is not None:
                yield group, place, each


def _split(completions: list[tuple[Group, int]], width: int) -> tuple[TokenSequences, TokenSequences]:
    """Some for the direction, in random order, and others, cut short, for its check; one alone serves for both."""
    order = torch.randperm(len(completions), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [completions[index] for index in order]
    sequences = TokenSequences(
        [group.prompt_token_ids for group, _ in pairs],
        [group.completion_token_ids[place] for group, place in pairs],
    )
    tokens = torch.tensor([len(ids) for ids in sequences.completion_ids]).cumsum(0)
    few = max(1, min(int((tokens <= CHECKED_TOKENS).sum()), len(pairs) // 4))
    cut = [ids[:CHECKED_TOKENS] for ids in sequences.completion_ids[:few]]
    checked = TokenSequences(sequences.prompt_ids[:few], cut)
    if len(pairs) == 1:
        return sequences, checked
    enough = few + 1 + int((tokens[few:] - tokens[few - 1] < STATES_PER_DIMENSION * width).sum())
    return sequences.select(range(few, min(enough, len(pairs)))), checked


def _tell(tokens: int, tilt_kl: float, missed: float) -> None:
    doubt = f", which is much{INSTEAD} if the training does not gain by it" if missed > LARGE_SHARE else ""
    tell(
        f"tilted start: a training from its beginning starts with a bias of {tokens} tokens, counted from "
        f"the credits, {tilt_kl:.3g} nats a token from the reference; its output layer misses {missed:.0%} of that"
        f"{doubt}"
    )
