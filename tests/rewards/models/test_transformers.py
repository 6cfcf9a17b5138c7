"""A reward model scores what it was trained on: its own tokens, whatever the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest
from nonpareil.rewards import RewardModel
from tests.rewards.conftest import (
    SPECIALS,
    WORDS,
    make_llama,
    make_tokenizer,
    request_of,
    shared_folder,
    varied_request,
)

CPU32: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


def one_by_one(path: str, rows: list[list[int]]) -> list[float]:
    """The golden score: a plain forward of one unpadded row."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]


@pytest.mark.parametrize("kind", ["llama_rm", "bert_rm"])
def test_scores_equal_a_plain_forward_of_each_row(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    data = varied_request()
    reward = RewardModel(path, **CPU32)
    expected = one_by_one(path, reward.inspect(data))
    scores = reward.score(data)
    assert scores.values == pytest.approx(expected, abs=1e-5)
    assert scores.failures == [None] * 16
    assert max(expected) - min(expected) > 0.1  # else the comparison would say little


def test_batch_of_1_and_of_16_agree(llama_rm: str) -> None:
    data = varied_request()
    alone = RewardModel(llama_rm, **CPU32, max_tokens_per_batch=1).score(data).values
    together = RewardModel(llama_rm, **CPU32, max_tokens_per_batch=10_000).score(data).values
    assert together == pytest.approx(alone, abs=1e-4)


def test_batch_companions_do_not_change_a_score(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32)
    data = varied_request()
    every = reward.score(data).values
    some = reward.score(data.select([11, 2])).values
    assert some == pytest.approx([every[11], every[2]], abs=1e-4)


def test_equal_texts_tie_exactly(llama_rm: str) -> None:
    pair = ("the film was ", "good")
    values = (
        RewardModel(llama_rm, device="cpu").score(request_of(pair, ("a ", "very long film"), pair)).values
    )
    assert values[0] == values[2]


def test_own_tokenizer_with_a_vocabulary_disjoint_from_the_policys(save: Callable[..., str]) -> None:
    """The policy's ids mean nothing to the reward model: only the text counts."""
    tokenizer = make_tokenizer(WORDS[::-1])
    reward = RewardModel(save(make_llama(), tokenizer), **CPU32)
    text = request_of(("the film was ", "good"))
    policy_ids = ScoreRequest(text.prompts, text.completions, [[10**6, 10**6 + 1]], {})
    assert reward.inspect(policy_ids) == [tokenizer("the film was good").input_ids]
    assert reward.inspect(policy_ids) != [make_tokenizer()("the film was good").input_ids]
    assert reward.score(policy_ids) == reward.score(text)


def test_pad_equal_to_eos_pools_where_hf_does(save: Callable[..., str]) -> None:
    path = save(make_llama(pad_token_id=2), make_tokenizer(pad="</s>"))
    reward = RewardModel(path, **CPU32, append_eos=True)
    data = varied_request()
    assert reward.score(data).values == pytest.approx(one_by_one(path, reward.inspect(data)), abs=1e-5)


def test_a_model_without_pad_id_is_batched_and_pools_at_the_last_token(save: Callable[..., str]) -> None:
    path = save(make_llama(pad_token_id=None), make_tokenizer(pad=None))
    reward = RewardModel(path, **CPU32)
    data = varied_request()
    assert reward.score(data).values == pytest.approx(one_by_one(path, reward.inspect(data)), abs=1e-5)
    assert reward._loaded().config.pad_token_id is None  # borrowed, and given back


def test_without_pad_id_and_every_id_in_use(save: Callable[..., str]) -> None:
    path = save(make_llama(pad_token_id=None), make_tokenizer(pad=None))
    reward = RewardModel(path, **CPU32)
    data = request_of((" ".join(SPECIALS), " ".join(WORDS)), ("the film was ", "good"))
    assert {token for row in reward.inspect(data) for token in row} == set(range(len(SPECIALS) + len(WORDS)))
    assert reward.score(data).values == pytest.approx(one_by_one(path, reward.inspect(data)), abs=1e-5)


class ForgetfulLlama(LlamaForSequenceClassification):
    """Runs out of memory, for real as far as its caller can tell, when rows x longest is over `most`."""

    most = 60

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), input_ids.shape]
        if input_ids.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(input_ids=input_ids, **kwargs)


def test_out_of_memory_halves_the_batch_until_it_fits(llama_rm: str) -> None:
    model = ForgetfulLlama.from_pretrained(llama_rm, dtype=torch.float32)
    reward = RewardModel(model, AutoTokenizer.from_pretrained(llama_rm))
    data = varied_request()
    assert reward.score(data).values == pytest.approx(one_by_one(llama_rm, reward.inspect(data)), abs=1e-5)
    assert [rows for rows, _ in model.seen[:4]] == [16, 8, 4, 2]
    assert all(shape.numel() <= model.most for shape in model.seen[3:])  # the lesson is kept


