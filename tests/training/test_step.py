"""One step's loss and gradient against J-BOND written out, one unpadded sequence at a time."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.engines.packed_weights import packed_weights
from nonpareil.errors import RewardError
from nonpareil.maths.quantiles import two_sample_log_quantile
from nonpareil.models.loading import disable_dropout
from nonpareil.models.logprobs import TokenSequences, completion_logprobs
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.trainer import DistillationTrainer
from tests.tiny import END, make_model, make_tokenizer
from tests.training.conftest import PROMPTS, assert_same, ending_model, goodness, make_trainer, weights

W, GAMMA, TEMPERATURE = 0.3, 0.2, 0.8


def some_fail(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [
        None if ids[0] % 5 == 0 else v
        for ids, v in zip(completion_ids, goodness(completion_ids), strict=True)
    ]


def token_logprobs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0] / TEMPERATURE
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logits.log_softmax(-1)[rows, torch.tensor(completion)]


def sequence_logprob(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    return token_logprobs(model, prompt, completion).sum()


def forward_by_hand(ours: list[Tensor], theirs: list[Tensor], rewards: list[float]) -> Tensor:
    """Half of -log pi(better) less that of the other, and half of each one's KL from the anchor by token."""
    sign = (rewards[0] > rewards[1]) - (rewards[0] < rewards[1])
    ratios = [(policy - anchor.detach()).exp() for policy, anchor in zip(ours, theirs, strict=True)]
    pull = sum((ratio - 1 - ratio.log()).sum() for ratio in ratios) / 2
    return pull - sign * (ours[0].sum() - ours[1].sum()) / 2


def loss_by_hand(policy: PreTrainedModel, anchor: PreTrainedModel, batch: StepBatch) -> Tensor:
    """The mean over the prompts whose three rewards are all there."""
    rows = []
    for group in batch.groups:
        if None in group.rewards:
            continue
        tokens = [
            [token_logprobs(model, group.prompt_token_ids, ids) for ids in group.completion_token_ids]
            for model in (policy, anchor)
        ]
        logprob, log_ratio = tokens[0][0].sum(), (tokens[0][0].sum() - tokens[1][0].sum()).detach()
        forward = forward_by_hand(tokens[0][1:], tokens[1][1:], group.rewards[1:])
        rewards = torch.tensor(group.rewards)
        log_p = two_sample_log_quantile(rewards[:1], rewards[None, 1:])[0]
        rows.append((logprob, forward, log_p, log_ratio, group.rewards[1] != group.rewards[2]))
    losses = []
    for i, (logprob, forward, log_p, log_ratio, anchors_differ) in enumerate(rows):
        others = [row for j, row in enumerate(rows) if j != i]
        ratio_baseline = sum(row[3] for row in others) / len(others)
        alike = [row[2] for row in others if row[4]]
        gain = log_p - sum(alike) / len(alike) if anchors_differ and alike else log_p
        losses.append(
            (1 - W) * forward
            + W * -logprob * (gain - (log_ratio - ratio_baseline))
            + GAMMA * logprob * (log_ratio - ratio_baseline)
        )
    assert len(losses) >= 3
    return torch.stack(losses).mean()


def one_step(trainer: DistillationTrainer) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.logging_steps = 1
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, PROMPTS)
    return loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("reward", [goodness, some_fail])
@pytest.mark.parametrize("max_tokens_per_batch", [1, 40, 10**6])
@pytest.mark.parametrize("padding", [{}, {"pad": "</s>", "padding_side": "right"}])
def test_loss_and_gradient_are_those_written_out(
    padding: dict[str, str], max_tokens_per_batch: int, reward: Any, tmp_path: Path
) -> None:
    """Whatever the micro-batches, the padding token and its side; the end token counts once."""
    trainer = make_trainer(
        tmp_path,
        reward=reward,
        tokenizer=make_tokenizer(**padding),
        jeffreys_weight=W,
        kl_coef=GAMMA,
        temperature=TEMPERATURE,
        max_tokens_per_batch=max_tokens_per_batch,
    )
    trainer.anchor.module.load_state_dict(
        ending_model(seed=1).state_dict()
    )  # so that log-ratios are not zero
    loss, gradients = one_step(trainer)

    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    assert any(ids[-1] == END for g in batch.groups for ids in g.completion_token_ids)
    assert any(None in g.rewards for g in batch.groups) == (reward is some_fail)
    trainer.model.zero_grad()
    by_hand = loss_by_hand(trainer.model, trainer.anchor.module, batch)
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-5)
    theirs = {n: p.grad for n, p in trainer.model.named_parameters()}
    assert_same(gradients, theirs, rtol=1e-4, atol=1e-5)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2


