"""Trainings of tests/training/test_processes.py; torchrun starts this several times: FOLDER JOBS.json."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from nonpareil.models import logprobs
from nonpareil.models.distributed import end_processes, gather_shares, my_share, num_processes, process_index
from nonpareil.models.sharding import local
from tests.tiny import make_model
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    ending_model,
    goodness,
    make_trainer,
    stored_credits,
    stored_groups,
)
from tests.training.test_not_finite import one_extreme
from tests.training.test_shared_rows import LONG
from tests.training.test_step import some_fail

WHOLE_CHUNK = logprobs.CHUNK_ELEMENTS


def train(folder: Path, settings: dict[str, Any]) -> None:
    """Train and save; the first process writes down what each process held."""
    stop, resume = settings.pop("stop_after", None), settings.pop("resume", False)
    groups = stored_groups(4) if settings.pop("stored", False) else None
    credits = stored_credits(groups) if groups and settings.pop("credited", False) else None
    # Chunks so small that processes differ in how many of them they call the output head for.
    logprobs.CHUNK_ELEMENTS = settings.pop("chunk", WHOLE_CHUNK)
    kind = settings.pop("kind", None)
    model = settings.pop("model", None) or (make_model(kind) if kind else ending_model())
    stops = [StopAfter(stop)] if stop else None
    reward = some_fail if settings.pop("some_fail", False) else goodness
    reward = one_extreme if settings.pop("extreme", False) else reward
    known = LONG if settings.pop("long", False) else PROMPTS
    prompts = None if groups else known[: settings.pop("num_prompts", None)]
    torch.manual_seed(process_index())  # what a process drew before must not matter
    given = {"model": model, "reward": reward, "prompts": prompts, "callbacks": stops, "groups": groups}
    given["credits"] = credits
    trainer = make_trainer(folder, **given, **settings)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "final"))
    anchor = trainer.anchor.weights().values() if trainer.anchor is not None else ()
    held = {
        "processes": num_processes(),
        "read_in_shards": trainer.read_in_shards,
        "policy": sum(local(p).numel() for p in trainer.model.parameters()),
        "anchor": sum(local(p).numel() for p in anchor),
        "optimizer": sum(
            local(v).numel() for s in trainer.optimizer.state.values() for v in s.values() if v.dim()
        ),
    }
    everywhere = gather_shares([held])
    assert gather_shares(my_share(range(7))) == list(range(7))
    if process_index() == 0:
        (folder / "held.json").write_text(json.dumps(everywhere))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, job in json.loads(Path(sys.argv[2]).read_text()).items():
        train(Path(sys.argv[1]) / name, job)
    end_processes()
    os._exit(0)  # see nonpareil/__main__.py
