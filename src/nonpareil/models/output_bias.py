"""A bias of the output layer, for models that have none: folded into an output matrix of its own.

The last hidden states h of a normalised model lie near a plane: some direction d has h . d close to 1 at all of
them. Adding b_a d to the row of token a then adds b_a (h . d) to its logit. Of all d with mean 1 the least variance
has d = C^-1 mu / (mu' C^-1 mu), mu and C the states' mean and covariance. A head with a bias takes b itself.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models.logprobs import (
    TokenSequences,
    output_head_is_plain,
    predicting_states,
    token_budget_batches,
)
from nonpareil.models.merging import tie_as_it_is
from nonpareil.models.sharding import is_sharded

RIDGE = 1e-4
"""Of the covariance, as a share of its mean diagonal: where states never differ, d stays finite."""
STATES_PER_DIMENSION = 64
"""So many states a dimension: the direction then serves those that it was not fitted on as well."""
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "final_logits_soft_cap", "output_logit_soft_cap", "logits_soft_cap")
INSTEAD = "; take format=logit_bias, which servers add to the logits themselves"


def check_foldable(name: str, config: PretrainedConfig, instead: str = INSTEAD) -> None:
    """Refuse, by its config alone, a model whose output layer can hold no bias; `instead`: what to do then.

    Raises:
        ModelError: naming why.
    """
    text: Any = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{name!r} is quantised, and its output matrix would be rounded anew{instead}")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name!r} is an encoder and a decoder; a tilt is of a causal language model")
    for cap in CAPS:
        if getattr(text, cap, None):
            raise ModelError(
                f"{name!r} caps its logits behind the output layer ({cap}={getattr(text, cap)}), and what is added "
                f"before the cap is not what comes out{instead}"
            )
    for scale in SCALES:
        if getattr(text, scale, None) not in (None, 1):
            raise ModelError(
                f"{name!r} scales its logits behind the output layer ({scale}={getattr(text, scale)}){instead}"
            )


def check_head(name: str, model: PreTrainedModel, instead: str = INSTEAD) -> nn.Module:
    """The output layer of a loaded model, if a bias can be folded into it; `instead`: what to do if not.

    Raises:
        ModelError: weights in shards, an output layer that is no linear one, or logits that are changed behind it.
    """
    head = model.get_output_embeddings()
    if is_sharded(model):
        raise ModelError(f"{name!r} has its weights in shards; load it whole, in one process")
    if type(head) is not nn.Linear or not output_head_is_plain(model):
        raise ModelError(
            f"{name!r} does more to its logits than one linear layer ({type(head).__name__}): they are scaled or "
            f"changed behind it, or it has no such layer{instead}"
        )
    return head


@torch.no_grad()
def unit_direction(model: PreTrainedModel, sequences: TokenSequences, max_tokens: int) -> Float[Tensor, " d"]:
    """The direction d along which the states that predict these completions' tokens are nearest to 1; float64."""
    mean, moment, count = None, None, 0
    for batch in token_budget_batches(sequences.lengths(), max_tokens):
        states = predicting_states(model, sequences.select(batch), None)[0].cpu().double()
        mean = states.sum(0) if mean is None else mean + states.sum(0)
        moment = states.T @ states if moment is None else moment + states.T @ states
        count += len(states)
        if count >= STATES_PER_DIMENSION * states.shape[1]:
            break
    assert mean is not None, "no completion has a token"
    assert moment is not None
    mean = mean / count
    covariance = moment / count - mean[:, None] * mean
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean())
    solved = torch.linalg.solve(covariance, mean)
    return solved / (mean @ solved)


@torch.no_grad()
def fold_bias(
    head: nn.Module, model: PreTrainedModel, bias: Float[Tensor, " v"], direction: Tensor | None
) -> None:
    """Give a model's output layer this bias of its logits, in place; its input embeddings stay what they are.

    `direction`: as `unit_direction`; None for a layer that has a bias.
    """
    layer: Any = head
    if direction is None:
        layer.bias.add_(bias.to(layer.bias))
        return
    _part_head(model)
    layer.weight.addr_(bias.to(layer.weight), direction.to(layer.weight))


def untie_head(name: str, model: PreTrainedModel, instead: str) -> None:
    """Give the output layer a weight of its own, of the same numbers, where it has that of the input embeddings.

    A layer with a bias needs none, as a tilt goes there. The model's config says so then, and what is saved is read
    so. `instead`: what to do where that cannot be.

    Raises:
        ModelError: an architecture that ties the two whatever its config says.
    """
    if not _is_tied(model) or getattr(model.get_output_embeddings(), "bias", None) is not None:
        return
    _part_head(model)
    with torch.device("meta"):
        read_again = type(model)(copy.deepcopy(model.config))
    if _is_tied(read_again):
        raise ModelError(
            f"{name!r} ({type(model).__name__}) ties input and output embeddings whatever its config says{instead}"
        )


def _is_tied(model: PreTrainedModel) -> bool:
    layers: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    inputs, outputs = (getattr(layer, "weight", None) for layer in layers)
    if inputs is None or outputs is None or inputs is outputs:
        return inputs is not None and inputs is outputs
    return bool(not inputs.is_meta and inputs.data_ptr() == outputs.data_ptr())


def _part_head(model: PreTrainedModel) -> None:
    if _is_tied(model):
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    tie_as_it_is(model)


@dataclass(frozen=True)
class Fold:
    """How near a folded model is to the tilt itself, on positions that the direction was not fitted on."""

    positions: int
    spread: float
    """The standard deviation of h . d, whose mean should be 1; 0 of a layer that has a bias."""
    mean: float
    kl: float
    """KL(tilt || folded model) per token, nats."""
    tilt_kl: float
    """KL(tilt || reference) per token, nats, at the same positions."""

    @property
    def share(self) -> float:
        """The first KL as a share of the second."""
        return self.kl / max(self.tilt_kl, 1e-12)


@torch.no_grad()
def logits_at(
    model: PreTrainedModel, sequences: TokenSequences
) -> tuple[Float[Tensor, "t d"], Float[Tensor, "t v"]]:
    """States and logits at every completion token, float32, on the CPU, of a model whose head is plain."""
    states, _, _, head = predicting_states(model, sequences, None)
    return states.float().cpu(), head(states).float().cpu()


def fold_error(
    reference_logits: Float[Tensor, "t v"],
    folded_logits: Float[Tensor, "t v"],
    bias: Float[Tensor, " v"],
    temperature: float,
    units: Float[Tensor, " t"] | None,
) -> Fold:
    """What the folded model says, held against softmax((reference logits + bias) / temperature).

    `units`: h . d at each position, where there is a direction.
    """
    before = (reference_logits.double() / temperature).log_softmax(-1)
    exact = ((reference_logits.double() + bias.double().cpu()) / temperature).log_softmax(-1)
    folded = (folded_logits.double() / temperature).log_softmax(-1)
    kl, tilt_kl = (float((exact.exp() * (exact - other)).sum(-1).mean()) for other in (folded, before))
    spread, mean = (0.0, 1.0) if units is None else (float(units.std()), float(units.mean()))
    return Fold(len(exact), spread, mean, kl, tilt_kl)
