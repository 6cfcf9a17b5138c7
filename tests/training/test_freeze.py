"""Parameters that are not trained."""

from pathlib import Path

import pytest

from nonpareil.errors import ConfigError
from tests.training.conftest import ending_model, make_trainer, weights


def test_frozen_parameters_stay_and_the_others_move(tmp_path: Path) -> None:
    before = weights(ending_model())
    trainer = make_trainer(tmp_path, max_steps=2, frozen_parameters=["embed_tokens", "layers.0"])
    trainer.train()
    after = weights(trainer.model)
    frozen = {name for name in before if "embed_tokens" in name or "layers.0" in name}
    assert len(frozen) > 2
    assert all(before[name].equal(after[name]) for name in frozen)
    assert not any(before[name].equal(after[name]) for name in before if "layers.1" in name)


def test_a_part_that_no_name_has_and_nothing_to_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"frozen_parameters: no parameter's name contains 'wte'"):
        make_trainer(tmp_path, frozen_parameters=["wte"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        make_trainer(tmp_path, frozen_parameters=["."])
