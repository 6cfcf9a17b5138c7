"""Every command as a function, a trainer's evaluation by one call, the model card, and what goes to the hub."""

import importlib
import inspect
import json
import logging
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pandas
import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import hub as transformers_hub

import nonpareil
from nonpareil import DistillationConfig, DistillationTrainer
from nonpareil.cli.main import COMMANDS, main
from nonpareil.errors import ConfigError, DataError, RewardError
from nonpareil.files import write_bytes
from nonpareil.folders import writing
from nonpareil.methods import BOND
from nonpareil.settings import offered
from tests.cli.conftest import files  # noqa: F401  (a fixture)
from tests.local_hub import local_hub

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
CALLED_OTHERWISE = {"credits": "make_credits"}


def good(completions, **columns):
    return [float(text.split().count("good")) + 0.01 * len(text) for text in completions]


WITH_A_REWARD = {"model_name_or_path": "policy", "reward_funcs": good}


EARLIER_CARD = b"""---
library_name: transformers
tags: [best-of-n, jbond, nonpareil]
---
# trained

Best-of-N distilled into the weights with `jbond` by nonpareil 0.1.0: one sample of this
model is meant to be as good as the best of several samples of the model it came from.

## How near to best-of-N
Not evaluated; run `nonpareil evaluate`.
"""
"""As versions wrote it whose cards had no line that says whose they are."""


