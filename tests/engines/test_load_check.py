"""What a policy is asked when it is loaded, and that a right one is never refused."""

from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, OPTForCausalLM, PreTrainedModel

from nonpareil.engines import load_check
from nonpareil.engines.cache import cache_argument
from nonpareil.engines.load_check import check_scoring
from nonpareil.errors import ModelError, NotFiniteError
from nonpareil.models.loading import cast_weights, disable_dropout
from nonpareil.models.modes import training_mode
from nonpareil.records import SamplingParams
from tests.architectures import tiny_model
from tests.tiny import CONFIGS, GOOD, UNEVEN, favour, make_engine, make_model

CACHE = cache_argument(LlamaForCausalLM, make_model().config)


class SeesTheFuture(LlamaForCausalLM):
    """A mean over the whole row enters each logit."""

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output


class CountsFromThePadding(OPTForCausalLM):
    @wraps(OPTForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        past, ids = kwargs.get(CACHE), kwargs["input_ids"]
        start = past.get_seq_length() if past is not None else 0
        kwargs["position_ids"] = start + torch.arange(ids.shape[1])[None]
        return super().forward(*args, **kwargs)


class KeepsAState(LlamaForCausalLM):
    """What the model last read moves what it answers next."""

    state: Tensor | float = 0.0

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        logits, output.logits = output.logits, output.logits + self.state
        self.state = 0.2 * logits[-1, -1].detach()
        return output


class ForgetsItsPast(LlamaForCausalLM):
    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] == 1:
            kwargs[CACHE] = None
        return super().forward(*args, **kwargs)


class SeesTheBatch(LlamaForCausalLM):
    """As routers do whose experts take so many tokens and no more."""

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * (1 + 0.1 * (output.logits.shape[0] - 1))
        return output


class Breaks(LlamaForCausalLM):
    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs["use_cache"]:
            raise TypeError("'NoneType' object is not subscriptable")
        return super().forward(*args, **kwargs)


class RoundsByPath(LlamaForCausalLM):
    """As a mixture of experts may in bfloat16, where a rounding chooses another expert."""

    @wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.logits.dtype == torch.bfloat16 and kwargs["use_cache"]:
            output.logits = output.logits * 1.3
        return output


FAULTY: dict[type[PreTrainedModel], str] = {
    SeesTheFuture: r"a later token changes .* nats per token apart, at most 0.002 in float32",
    CountsFromThePadding: r"drawn one by one, .* padded groups, have other log-probs .* nats per token apart",
    KeepsAState: r"a batch than alone|drawn one by one",
    ForgetsItsPast: r"drawn one by one",
    SeesTheBatch: r"a batch than alone|drawn one by one",
    Breaks: r"ended in TypeError: 'NoneType' object is not subscriptable; use a decoder",
}


