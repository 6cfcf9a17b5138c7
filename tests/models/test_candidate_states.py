"""States behind candidates that share a pass, against a pass of its own for each of them."""

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models import candidate_states as module
from nonpareil.models.adapters import add_policy_adapter, plain_model
from nonpareil.models.candidate_states import score_candidates, shares_sequences
from nonpareil.models.logprobs import TokenSequences
from tests.architectures import COMMON, DRAWN, known, parameters_of, tiny_model
from tests.tiny import END, LLAMA, PAD, make_model

SEQUENCES = TokenSequences(
    prompt_ids=[[1, 7, 8, 9, 10, 11, 12], [1, 7], [5], [1, 17, 16], [6, 7]],
    completion_ids=[[8, 9, END], [17, 16, 15, 14, 13, END], [2], [6] * 5, []],
)
"""Uneven, one token long, and one without any."""
CANDIDATES = torch.randint(4, 19, (5, 6, 3), generator=torch.Generator().manual_seed(0))
CANDIDATES[:, ::2, 1], CANDIDATES[:, 1::2, 2] = END, PAD
WIDE = {"sliding_window": 64}
NEVER = {"bloom", "mpt"}
"""Their biases follow from the order of the keys, and they take no positions."""


@torch.no_grad()
def alone(
    model: PreTrainedModel, sequences: TokenSequences = SEQUENCES, candidates: Tensor = CANDIDATES
) -> Tensor:
    """`[b, t, k, d]` by transformers' own pass over prompt, completion so far and candidate, nothing else."""
    rows = []
    for row, (prompt, completion) in enumerate(
        zip(sequences.prompt_ids, sequences.completion_ids, strict=True)
    ):
        for position in range(candidates.shape[1]):
            for token in candidates[row, position].tolist():
                ids = torch.tensor([[*prompt, *completion[:position], token]])
                body = model.base_model if model.base_model is not model else model.model
                state = body(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
                rows.append(state if position < len(completion) else torch.zeros_like(state))
    return torch.stack(rows).unflatten(0, candidates.shape)


def states(model: PreTrainedModel, **settings: int) -> Tensor:
    return score_candidates(model, SEQUENCES, CANDIDATES, nn.Identity(), **settings)


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


def compare(kind: str, **changes: int) -> bool:
    if not known(kind):
        pytest.skip("not in this version of transformers")
    model = tiny_model(kind, **changes)
    if model.base_model is model and not isinstance(getattr(model, "model", None), PreTrainedModel):
        with pytest.raises(ModelError, match="no last hidden state"):
            states(model)
        return False
    try:
        expected = alone(model)
    except RuntimeError as error:
        pytest.skip(f"the model itself does not run in this version of transformers: {error}")
    shared = shares_sequences(model, SEQUENCES, CANDIDATES)
    assert_same(states(model), expected)
    return shared


@pytest.mark.parametrize("kind", COMMON)
def test_a_shared_pass_gives_what_separate_passes_give(kind: str) -> None:
    windowed = "sliding_window" in parameters_of(kind)
    assert compare(kind, **(WIDE if windowed else {})) == (kind not in NEVER)


def test_an_inner_model_of_another_name_than_its_class_gives_is_found() -> None:
    """As Llama 4's, whose `base_model` is the model itself."""
    model = make_model()
    expected = states(model)
    model.base_model_prefix = "language_model"
    assert model.base_model is model
    assert shares_sequences(model, SEQUENCES, CANDIDATES)
    assert_same(states(model), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(DRAWN) - set(COMMON)))
def test_a_shared_pass_gives_what_separate_passes_give_in_rarer_architectures(kind: str) -> None:
    compare(kind)


@pytest.mark.parametrize("kind", ["mistral_sliding", "gemma2_capped", "linear_and_full_attention"])
def test_what_is_not_keys_of_the_whole_text_has_separate_passes(kind: str) -> None:
    model = make_model(kind)
    assert not shares_sequences(model, SEQUENCES, CANDIDATES)
    assert_same(states(model), alone(model))


def test_a_window_that_only_the_order_of_the_keys_tells_is_found() -> None:
    """GPT-Neo keeps all keys and looks back from a key's place: the texts fit, but with their candidates do not."""
    model = tiny_model("gpt_neo", window_size=32, max_position_embeddings=512)
    assert not shares_sequences(model, SEQUENCES, CANDIDATES)
    assert_same(states(model), alone(model))
    assert shares_sequences(
        tiny_model("gpt_neo", window_size=400, max_position_embeddings=512), SEQUENCES, CANDIDATES
    )


