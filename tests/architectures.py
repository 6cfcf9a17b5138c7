"""Tiny random models of the architectures that transformers offers as causal language models."""

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


ALL_HEADS = {"num_key_value_heads": 4}
ALL_KEYS = {**ALL_HEADS, "index_topk": 64}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu"), ALL_HEADS),
    # Keys that tie, as those of tiny models do, are chosen by their place alone.
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), ALL_KEYS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), LINEAR),
    "bamba": {"attn_layer_indices": [1]},
    "cpmant": {"prompt_length": 4, "position_bias_num_buckets": 32},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**ALL_HEADS, **LINEAR, "linear_head_dim": 8, "linear_num_heads": 2},
    "inkling_text": {"swa_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "longcat_flash": {
        "head_dim": 4,
        "num_layers": 1,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "routed_scaling_factor": 1.0,
        "expert_ffn_hidden_size": 16,
    },
    "minicpm3": {**ALL_HEADS, "dim_model_base": 32, "scale_emb": 1},
    "nemotron_h": {"initializer_range": 0.05, "layers_block_type": ["mamba", "attention"], "n_groups": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: str, **changes: Any) -> Any:
    known = parameters_of(kind)
    sizes = {name: size for names, size in SIZES.items() for name in names if name in known}
    return CONFIG_MAPPING[kind](**{**sizes, **ENDS, **CHANGES.get(kind, {}), **changes})


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).float().eval()


COMMON = [
    "bloom",
    "falcon",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "opt",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
]
"""Drawn and checked in every run of the tests."""

DRAWN = [
    *COMMON,
    *[
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "axk1",
        "axk2",
        "bamba",
        "biogpt",
        "bitnet",
        "codegen",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "ctrl",
        "cwm",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "diffllama",
        "doge",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "falcon_h1",
        "flex_olmo",
        "gemma",
        "gemma3n_text",
        "gemma4_text",
        "gemma4_unified_text",
        "glm",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox_japanese",
        "gpt_oss",
        "gptj",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "hy_v4",
        "hyperclovax",
        "inkling_text",
        "jais2",
        "jamba",
        "jetmoe",
        "kimi_linear",
        "laguna",
        "lfm2",
        "lfm2_moe",
        "llama4_text",
        "longcat_flash",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral",
        "ministral3",
        "modernbert-decoder",
        "nanochat",
        "nemotron",
        "nemotron_h",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "persimmon",
        "phi",
        "phimoe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "whisper",
        "xglm",
        "youtu",
        "zaya",
    ],
]
"""Whose draws are what they score; the others are drawn and checked in the slow tests."""

FUTURE, CACHE, POSITIONS = (
    "a later token changes",
    "does not take transformers' cache|of its own",
    "drawn one by one",
)
REFUSED = {
    **dict.fromkeys(
        [
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "cpmant",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ],
        FUTURE,
    ),
    **dict.fromkeys(
        ["mamba", "mamba2", "falcon_mamba", "minimax", "openai-gpt", "rwkv", "xlm", "xlnet", "xlstm"], CACHE
    ),
    **dict.fromkeys(
        [
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "moshi",
            "mvp",
            "pegasus",
            "plbart",
            "recurrent_gemma",
            "trocr",
        ],
        POSITIONS,
    ),
    "deepseek_v4": "ended in",
    "prophetnet": "in a batch than alone",
}
"""Whose draws would not be; by what the refusal says. Later versions of transformers mend some."""


def known(kind: str) -> bool:
    """Whether this version of transformers has the architecture."""
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
