"""A base in 4 or 8 bits under LoRA: drawn, trained, saved and read again as the same policy; never merged."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nonpareil.errors import ModelError
from nonpareil.models.adapters import plain_model
from nonpareil.models.loading import load_merged, load_policy
from nonpareil.models.quantized import is_quantized
from tests.tiny import make_model, make_tokenizer
from tests.training.conftest import PROMPTS, make_trainer

pytest.importorskip("bitsandbytes")

LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
IDS = torch.tensor([[1, 7, 8, 9, 12]])


@pytest.mark.parametrize(
    "bits",
    [
        {"load_in_4bit": True},
        {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "bfloat16"},
    ],
)
def test_a_quantised_base_is_one_policy_from_the_draw_to_the_folder(
    bits: dict[str, Any], tmp_path: Path
) -> None:
    make_model(**SHAPE).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base: Any = str(tmp_path / "base")
    trainer = make_trainer(tmp_path / "run", model=base, max_steps=2, **LORA, **bits)
    model = plain_model(trainer.model)
    assert is_quantized(model)
    packed = next(weight for weight in model.parameters() if type(weight).__name__ == "Params4bit")
    assert str(packed.dtype) == f"torch.{bits.get('bnb_4bit_quant_storage', 'uint8')}"
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    torch.testing.assert_close(batch.draws.log_ratio, torch.zeros(len(PROMPTS), 1), atol=1e-3, rtol=0)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    read, _ = load_policy(str(tmp_path / "adapter"), dtype="float32")
    assert is_quantized(read)
    with torch.no_grad():
        got, expected = read(IDS).logits, model.eval()(IDS).logits
        plain = make_model(**SHAPE)(IDS).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(got, plain, atol=1e-2)
    with pytest.raises(ModelError, match="quantised"):
        load_merged(str(tmp_path / "adapter"))


def test_eight_bits_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    """bitsandbytes chooses outliers over all tokens of a pass: a token has other log-probs beside others."""
    make_model(**SHAPE).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base: Any = str(tmp_path / "base")
    with pytest.raises(ModelError, match="otherwise in a batch than alone"):
        make_trainer(tmp_path / "run", model=base, load_in_8bit=True, **LORA)
