from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OpenAIGPTConfig,
    Phi3Config,
    RwkvConfig,
    XLMConfig,
)

from nonpareil.engines.cache import cache_argument
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.records import Prompt, SamplingParams
from tests.tiny import LLAMA, UNEVEN, make_engine, make_model, prompts_of, worst_error


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("max_completion_length", 0, "at least 1"),
        ("temperature", 0.0, "above 0"),
        ("temperature", -1.0, "above 0"),
        ("temperature", float("nan"), "above 0"),
        ("top_p", 0.0, "in (0, 1]"),
        ("top_p", 1.5, "in (0, 1]"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1.0, "in [0, 1)"),
        ("min_p", -0.1, "in [0, 1)"),
    ],
)
def test_sampling_out_of_range_names_field_value_and_range(field: str, value: Any, remedy: str) -> None:
    sampling = replace(SamplingParams(max_completion_length=4), **{field: value})
    with pytest.raises(ConfigError) as caught:
        make_engine().draw(UNEVEN, 2, sampling)
    assert f"{field}={value}" in str(caught.value)
    assert remedy in str(caught.value)


def test_an_empty_prompt_is_refused_before_any_compute() -> None:
    engine = make_engine()
    calls: list[int] = []
    engine.model.register_forward_pre_hook(lambda *_: calls.append(1))
    prompts = [*UNEVEN, Prompt("empty-9", "", [])]
    with pytest.raises(DataError, match=r"prompt empty-9 is empty.*remove it or give"):
        engine.draw(prompts, 2, SamplingParams(max_completion_length=4))
    assert not calls


def test_a_prompt_over_the_window_names_lengths_and_remedy() -> None:
    engine = make_engine()
    fits = prompts_of([1] + [7] * 59)
    engine.draw(fits, 1, SamplingParams(max_completion_length=4))
    with pytest.raises(DataError) as caught:
        engine.draw(fits, 1, SamplingParams(max_completion_length=5))
    for part in ("p0-60", "60 tokens", "max_completion_length=5", "65", "window of 64", "lower"):
        assert part in str(caught.value)


def test_a_model_without_a_window_takes_any_length() -> None:
    drawn = make_engine(make_model("bloom_without_window")).draw(
        prompts_of([7] * 100), 1, SamplingParams(max_completion_length=3)
    )
    assert 1 <= len(drawn[0].completion_token_ids[0]) <= 3


TINY: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(**TINY, state_size=4),
        RwkvConfig(**TINY, attention_hidden_size=16, intermediate_size=16),
        OpenAIGPTConfig(vocab_size=20, n_embd=16, n_layer=1, n_head=2),
        XLMConfig(vocab_size=20, emb_dim=16, n_layers=1, n_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_would_ignore_the_cache_is_refused(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config)
    refusal = f"{type(model).__name__} does not take transformers' cache .* use a model that does"
    with pytest.raises(ModelError, match=refusal):
        make_engine(model)


def test_the_cache_is_given_by_the_name_that_the_model_knows() -> None:
    class Renamed(LlamaForCausalLM):
        """As transformers from 5.24 on, where the old name warns, and will be gone."""

        def forward(self, *args: Any, cache: Cache | None = None, **kwargs: Any) -> Any:
            return super().forward(*args, **{cache_argument(type(plain), plain.config): cache}, **kwargs)

    plain = make_model()
    renamed = Renamed(plain.config)
    renamed.load_state_dict(plain.state_dict())
    sampling = SamplingParams(max_completion_length=6)
    engine = make_engine(plain)
    engine.ways.taken = []  # as where the signature does not name positions
    expected = engine.draw(UNEVEN, 3, sampling)
    assert make_engine(renamed).draw(UNEVEN, 3, sampling) == expected


@pytest.mark.parametrize("of", ["rope_parameters", "config"])
def test_longrope_is_one_law_within_its_first_window_and_refused_past_it(of: str) -> None:
    """Past it, transformers turns all positions by the long factors: those in the cache were not."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    first = {"original_max_position_embeddings": 16}
    config = LlamaConfig(**LLAMA, rope_parameters=rope | first) if of == "rope_parameters" else None
    config = config or Phi3Config(**LLAMA, rope_parameters=rope, **first)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    within = SamplingParams(max_completion_length=6, seed=5)
    assert worst_error(model, UNEVEN, make_engine(model).draw(UNEVEN, 3, within), within) < 1e-4
    with pytest.raises(DataError, match="that is 17, over the model's window of 16"):
        make_engine(model).draw(UNEVEN, 3, replace(within, max_completion_length=7))