def test_log_ratios_are_those_of_policy_and_anchor(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, temperature=TEMPERATURE)
    at_start = trainer.step_sampler.draw(PROMPTS, step=0).draws.log_ratio
    assert at_start.abs().max() < 1e-4, "the anchor starts as the policy"
    trainer.anchor.module.load_state_dict(ending_model(seed=1).state_dict())
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    with torch.no_grad():
        want = [
            sequence_logprob(trainer.model, g.prompt_token_ids, g.completion_token_ids[0])
            - sequence_logprob(trainer.anchor.module, g.prompt_token_ids, g.completion_token_ids[0])
            for g in batch.groups
        ]
    torch.testing.assert_close(batch.draws.log_ratio[:, 0], torch.stack(want), rtol=1e-4, atol=1e-4)
    assert batch.draws.log_ratio.abs().max() > 0.1


def test_policy_and_anchor_steps_and_prompts_draw_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_completion_length=12)
    first = trainer.step_sampler.draw(PROMPTS, step=0)
    again = trainer.step_sampler.draw(PROMPTS, step=0)
    later = trainer.step_sampler.draw(PROMPTS, step=1)
    ids = [[g.completion_token_ids for g in drawn.groups] for drawn in (first, again, later)]
    assert ids[0] == ids[1]
    assert torch.equal(first.draws.tie_breaker, again.draws.tie_breaker)
    assert not torch.equal(first.draws.tie_breaker, later.draws.tie_breaker)
    for drawn_by in (slice(0, 1), slice(1, 3)):
        assert [group[drawn_by] for group in ids[0]] != [group[drawn_by] for group in ids[2]]
    # The same model draws for policy and anchor here: with one seed for both, the first draws would agree.
    assert any(group[0] != group[1] for group in ids[0])


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    usual = make_trainer(tmp_path / "a", max_steps=2)
    saving = make_trainer(tmp_path / "b", max_steps=2, gradient_checkpointing=True)
    results = [trainer.train().training_loss for trainer in (usual, saving)]
    assert saving.model.is_gradient_checkpointing
    assert not usual.model.is_gradient_checkpointing
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    assert_same(weights(usual.model), weights(saving.model), rtol=1e-5, atol=1e-6)


