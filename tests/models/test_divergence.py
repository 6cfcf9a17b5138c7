"""Per-token KL along completions, against the enumerated sequence-level KL."""

from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nonpareil.models import logprobs as module
from nonpareil.models.logprobs import TokenSequences, completion_divergence, completion_logprobs
from tests.tiny import LLAMA, make_model

VOCAB = 6
PROMPT = [1, 4, 5]


def small(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**LLAMA, "vocab_size": VOCAB})).eval()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_both_estimates_average_to_the_sequence_kl(temperature: float) -> None:
    """Over all 36 completions of two tokens, weighted by the policy's own probabilities."""
    policy, reference = small(0), small(1)
    every = TokenSequences([PROMPT] * VOCAB**2, [list(pair) for pair in product(range(VOCAB), repeat=2)])
    with torch.no_grad():
        ours = completion_logprobs(policy, every, temperature).double()
        theirs = completion_logprobs(reference, every, temperature).double()
    probs = ours.exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    sequence_kl = (probs * (ours - theirs)).sum().item()
    assert sequence_kl > 0.05
    kl, log_ratio = completion_divergence(policy, reference, every, temperature)
    assert (probs * kl).sum().item() == pytest.approx(sequence_kl, abs=1e-5)
    assert (probs * log_ratio).sum().item() == pytest.approx(sequence_kl, abs=1e-5)
    torch.testing.assert_close(log_ratio, (ours - theirs).float(), rtol=1e-4, atol=1e-5)
    spread = [((probs * (v - sequence_kl) ** 2).sum()).item() for v in (kl, log_ratio)]
    assert spread[0] < spread[1], "the exact step expectation varies less"


def test_of_one_token_it_is_that_steps_kl() -> None:
    policy, reference = small(0), small(1)
    one = TokenSequences([PROMPT] * 3, [[0], [2], [5]])
    kl, _ = completion_divergence(policy, reference, one)
    with torch.no_grad():
        p, q = (m(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1) for m in (policy, reference))
    assert kl.tolist() == pytest.approx([(p.exp() * (p - q)).sum().item()] * 3, abs=1e-5)


def test_equal_models_are_at_distance_zero() -> None:
    model = make_model("gemma2_capped")
    sequences = TokenSequences([[1, 7], [1]], [[8, 9, 2], [2]])
    kl, log_ratio = completion_divergence(model, make_model("gemma2_capped"), sequences)
    assert kl.abs().max() < 1e-6
    assert log_ratio.tolist() == [0, 0]


def test_heads_of_two_kinds_can_be_compared() -> None:
    policy, reference = make_model(), make_model("gemma2_capped")
    sequences = TokenSequences([[1, 7], [1]], [[8, 9, 2], [2]])
    _, log_ratio = completion_divergence(policy, reference, sequences)
    want = completion_logprobs(policy, sequences) - completion_logprobs(reference, sequences)
    torch.testing.assert_close(log_ratio, want.detach(), rtol=1e-5, atol=1e-5)


def test_chunks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, reference = make_model(), make_model(seed=1)
    sequences = TokenSequences([[1, 7], [1], [1, 9, 10]], [[8, 9, 2], [2], [7] * 9])
    usual = completion_divergence(policy, reference, sequences)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    for a, b in zip(usual, completion_divergence(policy, reference, sequences), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
