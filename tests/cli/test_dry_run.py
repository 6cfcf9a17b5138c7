"""`distill --dry_run`: rewards are tried, the hub's token is asked about, memory and hours are told."""

import copy
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from nonpareil.commands.distill import rehearsal
from nonpareil.commands.distill.dry_run import passing_memory, with_checkpointing
from nonpareil.commands.distill.fits import memory_warning
from nonpareil.commands.distill.foretold import hours, trained_completions
from nonpareil.commands.distill.rehearsal import check_repository, hub_warnings, timed_draw
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError
from nonpareil.methods import build
from nonpareil.models.logprobs import CHUNK_ELEMENTS
from nonpareil.models.memory import memory_of
from nonpareil.training import DistillationConfig
from tests.tiny import make_model, make_tokenizer, prompts_of

REWARDS = """
def fine(completions, trainer_state, log_extra, **columns):
    log_extra("words", [len(c.split()) for c in completions])
    return [len(c) + trainer_state.max_steps for c in completions]

def column(completions, answer):
    return [0.0] * len(completions)

def fails(completions, **columns):
    raise ValueError("no number here")

def long(completions, log_extra):
    log_extra("words", [1])
    return [0.0] * len(completions)
"""


@pytest.fixture
def rewards(files: Path) -> str:
    (files / "tried.py").write_text(REWARDS)
    return f"{files}/tried.py"


