"""`nonpareil value`, `nonpareil credits`, and a distillation that makes its own: files, going on, refusals."""

import json
import shutil
from functools import partial

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from nonpareil.commands.policies import local
from nonpareil.models.loading import load_tokenizer
from nonpareil.rollouts.credits import read_credits
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.values import fit as fitting
from nonpareil.values import network
from nonpareil.values.settings import FitSettings
from tests.cli.conftest import WORDS, config

PROMPTS = [f"the film was {one} {other}" for one in WORDS[:6] for other in WORDS[4:9]]
DISTILL = {"dataset_name": None, "evaluate_after": "false", "eval_dataset_name": None}
DISTILL |= {"num_generations_eval": None, "num_reference_samples_eval": None, "method": "value_distillation"}
FEW = {"likeliest": 4, "from_tail": 2, "credited_completions": 2}


@pytest.fixture
def groups(nonpareil, files):
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (files / "train.jsonl").write_text(rows)
    status, _, err = nonpareil("sample", output_dir=files / "groups", num_generations=6)
    assert status == 0, err
    return files / "groups"


def refuse(*args, **kwargs):
    raise AssertionError("a model was loaded")


def fit(nonpareil, groups, out, *more, status=0):
    got, out, err = nonpareil(
        *("value", "--json", "--groups", groups, "--output_dir", out, "--learning_rate", "0.02"),
        *("--num_train_epochs", "6", "--per_device_train_batch_size", "24", "--bins", "4", *more),
    )
    assert got == status, err
    return json.loads(out.splitlines()[-1]) if status == 0 else err


def credit(nonpareil, groups, value, out, *more):
    words = [word for name, number in FEW.items() for word in (f"--{name}", number)]
    return nonpareil(
        "credits", "--json", "--groups", groups, "--value", value, "--output_dir", out, *words, *more
    )


def test_a_value_is_fitted_its_credits_are_made_and_trained_on(nonpareil, files, groups):
    said = fit(nonpareil, groups, files / "value")
    assert said["begun_with"] == str(files / "policy")
    report = json.loads((files / "value" / "report.json").read_text())
    assert report == said["report"]
    assert report["prompts"] == 8
    assert report["gain"]["estimate"] > 0
    notes = json.loads((files / "value" / "value.json").read_text())
    assert (notes["bins"], notes["fitted"]["completions"]) == (4, 22 * 6)
    assert notes["temperature"] == 1.0

    status, out, err = credit(nonpareil, groups, files / "value", files / "credits")
    assert status == 0, err
    assert ("may tell nothing" in err) == (report["gain"]["low"] <= 0)  # of 8 held-out prompts either may be
    assert "target_n=4 wins 0.800, and of groups of 6 in 4 bins a policy learns to win 0." in err
    totals = json.loads(out.splitlines()[-1])["totals"]
    assert (totals["completions"], totals["candidates"]) == (60, 7)
    assert totals == json.loads((files / "credits" / "totals.json").read_text())
    credits = read_credits(files / "credits")
    assert len(credits) == 30
    assert all(sum(each is not None for each in credits[prompt]) == 2 for prompt in credits)

    given = {"groups": groups, "credits": files / "credits"}
    status, _, err = nonpareil("distill", **DISTILL, **given)
    assert status == 0, err
    card = (files / "out" / "README.md").read_text()
    made = f"value `{credits.source.value['fingerprint']}`, target_n=4.0, target=tilt, credited_completions=2"
    assert f"| credits | {made}, likeliest=4, from_tail=2 |\n| anchor |" in card
    _, _, err = nonpareil("distill", **DISTILL, **given, likeliest=4)
    assert "likeliest=4 is read by what makes credits only, and credits are given" in err


def test_credits_are_gone_on_with_and_those_of_other_settings_kept_apart(
    nonpareil, files, groups, monkeypatch
):
    fit(nonpareil, groups, files / "value")
    whole = json.loads(credit(nonpareil, groups, files / "value", files / "whole")[1].splitlines()[-1])[
        "totals"
    ]
    monkeypatch.setattr("nonpareil.commands.credits.SHARD", 8)
    assert credit(nonpareil, groups, files / "value", files / "credits")[0] == 0
    data = sorted((files / "credits" / "data").iterdir())
    assert len(data) == 4
    before = [path.read_bytes() for path in data]
    took = json.loads((files / "credits" / "spent.json").read_text())
    data[2].unlink()
    data[1].write_bytes(before[1][:-9])
    status, out, err = credit(nonpareil, groups, files / "value", files / "credits")
    assert status == 0, err
    assert "16 groups to credit" in err
    assert [path.read_bytes() for path in data] == before
    totals = json.loads(out.splitlines()[-1])["totals"]
    assert totals == pytest.approx(whole, rel=1e-3)  # of other batches
    in_all = json.loads((files / "credits" / "spent.json").read_text())
    assert in_all["seconds"] > took["seconds"] > 0
    assert in_all["candidates"] == took["candidates"] == totals["positions"] * 7

    status, _, err = credit(nonpareil, groups, files / "value", files / "credits", "--target_n", "8")
    assert status == 2
    assert "source.value.target_n: 4.0 there, 8.0 now" in err


