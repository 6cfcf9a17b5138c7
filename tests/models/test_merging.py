"""Adapters of every kind: what was trained is what is drawn, evaluated, merged and written."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models import merged_folder, merging
from nonpareil.models.adapters import add_policy_adapter
from nonpareil.models.devices import cast_weights
from nonpareil.models.loading import load_policy
from nonpareil.models.merged_folder import save_merged
from nonpareil.models.merging import Merged, adapter_vocabulary, check_same_policy, merged, rounding_share
from nonpareil.models.vllm import check_vllm_adapter
from nonpareil.records import Prompt, SamplingParams
from tests.tiny import forced_logprobs, make_model, make_tokenizer

IDS = torch.tensor([[1, 7, 8, 9, 12, 11, 10, 5], [1, 12, 17, 16, 9, 9, 8, 6]])
EXACT = 5e-5
"""Nats: what float32 makes of a sum in another order."""
LLAMA, TIED, GPT2 = "llama_grouped_heads", "tied", "gpt2"
CONV: dict[str, Any] = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
Q = ["q_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "every linear layer": (LLAMA, {"target_modules": "all-linear"}),
    "rank-stabilised": (LLAMA, {"target_modules": "all-linear", "use_rslora": True}),
    "ranks and scales of their own": (
        LLAMA,
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 40}},
    ),
    "DoRA": (LLAMA, {"target_modules": "all-linear", "use_dora": True}),
    "DoRA of embeddings": (LLAMA, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "embeddings": (LLAMA, {"target_modules": ["embed_tokens", "q_proj"]}),
    "output head": (LLAMA, {"target_modules": ["lm_head", "q_proj"]}),
    "head saved": (LLAMA, {"target_modules": Q, "modules_to_save": ["lm_head"]}),
    "norms saved": (LLAMA, {"target_modules": Q, "modules_to_save": ["norm"]}),
    "tokens of their own": (LLAMA, {"target_modules": Q, "trainable_token_indices": [7, 8]}),
    "a bare parameter": (LLAMA, {"target_modules": Q, "target_parameters": ["mlp.gate_proj.weight"]}),
    "layers used twice": (
        LLAMA,
        {"target_modules": "all-linear", "layer_replication": [(0, 2), (1, 2)]},
    ),
    "PiSSA": (LLAMA, {"target_modules": "all-linear", "init_lora_weights": "pissa"}),
    "tied, linear layers": (TIED, {"target_modules": "all-linear"}),
    "tied, embeddings": (TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, output head": (TIED, {"target_modules": ["lm_head", "q_proj"]}),
    "tied, both by one adapter": (
        TIED,
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    ),
    "tied, embeddings saved": (TIED, {"target_modules": Q, "modules_to_save": ["embed_tokens"]}),
    "tied, head saved": (TIED, {"target_modules": Q, "modules_to_save": ["lm_head"]}),
    "tied, both saved": (TIED, {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, both saved as one": (
        TIED,
        {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied, tokens of their own": (TIED, {"target_modules": Q, "trainable_token_indices": [7, 8]}),
    "transposed": (GPT2, CONV),
    "biases of the adapter": (GPT2, {**CONV, "lora_bias": True}),
    "biases of its layers": (GPT2, {**CONV, "bias": "lora_only"}),
    "every bias": (GPT2, {**CONV, "bias": "all"}),
    "tied, GPT-2's embeddings": (GPT2, {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
    "positions": (GPT2, {"target_modules": ["wpe", "c_attn"], "fan_in_fan_out": True}),
    "tied, OPT": ("opt", {"target_modules": ["q_proj", "fc1"]}),
    "Bloom": ("bloom_without_window", {"target_modules": ["query_key_value"]}),
    "resized": (LLAMA, {"target_modules": Q}),
    "resized and tied": (TIED, {"target_modules": Q}),
    "resized and saved": (LLAMA, {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "embeddings beside it": (LLAMA, {"target_modules": Q}),
}
RESIZED = 23


@dataclass
class Trained:
    folder: Path
    adapted: Any

    @torch.no_grad()
    def logprobs(self, ids: Tensor = IDS) -> Tensor:
        return self.adapted(ids).logits.log_softmax(-1)


def train(
    kind: str, folder: Path, move: float = 0.2, dtype: torch.dtype = torch.float32, **changes: Any
) -> Trained:
    """A base on disk and an adapter whose weights all moved, saved by PEFT."""
    architecture, config = KINDS[kind]
    cast_weights(make_model(architecture), dtype).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if "resized" in kind:
        torch.manual_seed(3)
        model.resize_token_embeddings(RESIZED)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **config, **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert trainable
    for parameter in trainable:
        parameter.data += move * torch.randn(parameter.shape, generator=generator)
    embeddings = {"save_embedding_layers": True} if kind == "embeddings beside it" else {}
    adapted.save_pretrained(folder / "adapter", **embeddings)
    make_tokenizer().save_pretrained(folder / "adapter")
    if config.get("bias") == "lora_only" and not any(
        "bias" in name for name in load_file(folder / "adapter" / "adapter_model.safetensors")
    ):
        pytest.skip("this version of PEFT does not save the biases")
    return Trained(folder / "adapter", adapted)


def same(model: Any, trained: Trained) -> None:
    with torch.no_grad():
        got = model(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(got, trained.logprobs(), atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_drawn_evaluated_merged_and_written(kind: str, tmp_path: Path) -> None:
    trained = train(kind, tmp_path)
    base = make_model(KINDS[kind][0])(IDS).logits.log_softmax(-1)
    assert (trained.logprobs()[..., : base.shape[-1]] - base).abs().max() > 0.5, "the adapter did something"

    model, tokenizer = load_policy(str(trained.folder), dtype="float32")
    same(model, trained)
    prompts = [Prompt("one", "", [1, 7, 8]), Prompt("two", "", [1, 12, 17, 16, 9])]
    drawn = TransformersEngine(model, tokenizer).draw(prompts, 2, SamplingParams(max_completion_length=5))
    for prompt, draws in zip(prompts, drawn, strict=True):
        for ids, values in zip(draws.completion_token_ids, draws.logprobs, strict=True):
            expected = forced_logprobs(trained.adapted, prompt.token_ids, ids)
            torch.testing.assert_close(torch.tensor(values), expected.detach(), atol=EXACT, rtol=0)

    save_merged(trained.folder, tmp_path / "merged")
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), trained)
    same(load_policy(str(tmp_path / "merged"), dtype="float32")[0], trained)


@pytest.mark.parametrize("kind", ["every linear layer", "DoRA", "transposed"])
def test_in_bfloat16_the_adapter_stays_beside_a_base_that_is_as_it_was(kind: str, tmp_path: Path) -> None:
    """Merged weights would be rounded, and what a small training did be lost among the rounding."""
    trained = train(kind, tmp_path, move=0.003, dtype=torch.bfloat16)
    model = load_policy(str(trained.folder), dtype="bfloat16")[0]
    assert model(IDS).logits.dtype == torch.bfloat16
    merge = both(trained)
    beside = merging.probe_logprobs(cast_weights(model, torch.float32))
    assert abs(rounding_share(merge.trained, beside, merge.base)) < 0.001
    rounded = merging.probe_logprobs(cast_weights(cast_weights(merge.model, torch.bfloat16), torch.float32))
    assert rounding_share(merge.trained, rounded, merge.base) > 0.03


def both(trained: Trained) -> Merged:
    base = json.loads((trained.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return merged(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(trained.folder))


@pytest.mark.parametrize(("move", "dtype"), [(0.003, torch.float32), (0.2, torch.bfloat16)])
def test_a_merged_checkpoint_has_the_bases_dtype_unless_rounding_would_be_another_policy(
    move: float, dtype: torch.dtype, tmp_path: Path, capsys: Any
) -> None:
    trained = train("every linear layer", tmp_path, move, torch.bfloat16)
    save_merged(trained.folder, tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {dtype}
    assert ("is written in float32: rounded to the base's bfloat16" in capsys.readouterr().err) == (
        move < 0.1
    )
    merge = both(trained)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert rounding_share(merge.trained, merging.probe_logprobs(model), merge.base) < 0.05


@pytest.mark.parametrize("kind", ["tied, embeddings", "tied, output head", "tied, GPT-2's embeddings"])
def test_a_merge_that_changes_the_policy_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(kind, tmp_path)
    monkeypatch.setattr(merging, "_part_shared_weights", lambda adapted: None)  # as PEFT alone merges
    for use in (
        lambda: load_policy(str(trained.folder), dtype="float32"),
        lambda: save_merged(trained.folder, tmp_path / "m"),
    ):
        with pytest.raises(
            ModelError, match=r"adapter' merged into .*base' is another policy .* differ by \d"
        ):
            use()
    assert not (tmp_path / "m").exists()


def test_a_small_move_is_compared_more_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train("tied, embeddings", tmp_path, move=1e-4)
    base = make_model("tied")(IDS).logits.log_softmax(-1)
    assert 0.005 < (trained.logprobs() - base).abs().amax(-1).mean() < 0.02
    load_policy(str(trained.folder), dtype="float32")
    monkeypatch.setattr(merging, "_part_shared_weights", lambda adapted: None)
    with pytest.raises(ModelError, match="is another policy"):
        load_policy(str(trained.folder), dtype="float32")


def test_what_was_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train("every linear layer", tmp_path)
    monkeypatch.setattr(merged_folder, "load_model", lambda *_, **__: make_model())
    with pytest.raises(ModelError, match="written and read again, is another policy"):
        save_merged(trained.folder, tmp_path / "merged")


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    trained = train("every linear layer", tmp_path)
    base = make_model()
    base.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ModelError, match="quantised"):
        merged(base, str(trained.folder))


def test_a_resized_vocabulary_of_which_a_part_is_missing_is_refused(tmp_path: Path) -> None:
    trained = train("resized", tmp_path)
    assert adapter_vocabulary(str(trained.folder)) == RESIZED
    file = trained.folder / "adapter_model.safetensors"
    weights = load_file(file)
    assert weights.pop("base_model.model.lm_head.weight").shape[0] == RESIZED
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"23 tokens, the base has 19.*only the input .*of this size"):
        load_policy(str(trained.folder), dtype="float32")


def test_an_adapter_that_leaves_embeddings_alone_has_no_vocabulary(tmp_path: Path) -> None:
    assert adapter_vocabulary(str(train("norms saved", tmp_path).folder)) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"trainable_token_indices": [7]}, "trainable_token_indices"),
        ({"layer_replication": [(0, 2)]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"lora_bias": True}, "lora_bias=True cannot be: .*q_proj has no bias"),
    ],
)
def test_what_would_change_the_reference_or_not_merge_is_not_trained(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"peft_config.{named}"):
        add_policy_adapter(make_model(), LoraConfig(**{"target_modules": Q, **change}))


def test_what_is_trained_leaves_the_base_bit_for_bit() -> None:
    for start in (True, False, "gaussian", "orthogonal"):
        model = make_model()
        adapted = add_policy_adapter(model, LoraConfig(target_modules=Q, init_lora_weights=start))
        with torch.no_grad(), adapted.disable_adapter():
            assert torch.equal(adapted(IDS).logits, make_model()(IDS).logits)
        assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("every linear layer", None),
        ("rank-stabilised", None),
        ("ranks and scales of their own", "rank_pattern="),
        ("DoRA", "lora_magnitude_vector"),
        ("embeddings", "embed_tokens"),
        ("output head", "lm_head"),
        ("norms saved", "norm.weight"),
        ("biases of its layers", "bias"),
    ],
)
def test_vllm_is_given_only_adapters_that_it_holds_whole(
    kind: str, named: str | None, tmp_path: Path
) -> None:
    folder = train(kind, tmp_path).folder
    if named is None:
        check_vllm_adapter(folder)
    else:
        with pytest.raises(ConfigError, match=f"vLLM would not draw from .*the adapter has .*{named}"):
            check_vllm_adapter(folder)
    shutil.rmtree(folder)


def test_no_number_is_made_up_for_what_an_adapter_moved_where_the_vocabulary_differs() -> None:
    with pytest.raises(ModelError, match="differ by 1 nats per token; use the adapter") as caught:
        check_same_policy(torch.zeros(1, 2, 5), torch.ones(1, 2, 5), torch.zeros(1, 2, 4), "the merged one")
    assert "moved" not in str(caught.value)
