"""An exported file is read by TRL's own trainers as it is, and trained on for a step. Needs the extra trl."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from nonpareil.rollouts import export
from tests.rollouts.conftest import CHAT_TEMPLATE, group_of
from tests.tiny import make_model, make_tokenizer

trl = pytest.importorskip("trl", reason="the peer whose formats are exported, not a dependency")

CHAT = [{"role": "system", "content": "a"}, {"role": "user", "content": "the film was"}]
THEIRS: dict[str, Any] = {
    **{"chosen": "theirs", "rejected": "theirs", "text": "theirs"},
    "messages": [*CHAT, {"role": "assistant", "content": "theirs"}],
}
"""Columns that a dataset of prompts may have, and that TRL reads where it finds them."""
PROMPTS: dict[str, Any] = {
    "string": "the film was",
    "conversation": CHAT,
    "prefilled": [*CHAT, {"role": "assistant", "content": "the film was"}],
}
FORMATS = ("preference", "sft", "unpaired")


def trainer_of(format: str) -> tuple[Any, Any]:
    name = {"preference": "DPO", "sft": "SFT", "unpaired": "KTO"}[format]
    return getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("format", FORMATS)
def test_trl_trains_on_the_file(tmp_path: Path, format: str, kind: str) -> None:
    groups = [
        group_of([0.0, 1.0], [" bad", " very good"], prompt=PROMPTS[kind], prompt_id=f"p-{i}", **THEIRS)
        for i in range(4)
    ]
    path = export(groups, tmp_path / "a.jsonl", format).path  # type: ignore[arg-type]
    rows = datasets.Dataset.from_list([json.loads(line) for line in path.read_text().splitlines()])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    trainer_class, config_class = trainer_of(format)
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    settings |= {"save_strategy": "no", "learning_rate": 0.1, "bf16": False, "disable_tqdm": True}
    make_model().save_pretrained(tmp_path / "model")  # TRL loads a reference from there
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = model.lm_head.weight.detach().clone()
    trainer = trainer_class(
        model=model,
        args=config_class(str(tmp_path / "out"), **settings),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert not torch.equal(model.lm_head.weight, before)
    batch = _ids(next(iter(trainer.get_train_dataloader())))
    text = " ".join(tokenizer.decode(ids) for ids in batch)
    assert "theirs" not in text
    if kind == "string":
        assert any(tokenizer.eos_token_id in ids for ids in batch)
    assert "film was very good" in " ".join(text.split()) or kind == "conversation"
    assert "very good" in text
    assert ("bad" in text) == (format != "sft")


def _ids(batch: dict[str, Any]) -> list[list[int]]:
    return [row.tolist() for name, rows in batch.items() if name.endswith("input_ids") for row in rows]
