"""A bias in the output layer: exact where the architecture has room for it, near or refused where not."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nonpareil.errors import ModelError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.output_bias import (
    check_foldable,
    check_head,
    fold_bias,
    fold_error,
    logits_at,
    unit_direction,
)
from tests.architectures import tiny_config, tiny_model
from tests.tiny import VOCABULARY, favour, make_model


def sequences(seed: int, count: int = 200) -> TokenSequences:
    drawn = torch.randint(
        4, len(VOCABULARY), (count, 9), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return TokenSequences([row[:3] for row in drawn], [row[3:] for row in drawn])


BIAS = torch.linspace(-1, 1, len(VOCABULARY), dtype=torch.float64)[
    torch.randperm(19, generator=torch.manual_seed(1))
]


def folded(model, tmp_path, temperature=1.0):
    """How near a model that was folded, saved and read again is to the tilt; and what was saved."""
    head = check_head("policy", model)
    direction = None if getattr(head, "bias", None) is not None else unit_direction(model, sequences(0), 500)
    states, before = logits_at(model, sequences(9, 40))
    fold_bias(head, model, BIAS, direction)
    model.save_pretrained(tmp_path)
    written = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    units = None if direction is None else states.double() @ direction
    return fold_error(before, logits_at(written, sequences(9, 40))[1], BIAS, temperature, units), written


def test_a_layer_with_a_bias_takes_it_exactly(tmp_path):
    model = tiny_model("phi")
    assert model.get_output_embeddings().bias is not None
    fold, _ = folded(model, tmp_path)
    assert fold.kl < 1e-9 < 0.05 < fold.tilt_kl
    assert (fold.spread, fold.positions) == (0, 40 * 6)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_states_behind_a_layer_norm_have_an_exact_direction(kind, tmp_path):
    """Their normalised part sums to 0, so that one direction sees the norm's own shift alone, once it has one."""
    model = tiny_model(kind)
    norm = [module for module in model.base_model.modules() if isinstance(module, nn.LayerNorm)][-1]
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(0.5, 1.5, 32))
    fold, _ = folded(model, tmp_path)
    assert fold.spread < 0.01
    assert fold.share < 1e-3


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
def test_other_states_are_near_a_plane_and_the_input_embeddings_stay(kind, tmp_path):
    model = make_model(kind)
    inputs = model.get_input_embeddings().weight.detach().clone()
    fold, written = folded(model, tmp_path, temperature=0.7)
    assert torch.equal(written.get_input_embeddings().weight, inputs)
    assert not written.config.tie_word_embeddings
    assert fold.mean == pytest.approx(1, abs=0.1)
    assert fold.spread == pytest.approx(0.4, abs=0.3)  # 32 random dimensions; a trained model has .1
    assert fold.share == pytest.approx(fold.spread**2, rel=0.9)


def test_the_direction_has_mean_1_and_the_least_variance_of_all():
    model = make_model()
    states = logits_at(model, sequences(0))[0].double()
    direction = unit_direction(model, sequences(0), 500)
    assert (states @ direction).mean() == pytest.approx(1, abs=1e-6)
    mean = states.mean(0)
    for seed in range(20):
        step = torch.randn(32, generator=torch.Generator().manual_seed(seed)).double()
        step -= mean * (step @ mean) / (mean @ mean)  # keeps the mean at 1
        moved = direction + 0.1 * direction.norm() * step / step.norm()
        assert (states @ moved).var() > (states @ direction).var()


def test_the_error_is_the_kl_from_the_tilt_by_hand():
    before = torch.tensor([[0.0, 0.0]])
    bias = torch.tensor([1.0, -1.0])
    fold = fold_error(before, torch.tensor([[0.5, -0.5]]), bias, 0.5, torch.tensor([0.9]).repeat(2))
    tilt = torch.tensor([2.0, -2.0], dtype=torch.float64).softmax(-1)
    half = torch.tensor([1.0, -1.0], dtype=torch.float64).softmax(-1)
    assert fold.kl == pytest.approx(float((tilt * (tilt / half).log()).sum()))
    assert fold.tilt_kl == pytest.approx(float((tilt * (tilt * 2).log()).sum()))
    assert fold.share == pytest.approx(fold.kl / fold.tilt_kl)


def test_what_has_no_place_for_a_bias_is_refused_by_name(tmp_path):
    capped = tiny_config("gemma2", final_logit_softcapping=3.0)
    with pytest.raises(ModelError, match=r"final_logit_softcapping=3\.0.*logit_bias"):
        check_foldable("policy", capped)
    quantised = tiny_config("llama")
    quantised.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match="quantised"):
        check_foldable("policy", quantised)
    with pytest.raises(ModelError, match="encoder and a decoder"):
        check_foldable("policy", AutoConfig.for_model("t5"))
    check_foldable("policy", tiny_config("llama"))


def test_logits_that_are_scaled_behind_the_layer_are_refused():
    with pytest.raises(ModelError, match="more to its logits than one linear layer"):
        check_head("policy", tiny_model("cohere"))
    with pytest.raises(ModelError, match="more to its logits"):
        check_head("policy", make_model("gemma2_capped"))
    assert check_head("policy", favour(make_model(), 4, 1.0)).bias is not None
