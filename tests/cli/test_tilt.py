"""`nonpareil tilt`, from groups to a policy of the asked win rate, and what it refuses before a model is loaded."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from nonpareil.commands.policies import local
from nonpareil.rollouts.manifest import read_manifest, write_manifest
from nonpareil.rollouts.reading import read_groups
from tests.cli.conftest import config, tokenizer
from tests.cli.test_credits import GOOD, made_of

END = 2


@pytest.fixture
def groups(nonpareil, files):
    assert nonpareil("sample", output_dir=files / "groups", num_generations=48, shard_size=12)[0] == 0
    return files / "groups"


@pytest.fixture
def tilt(nonpareil, files, groups):
    def run(**changes):
        settings = {
            "groups": groups,
            "model_name_or_path": files / "policy",
            "output_dir": files / "tilted",
            **changes,
        }
        words = [
            word for name, value in settings.items() if value is not None for word in (f"--{name}", value)
        ]
        return nonpareil("tilt", "--json", *words)

    return run


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "load_policy", refuse)


def test_the_policy_has_the_win_rate_that_was_asked_for(tilt, nonpareil, files):
    status, out, err = tilt(win_rate=0.65)
    assert status == 0, err
    result = json.loads(out)
    estimate = result["estimate"]
    assert estimate["win_rate"]["estimate"] == pytest.approx(0.65, abs=1e-4)
    assert "good" in result["tokens"]["up"][0]
    status, out, err = nonpareil(
        "evaluate",
        "--json",
        model_name_or_path=files / "tilted",
        reference_model_name_or_path=files / "policy",
        num_generations=48,
        num_reference_samples=48,
        dataset_name=files / "train.jsonl",
        output_dir=files / "evaluation",
        seed=3,
    )
    assert status == 0, err
    measured = json.loads(out)["evaluation"]
    assert measured["comparison"]["win_rate"]["estimate"] == pytest.approx(0.65, abs=0.04)
    assert measured["kl"]["estimate"] == pytest.approx(estimate["kl"]["estimate"], rel=0.25)


def test_the_bias_of_a_server_is_that_of_the_model(tilt, files):
    """Of each token's logit, the temperature not yet applied; the end token's and special ones' are 0."""
    assert tilt(format="logit_bias")[0] == 0
    assert sorted(each.name for each in (files / "tilted").glob("[!.]*")) == ["logit_bias.json", "tilt.json"]
    sent = json.loads((files / "tilted" / "logit_bias.json").read_text())
    sizes = [abs(value) for value in sent.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert next(iter(sent)) == str(GOOD)
    assert not {"0", "1", "2", "3"} & set(sent)
    before, folded = (files / "tilted").stat().st_mtime, tilt(overwrite="true")
    assert folded[0] == 0, folded[2]
    assert json.loads((files / "tilted" / "logit_bias.json").read_text()) == sent
    assert (files / "tilted").stat().st_mtime > before
    reference, tilted = (
        AutoModelForCausalLM.from_pretrained(files / name, dtype=torch.float32)
        for name in ("policy", "tilted")
    )
    group = read_groups(files / "groups")[0]
    ids = torch.tensor([[*group.prompt_token_ids, *group.completion_token_ids[0]]])
    added = (tilted(ids).logits - reference(ids).logits)[0, -1]
    bias = torch.tensor([sent.get(str(token), 0.0) for token in range(len(added))])
    assert torch.corrcoef(torch.stack([added, bias]))[0, 1] > 0.999
    assert (added[END], bias[END]) == (0, 0)
    assert json.loads((files / "tilted" / "sampling.json").read_text()) == {"temperature": 1.0}


def test_credits_take_the_place_of_the_completions_ranks(tilt, files, groups):
    """A value that likes "good" and nothing else lifts it alone."""
    credits = made_of(files, groups)
    status, out, err = tilt(credits=credits, format="logit_bias")
    assert status == 0, err
    sent = json.loads((files / "tilted" / "logit_bias.json").read_text())
    strength = json.loads(out)["estimate"]["strength"]
    assert set(sent) == {str(GOOD)}
    assert sent[str(GOOD)] == pytest.approx(0.8 * strength, rel=0.02)  # all but for the damping


def refused(answer, *words):
    status, _, err = answer
    assert status != 0
    for word in words:
        assert word in err, err


def test_what_cannot_work_is_refused_before_a_model_is_loaded(tilt, nonpareil, files, groups, no_model):
    refused(tilt(groups=None), "groups is missing")
    refused(tilt(n=2, win_rate=0.6), "n=2 and win_rate=0.6")
    refused(tilt(n=48), "n=48 is beyond what groups with 48 rewards")
    refused(tilt(output_dir=groups), "output_dir", "is what groups names")
    refused(tilt(groups=files / "train.jsonl"), "no manifest.json")
    (files / "tilted").mkdir()
    (files / "tilted" / "mine.txt").write_text("kept")
    refused(tilt(), "is not empty")
    refused(tilt(overwrite="true"), "mine.txt", "not ours")
    assert (files / "tilted" / "mine.txt").read_text() == "kept"


def test_groups_of_something_else_are_refused(tilt, nonpareil, files):
    def drawn(**changes):
        assert nonpareil("sample", output_dir=files / "others", overwrite="true", **changes)[0] == 0
        return tilt(groups=files / "others")

    constant = "def same(completions, **columns):\n    return [1.0] * len(completions)\n"
    (files / "constant.py").write_text(constant)
    torch.manual_seed(9)
    LlamaForCausalLM(config()).save_pretrained(files / "another")
    tokenizer().save_pretrained(files / "another")
    refused(drawn(), "48 completions with a reward, of 12 different prompts", "100 of 8 or more")
    refused(drawn(top_k=3), "top_k=3", "whole policy")
    refused(drawn(reward_funcs=f"{files}/constant.py:same"), "no prompt has two rewards")
    refused(drawn(model_name_or_path=files / "another"), "was drawn from", "another")


@pytest.mark.parametrize("changed", ["guidance", "strength"])
def test_groups_of_a_changed_policy_are_refused(tilt, groups, changed):
    manifest = read_manifest(groups)
    manifest["draw"]["model"][changed] = {"likeliest": 32}
    write_manifest(groups, manifest)
    refused(tilt(), f"{changed} of its own", "another policy")


def test_groups_whose_completions_end_elsewhere_are_refused(tilt, files):
    path = files / "policy" / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {"eos_token_id": [END, 5]}))
    refused(tilt(), f"end with the ids [{END}]", f"end with [{END}, 5]", "draw the groups anew")


def test_a_win_rate_out_of_reach_is_refused_with_what_can_be_told(tilt, files):
    refused(tilt(win_rate=0.99), "win_rate=0.99", "out of this tilt's reach", "effective completions")
    assert not (files / "tilted").exists()
