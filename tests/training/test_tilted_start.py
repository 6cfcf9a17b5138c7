"""A training that begins at the tilt counted from its credits: what the policy says then, and what stays."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from nonpareil.credits import Credits
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.methods.value_distillation import ValueDistillation
from nonpareil.models.interpolated_folder import Source, save_interpolated
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.output_bias import unit_direction, untie_head
from nonpareil.training import DistillationTrainer
from nonpareil.training.tilted_start import _split, check_tiltable, check_tilted_start, counted_tilt
from tests.architectures import tiny_config
from tests.tiny import BOS, END, GOOD, PAD, make_model, make_tokenizer
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    assert_same,
    ending_model,
    goodness,
    make_trainer,
    metrics,
    stored_credits,
    stored_groups,
    weights,
)
from tests.training.test_lora import LORA

T, STRENGTH, CUT = 0.8, 1.4, 0.7
METHOD: dict[str, Any] = {"method": "value_distillation", "strength": STRENGTH, "max_advantage": CUT}
TILTED = {**METHOD, "tilted_start": True, "temperature": T}
GROUPS = stored_groups(
    5,
    T,
    lambda completion_ids, **_: [
        None if ids[0] == 9 else reward
        for ids, reward in zip(completion_ids, goodness(completion_ids), strict=True)
    ],
)
CREDITS = stored_credits(GROUPS, T)
CREDITS[GROUPS[0].prompt_id][1] = None


def trainer_of(folder: Path, kind: str = "tied", **changes: Any) -> DistillationTrainer:
    given: dict[str, Any] = {"model": None if kind == "biased" else make_model(kind), "groups": GROUPS}
    return make_trainer(folder, **{**given, "credits": CREDITS, **TILTED, **changes})


def trained() -> list[tuple[Any, list[int], Credits]]:
    """The completions that are trained on, with their credits."""
    return [
        (group, group.completion_token_ids[j], each)
        for group in GROUPS
        for j, each in enumerate(CREDITS[group.prompt_id])
        if each is not None and group.rewards[j] is not None
    ]


def bias_by_hand() -> Tensor:
    """Of the logits: T times each token's mean of what the method adds to its log-prob, one candidate at a time."""
    worth, count = np.zeros(19), np.zeros(19)
    for _, _, each in trained():
        for row in zip(each.token_ids, each.weights, each.advantages, strict=True):
            for token, weight, advantage in zip(*row, strict=True):
                worth[token] += float(weight) * STRENGTH * min(max(float(advantage), -CUT), CUT)
                count[token] += float(weight)
    tilt = worth / (count + 0.3)
    tilt[[0, BOS, END, PAD, 4, 5]] = 0
    return torch.tensor(T * tilt)


def states_and_logits(model: PreTrainedModel, prompt: list[int], ids: list[int]) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([prompt + ids])
    with torch.no_grad():
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        return states.double(), model(input_ids=tokens, use_cache=False).logits[0].double()