def test_a_distillation_makes_what_is_missing(nonpareil, files, groups):
    status, _, err = nonpareil("distill", **DISTILL, groups=groups)
    assert status == 2
    assert "likeliest=16 and from_tail=8 are" in err
    assert "more than the policy's 17 tokens" in err
    assert not (files / "out" / "value").exists(), "refused before anything is fitted"
    status, out, err = nonpareil("distill", "--json", **DISTILL, **FEW, groups=groups, dry_run="true")
    assert status == 0, err
    cost = json.loads(out.splitlines()[-1])["credits"]
    assert (cost["fitted_completions"], cost["completions"]) == (180, 60)
    assert 60 * 7 <= cost["candidates"] <= 60 * 7 * 6

    fit(nonpareil, groups, files / "value")
    status, _, err = nonpareil("distill", **DISTILL, **FEW, groups=groups, value=files / "value")
    assert status == 0, err
    assert "30 groups to credit" in err
    assert (files / "out" / "credits" / "totals.json").is_file()
    assert not (files / "out" / "value").exists()
    spent = json.loads((files / "out" / "spent.json").read_text())
    assert (spent["completions_drawn"], list(spent["made_before"])) == (0, ["credits"])
    assert (files / "out" / "model.safetensors").is_file()


def test_the_trainings_bound_of_memory_is_that_of_its_values_fit(nonpareil, files, groups, monkeypatch):
    bounds, batches = set(), fitting.token_budget_batches

    def noted(lengths, most):
        bounds.add(most)
        return batches(lengths, most)

    monkeypatch.setattr(fitting, "token_budget_batches", noted)
    nonpareil("distill", **DISTILL, **FEW, groups=groups, max_tokens_per_batch=48)
    assert bounds == {48}


def test_a_gain_that_may_be_chance_is_told_with_what_would_help(nonpareil, files, groups):
    """Eight held-out prompts show little; it is said of the value, and before credits are made of it."""
    words = ("--learning_rate", "0.02", "--bins", "4")
    status, _, err = nonpareil("value", "--groups", groups, "--output_dir", files / "value", *words)
    assert status == 0, err
    gain = json.loads((files / "value" / "report.json").read_text())["gain"]
    assert gain["low"] <= 0 < gain["estimate"]
    said = "on 8 held-out prompts, with a 95% interval of [-"
    for told in (err, credit(nonpareil, groups, files / "value", files / "credits")[2]):
        assert "/value' may tell nothing: it is " in told
        assert said in told
        assert "Fit it on more prompts, or on more completions of each" in told


VALUE = """
import torch

class Likes:
    def __init__(self, n):
        self.n = n

    def of(self, ids):
        return self.n * (ids == 8).float()

    def prefix_values(self, sequences):
        rows = [self.of(torch.tensor([0, *ids])).cumsum(0) for ids in sequences.completion_ids]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def candidate_values(self, sequences, token_ids):
        return self.prefix_values(sequences)[:, :-1, None] + self.of(token_ids)

    def describe(self):
        return {"likes": 8, "n": self.n}

def likes(n, target):
    return Likes(n)

class Flat(Likes):
    def of(self, ids):
        return 0.0 * super().of(ids)

def flat(n, target):
    return Flat(n)

def nothing(n, target):
    return None
"""


def test_a_function_of_the_users_makes_a_value(nonpareil, files, groups):
    (files / "own.py").write_text(VALUE)
    status, _, err = credit(nonpareil, groups, f"{files}/own.py:likes", files / "credits", "--target_n", "3")
    assert status == 0, err
    assert "is a function, which does not say of which temperature and reward it is" in err
    assert "temperature 1 among them" in err
    credits = read_credits(files / "credits")
    assert credits.source.value["n"] == 3.0
    for each in (each for prompt in credits for each in credits[prompt] if each is not None):
        assert (each.advantages == 3.0 * (each.token_ids == 8)).all()
    words = (
        "credits",
        "--groups",
        groups,
        "--output_dir",
        files / "nowhere",
        "--likeliest",
        2,
        "--from_tail",
        0,
    )
    assert "made a NoneType" in refused(nonpareil, *words, "--value", f"{files}/own.py:nothing")
    assert "no 'liked'" in refused(nonpareil, *words, "--value", f"{files}/own.py:liked")
    assert not (files / "nowhere").exists()
    assert "is constant: on the first 30" in refused(nonpareil, *words, "--value", f"{files}/own.py:flat")
    assert not list((files / "nowhere").glob("data/*"))


