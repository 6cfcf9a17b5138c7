"""Tiny random causal models of every architecture that transformers can make from a config."""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny import BOS, END, PAD, VOCABULARY

SIZES: dict[tuple[str, ...], int | float] = {
    ("vocab_size", "vocab_size_per_layer_input"): len(VOCABULARY),
    ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim"): 32,
    ("input_embedding_size", "output_embedding_size"): 32,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"): 2,
    ("encoder_layers", "num_encoder_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"): 4,
    ("num_decoder_attention_heads", "encoder_attention_heads", "num_encoder_attention_heads", "num_heads"): 4,
    ("num_key_value_heads", "num_kv_heads"): 2,
    ("head_dim", "dim_head", "attention_head_size", "qk_nope_head_dim", "v_head_dim"): 8,
    ("qk_rope_head_dim", "rotary_dim", "index_n_heads", "hidden_size_per_layer_input", "laurel_rank"): 4,
    ("kv_lora_rank", "q_lora_rank", "o_lora_rank", "index_head_dim", "gated_norm_rank", "adapter_rank"): 8,
    ("intermediate_size", "n_inner", "ffn_dim", "dff", "dim_ff", "d_inner", "feed_forward_size"): 48,
    ("decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "shared_expert_intermediate_size"): 48,
    ("moe_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"): 16,
    ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "moe_topk", "moe_k"): 2,
    ("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "num_shared_experts"): 1,
    ("moe_num_shared_experts", "o_groups"): 1,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"): 64,
    ("context_length",): 64,
    ("sliding_window", "attention_window_size", "local_attention", "window_size", "index_topk"): 4,
    ("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"): 4,
    ("mamba_d_head", "mamba_head_dim", "mamba_headdim"): 16,
    ("mamba_d_state", "ssm_state_size", "state_size"): 8,
    ("mamba_d_ssm",): 64,
    ("chunk_size", "mamba_chunk_size"): 8,
    ("linear_key_head_dim", "linear_value_head_dim"): 8,
    ("linear_num_key_heads", "linear_num_value_heads"): 2,
    ("initializer_range", "init_std", "init_method_std"): 0.2,
}
ENDS = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}


def parameters_of(kind: str) -> set[str]:
    return set(inspect.signature(CONFIG_MAPPING[kind].__init__).parameters)


CHANGES: dict[str, dict[str, Any]] = {}


def tiny_config(kind: str, **changes: Any) -> Any:
    known = parameters_of(kind)
    sizes = {name: size for names, size in SIZES.items() for name in names if name in known}
    return CONFIG_MAPPING[kind](**{**sizes, **ENDS, **CHANGES.get(kind, {}), **changes})


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).float().eval()


KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
