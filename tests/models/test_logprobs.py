"""Summed log-probs against the whole log_softmax of one unpadded sequence at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedModel

from nonpareil.models import logprobs as module
from nonpareil.models.logprobs import TokenSequences, completion_logprobs, output_head_is_plain
from tests.tiny import CONFIGS, END, LLAMA, favour, forced_logprobs, make_model

SEQUENCES = TokenSequences(
    prompt_ids=[[1, 7, 8, 9, 10, 11], [1], [1, 9, 9, 14], [5, 6], [1, 7]],
    completion_ids=[[8, 2], [17, 16, 15, 14, 13, 12, 11, 2], [2], [6, 6, 6, 6, 6], [END, END, END]],
)
"""Ends in the middle count like any token: masks come from lengths."""


def naive(model: PreTrainedModel, temperature: float = 1.0) -> Tensor:
    pairs = zip(SEQUENCES.prompt_ids, SEQUENCES.completion_ids, strict=True)
    return torch.stack([forced_logprobs(model, p, c, temperature).sum() for p, c in pairs])


def gradients(model: PreTrainedModel, values: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])  # not all alike, so that no two rows can be mixed up
    (values() * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk_elements", [1, 57, 2**24])
@pytest.mark.parametrize("kind", CONFIGS)
def test_values_are_those_of_the_whole_log_softmax(
    kind: str, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    model = make_model(kind)
    torch.testing.assert_close(
        completion_logprobs(model, SEQUENCES, 0.7), naive(model, 0.7), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("chunk_elements", [1, 57, 2**24])
@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied", "gemma2_capped", "gpt2"])
def test_gradients_are_those_of_the_whole_log_softmax(
    kind: str, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    model = make_model(kind)
    ours = gradients(model, lambda: completion_logprobs(model, SEQUENCES))
    theirs = gradients(model, lambda: whole(model))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5)


def whole(model: PreTrainedModel) -> Tensor:
    sums = []
    for prompt, completion in zip(SEQUENCES.prompt_ids, SEQUENCES.completion_ids, strict=True):
        logprobs = (
            model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].log_softmax(-1)
        )
        rows = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        sums.append(torch.stack([logprobs[i, t] for i, t in zip(rows, completion, strict=True)]).sum())
    return torch.stack(sums)


def test_order_and_company_do_not_matter() -> None:
    model = make_model()
    together = completion_logprobs(model, SEQUENCES).detach()
    for rows in ([4, 2, 0, 1, 3], [1, 1], [3], [0, 4]):
        torch.testing.assert_close(
            completion_logprobs(model, SEQUENCES.select(rows)).detach(), together[rows], rtol=1e-5, atol=1e-5
        )


def test_bfloat16_logits_are_upcast_before_the_softmax() -> None:
    model = make_model().to(torch.bfloat16)
    with torch.no_grad():
        ours = completion_logprobs(model, SEQUENCES)
    assert ours.dtype == torch.float32
    # Whole float32 softmaxes of the same bfloat16 logits; a bfloat16 softmax is off by 2^-8 of each term.
    torch.testing.assert_close(ours, naive(model), rtol=0, atol=0.06)
    in_bfloat16 = torch.stack(
        [
            model(input_ids=torch.tensor([p + c])).logits[0].log_softmax(-1)[len(p) - 1 : -1]
            .gather(-1, torch.tensor([c]).T).sum()
            for p, c in zip(SEQUENCES.prompt_ids, SEQUENCES.completion_ids, strict=True)
        ]
    ).float()  # fmt: skip
    assert (in_bfloat16 - naive(model)).abs().max() > (ours - naive(model)).abs().max()


@pytest.mark.parametrize("kind", CONFIGS)
def test_heads_that_are_more_than_a_matrix_are_found(kind: str) -> None:
    assert output_head_is_plain(make_model(kind)) == (kind != "gemma2_capped")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_is_found_even_where_the_logits_are_still_small(dtype: torch.dtype) -> None:
    """32 tanh(x / 32) is x to the last bit at x = 0.01: nothing to see before training, much after it."""
    config = Gemma2Config(**{**LLAMA, "initializer_range": 1e-4}, head_dim=8, final_logit_softcapping=32.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    assert 0 < model(input_ids=torch.arange(3)[None]).logits.abs().max() < 0.05
    assert not output_head_is_plain(model)
    config.final_logit_softcapping = None
    assert output_head_is_plain(AutoModelForCausalLM.from_config(config).to(dtype).eval())


def test_a_head_with_a_bias_is_still_plain_and_right() -> None:
    model = favour(make_model(), END, 2.0)
    assert output_head_is_plain(model)
    torch.testing.assert_close(completion_logprobs(model, SEQUENCES), naive(model), rtol=1e-5, atol=1e-5)


def test_asking_about_the_head_leaves_no_trace() -> None:
    model = make_model("gpt2").train()
    model.get_input_embeddings().eval()
    before = [m.training for m in model.modules()]
    output_head_is_plain(model)
    assert [m.training for m in model.modules()] == before
    assert not model.get_output_embeddings()._forward_hooks


def test_the_look_at_the_output_head_costs_no_gradient_under_autocast() -> None:
    sequences = TokenSequences([[1, 6]], [[7, 8, 9]])
    gradients = []
    for look_before in (True, False):
        model = make_model()
        if look_before:
            output_head_is_plain(model)
        with torch.autocast("cpu", torch.bfloat16):
            completion_logprobs(model, sequences).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    before, amid = gradients
    assert all(gradient is not None and gradient.any() for gradient in before.values())
    torch.testing.assert_close(amid, before, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_no_tensor_grows_with_tokens_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, tokens = 600, 8 * 50
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 16 * vocab)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**LLAMA, "vocab_size": vocab}))
    sequences = TokenSequences([[1]] * 8, torch.randint(6, vocab, (8, 50)).tolist())
    output_head_is_plain(model)
    kept: list[torch.Size] = []
    record = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t)
    with Largest() as forward, record:
        summed = completion_logprobs(model, sequences).sum()
    assert kept
    assert not [shape for shape in kept if shape[-1:] == (vocab,)], (
        "chunks of logits kept for the backward pass"
    )
    with Largest() as backward:
        summed.backward()
    with Largest() as plain:
        model(input_ids=torch.tensor([[1, *ids] for ids in sequences.completion_ids])).logits.sum().backward()
    assert plain.elements >= tokens * vocab, "the yardstick itself"
    # The largest are now the weights' own gradients and the hidden states.
    assert 0 < forward.elements <= tokens * vocab / 8
    assert 0 < backward.elements <= tokens * vocab / 8
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_sequences_know_their_lengths() -> None:
    assert SEQUENCES.lengths() == [8, 9, 5, 7, 5]
    assert len(SEQUENCES) == 5
    assert SEQUENCES.select([2, 0]).completion_ids == [[2], [8, 2]]
