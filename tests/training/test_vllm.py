"""Training draws with real vLLM: its draws are the policy's after every update, and what goes wrong is caught."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from nonpareil.errors import ConfigError, SyncError
from nonpareil.models.logprobs import TokenSequences
from nonpareil.training import DistillationTrainer
from nonpareil.training.step.accumulate import weighted_gradient
from tests.tiny import forced_logprobs
from tests.training.conftest import make_trainer, metrics, stored_groups

SETTINGS: dict[str, Any] = {
    "use_vllm": True,
    "optim": "sgd",
    "learning_rate": 0.5,
    "max_steps": 3,
    "per_device_train_batch_size": 6,
    "bf16": False,
}
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
BOND = {"method": "bond", "n": 2, "num_generations": 2, "num_reference_samples": 2}


@pytest.fixture
def vllm_trainer(tmp_path: Path) -> Iterator[Any]:
    """Makes trainers of a tiny tied model that lies on disk; ends their engines."""
    from tests.engines.vllm_models import save, tied_llama

    made: list[DistillationTrainer] = []
    save(tied_llama(), tmp_path / "model")

    def make(**changes: Any) -> DistillationTrainer:
        model = type(tied_llama()).from_pretrained(tmp_path / "model", dtype=torch.float32)
        made.append(make_trainer(tmp_path / "out", model=model, **{**SETTINGS, **changes}))
        return made[-1]

    yield make
    for trainer in made:
        trainer.step_sampler.release()


@pytest.mark.vllm
@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_every_steps_draws_are_the_policys(vllm_trainer: Any, tmp_path: Path, lora: dict[str, Any]) -> None:
    trainer = vllm_trainer(**lora)
    trainer.train()
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["sampling/sampling_logp_difference/max"] < 2e-3
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=5e-3)
    # What moved: without pushes the engine's log-probs would be those of the start.
    actors = trainer.step_sampler.start()
    actors.begin_step()
    drawn = actors.draw(trainer.train_dataset, 2, 2, *[trainer.args.sampling(s) for s in (1, 2)])
    before = type(trainer.step_sampler.actors.inner.model if lora else trainer.model).from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    prompt, draws = trainer.train_dataset[0], drawn.policy[0]
    at_start = forced_logprobs(before, prompt.token_ids, draws.completion_token_ids[0])
    sampled = torch.tensor(drawn.sampler_logprobs[0][0])
    assert (sampled - at_start).abs().max() > 0.02, "the policy has not moved; this test shows nothing"
    torch.testing.assert_close(sampled, torch.tensor(draws.logprobs[0]), atol=2e-3, rtol=0)


@pytest.mark.vllm
def test_a_fixed_reference_is_pushed_once_where_nothing_else_is_drawn(vllm_trainer: Any) -> None:
    trainer = vllm_trainer(**BOND)
    actors = trainer.step_sampler.start()
    pushes: list[str] = []
    push = actors.inner.hand_over
    actors.inner.hand_over = lambda role, engine: (pushes.append(role), push(role, engine))
    sampling = [trainer.args.sampling(1)] * 2
    for k in (0, 0, 1, 1):
        actors.begin_step()
        actors.draw(trainer.train_dataset, k, 2, *sampling)
    assert pushes == ["anchor", "policy", "anchor", "policy", "anchor"]


@pytest.mark.vllm
def test_a_push_that_never_arrives_stops_the_run(vllm_trainer: Any) -> None:
    trainer = vllm_trainer()
    actors = trainer.step_sampler.start()
    actors.draw(trainer.train_dataset, 1, 0, *[trainer.args.sampling(1)] * 2)
    actors.inner.hand_over = lambda role, engine: None
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    actors.begin_step()
    with pytest.raises(SyncError, match="never arrived"):
        actors.draw(trainer.train_dataset, 1, 0, *[trainer.args.sampling(1)] * 2)


@pytest.mark.vllm
def test_a_stale_tied_head_stops_the_run(vllm_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nonpareil.engines.vllm.worker import WeightPush

    trainer = vllm_trainer()
    monkeypatch.setattr(WeightPush, "_repack_tied_head", lambda self: True)
    actors = (
        trainer.step_sampler.start().inner
    )  # as files and named_parameters hold weights: without the tied head
    actors.hand_over = lambda role, engine: engine.push_weights(actors.take(role).named_parameters())
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    with pytest.raises(SyncError, match="head tied"):
        trainer.train()


@pytest.mark.vllm
def test_adapters_that_are_mixed_up_stop_the_run(vllm_trainer: Any) -> None:
    trainer = vllm_trainer(**LORA)
    actors = trainer.step_sampler.start()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * (0.5 if ".anchor." in name else 0.2))
    score = actors.engine.completion_logprobs
    # vLLM's trap: rows asked of one adapter get the other, which was loaded last.
    actors.engine.completion_logprobs = lambda sequences, adapter=None: score(sequences, "default")
    with pytest.raises(SyncError, match="those of the policy"):
        actors.draw(trainer.train_dataset, 1, 1, *[trainer.args.sampling(1)] * 2)


def test_importance_weights_scale_each_draws_gradient() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    weights = torch.tensor([[0.5, 2.0]])
    weighted = weighted_gradient(values, weights[..., None])
    torch.testing.assert_close(weighted, values)
    (weighted * torch.tensor([[[1.0, 1.0], [10.0, 10.0]]])).sum().backward()
    assert values.grad.tolist() == [[[0.5, 0.5], [20.0, 20.0]]]


def test_importance_weights_are_truncated_ratios_of_whole_completions(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batch = trainer.step_sampler.draw(trainer.train_dataset, step=0)
    gaps = [0.1, -0.2, 5.0, 0.0, 0.3, -1.0]
    sampled = [
        [[value - gap / len(values) for value in values] for values in group.logprobs[:1]]
        for group, gap in zip(batch.groups, gaps, strict=True)
    ]
    other = type(batch)(batch.groups, batch.draws, batch.num_policy, sampled)
    expected = torch.tensor(gaps).exp().clamp(max=2.0)[:, None]
    torch.testing.assert_close(other.importance_weights(2.0), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch.importance_weights(2.0), torch.ones(6, 1))


def test_an_engine_that_nothing_would_use_is_refused(tmp_path: Path) -> None:
    server = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:1"}
    with pytest.raises(ConfigError, match="use_vllm"):
        make_trainer(tmp_path, method="regression", n=2, groups=stored_groups(4), **server)
    with pytest.raises(ConfigError, match="vllm_mode"):
        make_trainer(tmp_path, peft_config=LoraConfig(target_modules=["q_proj"]), **server)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "127.0.0.1:8000"}, "http://"),
        ({"shard_weights": True, "load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"shard_weights": True, "save_on_each_node": True}, "save_on_each_node"),
        ({"vllm_server_base_url": "http://127.0.0.1:1"}, "vllm_server_base_url"),
        ({"vllm_importance_sampling_correction": True}, "vllm_importance_sampling_correction"),
        ({"vllm_gpu_memory_utilization": 0.5}, "vllm_gpu_memory_utilization"),
        ({"use_vllm": True, "vllm_mode": "server"}, "vllm_server_base_url"),
        ({"use_vllm": True, "vllm_mode": "sleep"}, "vllm_mode"),
    ],
)
def test_settings_that_nothing_reads_are_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_trainer(tmp_path, **change)


def test_token_sequences_of_draws_keep_their_order(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    drawn = trainer.step_sampler.start().draw(trainer.train_dataset, 2, 1, *[trainer.args.sampling(1)] * 2)
    sequences = TokenSequences.of(trainer.train_dataset, drawn.policy)
    assert sequences.completion_ids == [ids for d in drawn.policy for ids in d.completion_token_ids]
    assert sequences.prompt_ids[3] == trainer.train_dataset[1].token_ids


@pytest.mark.vllm
def test_a_server_draws_for_training(tmp_path: Path) -> None:
    from tests.engines.test_vllm_server import serving
    from tests.engines.vllm_models import save, tied_llama

    path = save(tied_llama(), tmp_path / "model")
    with serving(path, tmp_path) as url:
        model = type(tied_llama()).from_pretrained(path, dtype=torch.float32)
        trainer = make_trainer(
            tmp_path / "out",
            model=model,
            **{**SETTINGS, "vllm_mode": "server", "vllm_server_base_url": url},
            vllm_importance_sampling_correction=True,
        )
        trainer.train()
        trainer.release()
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["sampling/sampling_logp_difference/max"] < 2e-3 for line in lines)
    start = tied_llama().state_dict()
    assert max((p - start[n]).abs().max() for n, p in trainer.model.named_parameters()) > 0.01


@pytest.mark.vllm
def test_sharded_processes_draw_from_one_server_and_hold_no_whole_model(tmp_path: Path) -> None:
    from tests.engines.test_vllm_server import serving
    from tests.engines.vllm_models import save, tied_llama
    from tests.training.test_processes import train

    path = save(tied_llama(), tmp_path / "model")
    with serving(path, tmp_path) as url:
        settings = {**SETTINGS, "vllm_mode": "server", "vllm_server_base_url": url, "model": path}
        settings |= {
            "num_prompts": 5,
            "per_device_train_batch_size": 2,
        }  # the third step has one prompt for two
        train(
            tmp_path / "two",
            2,
            {"jbond": {**settings, "per_device_train_batch_size": 1, "shard_weights": True}},
        )
        train(tmp_path / "one", 1, {"jbond": settings})
    held = json.loads((tmp_path / "two" / "jbond" / "held.json").read_text())
    assert [h["read_in_shards"] for h in held] == [True, True]
    whole = sum(p.numel() for p in tied_llama().parameters())
    assert sum(h["policy"] for h in held) == sum(h["anchor"] for h in held) == whole
    two, one = metrics(tmp_path / "two" / "jbond"), metrics(tmp_path / "one" / "jbond")
    assert [line["step"] for line in two] == [1, 2, 3]
    for mine, alone in zip(two, one, strict=True):
        assert mine["sampling/sampling_logp_difference/max"] < 2e-3
        assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-2, abs=1e-3)
