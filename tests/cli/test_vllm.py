"""`nonpareil sample --engine vllm`, a LoRA adapter folder included; and what is refused without any engine."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.logprobs import TokenSequences, completion_logprobs
from nonpareil.rollouts import read_groups
from tests.cli.conftest import Command, config, tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "head_dim": 32}


@pytest.fixture
def policy(files: Path) -> Path:
    """The policy with a head size that vLLM takes."""
    torch.manual_seed(0)
    LlamaForCausalLM(config(**SIZES)).save_pretrained(files / "policy")
    return files / "policy"


@pytest.fixture
def adapter(policy: Path, files: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained(policy)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(files / "adapter")
    tokenizer().save_pretrained(files / "adapter")
    return files / "adapter"


@pytest.fixture
def sample(nonpareil: Command) -> Callable[..., dict[str, Any]]:
    """The figures of a `nonpareil sample` in a process of its own: vLLM needs a stdout that is a file."""

    def run(**changes: Any) -> dict[str, Any]:
        program = "import sys; from nonpareil.cli.main import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", program, *nonpareil.flags("sample", **changes), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def worst(folder: Path, model: Any) -> float:
    """Largest distance of the stored sequences' log-probs from the model's, nats."""
    errors = []
    for group in read_groups(folder):
        for ids, logprobs in zip(group.completion_token_ids, group.logprobs, strict=True):
            with torch.no_grad():
                (want,) = completion_logprobs(model, TokenSequences([group.prompt_token_ids], [ids])).tolist()
            errors.append(abs(want - sum(logprobs)))
    assert len(errors) == 48
    return max(errors)


@pytest.mark.vllm
def test_sample_draws_stores_and_resumes(sample, files, policy):
    flags = {"engine": "vllm", "dtype": "float32", "vllm_max_model_len": 24, "output_dir": files / "groups"}
    assert sample(**flags)["completions"] == 48
    assert worst(files / "groups", LlamaForCausalLM.from_pretrained(policy)) < 1e-3
    manifest = json.loads((files / "groups" / "manifest.json").read_text())
    assert manifest["draw"]["engine"]["engine"] == "vllm"
    before = [group.completion_token_ids for group in read_groups(files / "groups")]
    (files / "groups" / "data" / "shard-00001.parquet").unlink()
    assert sample(**flags)["shards_drawn"] == 1
    assert [group.completion_token_ids for group in read_groups(files / "groups")] == before


@pytest.mark.vllm
def test_sample_draws_from_an_adapter_folder(sample, files, policy, adapter):
    from peft import PeftModel

    sample(model_name_or_path=adapter, engine="vllm", dtype="float32", output_dir=files / "groups")
    base = LlamaForCausalLM.from_pretrained(policy)
    assert worst(files / "groups", base) > 0.1
    assert worst(files / "groups", PeftModel.from_pretrained(base, adapter).eval().base_model.model) < 1e-3
    model = json.loads((files / "groups" / "manifest.json").read_text())["draw"]["model"]
    assert model["fingerprint"] == fingerprint(str(adapter))


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization=1.5 must lie in (0, 1]"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size=0 must be at least 1"),
        ({"vllm_max_model_len": 5}, "over the model's window of 5"),
        ({"min_p": 0.1, "top_p": 0.9}, "min_p=0.1 together with top_p=0.9"),
    ],
)
def test_settings_that_cannot_work_are_refused(nonpareil, changes, said):
    status, _, err = nonpareil("sample", engine="vllm", **changes)
    assert status != 0
    assert said in " ".join(err.split())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named(nonpareil):
    status, _, err = nonpareil("sample", engine="vllm")
    assert status != 0
    assert 'pip install "nonpareil[vllm]"' in " ".join(err.split())


def test_vllms_settings_are_refused_for_another_engine(nonpareil):
    status, _, err = nonpareil("sample", vllm_max_model_len=24)
    assert status != 0
    assert "vllm_max_model_len=24 is not read with engine=transformers" in " ".join(err.split())


@pytest.mark.vllm
def test_a_reward_model_on_vllm_scores_what_transformers_drew(sample, files):
    LlamaForSequenceClassification(config(**SIZES)).save_pretrained(files / "rm")
    scores = {}
    for engine in ("transformers", "vllm"):
        sample(
            reward_funcs=None,
            reward_model_name_or_path=files / "rm",
            reward_engine=engine,
            reward_dtype="float32",
            dtype="float32",
            output_dir=files / engine,
        )
        scores[engine] = [value for group in read_groups(files / engine) for value in group.rewards]
    assert len(scores["vllm"]) == 48
    assert scores["vllm"] == pytest.approx(scores["transformers"], abs=1e-3)
