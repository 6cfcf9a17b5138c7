"""Scores behind a prefix that was read once are those of whole texts, or the model reads whole texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from nonpareil.errors import ModelError
from nonpareil.records import ScoreRequest
from nonpareil.rewards import RewardModel
from nonpareil.rewards.models.prefix_check import PrefixCheck
from tests.architectures import tiny_config
from tests.rewards.conftest import WORDS, llama_config, make_llama, make_tokenizer, request_of

CPU32: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


def words(seed: int, count: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def groups(*lengths: int, count: int = 8) -> ScoreRequest:
    """Prompts of so many words, each with completions of 1 to 9 words."""
    return request_of(
        *[
            (words(length, length) + " ", words(100 * length + i, 1 + (5 * i) % 9))
            for length in lengths
            for i in range(count)
        ]
    )


def computed(reward: RewardModel, request: ScoreRequest) -> tuple[list[float | None], int]:
    """The scores, and how many tokens the model embedded for them, once it was asked what it can do."""
    reward.score(request)
    seen: list[int] = []
    embeddings = reward._loaded().get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: seen.append(args[0].numel()))
    values = reward.score(request).values
    hook.remove()
    return values, sum(seen)


def whole(reward: RewardModel, request: ScoreRequest) -> tuple[list[float], int]:
    """The score of every text in a pass of its own, and the tokens of all."""
    model, rows = reward._loaded(), reward.inspect(request)
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]
    return scores, sum(map(len, rows))


def assert_shared(reward: RewardModel, request: ScoreRequest, share: float = 0.5) -> None:
    expected, tokens = whole(reward, request)
    values, embedded = computed(reward, request)
    assert values == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.1  # else the comparison would say little
    assert embedded < share * tokens


def assert_whole(reward: RewardModel, request: ScoreRequest) -> None:
    expected, tokens = whole(reward, request)
    values, embedded = computed(reward, request)
    assert values == pytest.approx(expected, abs=1e-4)
    assert embedded >= tokens


@pytest.mark.parametrize("budget", [1, 150, None])
def test_prompts_of_several_lengths_and_any_batch(llama_rm: str, budget: int | None) -> None:
    reward = RewardModel(llama_rm, **CPU32, max_tokens_per_batch=budget)
    assert_shared(reward, groups(30, 33, 40, 1), share=0.65)


def test_pads_that_are_end_tokens_and_stand_everywhere(save: Callable[..., str]) -> None:
    path = save(make_llama(pad_token_id=2), make_tokenizer(pad="</s>"))
    reward = RewardModel(path, **CPU32, append_eos=True)
    prompt = f"{words(1, 15)} </s> {words(2, 15)} "
    ends = ["good </s>", "good </s> </s>", "", "</s> bad", "very good", "very", "dull </s> film", "bad"]
    assert_shared(reward, request_of(*[(prompt, end) for end in ends]))


@pytest.mark.parametrize(
    "words_of_prompt", [" ".join(WORDS * 2), f"<unk> <s> </s> <pad> <user> {' '.join(WORDS)} "]
)
def test_a_model_without_pad_id(save: Callable[..., str], words_of_prompt: str) -> None:
    path = save(make_llama(pad_token_id=None), make_tokenizer(pad=None))
    ends = [words(i, 1 + i % 4) for i in range(8)]
    ends.append(f"<unk> <s> </s> <pad> <user> <assistant> {' '.join(WORDS)}")  # every id there is
    reward = RewardModel(path, **CPU32)
    assert_shared(reward, request_of(*[(words_of_prompt + " ", end) for end in ends]), share=0.7)
    assert reward._loaded().config.pad_token_id is None


def test_texts_that_begin_other_texts_repeat_or_are_alone(llama_rm: str) -> None:
    prompt = words(3, 40) + " "
    ends = ["", "good", "good film", "good", "bad", "", "very very dull"]
    pairs = [*[(prompt, end) for end in ends], ("the film was ", "good"), (words(4, 40) + " ", "long")]
    reward = RewardModel(llama_rm, **CPU32)
    assert_shared(reward, request_of(*pairs), share=0.6)
    values = reward.score(request_of(*pairs)).values
    assert (values[0], values[1]) == (values[5], values[3])


def test_conversations_are_compared_behind_the_template(llama_rm: str) -> None:
    turns = [{"role": "user", "content": words(5, 30)}]
    pairs = [(turns, [{"role": "assistant", "content": words(i, 1 + i % 5)}]) for i in range(8)]
    assert_shared(RewardModel(llama_rm, **CPU32), request_of(*pairs))


def test_texts_cut_on_the_left_share_what_is_left(llama_rm: str) -> None:
    reward = RewardModel(llama_rm, **CPU32, overlong="truncate", max_length=40)
    request = request_of(*[(words(6, 36) + " ", words(i, 3 + i % 4)) for i in range(24)])
    expected, _ = whole(reward, request)
    assert reward.score(request).values == pytest.approx(expected, abs=1e-4)
    assert reward.truncated > 0


def test_a_text_that_is_no_number_spoils_no_other() -> None:
    model = make_llama()
    reward = RewardModel(model, make_tokenizer())
    request = groups(30)
    clean = reward.score(request).values
    spoilt = make_tokenizer().convert_tokens_to_ids("<assistant>")
    with torch.no_grad():
        model.get_input_embeddings().weight[spoilt] = torch.nan  # after it was asked
    pairs = list(zip(request.prompts, request.completions, strict=True))
    scores = reward.score(request_of(*pairs, (request.prompts[0], "good <assistant> film")))
    assert scores.values[:-1] == pytest.approx(clean, abs=1e-4)
    assert scores.failures == [None] * 8 + ["score is nan"]


def test_half_precision_is_shared_and_near(llama_rm: str) -> None:
    request = groups(40)
    values, embedded = computed(RewardModel(llama_rm, dtype="bfloat16", device="cpu"), request)
    expected, tokens = whole(RewardModel(llama_rm, **CPU32), request)
    assert embedded < 0.5 * tokens
    assert values == pytest.approx(expected, abs=0.1 * (max(expected) - min(expected)))


def test_a_token_beyond_the_embeddings_is_refused_in_a_prefix_too() -> None:
    reward = RewardModel(make_llama(vocabulary=10), make_tokenizer())
    with pytest.raises(ModelError, match="but its model has 10 embeddings"):
        reward.score(request_of(*[("very " * 40, word) for word in ("a", "the", "film", "a the", "a film")]))


class Narrow(LlamaForSequenceClassification):
    """Has no memory for more than `most` keys in one pass."""

    most = 300

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def test_where_memory_runs_out_behind_a_prefix_texts_are_scored_whole(llama_rm: str) -> None:
    model = Narrow.from_pretrained(llama_rm, dtype=torch.float32)
    reward = RewardModel(model, AutoTokenizer.from_pretrained(llama_rm), max_tokens_per_batch=600)
    request = groups(40)
    expected, _ = whole(reward, request)
    assert reward.score(request).values == pytest.approx(expected, abs=1e-4)
    assert reward._tokens_per_batch < 600  # the lesson is kept


def test_an_encoder_reads_whole_texts(bert_rm: str) -> None:
    assert_whole(RewardModel(bert_rm, **CPU32), groups(40))


class MeanPooled(LlamaForSequenceClassification):
    """Reads its score from all tokens."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, past_key_values: Any = None, **kwargs: Any
    ):
        states = self.model(
            input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )[0]
        mask = (
            torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        )
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return SequenceClassifierOutputWithPast(logits=self.score(mean))


