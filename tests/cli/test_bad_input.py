"""Each wrong input gets one clear message that names the field, the value and the remedy."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification


def refused(nonpareil, *words, says, status=None, **changes):
    code, out, err = nonpareil(*words, **changes)
    message = err[err.rfind("nonpareil: ") :]
    assert code in ((1, 2) if status is None else (status,)), err
    assert out == ""
    assert "Traceback" not in err
    for part in says:
        assert part in message, message
    return message


def test_unknown_flag(nonpareil):
    refused(nonpareil, "distill", "--lerning_rate", "1", says=["--lerning_rate", "--learning_rate"], status=2)


def test_unknown_key(nonpareil, files):
    (files / "c.yaml").write_text("num_generatons: 4\n")
    refused(
        nonpareil,
        "sample",
        "--config",
        files / "c.yaml",
        says=["num_generatons", "num_generations"],
        status=2,
    )


def test_unknown_command(nonpareil):
    refused(nonpareil, "destill", "x", says=["destill", "distill"], status=2)


@pytest.mark.parametrize("command", ["sample", "distill", "evaluate"])
def test_missing_prompts_file(nonpareil, files, command):
    field = "eval_dataset_name" if command == "distill" else "dataset_name"
    refused(nonpareil, command, **{field: files / "none.jsonl"}, says=["none.jsonl"])
    assert not (files / "out").exists() or not any((files / "out").rglob("*.parquet"))


def test_missing_config_file(nonpareil, files):
    refused(
        nonpareil, "sample", "--config", files / "none.yaml", says=["none.yaml", "no such file"], status=2
    )


def test_missing_model(nonpareil, files):
    refused(nonpareil, "sample", model_name_or_path=files / "nowhere", says=["nowhere", "no such directory"])


def test_only_some_of_model_prompts_reward(nonpareil, files):
    """Never the demo's reward model by accident."""
    refused(
        nonpareil, "sample", reward_funcs=None, says=["reward_model_name_or_path", "reward_funcs"], status=2
    )
    refused(nonpareil, "distill", dataset_name=None, says=["dataset_name"], status=2)


def test_empty_prompt(nonpareil, files):
    (files / "empty.jsonl").write_text('{"prompt": "the film"}\n{"prompt": ""}\n')
    refused(nonpareil, "sample", dataset_name=files / "empty.jsonl", says=["row 1", "empty"])


def test_no_prompt_column(nonpareil, files):
    (files / "other.jsonl").write_text('{"promt": "the film"}\n')
    refused(nonpareil, "sample", dataset_name=files / "other.jsonl", says=["prompt", "promt"])


def test_prompt_longer_than_the_window(nonpareil, files):
    (files / "long.jsonl").write_text(json.dumps({"prompt": "the film " * 20}) + "\n")
    refused(
        nonpareil, "sample", dataset_name=files / "long.jsonl", says=["41 tokens", "window of 32", "shorten"]
    )
    refused(nonpareil, "distill", dataset_name=files / "long.jsonl", says=["41 tokens", "window of 32"])


@pytest.mark.parametrize("command", ["sample", "distill", "evaluate"])
def test_a_missing_column_is_told_before_a_model_is_read(nonpareil, files, command):
    """The reward model's weights are damaged, which nobody comes to see."""
    (files / "lacks.py").write_text("def good(completions, answer):\n    return [0.0] * len(completions)\n")
    (files / "damaged").mkdir()
    (files / "damaged" / "config.json").write_text("{")
    rewards = {"reward_funcs": f"{files}/lacks.py:good", "reward_model_name_or_path": files / "damaged"}
    refused(nonpareil, command, says=["good", "'answer'"], **rewards)


def test_reward_function_returns_too_few(nonpareil, files):
    refused(nonpareil, "sample", reward_funcs=f"{files}/rewards.py:few", says=["few", "1"])


def test_reward_function_that_is_not_there(nonpareil, files):
    refused(nonpareil, "sample", reward_funcs=f"{files}/rewards.py:goood", says=["goood", "good"])


