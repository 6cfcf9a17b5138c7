"""A command is steps that Python may call too: what it gives is what the command line shows and prints."""

import gc
import importlib
import json

import pytest
from transformers import LlamaForSequenceClassification

from nonpareil.cli.main import COMMANDS
from nonpareil.commands import curve, export
from nonpareil.commands.inputs import check_reward, load_prompts, load_reward, load_second_reward
from nonpareil.commands.policies.local import local_policy
from nonpareil.errors import ConfigError, DataError
from nonpareil.options.curve import CurveOptions
from nonpareil.options.export import ExportOptions
from nonpareil.options.sample import SampleOptions
from nonpareil.records import ScoreRequest


@pytest.mark.parametrize("name", COMMANDS)
def test_the_record_of_a_command_is_its_own(name):
    command = importlib.import_module(COMMANDS[name][0]).COMMAND
    assert command.example.startswith(f"nonpareil {name} ")
    assert command.run.__module__.startswith(f"nonpareil.commands.{name}")
    assert command.status({"failures": [], "interrupted": False}) == 0


def test_the_command_line_prints_what_a_command_gives(nonpareil, files, capsys):
    assert nonpareil("sample")[0] == 0
    result = curve.run(CurveOptions(groups=str(files / "out"), output_dir=str(files / "curve")))
    assert capsys.readouterr() == ("", ""), "only the command line shows"
    status, out, err = nonpareil(
        "curve", "--json", "--groups", files / "out", "--output_dir", files / "curve"
    )
    assert (status, json.loads(out)) == (0, json.loads(json.dumps(curve.as_json(result))))
    curve.show(result)
    assert capsys.readouterr().err == err
    options = {"groups": files / "out", "output": files / "pairs.jsonl", "truncated": "allow"}
    result = export.run(ExportOptions(**{name: str(value) for name, value in options.items()}))
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert json.loads(nonpareil("export", "--json", "--overwrite", *flags)[1]) == result
    assert result["rows"] == 12


def inputs(files, **changes) -> SampleOptions:
    settings = {
        "model_name_or_path": str(files / "policy"),
        "reward_model_name_or_path": str(files / "rm"),
        "max_completion_length": 6,
    }
    return SampleOptions(**{**settings, **changes})


def loaded(options, source, **changes):
    policy = local_policy(options)
    where = {"source": str(source), "split": "train", "limit": None, **changes}
    return policy, load_prompts(options, policy, options.sampling(), **where)


def test_prompts_are_checked_as_they_are_loaded(files):
    policy, prompts = loaded(inputs(files), files / "train.jsonl", limit=3)
    assert [prompt.token_ids[0] for prompt in prompts] == [1, 1, 1]
    assert policy.endings is not None, "where their completions end is known from here on"
    with pytest.raises(DataError, match=r"over the model's window of 32"):
        loaded(inputs(files, max_completion_length=30), files / "train.jsonl")
    with pytest.raises(ConfigError, match=r"chat_template_kwargs"):
        loaded(inputs(files, chat_template_kwargs='{"mood": "good"}'), files / "train.jsonl")


def reward_models() -> int:
    gc.collect()
    return sum(type(one) is LlamaForSequenceClassification for one in gc.get_objects())


def test_a_checked_reward_is_in_memory_only_while_it_scores(files):
    options = inputs(files)
    policy, prompts = loaded(options, files / "train.jsonl", limit=2)
    reward = load_reward(options, policy.tokenizer)
    assert reward_models() == 1
    check_reward(reward, prompts, 6, policy.tokenizer, errors_in=files)
    assert reward_models() == 0
    request = ScoreRequest(["the film"], ["was good"], [[5, 6]], {})
    assert reward.score(request).values[0] is not None
    assert reward_models() == 1
    with pytest.raises(DataError, match="max_completion_length=40 does not fit"):
        check_reward(reward, prompts, 40, policy.tokenizer)


def test_a_second_reward_is_told_apart_from_the_first(files):
    options = inputs(files, reward_funcs=[f"{files}/rewards.py:good"])
    first = load_reward(options, local_policy(options).tokenizer)
    second = load_second_reward("gold_reward", f"{files}/rewards.py:few", options, first)
    assert (first.names, second.names) == (["rm", "good"], ["few"])
    with pytest.raises(ConfigError, match=r"^gold_reward=.*its name 'good' is also the reward's"):
        load_second_reward("gold_reward", f"{files}/rewards.py:good", options, first)
    with pytest.raises(ConfigError, match=r"^gold_reward=.*no such file.*rewards"):
        load_second_reward("gold_reward", f"{files}/reward.py:few", options, first)
