"""Which actors a run has: by its adapters, its shards, and the engine that draws."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.models.adapters import is_adapted, plain_model, saved_adapter, trained_rank
from nonpareil.models.anchors import Anchor
from nonpareil.models.vllm import check_vllm_holds
from nonpareil.records import Prompt
from nonpareil.training.actors.adapters import AdapterActors
from nonpareil.training.actors.base import Actors, Scorers
from nonpareil.training.actors.copies import CopiedActors
from nonpareil.training.actors.shards import ShardedScorers
from nonpareil.training.config import DistillationConfig


def make_actors(
    policy: Any,
    anchor: Anchor | None,
    tokenizer: Tokenizer,
    config: DistillationConfig,
    prompts: Sequence[Prompt],
) -> Actors:
    """Copies of policy and anchor, or adapters, in this process; or vLLM, with one of them or shards that score.

    Raises:
        ConfigError, ModelError, EngineError: vLLM cannot be had.
    """
    if config.use_vllm:
        from nonpareil.training.actors.vllm import VLLMActors, vllm_engine

        if is_adapted(policy):
            config_of, names = saved_adapter(policy)
            check_vllm_holds(config_of, names, "use_vllm with LoRA")
        sharded = ShardedScorers(policy, anchor, config) if config.shard_weights else None
        scorers: Scorers = sharded or _own(policy, anchor, tokenizer, config)
        engine = vllm_engine(plain_model(policy), tokenizer, config, trained_rank(policy))
        return VLLMActors(scorers, engine, config, prompts, shared=config.vllm_mode == "server")
    return _own(policy, anchor, tokenizer, config)


def _own(
    policy: Any, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
) -> AdapterActors | CopiedActors:
    kind = AdapterActors if is_adapted(policy) else CopiedActors
    return kind(policy, anchor, tokenizer, config)
