"""Every method from the command line: refused before a model is loaded; dry runs; cards."""

import json
import shutil

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import nonpareil.commands.policies.local
from nonpareil.commands.policies import local as nonpareil_policy
from nonpareil.models.first_fingerprint import _first_fingerprint
from nonpareil.rewards.models import transformers as nonpareil_reward
from nonpareil.rollouts.store import read_table, write_table
from tests.cli.conftest import config

SHORT = {"max_steps": 2, "evaluate_after": "false"}
OFFLINE = {**SHORT, "dataset_name": None, "method": "bonbon", "n": 4}
METHODS = {
    "bond": {"n": 2, "num_reference_samples": 2, "anchor_refresh_steps": 1},
    "vbon": {"n": 2, "num_generations": 2, "num_iterations": 2},
    "bonbon": {"n": 2},
    "sft_bon": {"n": 2, "imitate": "all"},
    "regression": {"n": 2},
    "rloo": {"num_generations": 2},
}


def last_json(output):
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture
def groups(nonpareil, files):
    """A folder of four completions for each of the twelve training prompts."""
    assert nonpareil("sample", output_dir=files / "groups")[0] == 0
    return files / "groups"


@pytest.fixture
def no_model(monkeypatch):
    """Fail where a policy is loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(nonpareil.commands.policies.local, "load_policy", refuse)


def changed(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(nonpareil, files, says, **changes):
    status, out, err = nonpareil("distill", **changes)
    message = err[err.rfind("nonpareil: ") :]
    assert status in (1, 2), err
    assert out == ""
    assert "Traceback" not in err
    for part in says:
        assert part in message, message
    assert not (files / "out").exists()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change_rewards(folder, change):
    """Rewrite the aggregate rewards of every group on disk."""
    for shard in (folder / "data").glob("*.parquet"):
        table = read_table(shard)
        place = table.column_names.index("rewards")
        rewards = [change(values) for values in table["rewards"].to_pylist()]
        field = table.schema.field("rewards")
        write_table(shard, table.set_column(place, field, pa.array(rewards, field.type)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, nonpareil, files, request):
    changes = {**SHORT, **METHODS[method], "method": method}
    if method in ("bonbon", "sft_bon", "regression"):
        changes |= {"groups": request.getfixturevalue("groups"), "dataset_name": None}
    status, _, err = nonpareil("distill", save_steps=2, **changes)
    assert status == 0, err
    before, after = (AutoModelForCausalLM.from_pretrained(files / name) for name in ("policy", "out"))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    spent = json.loads((files / "out" / "spent.json").read_text())
    assert (spent["completions_drawn"] == 0) == ("groups" in changes)
    assert {path.name for path in (files / "out").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "checkpoint-2",
        "metrics.jsonl",
        "trainer_state.json",
        "README.md",
    }


def test_cached_reference_rewards_from_vbons_lines(nonpareil, files):
    """Ragged: three rewards for one prompt and five for another, and one reward is missing."""
    rows = [
        {"prompt": "the film was", "responses": ["good", "bad", "dull"], "rewards": [1.04, 0.03, None]},
        {"prompt": "a film", "responses": ["good"] * 5, "rewards": [1.04, 0.0, 2.0, 0.5, 0.1]},
    ]
    lines = write_lines(files / "cached.jsonl", rows)
    changes = {**SHORT, "dataset_name": None, "method": "vbon", "groups": lines, "n": 8}
    status, _, err = nonpareil("distill", num_generations=3, **changes)
    assert status == 0, err
    figures = [json.loads(line) for line in (files / "out" / "metrics.jsonl").read_text().splitlines()]
    assert figures[0]["rewards/failed_ratio"] == pytest.approx(1 / (8 + 6))
    assert figures[0]["anchor_reward"] == pytest.approx((1.04 + 0.03 + 1.04 + 2 + 0.5 + 0.1) / 7)
    assert json.loads((files / "out" / "spent.json").read_text())["completions_drawn"] == 2 * 2 * 3
    for method in ("bonbon", "sft_bon", "regression"):
        shutil.rmtree(files / "out", ignore_errors=True)
        refused(
            nonpareil,
            files,
            ["has no token ids or log-probs", "nonpareil sample"],
            **{**changes, "method": method, "n": 2},
        )


def test_groups_with_fingerprints_of_an_earlier_version_stay_usable(nonpareil, files, monkeypatch):
    scored = {"output_dir": files / "groups", "reward_funcs": files / "rm"}
    with monkeypatch.context() as earlier:
        for user in (nonpareil_policy, nonpareil_reward):
            earlier.setattr(user, "fingerprint", lambda path, *_, **__: _first_fingerprint(str(path), False))
        assert nonpareil("sample", **scored)[0] == 0
    assert '"sha256:' in (files / "groups" / "manifest.json").read_text()
    trained = {**OFFLINE, "groups": files / "groups", "reward_funcs": files / "rm", "dry_run": "true"}
    status, _, err = nonpareil("distill", **trained)
    assert status == 0, err
    status, out, _ = nonpareil("sample", "--json", **scored)
    figures = last_json(out)
    assert (status, figures["shards_drawn"], figures["shards_scored"]) == (0, 0, 3), "rewards are scored anew"
    assert nonpareil("distill", **trained)[0] == 0
    changed(files / "rm" / "config.json", problem_type="regression")
    _first_fingerprint.cache_clear()
    refused(nonpareil, files, ["rm.fingerprint='sha256-2:", "score the groups anew"], **trained)
    changed(files / "policy" / "config.json", pretraining_tp=1)
    _first_fingerprint.cache_clear()
    refused(nonpareil, files, ["was drawn from", "sha256:", "sha256-2:"], **trained)


def test_groups_of_another_model(nonpareil, files, groups, no_model):
    torch.manual_seed(1)
    LlamaForCausalLM(config()).save_pretrained(files / "policy")
    says = ["was drawn from", "sha256-2:", "draw groups from the model that is trained"]
    refused(nonpareil, files, says, groups=groups, **OFFLINE)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("temperature", 0.5, ["drawn with temperature=1.0", "this run has temperature=0.5"]),
        ("max_completion_length", 8, ["max_completion_length=6", "max_completion_length=8", "equal"]),
        ("n", 5, ["has 4 completions", "BoNBoN needs 5", "lower n"]),
        ("n", 1, ["n=1 must be at least 2"]),
        ("num_generations", 4, ["num_generations=4", "not read by method=bonbon", "remove"]),
        ("anchor_ema_rate", 0.1, ["anchor_ema_rate=0.1", "not read by method=bonbon"]),
        ("anchor_refresh_steps", 2, ["anchor_refresh_steps=2", "reference is fixed"]),
        ("max_train_prompts", 0, ["max_train_prompts=0 must be at least 1"]),
        ("evaluate_after", "true", ["eval_dataset_name is missing", "evaluate_after=false"]),
    ],
)
def test_settings_that_do_not_fit_the_groups(setting, value, says, nonpareil, files, groups, no_model):
    changes = {**OFFLINE, "eval_dataset_name": None, setting: value}
    refused(nonpareil, files, says, groups=groups, **changes)


def test_groups_scored_with_another_reward(nonpareil, files, groups, no_model):
    other = {"reward_funcs": f"{files}/rewards.py:few"}
    refused(
        nonpareil,
        files,
        ["rewards=['good']", "['few']", "score the groups anew"],
        groups=groups,
        **{**OFFLINE, **other},
    )
    status, _, err = nonpareil("distill", groups=groups, reward_timeout=60, dry_run="true", **OFFLINE)
    assert status == 0, err  # how long a call may take makes no other reward
    (files / "rewards.py").write_text((files / "rewards.py").read_text().replace("0.01", "0.02"))
    refused(nonpareil, files, ["good.source=", "score the groups anew"], groups=groups, **OFFLINE)


def test_a_reward_model_that_was_moved_is_still_the_same(nonpareil, files):
    assert (
        nonpareil(
            "sample", reward_funcs=None, reward_model_name_or_path=files / "rm", output_dir=files / "g"
        )[0]
        == 0
    )
    (files / "elsewhere").mkdir()
    (files / "rm").rename(files / "elsewhere" / "rm")
    changes = {**OFFLINE, "reward_funcs": None, "groups": files / "g"}
    moved = files / "elsewhere" / "rm"
    status, _, err = nonpareil("distill", reward_model_name_or_path=moved, dry_run="true", **changes)
    assert status == 0, err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: [None] * len(values), ["every reward is null", "manifest.json", "score again"]),
        (lambda values: [2.5] * len(values), ["all rewards of each prompt are equal", "tells them apart"]),
        (lambda values: None, ["is not scored", "nonpareil sample"]),
        (lambda values: [None, *values[1:]], ["no prompt has more than 3 rewards", "4 are needed"]),
    ],
)
def test_rewards_from_which_nothing_can_be_learnt(change, says, nonpareil, files, groups, no_model):
    change_rewards(groups, change)
    refused(nonpareil, files, says, groups=groups, **OFFLINE)


def test_groups_that_are_not_there(nonpareil, files, no_model):
    (files / "bare").mkdir()
    refused(nonpareil, files, ["groups is missing", "nonpareil sample"], **OFFLINE)
    refused(nonpareil, files, ["groups=", "bare", "no manifest.json"], groups=files / "bare", **OFFLINE)
    refused(nonpareil, files, ["nothing.jsonl"], groups=files / "nothing.jsonl", **OFFLINE)
    refused(
        nonpareil,
        files,
        ["groups is not read by method=rloo"],
        groups=files / "bare",
        **{**OFFLINE, "method": "rloo", "n": None},
    )


def test_unknown_methods_and_settings(nonpareil, files, no_model):
    refused(nonpareil, files, ["method='vbonn'", "did you mean vbon?"], method="vbonn")
    refused(nonpareil, files, ["n=4", "not read by method=jbond", "kl_coef", "remove n"], n=4)
    refused(nonpareil, files, ["kl_coef=0.1", "not read by method=bond"], method="bond", kl_coef=0.1)
    refused(nonpareil, files, ["epsilon=1.5", "between 0 and 1"], method="vbon", epsilon=1.5)
    refused(
        nonpareil,
        files,
        ["num_reference_samples=2", "n=4", "draw more"],
        method="bond",
        num_reference_samples=2,
    )


@pytest.mark.parametrize("stored", [False, True])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(stored, nonpareil, files, groups, request):
    if stored:
        request.getfixturevalue("no_model")  # which is loaded to be timed alone
    changes = {"method": "bond", "n": 2, "num_reference_samples": 3, "bf16": "true"}
    if stored:
        changes = {"method": "sft_bon", "groups": groups, "dataset_name": None, "n": 4}
    before = sorted(files.rglob("*"))
    status, out, err = nonpareil("distill", "--json", dry_run="true", **changes)
    assert status == 0, err
    assert sorted(files.rglob("*")) == before
    figures = last_json(out)
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(files / "policy").parameters())
    assert figures["dry_run"] is True
    assert figures["model_class"] == "LlamaForCausalLM"
    assert figures["parameters"] == figures["trained_parameters"] == parameters
    draws = 0 if stored else 1
    assert figures["memory_bytes"] == {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,  # AdamW
        "anchor": 4 * parameters * draws,
        "working_copy": 2 * parameters * draws,
        "total": (16 + 6 * draws) * parameters,
    }
    assert figures["completions_a_step"] == (0 if stored else 4 * (1 + 3))
    assert figures["prompts"] == 12
    assert figures["columns"] == ["id"]
    assert figures["method"] == changes["method"]
    assert figures["settings"]["n"] == changes["n"]


def test_a_dry_run_refuses_what_a_run_would(nonpareil, files, groups, no_model):
    refused(nonpareil, files, ["BoNBoN needs 5"], groups=groups, dry_run="true", **{**OFFLINE, "n": 5})
    refused(nonpareil, files, ["none.jsonl"], dry_run="true", dataset_name=files / "none.jsonl")


def test_the_card_names_method_settings_and_anchor(nonpareil, files, groups):
    changes = {"max_steps": 1, "max_eval_prompts": 4, "method": "bond", "n": 2}
    status, _, err = nonpareil("distill", num_reference_samples=3, anchor_refresh_steps=5, **changes)
    assert status == 0, err
    card = (files / "out" / "README.md").read_text()
    assert "tags:\n- best-of-n\n- bond\n- nonpareil\n" in card
    assert "arXiv:2407.14622" in card
    assert "| method | bond: n=2, num_generations=1, num_reference_samples=3, " in card
    assert "| anchor | a copy of the policy every 5 steps |" in card
    assert "Measured on 4 held-out prompts" in card
    assert str(files) not in card
    shutil.rmtree(files / "out")
    assert nonpareil("distill", groups=groups, **OFFLINE)[0] == 0
    card = (files / "out" / "README.md").read_text()
    assert "arXiv:2406.00832" in card
    assert "| method | bonbon: n=4, contrast=ipo, sft_weight=0.005 |" in card
    assert "| anchor | the reference, fixed |" in card
    assert "| prompts | `groups`" in card
    assert "Not evaluated" in card