class FirstPadPooled(LlamaForSequenceClassification):
    """Reads its score before the first padding id, as transformers once did."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        logits = self.score(self.model(input_ids, **kwargs)[0])
        last = input_ids.eq(self.config.pad_token_id).int().argmax(-1) - 1
        return SequenceClassifierOutputWithPast(logits=logits[range(len(last)), last % input_ids.shape[-1]])


@pytest.mark.parametrize("kind", [MeanPooled, FirstPadPooled])
def test_a_model_that_pools_elsewhere_reads_whole_texts(kind: type) -> None:
    torch.manual_seed(0)
    assert_whole(RewardModel(kind(llama_config()).eval(), make_tokenizer()), groups(40))


@pytest.mark.parametrize(("window", "check"), [(16, assert_whole), (64, assert_shared)])
def test_a_window_shorter_than_the_text_reads_whole_texts(window: int, check: Callable[..., None]) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        **{**llama_config().to_diff_dict(), "model_type": "mistral"}, sliding_window=window
    )
    check(RewardModel(MistralForSequenceClassification(config).eval(), make_tokenizer()), groups(40))


@pytest.mark.parametrize(("rope_type", "turns"), [("longrope", True), ("dynamic", True), ("default", False)])
def test_angles_that_follow_the_length_of_a_text(rope_type: str, turns: bool) -> None:
    """Beyond their original length these models read a text's beginning otherwise than it is read alone."""
    rope = {"rope_type": rope_type, "rope_theta": 10000.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    if rope_type == "dynamic":
        rope |= {"factor": 4.0}
    positions = 32 if rope_type == "dynamic" else 64
    model = make_llama(rope_parameters=rope, max_position_embeddings=positions)
    check = PrefixCheck(model)
    assert check.holds(20, 30)
    assert check.holds(25, 50) is not turns
    assert check.holds(20, 50) is not turns


QUICK = {
    "bloom": True,
    "gemma2": True,
    "gpt2": True,
    "opt": True,
    "t5": False,
    "xlnet": False,
    "qwen3_next": False,
}
SLOW = {
    **dict.fromkeys(("falcon", "gpt_neox", "gptj", "mixtral", "mpt", "phi3", "qwen3", "deepseek_v3"), True),
    **dict.fromkeys(("roberta", "deberta-v2", "distilbert", "bart", "openai-gpt", "jamba", "doge"), False),
}
"""Of transformers' classifiers, those that score alike behind a prefix."""


@pytest.mark.parametrize(
    ("kind", "alike"), [*QUICK.items(), *[pytest.param(*one, marks=pytest.mark.slow) for one in SLOW.items()]]
)
def test_the_model_is_asked_and_not_its_name(kind: str, alike: bool) -> None:
    torch.manual_seed(0)
    config = tiny_config(kind)
    config.num_labels = 1
    if hasattr(config, "sliding_window"):
        config.sliding_window = 64
    assert PrefixCheck(AutoModelForSequenceClassification.from_config(config).eval()).holds(20, 40) is alike


@pytest.mark.parametrize(("asked", "largest"), [(None, 34 * 60), (16384, 100 * 60)])
def test_a_pass_on_a_cpu_holds_2048_tokens_unless_the_user_says(asked: int | None, largest: int) -> None:
    reward = RewardModel(make_llama(), make_tokenizer(), max_tokens_per_batch=asked)
    sizes: list[int] = []
    embeddings = reward._loaded().get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    reward.score(request_of(*[(words(i, 30), words(i, 30)) for i in range(100)]))
    hook.remove()
    assert max(sizes) == largest
