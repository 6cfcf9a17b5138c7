"""Models of others: no code unasked, no pickle, no NaN; whatever damage there is, one line that names the model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.loading import load_policy
from nonpareil.models.pretrained import check_finite
from nonpareil.records import Prompt, SamplingParams
from nonpareil.rewards import RewardModel
from tests.tiny import make_model, make_tokenizer

CPU = torch.device("cpu")
OWN_CODE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def changed(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def with_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class Harmful:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(folder / "HARMED")}, folder / "pytorch_model.bin")


def a_shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = list(load_file(folder / "model-1.safetensors"))
    index = {
        "metadata": {},
        "weight_map": {n: f"model-{1 if i else 2}.safetensors" for i, n in enumerate(names)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HARMS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("config a list", lambda f: (f / "config.json").write_text("[]"), "config"),
    ("config empty", lambda f: (f / "config.json").write_text(""), "config"),
    (
        "config dangling",
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("x")),
        "config.json",
    ),
    ("a size that is text", lambda f: changed(f / "config.json", hidden_size="x"), "hidden_size"),
    ("an end that is text", lambda f: changed(f / "config.json", eos_token_id="x"), "eos_token_id"),
    (
        "no JSON for drawing",
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json",
    ),
    (
        "another end that is text",
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "eos_token_id='x' is no token id",
    ),
    ("no weights", lambda f: (f / "model.safetensors").write_bytes(b""), "header"),
    ("a pickle", pickled, "a pickle that could run code; save them as safetensors"),
    ("a shard missing", a_shard_missing, "model-2.safetensors"),
    (
        "an activation that is none",
        lambda f: changed(f / "config.json", activation_function="x", hidden_act="x"),
        "KeyError: 'x'; one of its files is damaged, or of another version of transformers",
    ),
    ("a broken tokenizer", lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer could be loaded"),
    (
        "a length that is text",
        lambda f: changed(f / "tokenizer_config.json", model_max_length="x"),
        "model_max_length='x' is no number",
    ),
    (
        "NaN",
        lambda f: with_weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))),
        "holds weights that are NaN (first: model.norm.weight)",
    ),
    (
        "infinity",
        lambda f: with_weights(f, lambda w: w["model.norm.weight"][:1].fill_(float("-inf"))),
        "holds weights that are infinite (first: model.norm.weight)",
    ),
]


@pytest.mark.parametrize(("harm", "says"), [each[1:] for each in HARMS], ids=[each[0] for each in HARMS])
@pytest.mark.parametrize(
    "load", [lambda path: load_policy(path, device=CPU), RewardModel], ids=["policy", "reward"]
)
def test_each_damage_is_one_line(saved: Path, load: Callable, harm: Callable[[Path], Any], says: str) -> None:
    harm(saved)
    with pytest.raises(ModelError) as caught:
        load(str(saved))
    message = str(caught.value)
    assert str(saved) in message
    assert says in message
    assert "\n" not in message
    assert not (saved / "HARMED").exists()


def test_plain_tensors_in_a_pickle_are_read(saved: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert load_policy(str(saved), device=CPU)[0].dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_number_of_a_dtype_is_a_number(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2, dtype=dtype)
    layer.weight.data.fill_(torch.finfo(dtype).max)
    check_finite(layer, "x")
    layer.weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"infinite \(first: weight\)"):
        check_finite(layer, "x")


@pytest.fixture
def adapter(saved: Path) -> Path:
    folder = saved.parent / "adapter"
    adapted = get_peft_model(
        make_model(),
        LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    changed(folder / "adapter_config.json", base_model_name_or_path=str(saved))
    return folder


def without_a_factor(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)


def of_a_larger_vocabulary(folder: Path) -> None:
    model = make_model()
    model.resize_token_embeddings(model.config.vocab_size + 2)
    saving = LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    get_peft_model(model, saving).save_pretrained(folder)
    changed(folder / "adapter_config.json", base_model_name_or_path=base)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "holds a list"),
        (lambda f: changed(f / "adapter_config.json", base_model_name_or_path=3), "=3 must be text"),
        (lambda f: changed(f / "adapter_config.json", r="x"), "could not be added"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (without_a_factor, "the file lacks 1 weights"),
        (lambda f: changed(f / "adapter_config.json", target_modules=["v_proj"]), "the model lacks"),
        (of_a_larger_vocabulary, "with a vocabulary of this size?"),
    ],
)
def test_each_damage_to_an_adapter_is_one_line(adapter: Path, harm: Callable[[Path], Any], says: str) -> None:
    assert load_policy(str(adapter), device=CPU)
    harm(adapter)
    with pytest.raises(ModelError) as caught:
        load_policy(str(adapter), device=CPU)
    assert str(adapter) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_without_an_embedding_is_refused_before_weights_are_read(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    policy, size = LocalPolicy(str(saved)), make_model().config.vocab_size
    policy.check([Prompt("a", "x", [0, size - 1], {})], SamplingParams(4))
    for token in (size, -1):
        with pytest.raises(ValueError, match=f"prompt b has token id {token}, and the model '.*policy' has"):
            policy.check([Prompt("b", "x", [1, token], {})], SamplingParams(4))


def test_a_folder_has_no_revision(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_revision='v1' is read for hub models only"):
        LocalPolicy(str(saved), "v1")
    with pytest.raises(ConfigError, match=r"reference_model_revision='v1' .*reference_model_name_or_path="):
        LocalPolicy(str(saved), "v1", field="reference_model_name_or_path")
    with pytest.raises(ConfigError, match=r"revision='v1' is read for hub models only"):
        RewardModel(str(saved), revision="v1")


@pytest.fixture
def own(saved: Path) -> Path:
    classes = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
    }
    changed(saved / "config.json", model_type="own_llama", auto_map=classes)
    (saved / "own.py").write_text(OWN_CODE.format(ran=str(saved / "RAN")))
    return saved


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_policy(path, device=CPU),
        LocalPolicy,
        RewardModel,
        lambda path: RewardModel(path, make_tokenizer()),
    ],
    ids=["policy", "source", "reward", "reward with a tokenizer"],
)
def test_code_of_a_models_own_runs_only_when_trusted(own: Path, load: Callable) -> None:
    with pytest.raises(ModelError, match=r"policy' brings code of its own .*trust_remote_code=true"):
        load(str(own))
    assert not (own / "RAN").exists()


def test_trusted_code_runs_and_is_part_of_the_policy(own: Path) -> None:
    policy = LocalPolicy(str(own), trust_remote_code=True)
    assert type(policy.load()).__name__ == "OwnModel"
    assert policy.info()["trust_remote_code"] is True
    before = policy.fingerprint
    (own / "own.py").write_text((own / "own.py").read_text() + "\n# another\n")
    assert fingerprint(str(own), trust_remote_code=True) != before


def test_no_question_is_asked_at_a_terminal(
    own: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers asks where it is not told, and takes what is typed for consent."""
    import pty

    master, slave = pty.openpty()
    os.write(master, b"y\n")
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(ModelError, match="brings code of its own"):
            LocalPolicy(str(own))
    os.close(master)
    assert "Do you wish" not in "".join(capfd.readouterr())
    assert not (own / "RAN").exists()


def test_a_hub_out_of_reach_is_asked_once_and_not_for_long(saved: Path) -> None:
    """Of models, datasets and rewards alike; by itself each would try for the better part of a minute."""
    code = f"""
import time
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.rewards import RewardModel
from nonpareil.rollouts import load_prompts
for load in (LocalPolicy, RewardModel, load_prompts, lambda name: LocalPolicy({str(saved)!r})):
    begun = time.perf_counter()
    try:
        load("polcy")
    except ValueError as error:
        print(time.perf_counter() - begun, error)
"""
    free = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(saved / "hf"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=free, cwd=saved.parent, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert float(line.split()[0]) < 10
        assert "no hub within reach; did you mean 'policy'?" in line


def test_a_link_to_nowhere_is_called_so(saved: Path) -> None:
    shutil.rmtree(saved)
    (saved.parent / "link").symlink_to("policy")
    with pytest.raises(ModelError, match=r"link': a symbolic link to nowhere \('policy'\)"):
        load_policy(str(saved.parent / "link"), device=CPU)


def test_a_home_is_not_guessed_but_its_path_is_given(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    with pytest.raises(ModelError, match=f"~ is not read here, so give the whole path, '{saved}'"):
        load_policy(f"~/{saved.name}", device=CPU)