def test_a_value_of_another_reward_or_of_other_groups_is_not_taken_for_this_ones(
    nonpareil, files, groups, monkeypatch
):
    """Groups are scored anew in place, and are drawn as they were."""
    fit(nonpareil, groups, files / "value")
    fit(nonpareil, groups, files / "out" / "value")
    assert credit(nonpareil, groups, files / "value", files / "credits")[0] == 0
    with (files / "rewards.py").open("a") as code:
        code.write(
            "\ndef fewest(completions, **columns):\n    return [-float(len(text)) for text in completions]\n"
        )
    other = {"reward_funcs": f"{files}/rewards.py:fewest"}
    before = {"groups": groups, "max_steps": 1}
    monkeypatch.setattr(local, "load_policy", refuse)
    monkeypatch.setattr(network, "read_model", refuse)
    kept = nonpareil("distill", **DISTILL, **FEW, **before, max_train_prompts=24, seed=5)
    assert kept[0] == 2
    for difference in (
        "seed: 0 there, 5 now",
        "groups_sha256: ",
        "bins: 4 there, 16 now",
        "Give --overwrite",
    ):
        assert difference in kept[2]
    assert "learning_rate: 0.02 there, None now" in kept[2]

    assert nonpareil("sample", output_dir=groups, num_generations=6, **other)[0] == 0
    status, _, err = credit(nonpareil, groups, files / "value", files / "new")
    assert status == 2
    assert "of another reward than the groups'" in err
    for given in ({"value": files / "value"}, {"credits": files / "credits"}):
        few = FEW if "value" in given else {}
        status, _, err = nonpareil("distill", **{**DISTILL, **few, **before, **other, **given})
        assert status == 2
        assert "of another reward than the groups'" in err
    status, _, err = nonpareil("distill", **{**DISTILL, **FEW, **before, **other})
    assert status == 2
    assert "rewards: ['" in err


@pytest.mark.slow
def test_a_training_that_goes_on_keeps_its_credits_and_one_that_begins_anew_does_not(
    nonpareil, files, groups
):
    fit(nonpareil, groups, files / "value")
    again = {**DISTILL, **FEW, "groups": groups, "value": files / "value"}
    assert nonpareil("distill", **again)[0] == 0
    again["max_steps"] = 6
    status, _, err = nonpareil("distill", **again, resume_from_checkpoint="true")
    assert status == 0, err
    assert "groups to credit" not in err
    status, _, err = nonpareil("distill", **again, overwrite="true")
    assert status == 0, err
    assert "30 groups to credit" in err


@pytest.mark.slow
def test_one_that_was_killed_before_its_training_goes_on(nonpareil, files, groups, monkeypatch):
    """A value and credits alone lie in its folder then, which is begun anew all the same."""
    fit(nonpareil, groups, files / "out" / "value", "--seed", "42")
    small = {"learning_rate": 0.02, "num_train_epochs": 6, "per_device_train_batch_size": 24, "bins": 4}
    monkeypatch.setattr("nonpareil.commands.distill.credits.FitSettings", partial(FitSettings, **small))
    status, _, err = nonpareil("distill", **DISTILL, **FEW, groups=groups)
    assert status == 0, err
    assert "completions to fit" not in err
    assert (files / "out" / "model.safetensors").is_file()
    assert (files / "out" / "value" / "value.json").is_file()


def test_the_reward_model_begins_a_value_where_it_reads_the_policys_tokens(nonpareil, files, groups):
    model = {"reward_funcs": None, "reward_model_name_or_path": files / "rm"}
    assert nonpareil("sample", output_dir=files / "judged", num_generations=6, **model)[0] == 0
    _, _, err = nonpareil("value", "--groups", files / "judged", "--output_dir", files / "value")
    assert f"begun with '{files / 'rm'}'" in err
    assert json.loads((files / "value" / "value.json").read_text())["first_ids"] == []

    behind = {**model, "reward_prepend_bos": True}
    assert nonpareil("sample", output_dir=files / "behind", num_generations=6, **behind)[0] == 0
    nonpareil("value", "--groups", files / "behind", "--output_dir", files / "value-behind")
    notes = json.loads((files / "value-behind" / "value.json").read_text())
    assert notes["first_ids"] == [load_tokenizer(str(files / "rm")).bos_token_id]

    LlamaForSequenceClassification(config(max_position_embeddings=8)).save_pretrained(files / "rm")
    err = fit(nonpareil, groups, files / "short", "--init_model_name_or_path", files / "rm", status=1)
    assert "reads 8 tokens at most, and the longest text of the groups has" in err
    assert "begin with the policy" in err
    shutil.copy(files / "policy" / "tokenizer_config.json", files / "rm")
    other = json.loads((files / "rm" / "tokenizer.json").read_text())
    other["model"]["vocab"] = {word + "x": place for word, place in other["model"]["vocab"].items()}
    other["model"]["unk_token"] += "x"
    (files / "rm" / "tokenizer.json").write_text(json.dumps(other))
    err = fit(nonpareil, groups, files / "foreign", "--init_model_name_or_path", files / "rm", status=1)
    assert "has another tokenizer than the policy" in err
    assert not (files / "foreign").exists()


