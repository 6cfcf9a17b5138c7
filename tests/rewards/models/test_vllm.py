"""vLLM's pooling runner scores as transformers does, and what it cannot score so is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from nonpareil.errors import ConfigError, ModelError
from nonpareil.rewards import RewardModel, load_rewards
from tests.rewards.conftest import make_llama, make_tokenizer, request_of, varied_request

pytestmark = pytest.mark.vllm
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "head_dim": 32}


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_scores_are_those_of_transformers(save: Callable[..., str], pad: str) -> None:
    """With the pad as end token too: transformers then pools before the end token, vLLM by itself at it."""
    pad_id = {"<pad>": 3, "</s>": 2}[pad]
    path = save(make_llama(**SIZES, pad_token_id=pad_id), make_tokenizer(pad=pad, chat=True))
    data = varied_request()
    options = {"dtype": "float32", "append_eos": True}
    expected = RewardModel(path, **options, device="cpu").score(data).values
    combined = load_rewards(path, engine="vllm", **options)
    (reward,) = combined.rewards
    assert reward.inspect(data) == RewardModel(path, **options, device="cpu").inspect(data)
    assert reward.score(data).values == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 0.1
    assert min(expected) < 0, "no sigmoid"
    reward.release()
    pair = ("the film was ", "good")
    values = reward.score(request_of(pair, ("a ", "very long film"), pair)).values
    assert values[0] == values[2]
    assert (reward.describe()["engine"], reward.describe()["dtype"]) == ("vllm", "float32")
    reward.release()


def test_conversations_are_read_with_the_reward_models_own_template(save: Callable[..., str]) -> None:
    path = save(make_llama(**SIZES), make_tokenizer(chat=True))
    data = request_of(([{"role": "user", "content": "the film"}], [{"role": "assistant", "content": "good"}]))
    expected = RewardModel(path, dtype="float32", device="cpu").score(data).values
    reward = load_rewards(path, engine="vllm", dtype="float32").rewards[0]
    assert reward.score(data).values == pytest.approx(expected, abs=1e-3)
    reward.release()


def test_a_checkpoint_without_its_head_is_refused(save: Callable[..., str]) -> None:
    path = save(make_llama(**SIZES), make_tokenizer())
    file = Path(path) / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("score")}, file, {"format": "pt"})
    save_file(
        {"score.weight": torch.zeros(1, 64)}, file.with_name("model-00001-of-00002.safetensors")
    )  # stale
    with pytest.raises(ModelError, match=r"none of score, .* random head; use reward_engine='transformers'"):
        load_rewards(path, engine="vllm", dtype="float32")


def test_what_is_no_reward_model_is_refused_before_it_is_loaded(
    save: Callable[..., str], causal_lm: str
) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM: vLLM would score it with a head"):
        load_rewards(causal_lm, engine="vllm")
    with pytest.raises(ModelError, match="num_labels=3"):
        load_rewards(save(make_llama(num_labels=3), make_tokenizer(), "three"), engine="vllm")
    with pytest.raises(ConfigError, match="takes reward models by path"):
        load_rewards([make_llama()], tokenizers=[make_tokenizer()], engine="vllm")
    with pytest.raises(ConfigError, match="unknown reward model option 'device'"):
        load_rewards(causal_lm, engine="vllm", device="cpu")
    with pytest.raises(ConfigError, match="reward_engine='tgi' must be one of transformers, vllm"):
        load_rewards(causal_lm, engine="tgi")


def test_an_encoder_is_scored_and_a_class_that_vllm_does_not_know_is_refused(
    save: Callable[..., str],
) -> None:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    shape = {
        **sizes,
        "vocab_size": 20,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "num_labels": 1,
    }
    bert = BertForSequenceClassification(BertConfig(**shape, pad_token_id=3, initializer_range=0.4)).eval()
    path = save(bert, make_tokenizer(bert=True), "bert")
    expected = RewardModel(path, dtype="float32", device="cpu").score(varied_request()).values
    reward = load_rewards(path, engine="vllm", dtype="float32").rewards[0]
    assert reward.score(varied_request()).values == pytest.approx(expected, abs=1e-3)
    reward.release()
    deberta = DebertaV2ForSequenceClassification(DebertaV2Config(**shape, pad_token_id=3))
    with pytest.raises(
        ModelError, match=r"(?s)vLLM could not load .*reward_engine='transformers' runs every"
    ):
        load_rewards(save(deberta, make_tokenizer(), "deberta"), engine="vllm", dtype="float32")
