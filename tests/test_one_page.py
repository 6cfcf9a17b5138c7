"""The page of plain torch computes what the trainer does: loss, gradients and steps on the same draws."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from nonpareil.rewards.models.local import RewardModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nonpareil.assets import demo_path
from nonpareil.records import Prompt
from nonpareil.training import DistillationConfig, DistillationTrainer
from nonpareil.training.batch import StepBatch

PAGE = Path(__file__).parents[1] / "recipes" / "one_page.py"
TEXTS = ["This film", "I gave it", "A dull, dull", "Almost missed", "Wow, there are no", "The best"]


@pytest.fixture
def page() -> ModuleType:
    """A copy of the script, not run."""
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo_policy() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_path("policy"), dtype=torch.float32).eval()


def demo_trainer(output_dir: Path, page: ModuleType, **changes: Any) -> DistillationTrainer:
    """The trainer with the page's settings, on few short draws."""
    tokenizer = AutoTokenizer.from_pretrained(demo_path("policy"))
    settings: dict[str, Any] = {
        "jeffreys_weight": page.W,
        "kl_coef": page.GAMMA,
        "anchor_ema_rate": page.ETA,
        "learning_rate": page.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "per_device_train_batch_size": len(TEXTS),
        "max_completion_length": 8,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return DistillationTrainer(
        demo_policy(),
        RewardModel(demo_path("reward"), dtype="float32", device="cpu"),
        DistillationConfig(output_dir=str(output_dir), **{**settings, **changes}),
        [Prompt(text, text, tokenizer(text)["input_ids"]) for text in TEXTS],
        processing_class=tokenizer,
    )


def as_the_page_takes_them(drawn: StepBatch) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
    """A step's prompts, completions (the policy's, the anchor's first and second) and rewards."""
    prompts = [group.prompt_token_ids for group in drawn.groups]
    completions = [group.completion_token_ids[place] for place in range(3) for group in drawn.groups]
    rewards = torch.tensor([group.rewards for group in drawn.groups], dtype=torch.float64)
    return prompts, completions, rewards


def moved_anchor() -> dict[str, torch.Tensor]:
    """Weights far enough from the policy's that log-ratios are some nats."""
    torch.manual_seed(1)
    return {
        name: weight + 0.1 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else weight
        for name, weight in demo_policy().state_dict().items()
    }


@pytest.mark.parametrize("ties", [False, True])
def test_loss_and_gradient_are_the_trainers(
    ties: bool, page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from the anchor, with the gamma term, and where rewards tie within prompts and between them."""
    monkeypatch.setattr(page, "GAMMA", 0.3)
    monkeypatch.setattr(page, "W", 0.4)
    trainer = demo_trainer(tmp_path, page)
    trainer.anchor.module.load_state_dict(moved_anchor())
    drawn = trainer.step_sampler.draw(trainer.train_dataset, 0)
    if ties:
        drawn.draws.policy_rewards.round_()
        drawn.draws.anchor_rewards.sign_()
        for group, mine, theirs in zip(
            drawn.groups, drawn.draws.policy_rewards, drawn.draws.anchor_rewards, strict=True
        ):
            group.rewards = [*mine.tolist(), *theirs.tolist()]
        equal = drawn.draws.anchor_rewards[:, 0] == drawn.draws.anchor_rewards[:, 1]
        assert 0 < equal.sum() < len(equal)
    assert drawn.draws.log_ratio.abs().max() > 0.5
    descended = trainer.descent.step(trainer.model, drawn, 1)
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}

    trainer.model.zero_grad()
    value = page.loss(trainer.model, trainer.anchor.module, *as_the_page_takes_them(drawn))
    value.backward()
    assert abs(descended.loss) > 0.1
    assert value.item() == pytest.approx(descended.loss, abs=1e-4)
    for name, weight in trainer.model.named_parameters():
        assert (weight.grad - gradients[name]).norm() <= 1e-4 * gradients[name].norm(), name


def test_three_steps_end_where_the_trainers_do(page: ModuleType, tmp_path: Path) -> None:
    """Policy and anchor both: clipping, AdamW and the moving average are the trainer's too."""
    trainer = demo_trainer(tmp_path, page, max_steps=3)
    start = {name: weight.clone() for name, weight in demo_policy().named_parameters()}
    batches: list[StepBatch] = []
    draw = trainer.step_sampler.draw

    def seen(*args: Any) -> StepBatch:
        batches.append(draw(*args))
        return batches[-1]

    trainer.step_sampler.draw = seen
    trainer.train()

    policy = demo_policy()
    anchor = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=page.LEARNING_RATE, weight_decay=0.0)
    for drawn in batches:
        page.step(policy, anchor, optimizer, *as_the_page_takes_them(drawn))
    assert len(batches) == 3
    for ours, theirs in ((policy, trainer.model), (anchor, trainer.anchor.module)):
        moved = {name: weight - start[name] for name, weight in theirs.named_parameters()}
        apart = torch.stack([(w - start[n] - moved[n]).norm() for n, w in ours.named_parameters()]).norm()
        assert apart < 1e-2 * torch.stack([change.norm() for change in moved.values()]).norm()


def test_it_reads_and_scores_as_the_trainer_does(page: ModuleType, tmp_path: Path) -> None:
    trainer = demo_trainer(tmp_path, page)
    drawn = trainer.step_sampler.draw(trainer.train_dataset, 0)
    prompts, completions, rewards = as_the_page_takes_them(drawn)
    tokenizer, rm_tokenizer = (
        AutoTokenizer.from_pretrained(demo_path(part)) for part in ("policy", "reward")
    )
    assert tokenizer(TEXTS)["input_ids"] == prompts
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    finished = [prompt + text for prompt, text in zip(TEXTS * 3, texts, strict=True)]
    rm = AutoModelForSequenceClassification.from_pretrained(demo_path("reward"), dtype=torch.float32).eval()
    scores = page.score(rm, rm_tokenizer, finished)
    torch.testing.assert_close(scores.view(3, -1).T, rewards, rtol=0, atol=1e-4)


def test_it_draws_whole_completions(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that end keep their end token, and the others have all the tokens that were allowed."""
    monkeypatch.setattr(page, "NEW_TOKENS", 6)
    policy, tokenizer = demo_policy(), AutoTokenizer.from_pretrained(demo_path("policy"))
    end = tokenizer.eos_token_id
    generate = policy.generate
    monkeypatch.setattr(policy, "generate", lambda **given: generate(**given, sequence_bias={(end,): 6.0}))
    drawn = page.draw(policy, tokenizer, TEXTS * 4)
    assert {ids[-1] == end for ids in drawn} == {True, False}
    assert all(end not in ids[:-1] for ids in drawn)
    assert all(len(ids) == 6 for ids in drawn if ids[-1] != end)


def test_it_runs(
    page: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"STEPS": 2, "WARMUP": 1, "PROMPTS": 4, "NEW_TOKENS": 4}.items():
        monkeypatch.setattr(page, name, value)
    page.main()
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["step", "reward"]
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert float(lines[0].split()[-1]) == pytest.approx(0, abs=1e-3), "the policy begins as the reference"
    assert last.startswith("a completion of the last step: ")
