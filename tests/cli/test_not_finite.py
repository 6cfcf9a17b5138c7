"""A model that overflows and a training that diverges end with status 1, and leave nothing that is none."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.cli.conftest import WORDS, config, tokenizer

HUGE = """
def huge(completion_ids, **columns):
    return [1e15 * (sum(ids) % 3) for ids in completion_ids]

def extreme(completion_ids, **columns):
    return [3e38 if sum(ids) % 2 else -3e38 for ids in completion_ids]
"""


def ends(nonpareil, command, *, says, **changes):
    """With status 1 and one message; a training logs its steps before it."""
    code, _, err = nonpareil(command, **changes)
    assert code == 1, err
    assert "Traceback" not in err
    message = err[err.rfind("nonpareil: ") :]
    for part in says:
        assert part in message, message


def test_logits_that_overflow_in_float16_end_a_draw_and_in_float32_do_not(nonpareil, files):
    """Every weight is finite in float16; the sums that follow the word "good" are not."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(mlp_bias=True))
    with torch.no_grad():
        model.model.embed_tokens.weight[4 + WORDS.index("good"), 0] = 6e4
        model.model.layers[0].mlp.down_proj.bias[0] = 1e4
    model.save_pretrained(files / "overflows")
    tokenizer().save_pretrained(files / "overflows")
    flags = {"model_name_or_path": files / "overflows", "dtype": "float16"}
    says = [
        "prompt ",
        "token ",
        "logits are NaN or infinite",
        "bfloat16",
        "of 3 shards stay",
        "new folder",
    ]
    ends(nonpareil, "sample", **flags, says=says)
    says = ["prompt ", "logits are NaN or infinite"]
    changes = {"reference_model_name_or_path": files / "overflows", "output_dir": files / "evaluation"}
    ends(nonpareil, "evaluate", **flags, **changes, says=says)
    assert not list((files / "evaluation").rglob("report.json"))
    status, _, err = nonpareil("sample", **{**flags, "dtype": "float32", "output_dir": files / "whole"})
    assert status == 0, err


def test_a_training_that_diverges_ends_with_status_1_and_its_last_good_checkpoint(nonpareil, files):
    """The first step's learning rate is 0, the second's blows every weight up; that step is never kept."""
    (files / "rewards.py").write_text(HUGE)
    flags = {
        "method": "rloo",
        "reward_funcs": f"{files}/rewards.py:huge",
        "optim": "sgd",
        "learning_rate": 1000,
        "warmup_steps": 2,
        "max_grad_norm": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 6,
        "bf16": "false",
        "use_cpu": "true",
        "evaluate_after": "false",
    }
    says = [
        "step 2: the policy's log-probs of a completion are NaN or infinite",
        "out/checkpoint-1: resume it",
    ]
    ends(nonpareil, "distill", **flags, eval_dataset_name=None, says=says)
    assert [path.name for path in sorted((files / "out").glob("checkpoint-*"))] == ["checkpoint-1"]
    kept = load_file(files / "out" / "checkpoint-1" / "model.safetensors")
    first = load_file(files / "policy" / "model.safetensors")
    assert all(torch.equal(kept[name], weight) for name, weight in first.items())
    assert not (files / "out" / "model.safetensors").exists()
    lines = [json.loads(line) for line in (files / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] != 0 for line in lines if "loss" in line)


def test_finite_rewards_whose_differences_are_not_train_nothing_and_say_so(nonpareil, files):
    (files / "rewards.py").write_text(HUGE)
    flags = {"method": "rloo", "reward_funcs": f"{files}/rewards.py:extreme", "evaluate_after": "false"}
    flags |= {"use_cpu": "true", "bf16": "false", "eval_dataset_name": None}
    status, _, err = nonpareil("distill", **flags)
    assert status == 0, err
    assert "steps moved the policy, which is as it was" in err
    assert "step 1, prompt " in err
    what = r"the loss, of rewards from -\d\S* to \d\S*, is NaN or infinite; it is left out of the step"
    assert re.search(what, err), err
    lines = [json.loads(line) for line in (files / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert all(line["dropped/non_finite"] > 0 for line in steps)
    # 0 only where prompts are left, whose rewards tie.
    assert all(line["loss"] is None or line["frac_reward_zero_std"] > 0 for line in steps)
    kept, first = (load_file(files / name / "model.safetensors") for name in ("out", "policy"))
    assert all(torch.equal(kept[name], weight) for name, weight in first.items())
    out = files / "out2"
    ends(nonpareil, "distill", **{**flags, "max_steps": 9, "output_dir": out}, says=["5th step in a row"])
    assert not Path(out / "model.safetensors").exists()