def rows(name):
    return [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def here(files, monkeypatch):  # noqa: F811
    monkeypatch.chdir(files)
    return files


def code_of(card):
    return re.search(r"```python\n(.*?)```", card, flags=re.DOTALL).group(1)


# --- Commands as functions


def test_every_command_is_a_function_that_tells_its_options():
    assert len(COMMANDS) >= 10
    for name, (module, _) in COMMANDS.items():
        function = getattr(nonpareil, CALLED_OTHERWISE.get(name, name))
        assert function.__module__ == "nonpareil.api"
        command = importlib.import_module(module).COMMAND
        known = inspect.signature(function).parameters
        told = [one for cls in (command.listed or command.options)() for one in offered(cls).values()]
        assert told
        for setting in told:
            assert known[setting.name].kind is inspect.Parameter.KEYWORD_ONLY
            assert known[setting.name].default == setting.default
            assert f"    {setting.name} (default " in function.__doc__
        assert "Returns:" in function.__doc__
        assert function.__name__ in dir(nonpareil)


def test_no_module_is_hidden_by_a_function():
    for name in ("credits", "commands.sample", "commands.export", "commands.evaluate", "commands.curve"):
        assert inspect.ismodule(importlib.import_module(f"nonpareil.{name}"))
    assert inspect.ismodule(nonpareil.credits)
    assert callable(nonpareil.sample)


def test_the_same_groups_and_files_as_by_the_command_line_and_nothing_is_printed(here, capfd):
    shared = {"model_name_or_path": "policy", "num_generations": 4, "max_completion_length": 6, "seed": 3}
    flags = [word for key, value in shared.items() for word in (f"--{key}", str(value))]
    by_line = ["--dataset_name", "train.jsonl", "--reward_funcs", "rewards.py:good", "--output_dir", "a"]
    assert main(["sample", *flags, *by_line]) == 0
    capfd.readouterr()
    counts = nonpareil.sample(**shared, dataset_name=rows("train"), reward_funcs=good, output_dir=here / "b")
    theirs, ours = nonpareil.read_groups("a"), nonpareil.read_groups("b")
    assert counts["prompts"] == 12
    assert [each.completion_token_ids for each in theirs] == [each.completion_token_ids for each in ours]
    assert [each.rewards for each in theirs] == [each.rewards for each in ours]
    assert [each.columns for each in theirs] == [each.columns for each in ours]

    curve = nonpareil.curve(groups=here / "b")
    assert [point.n for point in curve["report"].points][-1] == 4
    assert Path(curve["curve"]).is_file()
    by_folder = nonpareil.export("b", "pairs.jsonl", "sft")
    in_memory = nonpareil.export(ours, "others.jsonl", "sft")
    assert by_folder["rows"] == in_memory.rows > 0
    assert Path("pairs.jsonl").read_bytes() == Path("others.jsonl").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_what_is_said_goes_to_the_logger_or_is_asked_for(here, capfd, caplog):
    given = {"model_name_or_path": "policy", "dataset_name": ["the film was"], "max_completion_length": 3}
    given |= {"reward_funcs": [lambda completions, **columns: [1.0] * len(completions)], "num_generations": 2}
    with caplog.at_level(logging.INFO, logger="nonpareil"):
        nonpareil.sample(**given, output_dir="quiet")
    assert "reward 'lambda' is equal for all completions of a prompt" in caplog.text
    assert capfd.readouterr() == ("", "")
    nonpareil.sample(**given, output_dir="aloud", verbose=True)
    assert "Next: nonpareil curve --groups aloud" in capfd.readouterr().err


def test_a_file_of_options_is_overridden_by_keywords(here):
    Path("options.yaml").write_text("groups: nowhere\nmax_n: 2\n")
    nonpareil.sample(
        model_name_or_path="policy", dataset_name="train.jsonl", reward_funcs="rewards.py:good",
        max_completion_length=3, num_generations=4, max_prompts=3, output_dir="groups",
    )  # fmt: skip
    found = nonpareil.curve(config="options.yaml", groups="groups")
    assert [point.n for point in found["report"].points] == [1, 2]
    Path("options.yaml").write_text("grups: nowhere\n")
    with pytest.raises(ConfigError, match=r"config='options.yaml': unknown option 'grups' .* mean groups\?"):
        nonpareil.curve(config="options.yaml")


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("sample", {"num_generation": 8}, "option 'num_generation' of sample; did you mean num_generations?"),
        ("distill", {"lr": 1e-6}, "unknown option 'lr' of distill; did you mean learning_rate?"),
        ("distill", {"method": "bond", "jefreys_weight": 0.1}, "did you mean jeffreys_weight?"),
        ("distill", {"method": BOND(n=4), "jeffreys_weight": 0.1}, "unknown option 'jeffreys_weight' of distill"),
        ("sample", {"num_generations": 1}, "num_generations=1 must be at least 2"),
        ("sample", {"dataset_name": iter([])}, "dataset_name is a list_iterator; give a file"),
        ("sample", {**WITH_A_REWARD, "dataset_name": [1, 2]}, "2 rows in memory: row 0 (the first is 0) is a int"),
        ("sample", {**WITH_A_REWARD, "dataset_name": pandas.DataFrame(["a"])}, "dataset_name is a DataFrame; give"),
        ("compare", {"reward_funcs": good}, "unknown option 'reward_funcs' of compare"),
        ("compare", {}, "config is missing"),
        ("evaluate", {"model_name_or_path": torch.nn.Identity()}, "model_name_or_path=Identity() must be text"),
        ("distill", {"dataset_name": ["a"], "model_name_or_path": "x", "reward_funcs": good}, "in memory, without"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(here, command, given, message):
    with pytest.raises((ConfigError, DataError)) as refused:
        getattr(nonpareil, command)(**given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# --- A trainer's evaluation


def trainer_of(model, output_dir="trained", reward=good, **changes):
    tokenizer = AutoTokenizer.from_pretrained("policy")
    train, held_out = (nonpareil.tokenize_prompts(rows(name), tokenizer) for name in ("train", "test"))
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none"}
    settings |= {"max_completion_length": 6, "temperature": 0.8, "disable_tqdm": True, "bf16": False}
    args = DistillationConfig(output_dir=output_dir, **{**settings, **changes})
    return DistillationTrainer(model, reward, args, train, held_out, processing_class=tokenizer)


def test_one_call_measures_a_trainer_as_the_command_measures_its_folder(here, capfd):
    """The model was given in memory, and nothing was saved; its folder is known again by its weights."""
    model = AutoModelForCausalLM.from_pretrained("policy")
    trainer = trainer_of(model)
    with pytest.raises(ConfigError, match="has not trained a step"):
        nonpareil.evaluate(trainer)
    trainer.train()
    capfd.readouterr()
    found = nonpareil.evaluate(trainer, num_generations=4, num_reference_samples=8)
    assert capfd.readouterr() == ("", "")
    again = nonpareil.evaluate(
        model_name_or_path="trained", reference_model_name_or_path="policy", dataset_name="test.jsonl",
        reward_funcs=good, max_completion_length=6, num_generations=4, num_reference_samples=8, seed=42,
        dtype="float32", output_dir="again",
    )  # fmt: skip
    ours, theirs = found["evaluation"].to_dict(), again["evaluation"].to_dict()
    assert ours["kl"]["estimate"] > 0.01
    assert ours == theirs
    assert Path(found["report"]).is_file()

    card = Path("trained/README.md").read_text()
    assert f"In {found['evaluation'].comparison.win_rate.estimate:.0%} (" in card
    assert "Measured on 12 held-out prompts, 4 completions of this model and 8 of the base" in card
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["best-of-n", "jbond", "nonpareil"],
    }
    exec(code_of(card), {})
    trainer.save_model()
    assert Path("trained/README.md").read_text() == card, "the same weights: what was measured holds"

    few = {"num_generations": 2, "num_reference_samples": 2, "max_prompts": 2}
    assert nonpareil.evaluate(trainer, **few)["evaluation"].num_prompts == 2
    with pytest.raises(ConfigError, match=r"test_split_size=2.0 is not read: the prompts are those of the"):
        nonpareil.evaluate(trainer, test_split_size=2)

    trainer.identity["model"] = "of other weights"
    with pytest.raises(ConfigError, match="give reference_model_name_or_path"):
        nonpareil.evaluate(trainer)
    trainer.eval_dataset = None
    with pytest.raises(ConfigError, match="has no eval_dataset"):
        nonpareil.evaluate(trainer, reference_model_name_or_path="policy")


# --- The card


def test_a_card_that_was_taken_over_is_kept_and_a_failure_is_told(here):
    shutil.copytree("policy", "base")
    Path("base/README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")

    def breaks(completions, **columns):
        return good(completions) if len(completions) < 40 else [1.0]  # as many are scored after the training

    trainer = trainer_of("base", reward=breaks, max_steps=1)
    trainer.train()
    trainer.save_model()
    card = ModelCard.load("trained/README.md")
    assert card.data.license == "apache-2.0"
    assert "Not evaluated yet" in card.text
    with pytest.raises(RewardError):
        nonpareil.evaluate(trainer, num_generations=4, num_reference_samples=8)
    assert "Not evaluated: the evaluation failed (" in Path("trained/README.md").read_text()
    Path("trained/README.md").write_text("# Mine\n")
    trainer.save_model()
    trainer.create_model_card(license="mit")
    assert Path("trained/README.md").read_text() == "# Mine\n"
    Path("trained/README.md").unlink()
    for held in (True, False):
        with writing("trained", "distill"):
            write_bytes(Path("trained/README.md"), EARLIER_CARD)
        with writing("trained", "distill") if held else nullcontext():
            trainer.create_model_card(license="mit")
        assert "## What was reached" in Path("trained/README.md").read_text(), "listed as ours, as it was"
        with writing("trained", "distill"):
            write_bytes(Path("trained/README.md"), EARLIER_CARD)
        mine = EARLIER_CARD + b"My own words.\n"
        Path("trained/README.md").write_bytes(mine)
        with writing("trained", "distill") if held else nullcontext():
            trainer.create_model_card(license="mit")
        assert Path("trained/README.md").read_bytes() == mine, "it was changed since"
        Path("trained/README.md").unlink()


# --- The hub


def test_a_trainer_pushes_by_the_words_of_trls_scripts(here, monkeypatch):
    trainer = trainer_of("policy", max_steps=1)
    trainer.train()
    for given, says in (
        ({"blocking": False}, "is waited for"),
        ({"tasks": "x"}, "the model card takes license"),
    ):
        with pytest.raises(ConfigError, match=says):
            trainer.push_to_hub(**given)
    assert not Path("trained/README.md").exists()
    with local_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        trainer.push_to_hub(
            "End of training", blocking=True, token="hf_none", dataset_name="some-org/prompts"
        )
    (pushed,) = hub.commits
    assert ModelCard(pushed.files["README.md"].decode()).data.datasets == ["some-org/prompts"]


def test_the_hub_gets_the_finished_folder_with_its_card_and_checkpoints_without(here, monkeypatch, capfd):
    with local_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            transformers_hub, "_hf_api", None, raising=False
        )  # it keeps the first endpoint it saw
        result = nonpareil.distill(
            model_name_or_path="policy", dataset_name=rows("train"), eval_dataset_name=rows("test"),
            reward_funcs=good, method=BOND(n=2), max_steps=2, save_steps=1, learning_rate=1e-2,
            per_device_train_batch_size=4, max_completion_length=6, num_generations_eval=2,
            num_reference_samples_eval=4, report_to="none", output_dir="out", use_peft=True, lora_r=2,
            push_to_hub=True, hub_model_id="me/tiny", hub_token="hf_none",
        )  # fmt: skip
    assert capfd.readouterr() == ("", "")
    *checkpoints, last = hub.commits
    assert checkpoints
    assert not any("README.md" in each.files for each in checkpoints)
    assert all("adapter_model.safetensors" in each.files for each in checkpoints)
    assert result["pushed"].endswith(f"{len(hub.commits):040d}")
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json", "evaluation/report.json"} <= {
        *last.files
    }
    assert not [name for name in last.files if name.endswith((".parquet", ".html", ".bin", ".lock"))]
    card = last.files["README.md"].decode()
    assert card == Path("out/README.md").read_text()
    assert "In " in card
    assert "Not evaluated" not in card
    assert ModelCard(card).data.library_name == "peft"
    assert 'from_pretrained("me/tiny")' in card
    exec(code_of(card).replace("me/tiny", "out"), {})


# --- The page


def test_the_page_runs_as_it_is_written(here, capsys):
    """With tiny models under its names, fewer steps and shorter completions."""
    Path("my-org").mkdir()
    for name, source in (("my-model", "policy"), ("my-reward-model", "rm")):
        Path(source).rename(Path("my-org", name))
    for name, source in (("prompts", "train"), ("held-out", "test")):
        Path(f"{source}.jsonl").rename(f"{name}.jsonl")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    script = "\n".join(blocks)
    small = "max_steps=1, per_device_train_batch_size=4, max_completion_length=4, disable_tqdm=True"
    script, count = re.subn("max_steps=200", small, script)
    assert count == 2
    script = script.replace("num_generations=8", "num_generations=4, max_completion_length=4")
    script = script.replace("evaluate(trainer)", "evaluate(trainer, num_reference_samples=4)")
    exec(compile(script, str(PAGE), "exec"), {"__name__": "__main__"})
    assert "win rate" in capsys.readouterr().out
    assert {"distilled", "groups", "pairs.jsonl", "by-command"} <= {path.name for path in Path().iterdir()}
