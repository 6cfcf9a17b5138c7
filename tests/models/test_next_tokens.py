"""Log-ratios of candidate next tokens and the KL from the reference, against whole passes of one sequence each."""

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.models import logprobs
from nonpareil.models.adapters import add_policy_adapter, plain_model
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.next_tokens import next_token_log_ratios
from tests.models.test_packing import SEQUENCES, SIZES
from tests.tiny import make_model

T = 0.8
KINDS = ["llama_grouped_heads", "tied", "gemma2_capped", "gpt2", "opt"]


def candidates(sequences: TokenSequences, k: int = 4) -> Tensor:
    """Of each completion token itself and others, as they come."""
    own = torch.tensor([token for ids in sequences.completion_ids for token in ids])
    generator = torch.Generator().manual_seed(1)
    others = torch.randint(0, 19, (len(own), k - 1), generator=generator)
    return torch.cat([own[:, None], others], 1)


def by_hand(
    policy: PreTrainedModel, reference: PreTrainedModel, sequences: TokenSequences, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """One unpadded sequence at a time, the whole vocabulary at once."""

    def log_probs(model: PreTrainedModel) -> Tensor:
        rows = []
        for prompt, ids in zip(sequences.prompt_ids, sequences.completion_ids, strict=True):
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
            rows.append((logits[len(prompt) - 1 : -1].float() / T).log_softmax(-1))
        return torch.cat(rows)

    ours = log_probs(policy)
    with torch.no_grad():
        theirs = log_probs(reference)
    return (ours - theirs).gather(-1, token_ids), (theirs.exp() * (theirs - ours)).sum(-1)


def gradients(model: torch.nn.Module, log_ratio: Tensor, kl: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1.0, 2.0, log_ratio.numel()).view_as(log_ratio)
    ((log_ratio * weights).sum() + (kl * torch.linspace(1.0, 2.0, len(kl))).sum()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(model: torch.nn.Module, found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert expected[0].abs().max() > 0.1
    want = gradients(model, *expected)
    largest = max(gradient.abs().max().item() for gradient in want.values())
    torch.testing.assert_close(gradients(model, *found), want, rtol=1e-3, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize(
    ("kind", "rows"), [*((kind, None) for kind in KINDS), ("tied", SIZES), ("gpt2", SIZES)]
)
def test_it_is_what_whole_passes_give(
    kind: str, rows: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of three positions, the reference without any gradient."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 6 * 19)
    policy, reference = make_model(kind), make_model(kind, seed=1)
    token_ids = candidates(SEQUENCES)
    found = next_token_log_ratios(policy, reference, SEQUENCES, token_ids, T, rows)
    assert_alike(policy, found, by_hand(policy, reference, SEQUENCES, token_ids))
    assert all(p.grad is None for p in reference.parameters())


def test_without_gradients_the_numbers_are_the_same() -> None:
    policy, reference, token_ids = make_model(), make_model(seed=1), candidates(SEQUENCES)
    with torch.no_grad():
        found = next_token_log_ratios(policy, reference, SEQUENCES, token_ids, T)
    torch.testing.assert_close(
        found, tuple(x.detach() for x in next_token_log_ratios(policy, reference, SEQUENCES, token_ids, T))
    )


@pytest.mark.parametrize("rows", [None, SIZES], ids=["a row each", "shared rows"])
def test_of_an_adapter_the_reference_is_the_model_without_it(rows: list[int] | None) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = add_policy_adapter(make_model(), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    policy, token_ids = plain_model(adapted), candidates(SEQUENCES)
    found = next_token_log_ratios(policy, None, SEQUENCES, token_ids, T, rows)
    assert_alike(adapted, found, by_hand(policy, make_model(), SEQUENCES, token_ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_both_are_one_every_number_is_0_to_the_last_bit(dtype: torch.dtype) -> None:
    policy, reference = make_model(), make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        log_ratio, kl = next_token_log_ratios(policy, reference, SEQUENCES, candidates(SEQUENCES), T)
    assert log_ratio.requires_grad
    assert not log_ratio.any()
    assert not kl.any()
