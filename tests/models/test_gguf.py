"""GGUF files: what is read of each architecture is the float model that was written, its tokenizer included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy
from nonpareil.models.model_init import ModelInit
from tests.tiny import make_tokenizer, prompts_of
from tests.training.conftest import goodness, make_trainer

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "Ċ", "Ġa", "th", "the"]
MERGES = ["Ġ a", "t h", "th e"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FILE = "model.gguf"
IDS = torch.tensor([[1, 7, 8, 9, 12, 30, 4]])


def model_of(architecture: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]()).float().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases, which begin as ones and zeros
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def written(folder: Path, architecture: str = "llama", **changes: Any) -> Any:
    """A float32 GGUF file as llama.cpp's converter makes it; returns the model."""
    model = model_of(architecture)
    folder.mkdir(exist_ok=True)
    config, writer = (
        model.config,
        gguf.GGUFWriter(str(folder / FILE), changes.pop("named", architecture)),
    )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    if architecture == "qwen3":
        writer.add_key_length(16)
        writer.add_value_length(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("pre", "smollm" if architecture == "llama" else "qwen2"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    for name, value in (("bos", 1), ("eos", 2), ("pad", 0)):
        getattr(writer, f"add_{name}_token_id")(value)
    writer.add_add_bos_token(changes.pop("add_bos", False))
    writer.add_chat_template(TEMPLATE)
    if changes.pop("scaled", False):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    for name, weight in model.named_parameters():
        writer.add_tensor(*_as_llama_cpp_has_it(name, weight.detach(), architecture, config))
    for name in changes.pop("more", ()):
        writer.add_tensor(name, torch.ones(4).numpy())
    assert not changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _as_llama_cpp_has_it(name: str, weight: torch.Tensor, architecture: str, config: Any) -> tuple[str, Any]:
    place, leaf = name.rsplit(".", 1)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if architecture == "llama" and (count := heads.get(place.rsplit(".", 1)[-1])):
        weight = weight.reshape(count, 2, len(weight) // count // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    if place.startswith("model.layers."):
        layer, _, part = place.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[part]}.{leaf}", weight.contiguous().numpy()
    return f"{NAMES[place]}.{leaf}", weight.contiguous().numpy()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_read_is_the_float_model(architecture: str, tmp_path: Path) -> None:
    model = written(tmp_path / "g", architecture)
    read, tokenizer = load_policy(str(tmp_path / "g"), dtype="float32", init=ModelInit(gguf_file=FILE))
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)
    assert read.config.eos_token_id == 2
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (
        SPECIAL[2],
        SPECIAL[1],
        SPECIAL[0],
    )
    talk = [{"role": "user", "content": "the a1"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nthe a1<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer("the a12")["input_ids"]) == ["the", "Ġa", "1", "2"]


def test_what_is_trained_from_one_is_a_plain_folder(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    written(folder)
    init = ModelInit(gguf_file=FILE)
    policy = LocalPolicy(str(folder), dtype="float32", init=init)
    prompts = prompts_of([1, 7, 8], [1, 9])
    policy.check(prompts, make_trainer(tmp_path / "x").args.sampling(0))
    assert policy.endings is not None
    assert policy.endings.ids == {2}
    assert policy.info()["gguf_file"] == FILE
    for name, lora in (("whole", {}), ("lora", {"use_peft": True, "lora_target_modules": ["q_proj"]})):
        trainer = make_trainer(
            tmp_path / name,
            model=str(folder),
            prompts=prompts,
            tokenizer=policy.tokenizer,
            reward=goodness,
            gguf_file=FILE,
            max_steps=1,
            per_device_train_batch_size=2,
            **lora,
        )
        trainer.train()
        trainer.save_model(str(tmp_path / f"{name}-saved"))
        loaded, tokenizer = load_policy(str(tmp_path / f"{name}-saved"), dtype="float32")
        inner = trainer.model.get_base_model() if lora else trainer.model
        with torch.no_grad():
            torch.testing.assert_close(loaded(IDS).logits, inner.eval()(IDS).logits, atol=1e-5, rtol=0)
        assert tokenizer.eos_token == SPECIAL[2]
    assert "quantization_config" not in (tmp_path / "whole-saved" / "config.json").read_text()
    moved = fingerprint(str(folder), init=init)
    (folder / FILE).rename(folder / "other.gguf")
    assert fingerprint(str(folder), init=ModelInit(gguf_file="other.gguf")) == moved, (
        "by content, not by name"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"named": "gemma2"}, "architecture 'gemma2'; of GGUF files only llama, qwen2, qwen3"),
        ({"scaled": True}, "scales its positions .*rope.scaling.type"),
        ({"more": ["rope_freqs.weight"]}, "scales its positions .rope_freqs"),
        ({"more": ["blk.0.attn_v.bias"]}, "holds 21 tensors, and transformers makes a model of 20"),
        ({"pre": "llama-bpe"}, "has a tokenizer .gpt2, llama-bpe. .* put the model's own tokenizer.json"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    written(tmp_path / "g", **changes)
    with pytest.raises(ModelError, match=named.replace("|", r"\|")):
        load_policy(str(tmp_path / "g"), init=ModelInit(gguf_file=FILE))


def test_a_token_before_each_text_is_there_or_the_file_is_refused(tmp_path: Path) -> None:
    """transformers before 5.24 leaves it out."""
    written(tmp_path / "g", add_bos=True)
    refused, tokenizer = "", None
    try:
        _, tokenizer = load_policy(str(tmp_path / "g"), init=ModelInit(gguf_file=FILE))
    except ModelError as error:
        refused = str(error)
    if tokenizer is None:
        assert "asks for '<|im_start|>' before each text" in refused
    else:
        assert tokenizer("the")["input_ids"][0] == 1


def test_a_tokenizer_beside_the_file_counts(tmp_path: Path) -> None:
    written(tmp_path / "g", pre="llama-bpe")
    make_tokenizer().save_pretrained(tmp_path / "g")
    _, tokenizer = load_policy(str(tmp_path / "g"), init=ModelInit(gguf_file=FILE))
    assert tokenizer.eos_token == "</s>"


def test_no_file_and_no_gguf_are_one_line(tmp_path: Path) -> None:
    written(tmp_path / "g")
    with pytest.raises(ConfigError, match=r"gguf_file='no.gguf': no such file in .*there are model.gguf"):
        load_policy(str(tmp_path / "g"), init=ModelInit(gguf_file="no.gguf"))
    with pytest.raises(ConfigError, match="is none; download the file"):
        load_policy("some/hub-model", init=ModelInit(gguf_file=FILE))
    (tmp_path / "g" / "bad.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(ModelError, match="no GGUF file that can be read"):
        load_policy(str(tmp_path / "g"), init=ModelInit(gguf_file="bad.gguf"))
