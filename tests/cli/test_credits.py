"""`nonpareil distill --credits`: trained on from the command line, and refused before a model is loaded."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nonpareil.commands.distill.learnt import tell_learnt
from nonpareil.commands.policies import local
from nonpareil.credits import Credits
from nonpareil.engines.sampling import sample_keys
from nonpareil.models.candidates import choose_candidates
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.logprobs import TokenSequences
from nonpareil.rollouts.credits import (
    CreditsSource,
    begin_credits,
    credits_path,
    groups_identity,
    write_credits,
)
from nonpareil.rollouts.reading import read_groups

GOOD = 8
SETTINGS = {"dataset_name": None, "evaluate_after": "false", "eval_dataset_name": None}
SETTINGS |= {"num_generations_eval": None, "num_reference_samples_eval": None}
VALUE = {**SETTINGS, "method": "value_distillation"}


def made_of(files, groups, *, policy="policy", value=0.8):
    """Credits of a value that likes "good", of two files."""
    model = AutoModelForCausalLM.from_pretrained(files / policy)
    source = CreditsSource(fingerprint(str(files / policy)), groups_identity(groups), {"likes": GOOD})
    folder, every = files / "credits", read_groups(groups)
    shards = [every[:7], every[7:]]
    begin_credits(folder, source, len(shards))
    for index, shard in enumerate(shards):
        found = {}
        for group in shard:
            ids = group.completion_token_ids
            sequences = TokenSequences([group.prompt_token_ids] * len(ids), ids)
            keys = sample_keys(group.prompt_id, range(len(ids)), seed=0)
            chosen = choose_candidates(model, sequences, keys, likeliest=4, from_tail=2)
            found[group.prompt_id] = [
                Credits(
                    chosen.token_ids[row, : len(own)].int().numpy(),
                    chosen.weights[row, : len(own)].numpy(),
                    (value * (chosen.token_ids[row, : len(own)] == GOOD)).float().numpy(),
                    np.zeros(len(own), np.float32),
                )
                for row, own in enumerate(ids)
            ]
        write_credits(folder, index, found, source)
    return folder


@pytest.fixture
def groups(nonpareil, files):
    assert nonpareil("sample", output_dir=files / "groups")[0] == 0
    return files / "groups"


@pytest.fixture
def others(nonpareil, files):
    assert nonpareil("sample", output_dir=files / "others", seed=5)[0] == 0
    return files / "others"


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "load_policy", refuse)


def next_token(files, name):
    """Of the reviewed prompt, after each policy."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(files / name)(torch.tensor([[1, 5, 6, 7]])).logits
    return logits[0, -1].softmax(-1)


def test_a_training_moves_the_policy_towards_what_the_value_likes(nonpareil, files, groups):
    credits = made_of(files, groups)
    more = {"groups": groups, "credits": credits, "max_steps": 8, "strength": 2.0, "learning_rate": 5e-3}
    status, _, err = nonpareil("distill", **VALUE, **more)
    assert status == 0, err
    before, after = next_token(files, "policy"), next_token(files, "out")
    assert (after / before).argmax() == GOOD
    lines = [json.loads(line) for line in (files / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert lines[-2]["loss"] < -0.3 * lines[-2]["value/target_kl"]
    assert json.loads((files / "out" / "spent.json").read_text())["completions_drawn"] == 0
    assert "strength=2.0" in (files / "out" / "README.md").read_text()


def test_what_no_learning_rate_is_given_for_is_the_methods_and_what_is_learnt_is_told(
    nonpareil, files, groups, capsys
):
    given = {
        **VALUE,
        "groups": groups,
        "credits": made_of(files, groups),
        "max_steps": 1,
        "learning_rate": None,
    }
    status, _, err = nonpareil("distill", **given)
    assert status == 0, err
    assert "hardly anything was learnt: " in err
    card = (files / "out" / "README.md").read_text()
    assert "| learning rate | 0.0002 |" in card
    tell_learnt([{"loss": -0.4, "value/target_kl": 0.2}])
    assert "noise was learnt by heart: 2.00 times" in capsys.readouterr().err
    tell_learnt([{"loss": -0.1, "value/target_kl": 0.2}, {"loss": 1.0}])
    assert capsys.readouterr().err == ""


def refused(nonpareil, files, **changes):
    status, out, err = nonpareil("distill", **{**VALUE, **changes})
    assert status in (1, 2), err
    assert out == ""
    assert "Traceback" not in err
    assert not (files / "out").exists()
    return err


def test_what_cannot_be_trained_on_is_refused_before_a_model_is_loaded(
    nonpareil, files, groups, others, no_model
):
    credits = made_of(files, groups)
    assert "12 prompts; a value needs 20" in refused(nonpareil, files, groups=groups)
    given = {"groups": groups, "credits": credits}
    assert "credits is not read by method=sft_bon" in refused(
        nonpareil, files, **given, method="sft_bon", n=2
    )
    assert "groups is missing" in refused(nonpareil, files, credits=credits)
    assert "output_dir" in refused(nonpareil, files, **given, output_dir=credits)
    assert "are of other groups than groups=" in refused(nonpareil, files, groups=others, credits=credits)

    file = credits_path(credits, 1)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert f"{file.name} is corrupt" in refused(nonpareil, files, **given)
    file.unlink()
    assert "not finished: 1 of 2 files are missing" in refused(nonpareil, files, **given)
    file.write_bytes(whole)
    status, out, err = nonpareil("distill", "--json", **VALUE, **given, dry_run="true")
    assert status == 0, err
    figures = json.loads(out.strip().splitlines()[-1])
    assert figures["memory_bytes"]["anchor"] == 4 * figures["parameters"]
    assert figures["memory_bytes"]["working_copy"] == 0

    shutil.rmtree(credits)
    assert "holds no credits" in refused(nonpareil, files, **given)
    said = refused(nonpareil, files, groups=groups, credits=made_of(files, groups, value=0.0))
    assert "the value is constant" in said

    shutil.rmtree(credits)
    shutil.copytree(files / "policy", files / "other")
    model = AutoModelForCausalLM.from_pretrained(files / "other")
    model.lm_head.weight.data += 0.1
    model.save_pretrained(files / "other")
    said = refused(nonpareil, files, groups=groups, credits=made_of(files, groups, policy="other"))
    assert "were made with another policy" in said
