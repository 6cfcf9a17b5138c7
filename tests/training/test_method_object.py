"""A method made by the caller, and a run that is taken up at its end."""

from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError
from nonpareil.methods.bond import BOND
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.vbon import VBON
from nonpareil.training import DistillationConfig
from tests.training.conftest import make_trainer, stored_groups, weights


def test_a_setting_of_a_method_is_set_where_the_object_is_made(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output_dir": str(tmp_path), "n": 8}
    for method in ("bond", BOND(n=2)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'n'"):
            DistillationConfig(method=method, **settings)


def test_a_method_object_that_needs_groups_is_refused_without(tmp_path: Path) -> None:
    for made in (SFTBoN(), VBON(stored=True)):
        with pytest.raises(ConfigError, match=f"groups is missing: {type(made).__name__} learns from stored"):
            make_trainer(tmp_path, method=made)


def test_a_method_object_that_draws_its_own_is_refused_with_groups(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"groups: VBON draws 16 fresh reference completions .* stored=True"
    ):
        make_trainer(tmp_path, method=VBON(), groups=stored_groups(3))


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
