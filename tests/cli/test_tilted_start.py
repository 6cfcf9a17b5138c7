"""`--tilted_start` from the command line and from a comparison's file; what cannot begin so is refused first."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from nonpareil.commands.policies import local
from tests.cli.test_compare import comparison  # noqa: F401  # a fixture
from tests.cli.test_pool import ALONE, OWN, TRAINED_ONLY, prompts  # noqa: F401  # a fixture

TILTED = {"tilted_start": "true", "learning_rate": 1e-9}


@pytest.mark.usefixtures("prompts")
def test_a_distillation_begins_tilted_and_says_so(nonpareil, files):
    """At a learning rate of nothing the start is what is written: a bias along one direction."""
    status, _, err = nonpareil("distill", "--json", **ALONE, **TILTED, max_steps=1, save_strategy="no")
    assert status == 0, err
    assert "tilted start: a training from its beginning starts with a bias of " in err
    assert "tilted_start=True" in (files / "out" / "README.md").read_text()
    base, written = (
        AutoModelForCausalLM.from_pretrained(files / name, dtype=torch.float32) for name in ("policy", "out")
    )
    rise = (written.lm_head.weight - base.lm_head.weight).detach()
    sizes = torch.linalg.svdvals(rise)
    assert sizes[0] > 1e-3 > 1e3 * sizes[1]
    assert rise[:4].abs().max() < 1e-6
    assert rise.norm(dim=1).count_nonzero() > 4


def test_what_cannot_begin_tilted_is_refused_before_anything_is_drawn(
    nonpareil,
    files,
    prompts,  # noqa: F811
    comparison,  # noqa: F811
    monkeypatch,
):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "load_policy", refuse)
    path = files / "policy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logit_scale": 0.5}))
    says = "scales its logits behind the output layer (logit_scale=0.5); leave tilted_start out"
    for changes in ({}, {"dry_run": "true"}):
        status, _, err = nonpareil("distill", **ALONE, **TILTED, **changes)
        assert status == 1
        assert says in err
    status, _, err = nonpareil("distill", **{**OWN, **TRAINED_ONLY}, tilted_start="true", use_peft="true")
    assert status == 2, err
    assert "tilted_start with a LoRA adapter is not supported" in err
    few = {"likeliest": 2, "from_tail": 1}
    method = {"method": "value_distillation", "stored": True, "tilted_start": True, "max_steps": 2, **few}
    methods = {"v": method}
    status, _, err = comparison(
        methods=methods, groups={"num_generations": 6, "max_prompts": 24}, budget={"completions": 144}
    )
    assert status == 1
    assert says in err