def test_every_reward_fails(nonpareil, files):
    refused(
        nonpareil,
        "distill",
        reward_funcs=f"{files}/rewards.py:nothing",
        says=["every reward", "returned None"],
    )


def test_hanging_rewards_end_at_the_timeout(nonpareil, files):
    (files / "two.jsonl").write_text('{"prompt": "the film"}\n')
    status, _, said = nonpareil(
        "sample",
        "--json",
        dataset_name=files / "two.jsonl",
        num_generations=2,
        reward_funcs=f"{files}/rewards.py:hangs",
        reward_timeout=0.5,
    )
    assert status == 1  # all of them are null
    assert "timed out after 0.5 s" in said


def test_fewer_than_two_completions(nonpareil):
    refused(nonpareil, "sample", num_generations=1, says=["num_generations=1", "at least 2"], status=2)


def test_policy_without_tokenizer(nonpareil, files):
    LlamaForCausalLM.from_pretrained(files / "policy").save_pretrained(files / "bare")
    refused(nonpareil, "sample", model_name_or_path=files / "bare", says=["bare", "tokenizer"])


def test_reward_model_with_a_random_head(nonpareil, files):
    refused(
        nonpareil,
        "sample",
        reward_funcs=None,
        reward_model_name_or_path=files / "policy",
        says=["policy", "score"],
    )


def test_reward_model_with_two_labels(nonpareil, files):
    model = LlamaForSequenceClassification.from_pretrained(files / "rm")
    model.config.num_labels = 2
    model.score = torch.nn.Linear(16, 2, bias=False)
    model.save_pretrained(files / "rm")
    refused(
        nonpareil, "sample", reward_funcs=None, reward_model_name_or_path=files / "rm", says=["num_labels"]
    )


@pytest.mark.parametrize("command", ["sample", "distill"])
def test_output_directory_that_exists(nonpareil, files, command):
    (files / "out").mkdir()
    (files / "out" / "thesis.tex").write_text("years of work")
    refused(nonpareil, command, says=["out"], status=2)
    refused(nonpareil, "distill", "--overwrite", "true", max_steps=1, says=["output_dir", "delete all of it"])
    assert (files / "out" / "thesis.tex").read_text() == "years of work"


def test_changed_settings_refuse_the_old_groups(nonpareil):
    assert nonpareil("sample")[0] == 0
    refused(nonpareil, "sample", temperature=0.5, says=["temperature", "1.0", "0.5"], status=2)


def test_corrupt_shard(nonpareil, files):
    assert nonpareil("sample")[0] == 0
    shard = sorted((files / "out" / "data").glob("*.parquet"))[1]
    shard.write_bytes(shard.read_bytes()[:200])
    refused(nonpareil, "curve", "--groups", files / "out", says=[shard.name, "delete"])
    refused(nonpareil, "sample", says=[shard.name, "delete"])


def test_settings_that_would_change_the_method(nonpareil):
    refused(nonpareil, "distill", top_p=0.9, says=["top_p=0.9", "temperature"], status=2)
    refused(nonpareil, "distill", top_k=5, says=["top_k=5"], status=2)
    refused(nonpareil, "distill", anchor_ema_rate=0, says=["anchor_ema_rate=0"], status=2)
    refused(nonpareil, "distill", jeffreys_weight=2, says=["jeffreys_weight=2"], status=2)
    refused(nonpareil, "sample", temperature=0, says=["temperature=0"], status=2)
    refused(nonpareil, "evaluate", top_k=5, says=["top_k"], status=2)


def test_training_on_the_evaluation_prompts_is_refused(nonpareil):
    refused(nonpareil, "distill", eval_dataset_name=None, says=["held-out", "eval_dataset_name"], status=2)


def test_resuming_from_nothing(nonpareil):
    refused(nonpareil, "distill", resume_from_checkpoint="true", says=["no whole checkpoint"])


def test_held_out_prompts_that_are_not_there_are_named_as_given(nonpareil, files):
    absent = files / "absent.jsonl"
    refused(
        nonpareil, "distill", eval_dataset_name=absent, says=[f"eval_dataset_name={str(absent)!r}", "no such"]
    )
