"""A method made by the caller, and a run that is taken up at its end."""

from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError
from nonpareil.methods.bond import BOND
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.vbon import VBON
from tests.training.conftest import make_trainer, stored_groups, weights

PLAIN: dict[str, Any] = {"kl_coef": None, "anchor_ema_rate": None}


def test_settings_beside_a_method_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"n=8 is not read beside a method object; set it where"):
        make_trainer(tmp_path, made=BOND(n=2), n=8, **PLAIN)


def test_a_method_object_that_needs_groups_is_refused_without(tmp_path: Path) -> None:
    for made in (SFTBoN(), VBON(stored=True)):
        with pytest.raises(ConfigError, match=f"groups is missing: {type(made).__name__} learns from stored"):
            make_trainer(tmp_path, made=made, **PLAIN)


def test_a_method_object_that_draws_its_own_is_refused_with_groups(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"groups: VBON draws 16 fresh reference completions .* stored=True"
    ):
        make_trainer(tmp_path, made=VBON(), groups=stored_groups(3), **PLAIN)


def test_a_run_taken_up_at_its_end_takes_no_further_step(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    first = make_trainer(tmp_path, lr_scheduler_type="constant", **settings)
    first.train()
    again = make_trainer(tmp_path, lr_scheduler_type="constant", **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert again.spent.completions_drawn == first.spent.completions_drawn
    ours, theirs = weights(again.model), weights(first.model)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