def test_accumulated_micro_batches_are_one_step_of_all_their_prompts(tmp_path: Path) -> None:
    """With the forward KL alone a prompt's loss does not depend on its batch."""
    # Plain descent: Adam would blow up the rounding of gradients near zero.
    settings = {"jeffreys_weight": 0.0, "kl_coef": 0.0, "max_steps": 2}
    settings |= {"optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 1e9}
    whole = make_trainer(tmp_path / "a", per_device_train_batch_size=6, **settings)
    split = make_trainer(
        tmp_path / "b", per_device_train_batch_size=3, gradient_accumulation_steps=2, **settings
    )
    losses = [trainer.train().training_loss for trainer in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert_same(weights(whole.model), weights(split.model), rtol=1e-4, atol=1e-5)
    rows = [
        pq.read_table(folder / "completions" / "completions_00002.parquet").to_pylist()
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    completions = [sorted((r["prompt"], r["drawn_by"], r["completion"]) for r in each) for each in rows]
    assert completions[0] == completions[1], "the file holds every micro-batch"
    assert len(completions[0]) == 18


def test_no_usable_prompt_is_a_step_without_gradient(tmp_path: Path) -> None:
    def policy_only(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [1.0 if i % 3 == 0 else None for i in range(len(completion_ids))]

    trainer = make_trainer(tmp_path, reward=policy_only, max_steps=2)
    before = weights(trainer.model)
    result = trainer.train()
    assert math.isnan(result.training_loss), "no step had a loss, and none was 0"
    assert_same(weights(trainer.model), before)


def test_a_step_in_which_every_reward_fails_is_an_error_with_the_reason(tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        calls.append(len(completion_ids))
        raise ZeroDivisionError("no scale to weigh on")

    with pytest.raises(RewardError, match=r"every reward of step 1 failed; .*no scale to weigh on"):
        make_trainer(tmp_path, reward=broken).train()
    assert calls == [12] + [1] * 8, "one call, and 8 completions alone; none to word the error"


def only_for(*names: str) -> Any:
    """A reward of some prompts, None for the others: how TRL's scripts mix tasks."""

    def some(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        pairs = zip(prompts, goodness(completion_ids), strict=True)
        return [value if prompt in names else None for prompt, value in pairs]

    return some


def test_prompts_that_are_lost_to_a_reward_of_none_are_told_with_what_to_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [str(prompt.prompt) for prompt in PROMPTS]
    make_trainer(
        tmp_path, reward=[goodness, only_for(*texts[2:])], per_device_train_batch_size=6, max_steps=2
    ).train()
    said = capsys.readouterr().err
    assert said.count("reward 'some' gave no completion of 2 of 6 prompts a number, and others did") == 1
    assert "let it return 0 for all of its completions, not None" in said
    tasks = [only_for(*texts[:3]), only_for(*texts[3:])]
    with pytest.raises(
        RewardError,
        match=r"no completion of step 1 has all of its rewards \(some, some_2\).*returned None.*return 0",
    ):
        make_trainer(tmp_path, reward=tasks).train()


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama_grouped_heads", "bloom_without_window"])
def test_without_dropout_training_mode_is_evaluation_mode(kind: str) -> None:
    rates = {
        "gpt2": {},
        "opt": {"dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.5},
        "llama_grouped_heads": {"attention_dropout": 0.5},
        "bloom_without_window": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    }
    model = make_model(kind, **rates[kind])
    sequences = TokenSequences([[1, 7, 8], [1]], [[9, 10, 11, 2], [8, 8]])
    with torch.no_grad():
        want = completion_logprobs(model, sequences)
        torch.manual_seed(0)
        noisy = completion_logprobs(model.train(), sequences)
        assert not torch.equal(noisy, want), "the yardstick itself"
        disable_dropout(model)
        assert torch.equal(completion_logprobs(model.train(), sequences), want)


def test_a_policy_with_dropout_is_trained_without(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, model=make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    )
    (loss, gradients), (again, same) = one_step(trainer), one_step(trainer)
    assert trainer.model.training
    assert loss == again
    assert_same(gradients, same)


def test_a_working_copy_is_packed_in_the_place_of_gradients(tmp_path: Path) -> None:
    """Drawing holds no gradients, whose memory packed weights take; adapters have small ones."""
    layer = nn.Linear(64, 64)
    with packed_weights(layer, 4, layer.weight.nbytes):
        if "forward" not in vars(layer):
            pytest.skip("this processor, or this torch, has no such products")
    seen: dict[bool, list[tuple[bool, bool]]] = {False: [], True: []}
    for lora in (False, True):
        peft_config = LoraConfig(r=4, target_modules="all-linear") if lora else None
        trainer = make_trainer(
            tmp_path,
            peft_config=peft_config,
            max_steps=2,
            max_completion_length=24,
        )
        engine = trainer.step_sampler.actors.engine
        query = next(m for name, m in engine.model.named_modules() if name.endswith("q_proj"))
        query = getattr(query, "base_layer", query)
        weights = list(trainer.model.parameters())

        def look(*_: Any, lora=lora, query=query, weights=weights) -> None:
            if torch.is_inference_mode_enabled():  # draws
                seen[lora].append(("forward" in vars(query), any(w.grad is not None for w in weights)))

        engine.model.register_forward_pre_hook(look)
        trainer.train()
    assert set(seen[False]) == {(True, False)}
    assert set(seen[True]) == {(False, False)}
