"""Value distillation through the trainer: its step against plain passes, and what must change nothing."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from nonpareil.credits import Credits
from nonpareil.errors import ConfigError, DataError, RewardError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.value_distillation import ValueDistillation
from nonpareil.records import Group
from nonpareil.training import DistillationTrainer
from nonpareil.training import method as training_method
from nonpareil.training.step import accumulate
from nonpareil.training.step.credited import CreditedPasses
from nonpareil.training.step.signal import PATIENCE
from tests.tiny import END, GOOD, make_tokenizer
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
from tests.training.test_accumulation import ELEVEN, SPLITS, counted, split_trainer
from tests.training.test_lora import LORA, merged_copy, moved
from tests.training.test_methods import PAD_IS_END, some_fail
from tests.training.test_shared_rows import LONG

T = 0.8
M = 5
METHOD: dict[str, Any] = {"method": "value_distillation", "strength": 1.4, "max_advantage": 0.7}
CASES = [{**METHOD, "prefix_weight": False}, {**METHOD, "prefix_weight": True}]


def groups_and_credits(reward: Any = goodness, prompts: Any = PROMPTS) -> tuple[list[Group], dict[str, Any]]:
    """A prompt without credits, and a completion without."""
    groups = stored_groups(M, T, reward, prompts)
    credits = stored_credits(groups, T)
    del credits[groups[3].prompt_id]
    credits[groups[0].prompt_id][1] = None
    return groups, credits


def trainer_of(folder: Path, **changes: Any) -> DistillationTrainer:
    """One whose policy has left its reference."""
    given: dict[str, Any] = {"model": ending_model(seed=1), "temperature": T, **changes}
    trainer = make_trainer(folder, **given)
    if "use_peft" not in changes:
        trainer.anchor.module.load_state_dict(ending_model().state_dict())
    trainer.current_gradient_accumulation_steps = trainer.state.logging_steps = 1
    return trainer


def log_probs(model: Any, prompt: list[int], ids: list[int]) -> Tensor:
    """Of the next token at each position `[t, v]`, by one unpadded pass."""
    logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
    return (logits[len(prompt) - 1 : -1].float() / T).log_softmax(-1)


def loss_by_hand(
    policy: Any, reference: Any, groups: list[Group], credits: Any, method: dict[str, Any]
) -> Tensor:
    """Over the whole vocabulary: sum_a q_a (log pi_ref - log pi), a token, a completion and a prompt at a time."""
    beta, prompts = method["strength"], []
    for group in groups:
        losses = []
        for j, ids in enumerate(group.completion_token_ids):
            of_prompt = credits.get(group.prompt_id, [])
            known = of_prompt[j] if j < len(of_prompt) else None
            if known is None or group.rewards[j] is None:
                continue
            ours = log_probs(policy, group.prompt_token_ids, ids)
            theirs = log_probs(reference, group.prompt_token_ids, ids).detach()
            total = torch.zeros(())
            for t in range(len(ids)):
                q = theirs[t].exp()
                for a, w, advantage in zip(
                    known.token_ids[t], known.weights[t], known.advantages[t], strict=True
                ):
                    cut = max(-method["max_advantage"], min(method["max_advantage"], float(advantage)))
                    q[a] += float(w) * (math.exp(beta * cut) - 1)
                q = q / q.sum().clamp(min=0.4)
                times = math.exp(beta * float(known.prefix_values[t])) if method["prefix_weight"] else 1.0
                total = total + times * (q * (theirs[t] - ours[t])).sum()
            losses.append(total)
        if losses:
            prompts.append(torch.stack(losses).mean())
    return torch.stack(prompts).mean()


def step_of(trainer: DistillationTrainer) -> tuple[float, dict[str, Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, trainer.train_dataset)
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_step(trainer: DistillationTrainer, by_hand: Tensor) -> None:
    trainer.model.zero_grad()
    by_hand.backward()
    want = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    largest = max(g.abs().max() for g in want.values())
    assert largest > 1e-3
    loss, got = step_of(trainer)
    assert loss == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-5)
    assert_same(got, want, rtol=1e-3, atol=1e-4 * max(1.0, largest.item()))


@pytest.mark.parametrize(
    ("case", "max_tokens_per_batch", "padding", "reward"),
    [
        (CASES[0], 1, {}, some_fail),
        (CASES[1], 40, PAD_IS_END, goodness),
        (CASES[0], 10**6, {}, goodness),
        (CASES[1], 10**6, {}, some_fail),
    ],
)
def test_a_step_is_the_cross_entropy_over_the_whole_vocabulary(
    case: dict[str, Any], max_tokens_per_batch: int, padding: Any, reward: Any, tmp_path: Path
) -> None:
    """With failed rewards and missing credits, in passes of any size."""
    groups, credits = groups_and_credits(reward)
    assert any(ids and len(ids) < 6 and ids[-1] == END for g in groups for ids in g.completion_token_ids)
    settings = {"tokenizer": make_tokenizer(**padding), "max_tokens_per_batch": max_tokens_per_batch}
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, reward=reward, **settings, **case)
    assert_step(trainer, loss_by_hand(trainer.model, trainer.anchor.module, groups, credits, case))
    assert trainer.step_sampler.actors is None, "nothing is drawn"


def test_a_step_with_an_adapter_has_the_model_without_it_for_its_reference(tmp_path: Path) -> None:
    groups, credits = groups_and_credits()
    trainer = moved(
        trainer_of(tmp_path, model=ending_model(), groups=groups, credits=credits, **LORA, **CASES[0])
    )
    want = loss_by_hand(merged_copy(trainer, "default"), ending_model(), groups, credits, CASES[0])
    loss, got = step_of(trainer)
    assert loss == pytest.approx(want.item(), rel=1e-4, abs=1e-5)
    assert {"lora_A" in name or "lora_B" in name for name in got} == {True}
    assert all(gradient.abs().max() > 0 for gradient in got.values())
    assert trainer.anchor.role == "__base__"
    assert not trainer._metrics["value/target_kl"][0] <= 0


def test_a_training_comes_near_the_target(tmp_path: Path) -> None:
    """With the whole vocabulary as candidates, the loss comes near what it can be at least, and not below."""
    groups = stored_groups(M, T)
    credits = stored_credits(groups, T, likeliest=18, from_tail=0)
    settings = {"temperature": T, "max_steps": 24, "learning_rate": 2e-3, "log_completions": False}
    given = {"groups": groups, "credits": credits, **settings, **CASES[0]}
    trainer = make_trainer(tmp_path, per_device_train_batch_size=len(groups), **given)
    trainer.train()
    lines = metrics(tmp_path)
    assert lines[0]["loss"] == 0
    least = -lines[0]["value/target_kl"]
    assert least < lines[-1]["loss"] < 0.9 * least < 0
    prompt = PROMPTS[0].token_ids
    shift = log_probs(trainer.model, prompt, [GOOD]) - log_probs(ending_model(), prompt, [GOOD])
    assert shift[0].argmax() == GOOD


def test_in_bfloat16_too_the_first_step_has_a_loss_of_0_to_the_last_bit(tmp_path: Path) -> None:
    """As reference and policy are scored by passes alike: attention in training is not that of scoring."""
    groups, credits = groups_and_credits()
    trainer = trainer_of(
        tmp_path, model=ending_model(), groups=groups, credits=credits, bf16=True, **CASES[0]
    )
    loss, gradients = step_of(trainer)
    assert loss == 0
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


def test_every_split_of_a_step_trains_the_same_to_the_bit(tmp_path: Path) -> None:
    groups, credits = groups_and_credits(some_fail, ELEVEN)
    ends, lines, sums = [], [], []
    for split in (SPLITS[0], SPLITS[2]):
        folder = tmp_path / str(split[0])
        trainer = split_trainer(folder, split, groups=groups, credits=credits, **CASES[1])
        trainer.train()
        ends.append(weights(trainer.model))
        lines.append(metrics(folder))
        sums.append(counted(folder))
    assert any(not torch.equal(value, weights(ending_model())[name]) for name, value in ends[0].items())
    assert sums[0]["tokens_trained"] > 0 == sums[0]["completions_drawn"]
    for end, logged, counts in zip(ends[1:], lines[1:], sums[1:], strict=True):
        assert_same(end, ends[0])
        assert (logged, counts) == (lines[0], sums[0])


@pytest.mark.parametrize("settings", [{}, LORA], ids=["whole", "lora"])
def test_completions_that_share_rows_train_the_same(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = stored_groups(M, prompts=LONG)
    given = {"groups": groups, "credits": stored_credits(groups), "temperature": 1.0, **CASES[0], **settings}
    found, rows = [], []
    for folder in ("shared", "apart"):
        trainer = trainer_of(tmp_path / folder, model=ending_model(), **given)
        if settings:
            moved(trainer)
        else:
            trainer.anchor.module.load_state_dict(ending_model(seed=1).state_dict())
        losses = trainer.accumulator.credited.losses

        def noted(*arguments: Any, losses: Any = losses) -> Any:
            rows.append(max(arguments[-1]))
            return losses(*arguments)

        object.__setattr__(trainer.accumulator.credited, "losses", noted)
        found.append(step_of(trainer))
        monkeypatch.setattr(accumulate, "per_row", lambda *_: 1)
    assert rows[0] > 1
    assert set(rows[1:]) == {1}
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert_same(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, marks=pytest.mark.slow), {**LORA, "bf16": True}],
    ids=["whole", "lora in bf16"],
)
def test_a_run_is_taken_up_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    groups, credits = groups_and_credits()
    given = {
        "groups": groups,
        "credits": credits,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 2,
        "log_completions": False,
        "temperature": T,
    }
    given |= {**CASES[0], **settings}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = make_trainer(whole, **given)
    straight.train()
    make_trainer(parts, callbacks=[StopAfter(1)], **given).train()
    again = make_trainer(parts, **given)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(straight.model))
    assert metrics(parts) == metrics(whole)
    credits[groups[0].prompt_id][0].advantages[0, 0] += 0.5
    with pytest.raises(ConfigError, match=r"credits: '.*' there, '.*' now"):
        make_trainer(parts, **given).train(resume_from_checkpoint=True)


def test_metrics_are_those_of_what_is_trained_on(tmp_path: Path) -> None:
    groups, credits = groups_and_credits(some_fail)
    case = CASES[1]
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, reward=some_fail, **case)
    step_of(trainer)
    used = [
        credits[g.prompt_id][j]
        for g in groups
        for j, reward in enumerate(g.rewards)
        if reward is not None and g.prompt_id in credits and credits[g.prompt_id][j] is not None
    ]
    w, a = (np.concatenate([getattr(each, name) for each in used]) for name in ("weights", "advantages"))
    tilt = np.exp(case["strength"] * np.clip(a, -0.7, 0.7))
    z = 1 + (w * (tilt - 1)).sum(-1)
    times = np.exp(case["strength"] * np.concatenate([each.prefix_values for each in used]))
    rest = 1 - w.sum(-1)
    kl = ((w * tilt / z[:, None]) * np.log(tilt / z[:, None])).sum(-1) - rest / z * np.log(z)
    found = {name: values[0] for name, values in trainer._metrics.items() if name.startswith("value/")}
    assert found == {
        "value/mean_abs_advantage": pytest.approx((w * abs(a)).sum() / w.sum(), rel=1e-4),
        "value/clipped_ratio": pytest.approx(w[abs(a) > 0.7].sum() / w.sum(), rel=1e-4),
        "value/candidate_mass": pytest.approx(w.sum() / len(w), rel=1e-4),
        "value/normaliser": pytest.approx(z.mean(), rel=1e-4),
        "value/normaliser_std": pytest.approx(z.std(), rel=1e-3),
        "value/target_kl": pytest.approx((times * kl).sum() / len(used), rel=1e-3),
    }
    assert 0 < found["value/clipped_ratio"] < 1


# --- What is refused, or leaves nothing to learn


def test_credits_are_asked_for_and_refused_by_name(tmp_path: Path) -> None:
    groups = stored_groups(M)
    with pytest.raises(
        ConfigError, match="credits is missing: method=value_distillation learns from credits"
    ):
        make_trainer(tmp_path, groups=groups, **METHOD)
    with pytest.raises(ConfigError, match="groups is missing: "):
        make_trainer(tmp_path, credits=stored_credits(groups), **METHOD)
    with pytest.raises(ConfigError, match="credits is not read by method=sft_bon; remove credits"):
        make_trainer(tmp_path, groups=groups, credits=stored_credits(groups), method="sft_bon", n=2)
    with pytest.raises(DataError, match="credits is a list; give credits as read_credits"):
        make_trainer(tmp_path, groups=groups, credits=[], **METHOD)


def test_zero_3_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_method, "zero_requested", lambda: True)
    groups = stored_groups(M)
    with pytest.raises(ConfigError, match="method=value_distillation with ZeRO-3 is not supported"):
        make_trainer(tmp_path, groups=groups, credits=stored_credits(groups), **METHOD)


@dataclass(frozen=True)
class Drawing(ValueDistillation):
    policy_draws: ClassVar = 2


@dataclass(frozen=True)
class Moving(ValueDistillation):
    anchor_ema_rate: ClassVar = 0.1


@pytest.mark.parametrize("method", [Drawing(), Moving()])
def test_ones_own_that_draws_or_moves_its_reference_is_refused(method: Any, tmp_path: Path) -> None:
    groups = stored_groups(M)
    with pytest.raises(ConfigError, match="is a CreditedMethod, which draws nothing, has a fixed reference"):
        make_trainer(tmp_path, groups=groups, credits=stored_credits(groups), method=method)


def changed(credits: Any, groups: list[Group], **values: Any) -> Any:
    """The second completion of the second prompt has other credits."""
    prompt_id = groups[1].prompt_id
    others = list(credits[prompt_id])
    others[1] = replace(others[1], **{name: make(others[1]) for name, make in values.items()})
    return {**credits, prompt_id: others}


BAD = {
    "of another completion": ({"token_ids": lambda c: c.token_ids[:, ::-1]}, "completion 1 .*of another"),
    "a token more": ({"weights": lambda c: np.zeros((9, 8), np.float32)}, "arrays of the shapes"),
    "infinite": (
        {"advantages": lambda c: c.advantages + np.float32(np.inf)},
        "advantages that are NaN or infinite",
    ),
    "no such token": (
        {"token_ids": lambda c: np.concatenate([c.token_ids[:, :-1], c.token_ids[:, -1:] + 19], 1)},
        "the model has 19 tokens",
    ),
}


@pytest.mark.parametrize(("values", "says"), BAD.values(), ids=BAD)
def test_credits_of_something_else_are_refused_by_name(values: Any, says: str, tmp_path: Path) -> None:
    groups = stored_groups(M)
    with pytest.raises(DataError, match=f"credits: prompt '{groups[1].prompt_id}', .*{says}"):
        make_trainer(
            tmp_path, groups=groups, credits=changed(stored_credits(groups), groups, **values), **METHOD
        )


def test_more_credits_than_completions_and_uneven_candidates_are_refused(tmp_path: Path) -> None:
    groups = stored_groups(M)
    credits = stored_credits(groups)
    prompt_id = groups[2].prompt_id
    more = {**credits, prompt_id: [*credits[prompt_id], credits[prompt_id][0]]}
    with pytest.raises(DataError, match=f"prompt '{prompt_id}' has 5 completions in the groups"):
        make_trainer(tmp_path, groups=groups, credits=more, **METHOD)
    names = ("token_ids", "weights", "advantages")
    fewer = changed(credits, groups, **{n: lambda c, n=n: getattr(c, n)[:, :3] for n in names})
    with pytest.raises(
        DataError, match=r"completion 1 .*3 candidates for each token, and elsewhere 8|8 cand"
    ):
        make_trainer(tmp_path, groups=groups, credits=fewer, **METHOD)


@pytest.mark.parametrize("how", ["constant", "of other prompts"])
def test_credits_that_tell_nothing_are_refused(how: str, tmp_path: Path) -> None:
    groups = stored_groups(M)
    credits: Any = stored_credits(groups)
    if how == "constant":
        credits = {
            prompt_id: [replace(each, advantages=np.zeros_like(each.advantages)) for each in row]
            for prompt_id, row in credits.items()
        }
    else:
        credits = {f"x{prompt_id}": row for prompt_id, row in credits.items()}
    with pytest.raises(DataError, match=r"credits: in none of the groups .* tell one candidate from another"):
        make_trainer(tmp_path, groups=groups, credits=credits, **METHOD)


def test_a_step_of_prompts_without_credits_moves_nothing(tmp_path: Path, capsys: Any) -> None:
    groups = stored_groups(M)
    credits = {groups[0].prompt_id: stored_credits(groups)[groups[0].prompt_id]}
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, temperature=1.0, **METHOD)
    assert "groups: 1 of 6 carry signal: the others have no credits" in capsys.readouterr().err
    for prompts, moves in ((PROMPTS[1:], False), (PROMPTS[:2], True)):
        trainer.training_step(trainer.model, prompts)
        assert trainer.signal.moves == moves
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in gradients) == moves


def test_steps_that_move_nothing_are_told_of_as_credits_not_as_rewards(tmp_path: Path, capsys: Any) -> None:
    groups = stored_groups(M)
    credits = {groups[0].prompt_id: stored_credits(groups)[groups[0].prompt_id]}
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, temperature=1.0, **METHOD)
    capsys.readouterr()
    for _ in range(PATIENCE):
        trainer.training_step(trainer.model, PROMPTS[1:3])
    said = capsys.readouterr().err
    assert "for the 5th step in a row no prompt has credits that tell candidates apart, so nothing" in said
    assert "credited_completions" in said
    assert "the rewards of" not in said
    with pytest.raises(
        RewardError, match="none of the 5 steps moved the policy: no prompt had credits that told"
    ):
        trainer.signal.check()


def test_groups_of_one_completion_are_trained_on_since_rewards_are_not_compared(tmp_path: Path) -> None:
    groups = stored_groups(1, T)
    credits = stored_credits(groups, T)
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, **CASES[0])
    assert_step(trainer, loss_by_hand(trainer.model, trainer.anchor.module, groups, credits, CASES[0]))


def test_a_prompt_whose_numbers_are_none_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, credits = groups_and_credits()
    trainer = trainer_of(tmp_path, groups=groups, credits=credits, **CASES[0])
    whole = CreditedPasses.losses

    def broken(self: Any, model: Any, batch: Any, part: Any, *rest: Any) -> Any:
        losses, bad = whole(self, model, batch, part, *rest)
        spoilt = torch.tensor([batch.groups[row].prompt_id == groups[2].prompt_id for row in part])
        return losses * torch.where(spoilt, torch.nan, 1.0), bad

    monkeypatch.setattr(CreditedPasses, "losses", broken)
    loss, _ = step_of(trainer)
    rest = [group for group in groups if group is not groups[2]]
    want = loss_by_hand(trainer.model, trainer.anchor.module, rest, credits, CASES[0])
    assert loss == pytest.approx(want.item(), rel=1e-4)
    assert trainer._metrics["dropped/non_finite"] == [1]


# --- The truth of a whole language model


def two_token_law(model: Any) -> tuple[Tensor, Tensor]:
    """log-probs of a first token [v], and of a second one behind each [v, v]; behind the end is nothing."""
    with torch.no_grad():
        rows = torch.tensor([[*PROMPTS[0].token_ids, first, 0] for first in range(19)])
        log_pi = model(input_ids=rows).logits.double().log_softmax(-1)
    second = log_pi[:, 3]
    second[END] = torch.where(torch.arange(19) == 0, 0.0, -torch.inf)
    return log_pi[0, 2], second


@pytest.mark.slow
@pytest.mark.parametrize("target", ["best of 4", "exponential tilt"])
def test_a_language_model_comes_to_the_exact_law_of_its_true_value(target: str, tmp_path: Path) -> None:
    """Completions of one or two tokens, every one known; trained on 64 of them that the reference drew."""
    first, second = two_token_law(ending_model())
    joint = (first[:, None] + second).exp()
    rewards = torch.randn(19, 19, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, weight = joint > 0, torch.zeros_like(joint)
    law = joint[there] * rewards[there].exp()
    law = distribution(joint[there], rewards[there], 4) if target == "best of 4" else law / law.sum()
    weight[there] = law / joint[there]
    behind = (second.exp() * weight).sum(-1)  # E[W | first token]; of the prompt it is 1
    (group,) = stored_groups(64, prompts=PROMPTS[:1])
    group.completion_token_ids = [ids[:2] for ids in group.completion_token_ids]
    group.logprobs = [values[:2] for values in group.logprobs]
    credits = []
    for ids in group.completion_token_ids:
        orders = [[own, *(a for a in range(19) if a != own)] for own in ids]
        chances = [first.exp()[orders[0]], *(second[ids[0]].exp()[order] for order in orders[1:])]
        worth = [behind.log()[orders[0]], *((weight[ids[0]] / behind[ids[0]]).log()[o] for o in orders[1:])]
        prefix = [torch.zeros(1).double(), behind.log()[ids[:1]]][: len(ids)]
        numbers = [torch.stack(chances), torch.stack(worth), torch.cat(prefix)]
        credits.append(Credits(np.array(orders, np.int32), *(each.float().numpy() for each in numbers)))
    settings = {"max_steps": 150, "learning_rate": 2e-3, "per_device_train_batch_size": 1}
    given = {"groups": [group], "credits": {group.prompt_id: credits}, "log_completions": False, **settings}
    trainer = make_trainer(tmp_path, method=ValueDistillation(1.0, 50.0), **given)

    def distance(model: Any) -> float:
        first, second = two_token_law(model)
        return (law * (law.log() - (first[:, None] + second)[there])).sum().item()

    before = distance(trainer.model)
    trainer.train()
    assert distance(trainer.model) < 0.12 * before
