"""The network of a value: a sequence classifier over a causal model, read at every prefix."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.devices import cast_weights, device_of
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.pretrained import read_config, read_model

HEAD = "score"
"""What transformers' causal classifiers call their head, a linear layer on the last state."""
_CLOSE = 1e-3


def load_network(
    path: str,
    bins: int,
    revision: str | None = None,
    *,
    fresh_head: bool,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal classifier with a label per bin, on the CPU in evaluation mode; its head in float32.

    Args:
        path: of a causal language model, of a causal reward model, or of a value.
        bins: of the quantile.
        revision: of a hub model.
        fresh_head: whether to begin with a head of zeros, to which all bins are alike; else the folder has one.
        dtype: of what is beneath the head.
        trust_remote_code: run code that the model brings along.

    Raises:
        ModelError: no such model, an adapter, weights that the folder does not hold, or one that is not causal.
    """
    if (base := adapter_base(path)) is not None:
        raise ModelError(
            f"{path!r} is the folder of an adapter, and a value begins with a whole model; merge it first (distill "
            f"--merge, or `models.merged_folder.save_merged`), or begin with its base, {base[0]!r}"
        )
    subject = f"{path!r} could not be loaded as a value's network"
    config = read_config(path, revision, subject=subject, trust_remote_code=trust_remote_code)
    config.num_labels, config.problem_type = bins, None
    model, info = read_model(
        AutoModelForSequenceClassification,
        path,
        revision,
        subject=subject,
        trust_remote_code=trust_remote_code,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # they are named below
    )
    random = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if absent := sorted(name for name in random if not (fresh_head and name.startswith(f"{HEAD}."))):
        raise ModelError(
            f"{path!r} does not hold {len(absent)} weights of {type(model).__name__} (first: {absent[0]}); they "
            "would be random. Begin a value with the policy, or with a reward model on a causal model"
        )
    check_reads_prefixes(model.eval(), path)
    if fresh_head:
        for parameter in model.get_submodule(HEAD).parameters():
            nn.init.zeros_(parameter)
    head = {name: parameter.data for name, parameter in model.get_submodule(HEAD).named_parameters()}
    cast_weights(model, dtype)
    for name, weight in head.items():
        model.get_submodule(HEAD).get_parameter(name).data = weight
    return model


@torch.no_grad()
def check_reads_prefixes(model: PreTrainedModel, name: str | Path) -> None:
    """Refuse a classifier that is not a linear head on the last state of a model that looks back alone.

    Raises:
        ModelError: saying which of it is not so.
    """
    remedy = "give the policy, or a reward model on a causal model"
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Module) or model.base_model is model:
        raise ModelError(f"{str(name)!r} is a {type(model).__name__}, which has no head {HEAD!r}; {remedy}")
    with evaluation_mode(model):
        # Of a padding token the classifier itself would take the state before it.
        tokens = [token for token in range(6) if token != model.config.get_text_config().pad_token_id]
        ids = torch.tensor(tokens[:4], device=device_of(model))
        whole = _last_states(model, ids[None])
        ids[-1] = tokens[4]
        other = _last_states(model, ids[None])
        logits = model(input_ids=ids[None], use_cache=False).logits
    scale = whole.float().abs().max().item() * _CLOSE
    if not torch.allclose(whole[0, :-1].float(), other[0, :-1].float(), rtol=_CLOSE, atol=scale):
        raise ModelError(
            f"{str(name)!r} is a {type(model).__name__} that looks ahead: what follows a prefix changes its state, "
            f"so that it has no value of prefixes; {remedy}"
        )
    read = read_head(model, other[:, -1])
    if not torch.allclose(read, logits.float(), rtol=0.02, atol=0.02 * float(read.abs().max()) + 1e-6):
        raise ModelError(
            f"{str(name)!r} is a {type(model).__name__} whose logits are not its head {HEAD!r} alone; {remedy}"
        )


def _last_states(model: PreTrainedModel, ids: Tensor) -> Float[Tensor, "b s d"]:
    output = model.base_model(input_ids=ids, use_cache=False)
    if getattr(output, "last_hidden_state", None) is None:
        raise ModelError(
            f"{type(model).__name__} gives no last hidden state; use a model with a decoder inside"
        )
    return output.last_hidden_state


def prefix_states(model: PreTrainedModel, sequences: TokenSequences) -> Float[Tensor, "q d"]:
    """The last states at each prompt's end and after each token of its completion, one sequence behind another.

    q is the number of the completions' tokens and one more for each sequence. One pass, with gradients where grad
    mode is on.

    Raises:
        ValueError: a prompt without a token, of which nothing can be read.
    """
    if not all(sequences.prompt_ids):
        raise ValueError("a prompt has no token, so that there is nothing to read its value from")
    width, rows, places = max(sequences.lengths()), [], []
    for row, (prompt, completion) in enumerate(
        zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
    ):
        # Right padding needs no attention mask: under causal attention no real token sees what comes behind it.
        text = prompt + completion
        rows.append(text + [0] * (width - len(text)))
        places.append(torch.arange(row * width + len(prompt) - 1, row * width + len(text)))
    device = device_of(model)
    states = _last_states(model, torch.tensor(rows).to(device))
    return states.flatten(0, 1)[torch.cat(places).to(device)]


def read_head(model: PreTrainedModel, states: Float[Tensor, "*s d"]) -> Float[Tensor, "*s w"]:
    """Logits of the bins, float32, of last states."""
    head: Any = getattr(model, HEAD)
    with torch.autocast(states.device.type, enabled=False):
        return head(states.float())