@pytest.mark.parametrize("faulty", FAULTY, ids=lambda kind: kind.__name__)
def test_a_model_that_is_not_one_law_is_refused_by_name(faulty: type[PreTrainedModel]) -> None:
    plain = make_model("opt" if issubclass(faulty, OPTForCausalLM) else "llama_grouped_heads")
    model: Any = faulty(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    model.name_or_path = "models/policy"
    make_engine(plain)
    with pytest.raises(ModelError, match=FAULTY[faulty]) as caught:
        make_engine(model)
    assert str(caught.value).startswith(f"{faulty.__name__} ('models/policy') cannot be used here: ")


@pytest.mark.parametrize("scale", [0.01, 0.1, 3.0])
def test_the_tolerance_follows_the_spread_of_the_logits(scale: float) -> None:
    """A fresh model's logits hardly differ, and neither do its answers with and without a future."""
    plain = make_model()
    with torch.no_grad():
        plain.get_output_embeddings().weight.mul_(scale)
    model = SeesTheFuture(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    make_engine(plain)
    with pytest.raises(ModelError, match="a later token"):
        make_engine(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_right_model_is_taken_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    make_engine(make_model(kind).to(dtype))


def test_rounding_is_told_from_a_fault_by_a_finer_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_model(tie_word_embeddings=True)
    model: Any = RoundsByPath(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    cast_weights(model, torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_engine(model)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    monkeypatch.setattr(load_check, "FINER", {})
    with pytest.raises(ModelError, match=r"drawn one by one.* in bfloat16"):
        make_engine(model)


def test_rounding_is_told_from_a_fault_where_experts_are_multiplied_in_groups() -> None:
    """Wild weights round to .005 nats in float32; the grouped product, which is the default, knows no float64."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
    model = tiny_model("mixtral", **sizes, num_key_value_heads=4, head_dim=32, initializer_range=1.0)
    before = model.config._experts_implementation
    with load_check.in_dtype(model, torch.float64), torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.dtype == torch.float64
    assert (model.dtype, model.config._experts_implementation) == (torch.float32, before)
    disable_dropout(model)
    check_scoring(model, trained=True)


@pytest.mark.parametrize("faulty", [SeesTheFuture, ForgetsItsPast])
def test_a_fault_stays_one_in_bfloat16(faulty: type[PreTrainedModel]) -> None:
    model: Any = faulty(make_model().config).eval()
    with pytest.raises(ModelError, match=r"a later token|drawn one by one"):
        make_engine(model.to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_probs_that_are_no_numbers_are_left_to_what_draws_or_scores_a_prompt(value: float) -> None:
    model = favour(make_model(), GOOD, value)
    check_scoring(model, trained=True)
    with pytest.raises(NotFiniteError, match="prompt p0-7, completion 0, token 0"):
        make_engine(model).draw(UNEVEN, 2, SamplingParams(max_completion_length=2))


def test_a_fault_is_seen_beside_tokens_that_are_ruled_out() -> None:
    model: Any = SeesTheFuture(make_model().config).eval()
    with pytest.raises(ModelError, match="a later token"):
        make_engine(favour(model, GOOD, -1e30))


@pytest.mark.parametrize("window", [3, 5, 8, 16])
def test_a_small_window_is_kept(window: int) -> None:
    seen: list[int] = []
    model = make_model("gpt2", n_positions=window)
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    make_engine(model)
    assert max(seen) <= window


def test_no_special_token_is_asked_for() -> None:
    rows: list[Tensor] = []
    model = make_model()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    check_scoring(model)
    first = rows[0]
    assert first.shape == (2, 7)
    assert not {1, 2, 3} & set(first.flatten().tolist()), "the config's own"
    assert (first[0] != first[1]).tolist() == [False] * 5 + [True] * 2, "only the end differs"


def test_asking_changes_neither_model_nor_random_numbers() -> None:
    model = make_model("gpt2").train()
    model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    disable_dropout(model)
    make_engine(model)
    check_scoring(model, trained=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.is_gradient_checkpointing


class NoisyLayer(nn.Module):
    """Noise that no rate turns off, in a layer that can be checkpointed."""

    gradient_checkpointing = False

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        noise = 1 + 0.1 * torch.randn(()) if self.training else 1.0
        return self.inner(*args, **kwargs) * noise


def test_noise_that_stays_in_training_is_refused() -> None:
    model: Any = make_model()
    model.model.layers[1].mlp = NoisyLayer(model.model.layers[1].mlp)
    disable_dropout(model)
    check_scoring(model)
    make_engine(model)
    with pytest.raises(
        ModelError, match=r"training mode gives other log-probs .* set it to 0 in the model's config"
    ):
        check_scoring(model, trained=True)


NOISE: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "persimmon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gptj": {"resid_pdrop": 0.5, "attn_pdrop": 0.5},
    "gpt_neo": {"resid_dropout": 0.5, "attention_dropout": 0.5},
    "mpt": {},
    "mixtral": {"router_jitter_noise": 0.5, "attention_dropout": 0.5},
    "phimoe": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.5},
    "xglm": {"dropout": 0.5, "layerdrop": 0.5},
}


def scores(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 7, 8, 9, 10, 11]]), use_cache=False).logits


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_noise_that_lives_in_a_config_is_off_in_training(kind: str, checkpointing: bool) -> None:
    model = tiny_model(kind, **NOISE[kind])
    written = model.config.to_json_string()
    want = scores(model)
    torch.manual_seed(0)
    assert kind == "mpt" or not torch.allclose(scores(model.train()), want), "the yardstick itself"
    disable_dropout(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    training_mode(model)
    assert model.training
    assert torch.equal(scores(model), want)
    check_scoring(model, trained=True)
    assert model.config.to_json_string() == written, "which is saved with the model"


@pytest.mark.parametrize("kind", sorted(set(NOISE) - {"phimoe"}))
def test_noise_that_lives_in_a_config_is_off_in_every_module(kind: str) -> None:
    model = tiny_model(kind, **NOISE[kind])
    want = scores(model)
    disable_dropout(model)
    assert torch.equal(scores(model.train()), want)
