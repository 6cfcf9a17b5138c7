"""How a model is read besides its name: attention, from_pretrained's arguments, a note of them by an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy
from nonpareil.models.merged_folder import save_merged
from nonpareil.models.model_init import INIT_FILE, PLAIN, ModelInit, model_init
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import SamplingParams
from tests.tiny import UNEVEN, make_model, make_tokenizer, worst_error
from tests.training.conftest import make_trainer

IDS = torch.tensor([[1, 7, 8, 9, 12]])
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj"]}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_eager_and_sdpa_draw_and_score_the_same(folder: str) -> None:
    drawn = []
    for name in ("eager", "sdpa"):
        model, tokenizer = load_policy(folder, dtype="float32", init=ModelInit(name))
        assert model.config._attn_implementation == name
        engine = TransformersEngine(model, tokenizer)
        sampling = SamplingParams(max_completion_length=6)
        draws = engine.draw(UNEVEN, 3, sampling)
        assert worst_error(model, UNEVEN, draws, sampling) < 1e-4
        drawn.append([each.completion_token_ids for each in draws])
    assert drawn[0] == drawn[1]


def test_arguments_reach_the_model_and_its_fingerprint(folder: str) -> None:
    plain, turned = (
        load_policy(folder, dtype="float32", init=init)[0] for init in (PLAIN, ModelInit(kwargs=TURNED))
    )
    assert not torch.allclose(logits(plain), logits(turned), atol=1e-3)
    prints = {
        fingerprint(folder, init=init) for init in (PLAIN, ModelInit("eager"), ModelInit(kwargs=TURNED))
    }
    assert len(prints) == 2, "attention is another rounding, no other model"
    with pytest.raises(ConfigError, match=r"'rope_parameter' is no setting .*did you mean rope_parameters"):
        load_policy(folder, init=ModelInit(kwargs={"rope_parameter": 1}))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ('{"torch_dtype": "bfloat16"}', "torch_dtype is not taken; give dtype"),
        ({"dtype": torch.bfloat16}, "dtype is not taken; give dtype"),
        ({"revision": "main"}, "to DistillationTrainer a model object"),
        ({"device_map": "auto"}, "device_map"),
        ({"gguf_file": "x"}, "give gguf_file by itself"),
        ({"use_cache": False}, "use_cache"),
        ({"quantization_config": {}}, "load_in_4bit"),
        ({"attn_implementation": "flash"}, "attn_implementation='flash' must be among eager"),
        ("[1]", "must be a JSON object"),
        ("{", "must be a JSON object"),
    ],
)
def test_what_contradicts_us_is_refused_with_what_to_give(given: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model_init(EvaluateOptions(model_init_kwargs=given))


def test_attention_may_stand_among_the_arguments_as_in_trl() -> None:
    options = EvaluateOptions(model_init_kwargs={"attn_implementation": "eager"})
    assert model_init(options) == ModelInit("eager")
    assert model_init(EvaluateOptions(model_init_kwargs={"attn_implementation": None})) == PLAIN
    with pytest.raises(ConfigError, match="give it once"):
        model_init(
            EvaluateOptions(model_init_kwargs={"attn_implementation": "eager"}, attn_implementation="sdpa")
        )


def test_an_adapters_base_is_read_again_as_it_was(folder: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **LORA,
        "model_init_kwargs": TURNED,
        "attn_implementation": "eager",
        "max_steps": 1,
    }
    trainer = make_trainer(tmp_path / "run", model=folder, **settings)  # type: ignore[arg-type]
    trainer.train()
    trained = trainer.model.get_base_model().eval()
    assert trained.config._attn_implementation == "eager"
    adapter = tmp_path / "adapter"
    trainer.save_model(str(adapter))
    assert json.loads((adapter / INIT_FILE).read_text())["kwargs"] == TURNED
    for init in (PLAIN, ModelInit("sdpa")):
        loaded, _ = load_policy(str(adapter), dtype="float32", init=init)
        torch.testing.assert_close(logits(loaded), logits(trained), atol=1e-5, rtol=0)
        assert loaded.config._attn_implementation == (init.attn_implementation or "eager")
    save_merged(adapter, tmp_path / "merged")
    plain, _ = load_policy(str(tmp_path / "merged"), dtype="float32")
    torch.testing.assert_close(logits(plain), logits(trained), atol=1e-5, rtol=0)
    before = fingerprint(str(adapter))
    (adapter / INIT_FILE).unlink()
    assert fingerprint(str(adapter)) != before
    (adapter / INIT_FILE).write_text("{")
    with pytest.raises(ModelError, match="should say how the adapter's base was read"):
        load_policy(str(adapter))


def test_quantised_weights_without_lora_or_bitsandbytes_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_in_4bit without LoRA"):
        make_trainer(tmp_path, model=folder, load_in_4bit=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="load_in_4bit and load_in_8bit"):
        make_trainer(tmp_path, model=folder, load_in_4bit=True, load_in_8bit=True, **LORA)  # type: ignore[arg-type]
