"""A method made by the caller, and a run that is taken up at its end."""

import inspect
import json
import math
import subprocess
import sys
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method, ScoredDraws
from nonpareil.methods.bond import BOND
from nonpareil.methods.regression import Regression
from nonpareil.methods.rloo import RLOO
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.vbon import VBON
from nonpareil.training import DistillationConfig
from nonpareil.training.method import method_of
from nonpareil.user_code.load import load_function
from tests.training.conftest import make_trainer, stored_groups, weights


def test_a_setting_of_a_method_is_set_where_the_object_is_made(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "bond", "n": 8}, "n=8 is a setting of method=bond, and given to it: method=BOND(n=8)"),
        ({"method": BOND(n=2), "n": 8}, "n=8 is a setting of method=bond, and given to it: method=BOND(n=8)"),
        ({"zzz": 1}, "zzz=1: there is no such setting; remove it"),
        (
            {"beta": 0.1},
            "beta=0.1 of TRL is kl_coef here: kl_coef=0.1 is a setting of method=jbond, and given to it: "
            "method=JBOND(kl_coef=0.1)",
        ),
        (
            {"bound": "l1"},
            "bound='l1' is a setting of vbon, and not read by method=jbond; remove it, or train by one that reads "
            "it: method=VBON(bound='l1')",
        ),
        ({"learning_rat": 1}, "learning_rat=1: there is no such setting; did you mean learning_rate?"),
        (
            {"method": "bnd", "n": 8},
            "method='bnd' is unknown; did you mean bond? Your own: path/to/file.py:Class",
        ),
    ]
    for settings, says in cases:
        with pytest.raises(ConfigError) as refused:
            DistillationConfig(output_dir=str(tmp_path), **settings)
        assert str(refused.value) == says
    assert "n" not in inspect.signature(DistillationConfig).parameters
    assert inspect.signature(DistillationConfig).parameters["method"].default == "jbond"


def test_a_method_object_that_needs_groups_is_refused_without(tmp_path: Path) -> None:
    for made in (SFTBoN(), VBON(stored=True)):
        with pytest.raises(ConfigError, match=f"groups is missing: {type(made).__name__} learns from stored"):
            make_trainer(tmp_path, method=made)


def test_a_method_object_that_draws_its_own_is_refused_with_groups(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"groups: VBON draws 16 fresh reference completions .* stored=True"
    ):
        make_trainer(tmp_path, method=VBON(), groups=stored_groups(3))
    with pytest.raises(ConfigError, match="groups is not read by method=RLOO, which draws its own"):
        make_trainer(tmp_path, method=RLOO(), groups=stored_groups(3))


SCALED = """
from dataclasses import dataclass
from nonpareil.methods.base import Method, PolicyGradientTargets, no_draw

@dataclass(frozen=True)
class Scaled(Method):
    scale: float = 1.0
    num_generations: int = 2
    reducer: object = max

    @property
    def policy_draws(self):
        return self.num_generations

    def targets(self, draws):
        scored = ~draws.policy_rewards.isnan()
        worth = self.scale * draws.policy_rewards.nan_to_num()
        return PolicyGradientTargets(scored, no_draw(draws.anchor_rewards), advantages=worth)

    def loss(self, policy_logprobs, anchor_logprobs, targets):
        return -(targets.advantages * policy_logprobs.sum(-1)).mean(-1)
"""


def test_a_name_and_an_object_of_its_defaults_are_one_method(tmp_path: Path) -> None:
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, method="bond")
    assert method_of(args, stored=False) == BOND()
    assert method_of(replace(args, method=BOND(n=2)), stored=False) == BOND(n=2)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (3, "method=3 must be text"),
        (
            BOND,
            "method=<class 'nonpareil.methods.bond.BOND'> must be text, or an object of a subclass of .*Method",
        ),
        (None, "method=None must be text"),
        ("bonds", r"method='bonds' is unknown; did you mean bond\?"),
    ],
)
def test_what_is_no_method_is_refused(method: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, method=method) if method == "bonds" else DistillationConfig(method=method)


def test_a_class_without_fields_of_its_own_is_refused(tmp_path: Path) -> None:
    class Bare(SFTBoN):
        """No dataclass of its own, which is as good as its base."""

    class Plain(Method):
        """No dataclass at all."""

        def targets(self, draws: ScoredDraws) -> Any:
            raise NotImplementedError

        loss: Any = targets

    assert make_trainer(tmp_path, method=Bare(n=2), groups=stored_groups(3)).method.smallest_group == 2
    with pytest.raises(ConfigError, match="method='Plain' must be a dataclass"):
        make_trainer(tmp_path, method=Plain())


def test_logs_and_files_hold_a_method_by_its_name_and_settings(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    scaled: Any = load_function(f"{tmp_path}/scaled.py:Scaled")
    for method, name, settings in (
        (Regression(target_floor=-math.inf), "regression", {"target_floor": "-Infinity", "n": 8}),
        (scaled(scale=0.5), "scaled.py:Scaled", {"scale": 0.5, "reducer": "<built-in function max>"}),
    ):
        config = DistillationConfig(output_dir=str(tmp_path / "run"), use_cpu=True, method=method)
        told = json.loads(config.to_json_string())
        assert told["method"] == name
        assert told["method_settings"].items() >= settings.items()
        assert isinstance(config.to_sanitized_dict()["method"], str)
        assert copy(config).method == deepcopy(config).method == config.with_whole_steps().method == method


def test_saved_arguments_are_read_without_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    scaled: Any = load_function(f"{tmp_path}/scaled.py:Scaled")
    methods = {"bond": BOND(n=2), "scaled": scaled(scale=0.5)}
    for name, method in methods.items():
        trainer = make_trainer(tmp_path / "run", max_steps=1, method=method)
        trainer.train()
        trainer.save_model(str(tmp_path / name))
    code = "import sys, torch\nfor at in sys.argv[1:]: print(torch.load(at, weights_only=False).method)"
    saved = [str(tmp_path / name / "training_args.bin") for name in methods]
    words = [sys.executable, "-c", code, *saved]
    read = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, shown in zip(read, ("BOND(n=2, num_gen", "Scaled(scale=0.5, num_gen"), strict=True):
        assert line.startswith(shown), "the object itself, or what it was called and set to"


def test_what_a_draw_was_worth_stands_in_the_table_of_completions(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    scaled: Any = load_function(f"{tmp_path}/scaled.py:Scaled")
    make_trainer(tmp_path / "run", max_steps=1, method=scaled(scale=0.5)).train()
    rows = pq.read_table(tmp_path / "run" / "completions" / "completions_00001.parquet").to_pylist()
    assert len(rows) == 4 * 2
    assert [row["advantage"] for row in rows] == pytest.approx([0.5 * row["goodness"] for row in rows])


def test_a_setting_with_the_name_of_a_part_of_a_run_is_told_apart_on_resume(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED.replace("scale", "processes"))
    scaled: Any = load_function(f"{tmp_path}/scaled.py:Scaled")
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    make_trainer(tmp_path / "run", max_steps=1, method=scaled(processes=1.0), **settings).train()
    again = make_trainer(tmp_path / "run", max_steps=2, method=scaled(processes=2.0), **settings)
    with pytest.raises(ConfigError, match=r"processes of the method: 1\.0 there, 2\.0 now"):
        again.train(resume_from_checkpoint=True)


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
