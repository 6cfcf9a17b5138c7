"""A tiny policy, a tiny reward model and prompts on disk, as a user's would be."""

import json
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from nonpareil.cli.main import main

WORDS = ["a", "the", "film", "was", "good", "bad", "great", "dull", "long", "short", "very", "not", "and"]
REWARDS = """
import time

def good(prompts, completions, **columns):
    return [float(text.split().count("good")) + 0.01 * len(text) for text in completions]

def few(completions, **columns):
    return [1.0]

def nothing(completions, **columns):
    return [None] * len(completions)

def hangs(completions, **columns):
    while True:
        time.sleep(0.1)
"""


def config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "initializer_range": 0.3,
        "num_labels": 1,
    }
    return LlamaConfig(**{**settings, **changes})


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = ["<unk>", "<s>", "</s>", "<pad>", *WORDS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture
def rendered_pictures() -> None:
    """For a test that is to have real PNG files."""


@pytest.fixture(autouse=True)
def cheap_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed and not rendered, a third of an evaluation's time on models this small.

    `tests/evaluation` renders every one of them, and so do the tests here that take `rendered_pictures`.
    """
    if "rendered_pictures" not in request.fixturenames:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda _, file, **how: file.write(b"PNG"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """policy/, rm/, train.jsonl, test.jsonl and rewards.py in a folder of their own."""
    torch.manual_seed(0)
    LlamaForCausalLM(config()).save_pretrained(tmp_path / "policy")
    LlamaForSequenceClassification(config()).save_pretrained(tmp_path / "rm")
    for name in ("policy", "rm"):
        tokenizer().save_pretrained(tmp_path / name)
    for name, shift in (("train", 0), ("test", 5)):
        rows = [{"prompt": f"the film was {WORDS[(i + shift) % 13]}", "id": i} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


class Command:
    """Run `nonpareil` in this process, with the files' flags, and read what it says."""

    def __init__(self, files: Path, capsys: pytest.CaptureFixture[str]):
        self.files, self.capsys = files, capsys

    def flags(self, command: str, **changes: Any) -> list[str]:
        split = {"distill": "train", "sample": "train", "evaluate": "test"}[command]
        settings: dict[str, Any] = {
            "model_name_or_path": self.files / "policy",
            "dataset_name": self.files / f"{split}.jsonl",
            "reward_funcs": f"{self.files}/rewards.py:good",
            "max_completion_length": 6,
            "output_dir": self.files / "out",
        }
        if command == "sample":
            settings |= {"num_generations": 4, "shard_size": 4}
        if command == "evaluate":
            settings |= {"reference_model_name_or_path": self.files / "policy", "num_reference_samples": 8}
        if command == "distill":
            settings |= {
                "eval_dataset_name": self.files / "test.jsonl",
                "max_steps": 3,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "num_generations_eval": 4,
                "num_reference_samples_eval": 4,
                "report_to": "none",
                "disable_tqdm": "true",
            }
        settings |= changes
        return [command] + [
            w for k, v in settings.items() if v is not None for w in (f"--{k}", *str(v).split(" "))
        ]

    def __call__(self, *words: Any, **changes: Any) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a command."""
        argv = (
            [*self.flags(words[0], **changes), *map(str, words[1:])] if changes or len(words) == 1 else words
        )
        status = main([str(word) for word in argv])
        output = self.capsys.readouterr()
        return status, output.out, output.err


@pytest.fixture
def nonpareil(files: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(files, capsys)