def test_a_longer_text_is_asked_about_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 4)
    model = tiny_model("gpt_neo", window_size=16, max_position_embeddings=512)
    assert shares_sequences(model, SEQUENCES, CANDIDATES)
    longer = TokenSequences([[1, 7, 8, 9] * 5], [[8, 9, END]])
    assert not shares_sequences(model, longer, CANDIDATES[:1])
    assert_same(
        score_candidates(model, longer, CANDIDATES[:1, :3], nn.Identity()),
        alone(model, longer, CANDIDATES[:1, :3]),
    )


@pytest.mark.parametrize(
    ("queries", "max_tokens"), [(1, 1), (1, 4096), (2, 25), (7, 25), (7, 4096), (128, 1), (128, 25)]
)
def test_no_split_changes_a_state(monkeypatch: pytest.MonkeyPatch, queries: int, max_tokens: int) -> None:
    monkeypatch.setattr(module, "QUERIES", queries)
    model = make_model()
    assert shares_sequences(model, SEQUENCES, CANDIDATES)
    assert_same(states(model, max_tokens_per_batch=max_tokens), alone(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifiers_head_scores_the_text_that_ends_with_the_candidate(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = (
        AutoModelForSequenceClassification.from_config(LlamaConfig(**LLAMA, num_labels=1)).to(dtype).eval()
    )
    assert shares_sequences(model, SEQUENCES, CANDIDATES)
    scores = score_candidates(model, SEQUENCES, CANDIDATES, model.score).float()
    assert scores.shape == (5, 6, 3, 1)
    text = torch.tensor([[*SEQUENCES.prompt_ids[1], 17, 16, int(CANDIDATES[1, 2, 0])]])
    assert CANDIDATES[1, 2, 0] != PAD
    atol = 1e-5 if dtype == torch.float32 else 0.1
    with torch.no_grad():
        torch.testing.assert_close(
            scores[1, 2, 0], model(input_ids=text).logits[0].float(), rtol=0, atol=atol
        )
    one_by_one = model.score(alone(model)).detach().float()
    torch.testing.assert_close(scores, one_by_one, rtol=0, atol=atol)
    assert scores.std() > 0.3


def test_an_adapter_is_part_of_the_model() -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    base = states(make_model())
    model = plain_model(add_policy_adapter(make_model(), config))
    assert shares_sequences(model, SEQUENCES, CANDIDATES)
    adapted = states(model)
    assert_same(adapted, alone(model))
    assert (adapted - base).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped_heads"])
def test_a_text_may_fill_the_window(kind: str) -> None:
    """64 tokens, all the places that learned positions have."""
    model, sequences = make_model(kind), TokenSequences([[7, 8] * 30, [5]], [[9, 10, 11, END], [6]])
    assert shares_sequences(model, sequences, CANDIDATES[:2, :4])
    found = score_candidates(model, sequences, CANDIDATES[:2, :4], nn.Identity())
    assert_same(found, alone(model, sequences, CANDIDATES[:2, :4]))


def test_a_candidate_costs_one_token() -> None:
    model, seen = make_model(), []
    states(model)  # asks the model, once
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    states(model, max_tokens_per_batch=10)
    prefixes, candidates = 9 + 7 + 1 + 7, (3 + 6 + 1 + 5) * 3
    assert prefixes + candidates <= sum(seen) < 1.35 * (prefixes + candidates)


def test_the_model_is_left_as_it_was() -> None:
    model = make_model().train()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    found = states(model)
    assert model.training
    assert model.base_model.gradient_checkpointing
    assert not model.config.use_cache
    assert not found.requires_grad
    assert_same(found, alone(make_model()))


@pytest.mark.parametrize(
    ("rows", "candidates", "said"),
    [
        ([0, 1], CANDIDATES, r"\[5, 6, 3\] for 2 completions"),
        ([0, 1], CANDIDATES[:2, :5], "the longest of 6 tokens"),
        ([4], CANDIDATES[4:], "the longest of 0 tokens"),
        ([], CANDIDATES[:0], "for 0 completions"),
    ],
)
def test_candidates_of_other_completions_are_refused(rows: list[int], candidates: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score_candidates(make_model(), SEQUENCES.select(rows), candidates, nn.Identity())


def test_a_model_that_gives_no_states_is_refused() -> None:
    model = tiny_model("gpt2")
    model.base_model_prefix = "nothing"  # then the model itself is its own inner one
    with pytest.raises(ModelError, match="no last hidden state"):
        states(model)