def test_out_of_memory_on_one_row_says_so(llama_rm: str) -> None:
    model = ForgetfulLlama.from_pretrained(llama_rm, dtype=torch.float32)
    model.most = 0
    reward = RewardModel(model, AutoTokenizer.from_pretrained(llama_rm), name="rm")
    with pytest.raises(RewardError, match="'rm' ran out of memory on a single text of 5 tokens"):
        reward.score(request_of(("the film was ", "good")))


def test_other_errors_of_the_model_are_not_taken_for_memory(llama_rm: str) -> None:
    class Broken(LlamaForSequenceClassification):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("shapes cannot be multiplied")

    model = Broken.from_pretrained(llama_rm, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        RewardModel(model, AutoTokenizer.from_pretrained(llama_rm)).score(varied_request(2))


@pytest.mark.parametrize("kind", ["llama_rm", "bert_rm"])
def test_head_is_float32_over_a_bfloat16_body(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    name = "score" if kind == "llama_rm" else "classifier"
    reward = RewardModel(path, dtype="bfloat16", device="cpu")
    model = reward._loaded()
    head = getattr(model, name)
    assert torch.equal(head.weight, getattr(plain, name).weight)  # not rounded on the way
    assert next(model.base_model.parameters()).dtype == torch.bfloat16
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda module, args, output: seen.append(output))
    values = reward.score(varied_request()).values
    assert {output.dtype for output in seen} == {torch.float32}
    # A bfloat16 logit has 8 bits; of 16 float32 ones, some need more.
    assert any(torch.tensor(value).bfloat16().item() != value for value in values)


def test_float32_body_from_a_bfloat16_checkpoint_keeps_its_rotary_buffers(save: Callable[..., str]) -> None:
    path = save(make_llama().bfloat16(), make_tokenizer())
    reward = RewardModel(path, **CPU32)
    data = varied_request()
    assert reward.score(data).values == pytest.approx(one_by_one(path, reward.inspect(data)), abs=1e-5)


def test_a_score_that_is_not_finite_is_null_with_its_reason(llama_rm: str) -> None:
    model = make_llama()
    good = AutoTokenizer.from_pretrained(llama_rm).convert_tokens_to_ids("good")
    model.get_input_embeddings().weight.data[good] = torch.nan
    scores = RewardModel(model, make_tokenizer()).score(
        request_of(("the film was ", "good"), ("the ", "film"))
    )
    assert scores.failures == ["score is nan", None]
    assert scores.values[0] is None
    assert isinstance(scores.values[1], float)


def test_a_model_in_memory_keeps_its_training_mode(llama_rm: str) -> None:
    model = make_llama(attention_dropout=0.5).train()
    reward = RewardModel(model, make_tokenizer())
    data = varied_request(4)
    assert reward.score(data) == reward.score(data)  # no dropout while scoring
    assert model.training


def test_describe_names_every_setting_and_notices_changed_weights(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32, append_eos=True, max_length=32)
    settings = reward.describe()
    assert settings["fingerprint"].startswith("sha256-2:")
    expected = {"name": "rm", "kind": "model", "dtype": "float32", "append_eos": True, "max_length": 32}
    assert {key: settings[key] for key in expected} == expected
    assert RewardModel(llama_rm, **CPU32, append_eos=True, max_length=32).describe() == settings

    changed = LlamaForSequenceClassification.from_pretrained(llama_rm)
    changed.score.weight.data += 1
    in_memory = RewardModel(changed, make_tokenizer()).describe()["fingerprint"]
    changed.save_pretrained(llama_rm)
    again = RewardModel(llama_rm, **CPU32).describe()["fingerprint"]
    assert len({settings["fingerprint"], in_memory, again}) == 3


def test_release_frees_and_a_path_loads_again(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32)
    before = reward.score(varied_request(2))
    reward.release()
    assert reward._model is None
    assert reward.score(varied_request(2)) == before


def test_empty_request(llama_rm: str) -> None:
    scores = RewardModel(llama_rm, **CPU32).score(request_of())
    assert (scores.values, scores.failures) == ([], [])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"overlong": "cut"}, "neither 'error' nor 'truncate'"),
        ({"max_length": 65}, "at most the model's 64 positions"),
        ({"max_tokens_per_batch": 0}, "must be at least 1"),
    ],
)
def test_bad_options(llama_rm: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardModel(llama_rm, **{"device": "cpu", **option})


def test_the_shared_sentiment_model() -> None:
    """A real reward model's scores, from a plain float32 forward with the BOS its card asks for."""
    path = shared_folder() / "models" / "imdb-rm"
    if not path.is_dir():
        pytest.skip(f"no shared reward model at {path}; set NONPAREIL_SHARED")
    reward = RewardModel(path, **CPU32, prepend_bos=True)
    data = request_of(
        ("A good film", ". I loved every minute of it"), ("A bad film", ". I hated every minute of it")
    )
    assert reward.inspect(data)[0] == [0, 34, 505, 343, 15, 300, 1840, 658, 2796, 284, 311]
    expected = one_by_one(str(path), reward.inspect(data))
    assert reward.score(data).values == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx([1.91384, -2.90302], abs=1e-3)  # as of the model's card, November 2026