@pytest.mark.parametrize(
    "kind",
    ["tied", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama_grouped_heads", "biased"))],
)
def test_the_policy_begins_at_the_tilt_and_the_reference_stays(
    kind: str, tmp_path: Path, capsys: Any
) -> None:
    before = ending_model() if kind == "biased" else make_model(kind)
    inputs = before.get_input_embeddings().weight.detach().clone()
    trainer = trainer_of(tmp_path, kind)
    policy, reference = trainer.model, trainer.anchor.module
    bias, group = bias_by_hand(), GROUPS[0]
    assert bias.abs().max() > 0.3
    pairs = [(each.prompt_token_ids, ids) for each, ids, _ in trained()]
    added = []
    for prompt, ids in [*pairs, (group.prompt_token_ids, [6, 7, 8, 9])]:
        states, logits = states_and_logits(before, prompt, ids)
        kept = states_and_logits(reference, prompt, ids)
        assert torch.equal(kept[1], logits)
        tilted = states_and_logits(policy, prompt, ids)
        assert torch.equal(tilted[0], states)
        added.append((states, tilted[1] - logits))
    states, logits = (torch.cat(each) for each in zip(*added, strict=True))
    along = torch.ones(len(states), dtype=torch.float64)
    if kind != "biased":  # whose output layer has a place for it
        rise = policy.get_output_embeddings().weight - before.get_output_embeddings().weight
        direction = (bias @ rise.double().detach()) / (bias @ bias)
        along = states @ direction
        assert along.mean() == pytest.approx(1, abs=0.3)
    torch.testing.assert_close(logits, along[:, None] * bias, atol=2e-5, rtol=0)
    assert torch.equal(policy.get_input_embeddings().weight, inputs)
    assert not policy.config.tie_word_embeddings
    assert all(p.requires_grad for p in policy.parameters())
    assert (
        "tilted start: a training from its beginning starts with a bias of 12 tokens"
        in capsys.readouterr().err
    )
    trainer.current_gradient_accumulation_steps = trainer.state.logging_steps = 1
    loss = trainer.training_step(policy, trainer.train_dataset)
    assert loss < -0.02, "it is the cross-entropy to the target, of which the tilt is a part"
    assert policy.get_output_embeddings().weight.grad.abs().max() > 0


def test_the_direction_is_that_of_the_reference_completions(tmp_path: Path) -> None:
    """With few completions all but those that the fold is checked on, in any order."""
    before = make_model("tied")
    policy = trainer_of(tmp_path).model
    rise = (policy.lm_head.weight - before.lm_head.weight).double().detach()
    bias = bias_by_hand()
    direction = (bias @ rise) / (bias @ bias)
    torch.testing.assert_close(rise, bias[:, None] * direction, atol=1e-6, rtol=0)
    rows = [(group.prompt_token_ids, ids) for group, ids, _ in trained()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    fitted = [rows[index] for index in order[len(rows) // 4 :]]
    sequences = TokenSequences(*(list(each) for each in zip(*fitted, strict=True)))
    torch.testing.assert_close(direction, unit_direction(before, sequences, 10**6), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", [["embed_tokens"], ["lm_head"]])
def test_the_output_layer_is_frozen_by_its_own_name(frozen: list[str], tmp_path: Path) -> None:
    policy = trainer_of(tmp_path, frozen_parameters=frozen).model
    assert {n for n, p in policy.named_parameters() if not p.requires_grad} == {
        "model.embed_tokens.weight" if frozen == ["embed_tokens"] else "lm_head.weight"
    }
    assert not torch.equal(policy.lm_head.weight, make_model("tied").lm_head.weight)


def test_a_run_is_taken_up_to_the_bit_saved_read_and_halved(tmp_path: Path) -> None:
    given = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "log_completions": False}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = trainer_of(whole, **given)
    straight.train()
    straight.save_finished()
    trainer_of(parts, callbacks=[StopAfter(1)], **given).train()
    again = trainer_of(parts, **given)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(straight.model))
    assert metrics(parts) == metrics(whole)
    with pytest.raises(ConfigError, match="tilted_start: True there, False now"):
        trainer_of(parts, tilted_start=False, **given).train(resume_from_checkpoint=True)

    written = AutoModelForCausalLM.from_pretrained(whole).eval()
    tokens = torch.tensor([PROMPTS[2].token_ids])
    assert torch.equal(written(tokens).logits, straight.model(tokens).logits)
    assert written.lm_head.weight is not written.model.embed_tokens.weight
    assert not written.config.tie_word_embeddings

    base = make_model("tied")
    base.save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer()
    trained, reference = (Source(str(path), None, tokenizer) for path in (whole, tmp_path / "base"))
    save_interpolated(trained, reference, 0.5, tmp_path / "half")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    ends = written.state_dict(), base.state_dict()
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)
    assert not torch.equal(half.lm_head.weight, half.model.embed_tokens.weight)


def test_what_a_tilted_start_does_not_go_with_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"value_distillation's tilted_start with a LoRA adapter .* without LoRA"
    ):
        trainer_of(tmp_path, **LORA)
    with pytest.raises(ConfigError, match="tilted_start with a LoRA adapter"):
        trainer_of(tmp_path, peft_config=LoraConfig(target_modules=["q_proj"]))
    plain: Any = SimpleNamespace(shard_weights=False, use_vllm=False)
    for changes in ({"shard_weights": True}, {"use_vllm": True}):
        config: Any = SimpleNamespace(**{**vars(plain), **changes})
        with pytest.raises(ConfigError, match=f"tilted_start with {next(iter(changes))} is not supported"):
            check_tilted_start(ValueDistillation(tilted_start=True), config, adapted=False)
    optimizer = torch.optim.SGD(make_model().parameters(), 0.1)
    with pytest.raises(ConfigError, match="tilted_start with an optimizer of one's own"):
        check_tilted_start(ValueDistillation(tilted_start=True), plain, adapted=False, optimizer=optimizer)
    with pytest.raises(ModelError, match=r"final_logit_softcapping=3\.0\) ?.*; leave tilted_start out"):
        trainer_of(tmp_path, "gemma2_capped")
    scaled = make_model("tied")

    class Scaling(type(scaled)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> Any:
            answer = super().forward(*arguments, **options)
            answer.logits = answer.logits / 2
            return answer

    scaled.__class__ = Scaling
    with pytest.raises(ModelError, match=r"more to its logits .*; leave tilted_start out"):
        trainer_of(tmp_path, model=scaled)


def test_a_model_is_refused_by_its_config_before_anything_is_drawn() -> None:
    with pytest.raises(
        ModelError, match=r"scales its logits .*logit_scale=0\.0625\); leave tilted_start out"
    ):
        check_tiltable("policy", tiny_config("cohere"), trust_remote_code=False)
    config = make_model("tied").config
    check_tiltable("policy", config, trust_remote_code=False)
    assert config.tie_word_embeddings


@pytest.mark.parametrize(("lengths", "checked"), [([300] * 6, 256), ([4000, 10, 10], 10), ([5] * 80, 100)])
def test_the_direction_is_checked_on_what_it_was_not_fitted_on(lengths: list[int], checked: int) -> None:
    """Whatever completions are long, and with no more logits in memory than a few hundred positions have."""
    groups = [replace(GROUPS[0], completion_token_ids=[[i] * n]) for i, n in enumerate(lengths)]
    fitted, held_out = _split([(group, 0) for group in groups], width=1000)
    assert sum(map(len, held_out.completion_ids)) == checked
    marks = [{ids[0] for ids in each.completion_ids} for each in (fitted, held_out)]
    assert not marks[0] & marks[1]
    assert len(marks[0] | marks[1]) == len(lengths)
    (alone, same) = _split([(groups[0], 0)], width=1000)
    assert len(alone) == len(same) == 1


def test_an_architecture_that_always_ties_is_refused() -> None:
    model = make_model("tied")

    class Tying(type(model)):  # type: ignore[misc]
        def __init__(self, config: Any):
            super().__init__(config)
            self.lm_head.weight = self.model.embed_tokens.weight

    model.__class__ = Tying
    with pytest.raises(ModelError, match=r"'policy' \(Tying\) ties input and output .* says; take another"):
        untie_head("policy", model, "; take another")


def test_a_tilt_of_nothing_is_refused() -> None:
    """Where the end token alone is worth something."""
    ones = np.ones((1, 2), np.float32)
    credits = Credits(np.array([[END, GOOD]], np.int32), ones / 2, np.array([[1, 0]], np.float32), ones[:, 0])
    method = ValueDistillation()
    assert counted_tilt([credits], method, 19, set())[END] == pytest.approx(0.5 / 0.8)
    with pytest.raises(DataError, match="no token is worth more than another on average"):
        counted_tilt([credits], method, 19, {END})
