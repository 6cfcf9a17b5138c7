"""The policy of a training: read, frozen in part, given an adapter, and put on its device; and its anchor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.load_check import check_scoring
from nonpareil.methods.base import Method
from nonpareil.models.adapters import (
    AdapterAnchor,
    add_policy_adapter,
    is_adapted,
    plain_model,
    take_policy_adapter,
)
from nonpareil.models.anchors import Anchor
from nonpareil.models.devices import dtype_name
from nonpareil.models.distributed import make_equal, process_index
from nonpareil.models.empty import empty_policy
from nonpareil.models.loading import disable_dropout, freeze, load_policy, load_tokenizer
from nonpareil.models.output_bias import check_foldable, untie_head
from nonpareil.models.quantized import is_quantized
from nonpareil.models.sharding import is_empty
from nonpareil.models.zero import zero_requested
from nonpareil.terminal import tell
from nonpareil.training.config import DistillationConfig
from nonpareil.training.method import anchor_motion
from nonpareil.training.tilted_start import INSTEAD, starts_tilted

if TYPE_CHECKING:
    from peft import LoraConfig


def read_policy(path: str, args: DistillationConfig) -> tuple[PreTrainedModel, Path | None, Tokenizer]:
    """The model at a path and its tokenizer; to be read shard by shard, without its weights and with their folder.

    Raises:
        ModelError, ConfigError: as `load_policy`.
    """
    trust, init = args.trust_remote_code, args.init()
    in_shards = args.shard_weights and not zero_requested()
    empty = empty_policy(path, trust_remote_code=trust, init=init) if in_shards else None
    if empty is not None:
        return *empty, load_tokenizer(path, trust_remote_code=trust, init=init)
    model, tokenizer = load_policy(
        path, dtype=args.policy_dtype(), device=args.device, trust_remote_code=trust, init=init
    )
    return model, None, tokenizer


def prepare_policy(
    model: PreTrainedModel, args: DistillationConfig, method: Method, lora: "LoraConfig | None"
) -> Any:
    """The model as it is trained: without dropout, with frozen parts or an adapter, equal in all processes.

    For a tilted start its output layer gets a weight of its own, which `frozen_parameters` may name.

    One that is still to be read in shards is put on its devices, and asked, once it is (`ShardingTrainer.shard`).

    Raises:
        ConfigError: as `freeze`, or an adapter of the model's own that cannot be trained.
        ModelError: as `check_scoring`, or a model that cannot begin tilted.
    """
    disable_dropout(model)
    if starts_tilted(method):
        name = model.name_or_path or type(model).__name__
        check_foldable(name, model.config, INSTEAD)
        untie_head(name, model, INSTEAD)
    if lora is None and is_adapted(model):
        fixed = method.needs_anchor and not any(anchor_motion(args, method))
        take_policy_adapter(model, fixed=fixed)
    freeze(model, args.frozen_parameters or [])
    set_seed(args.seed)  # an adapter begins at random
    policy: Any = model if lora is None else add_policy_adapter(model, lora)
    _tell_of_half_precision(policy, args)
    if not is_empty(policy):
        make_equal(policy if is_quantized(model) else policy.to(args.device))
        check_scoring(plain_model(policy), trained=True)
    return policy


def _tell_of_half_precision(policy: nn.Module, args: DistillationConfig) -> None:
    """Say once that steps of this size are lost in the weights, as transformers reads most models."""
    short = (torch.bfloat16, torch.float16)
    kinds = {weight.dtype for weight in policy.parameters() if weight.requires_grad and weight.dtype in short}
    if kinds and process_index() == 0:
        tell(
            f"the weights that are trained are in {dtype_name(kinds.pop())}, where most steps of learning_rate="
            f"{args.learning_rate:g} round to none: read the model with dtype=torch.float32 (bf16=true computes in "
            "bfloat16 all the same), give it by its path, or train an adapter (peft_config)"
        )


def make_anchor(policy: Any, args: DistillationConfig, method: Method) -> Anchor | None:
    """What the policy is compared with; None where nothing is: stored groups hold their reference log-probs."""
    if not method.needs_anchor:
        return None
    kind = AdapterAnchor if is_adapted(policy) else Anchor
    return kind(policy, *anchor_motion(args, method))