def test_rewards_are_tried_and_the_speed_is_told(nonpareil, files, rewards) -> None:
    before = {path for path in files.rglob("*") if "__pycache__" not in str(path)}
    status, out, err = nonpareil(
        "distill",
        "--json",
        dry_run="true",
        reward_funcs=f"{rewards}:fine {rewards}:fails",
        reward_model_name_or_path=files / "rm",
    )
    assert status == 0, err
    assert {path for path in files.rglob("*") if "__pycache__" not in str(path)} == before
    plan = json.loads(out.splitlines()[-1])
    assert plan["rewards"]["fine"]["scores"] == [len(rehearsal.MADE_UP) + 3] * 2
    assert plan["rewards"]["fails"]["scores"] == [None, None]
    assert all(isinstance(score, float) for score in plan["rewards"]["rm"]["scores"])
    assert plan["warnings"][0].startswith(
        "reward 'fine' gave a made-up completion no score without a training"
    )
    assert plan["warnings"][1:] == [
        "reward 'fails' gave a made-up completion no score: ValueError: no number here"
    ]
    assert plan["steps"] == 3
    assert plan["speed"]["tokens_per_second"].keys() == {"drawn", "passed"}
    hours = plan["speed"]["estimated_hours"]
    assert hours["total"] > 0
    assert hours["total"] == pytest.approx(hours["drawing"] + hours["passes"], rel=0.02)
    assert plan["memory_gib"].keys() == {*plan["memory_bytes"], "activations", "logits", "cache"}
    assert plan["device_gib"] == pytest.approx(memory_of(torch.device("cpu")) / 2**30, rel=0.01)
    assert f"of {plan['device_gib']:.4g} that this device has" in " ".join(err.replace("│", " ").split())
    shown = " ".join(err.replace("│", " ").split())
    assert "Warning: reward 'fails' gave a made-up completion no score" in shown
    assert "hours, an estimate" in shown
    assert "GiB held" in shown
    assert "'fine' reads trainer_state, which is None in the evaluation that follows" in shown


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("column", "reward function 'column': missing a required argument: 'answer'"),
        ("long", "'long': log_extra('words', ...) got 1 values for 2 completions; give one per completion"),
    ],
)
def test_a_reward_that_a_training_would_refuse_is_refused(nonpareil, rewards, function, message) -> None:
    status, out, err = nonpareil("distill", dry_run="true", reward_funcs=f"{rewards}:{function}")
    assert status in (1, 2)
    assert out == ""
    assert message in err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub of this machine: who a token is of, after so many seconds."""

    class Hub(http.server.BaseHTTPRequestHandler):
        wait = 0.0

        def do_GET(self) -> None:
            time.sleep(self.wait)
            known = self.headers["Authorization"] == "Bearer hf_known"
            body = json.dumps(
                {"name": "ann", "type": "user"} if known else {"error": "Invalid token"}
            ).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()


def pushed(tmp_path: Path, **changes: Any) -> DistillationConfig:
    settings = {"push_to_hub": True, "hub_token": "hf_known", "report_to": "none", "use_cpu": True, **changes}
    return DistillationConfig(output_dir=str(tmp_path / "run"), **settings)


def test_the_hub_is_asked_about_the_token(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_warnings(pushed(tmp_path)) == []
    assert "the hub does not take the token" in hub_warnings(pushed(tmp_path, hub_token="hf_other"))[0]
    assert hub_warnings(pushed(tmp_path, push_to_hub=False, hub_token=None)) == []
    monkeypatch.setattr(rehearsal, "HUB_SECONDS", 0.2)
    hub.wait = 1.0
    assert "did not answer within 0.2 s" in hub_warnings(pushed(tmp_path))[0]


def test_a_name_that_the_hub_does_not_take_is_refused(tmp_path: Path, hub: Any) -> None:
    check_repository(pushed(tmp_path, hub_model_id="ann/films"))
    with pytest.raises(ConfigError, match=r"hub_model_id='ann/films/1' cannot be a repository"):
        check_repository(pushed(tmp_path, hub_model_id="ann/films/1"))


def test_a_timed_draw_counts_what_a_step_draws(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    policy, prompts = LocalPolicy(str(tmp_path / "model")), prompts_of(*[[1, 7, 8 + i % 9] for i in range(6)])
    method = build("bond", {"n": 2, "num_reference_samples": 3})
    config = DistillationConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_completion_length=12,
        per_device_train_batch_size=4,
    )  # fmt: skip
    policy.check(prompts, config.sampling(0))
    told = timed_draw(policy, config, method, prompts, steps=100)
    assert told["timed_completions"] in (4, 8, 16), "one, two or four prompts, as the clock allows"
    speed, hours = told["tokens_per_second"], told["estimated_hours"]
    assert hours["drawing"] == pytest.approx(100 * 16 * 12 / speed["drawn"] / 3600, rel=0.02)
    # Policy and anchor score one completion; three of the four are descended.
    tokens = 2 * 100 * 4 * 15 + 3 * 100 * 4 * (3 * 15)
    assert hours["passes"] == pytest.approx(tokens / speed["passed"] / 3600, rel=0.02)
    memory = passing_memory(policy.config, config, method, prompts)
    assert memory["cache"] == 2 * 16 * 2 * 4 * (16 * 15)
    config.gradient_checkpointing = True
    assert 0 < passing_memory(policy.config, config, method, prompts)["activations"] < memory["activations"]
    unknown = {"activations": None, "logits": None, "cache": None}
    assert passing_memory(object(), config, method, prompts) == unknown
    vocabulary = make_model().config.vocab_size
    assert memory["logits"] == 4 * 4 * 4 * (4 * 15) * vocabulary, "of all that a step has"
    large = copy.deepcopy(policy.config)
    large.vocab_size = 10**6
    assert passing_memory(large, config, method, prompts)["logits"] == 4 * 4 * CHUNK_ELEMENTS, "of a chunk"


def test_what_is_descended_and_how_dearly_is_in_the_hours(tmp_path: Path) -> None:
    assert [trained_completions(build(*of)) for of in (("jbond", {}), ("rloo", {}), ("vbon", {"n": 4}))] == [
        3,
        4,
        4,
    ]
    config = DistillationConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    method, passes = build("jbond", {}), []
    for config.use_peft, config.gradient_checkpointing in ((False, False), (False, True), (True, False)):
        passes.append(hours(config, method, 3600, 1.0, 1.0, (0.0, 1.0))["passes"])
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert passes == [3.0 * a_step, 4.0 * a_step, 2.0 * a_step]


GIB = 2**30


def test_what_does_not_fit_is_said_with_what_would() -> None:
    def parts(held: float, activations: float | None, cache: float = 1) -> dict[str, int | None]:
        size = None if activations is None else int(activations * GIB)
        passing = {"activations": size, "logits": 0, "cache": int(cache * GIB)}
        return {"weights": int(held * GIB), "total": 0, **passing}

    plain, less = parts(10, 8), parts(10, 2)
    assert memory_warning(plain, less, 19 * GIB) is None
    assert memory_warning(plain, less, None) is None
    assert memory_warning(parts(99, None), parts(99, None), GIB) is None, "nobody knows"
    said = memory_warning(plain, less, 16 * GIB)
    assert said == (
        "memory: up to 19 GiB are needed, by an estimate, and this device has 16; with "
        "gradient_checkpointing=true it is 13, in more time"
    )
    said = memory_warning(plain, less, 12 * GIB)
    assert said
    assert said.endswith(
        "give gradient_checkpointing=true and a lower max_tokens_per_batch, which activations and cache follow"
    )
    said = memory_warning(less, less, 12 * GIB)
    assert said
    assert "give a lower max_tokens_per_batch" in said
    assert "checkpointing" not in said
    said = memory_warning(plain, less, 9 * GIB)
    assert said
    assert "10 are held throughout: give use_peft=true" in said


def test_checkpointing_is_estimated_and_the_setting_left_as_it_is(tmp_path: Path) -> None:
    config = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    model, prompts = make_model().config, prompts_of([2, 3])
    method = build("jbond", {})
    usual, other = (
        passing_memory(model, each, method, prompts)["activations"]
        for each in (config, with_checkpointing(config))
    )
    assert other < usual
    assert not config.gradient_checkpointing