def refused(nonpareil, *words):
    status, out, err = nonpareil(*words)
    assert status in (1, 2), err
    assert out == ""
    assert "Traceback" not in err
    return err


def test_what_cannot_be_fitted_is_refused_before_a_model_is_loaded(nonpareil, files, groups, monkeypatch):
    assert nonpareil("sample", output_dir=files / "few", max_prompts=12)[0] == 0
    assert nonpareil("sample", output_dir=files / "cut", top_k=5)[0] == 0
    with (files / "rewards.py").open("a") as code:
        code.write("\ndef one(completions, **columns):\n    return [1.0] * len(completions)\n")
    tied = {"reward_funcs": f"{files}/rewards.py:one"}
    assert nonpareil("sample", output_dir=files / "tied", **tied)[0] == 0
    monkeypatch.setattr(local, "load_policy", refuse)
    monkeypatch.setattr(network, "read_model", refuse)
    value = ("value", "--output_dir", files / "value")
    assert "groups is missing" in refused(nonpareil, *value)
    assert "has no manifest.json" in refused(nonpareil, *value, "--groups", files)
    assert "12 prompts; a value needs 20" in refused(nonpareil, *value, "--groups", files / "few")
    assert "top_k=5, from a part of the vocabulary" in refused(nonpareil, *value, "--groups", files / "cut")
    assert "equal at every prompt" in refused(nonpareil, *value, "--groups", files / "tied")
    assert "output_dir" in refused(nonpareil, "value", "--groups", groups, "--output_dir", groups)

    torch.manual_seed(1)
    shutil.copytree(files / "policy", files / "other")
    LlamaForCausalLM(config()).save_pretrained(files / "other")
    other = ("--model_name_or_path", files / "other", "--groups", groups)
    said = refused(nonpareil, *value, *other)
    assert "was drawn from" in said
    assert "draw groups from the model that the value is of" in said
    assert not (files / "value").exists()

    credits = ("credits", "--groups", groups, "--output_dir", files / "credits")
    assert "value is missing" in refused(nonpareil, *credits)
    assert "has no value.json" in refused(nonpareil, *credits, "--value", files / "policy")
    (files / "other" / "value.json").write_text(
        json.dumps({"format": 1, "bins": 4, "policy": "p", "groups": None, "rewards": None, "fitted": {}})
    )
    assert "of another policy (p)" in refused(nonpareil, *credits, "--value", files / "other")
    own = (read_manifest(groups) or {})["draw"]["model"]["fingerprint"]
    notes = {"format": 1, "bins": 4, "policy": own, "groups": None, "rewards": None, "fitted": {}}
    (files / "other" / "value.json").write_text(json.dumps({**notes, "temperature": 0.7}))
    said = refused(nonpareil, *credits, "--value", files / "other")
    assert "drawn at temperature 0.7, and here draws are at 1" in said
    assert "use temperature=0.7, or fit a value on groups drawn at 1" in said
    assert not (files / "credits").exists()
    sft = {**DISTILL, "method": "sft_bon", "groups": groups, "n": 2}
    assert "the method reads no credits" in nonpareil("distill", **sft, target_n=8)[2]


@pytest.mark.slow
def test_a_value_that_tells_nothing_is_not_kept(nonpareil, files, groups):
    with (files / "rewards.py").open("a") as code:
        code.write(
            "\nimport random\n\ndef chance(completions, **columns):\n"
            "    return [random.Random(repr((i, text))).random() for i, text in enumerate(completions)]\n"
        )
    chance = {"reward_funcs": f"{files}/rewards.py:chance"}
    assert nonpareil("sample", output_dir=files / "chance", num_generations=6, **chance)[0] == 0
    err = fit(nonpareil, files / "chance", files / "value", "--learning_rate", "0.1", status=1)
    assert "tells nothing: on held-out prompts" in err
    assert "nothing was saved" in err
    assert not (files / "value").exists()
