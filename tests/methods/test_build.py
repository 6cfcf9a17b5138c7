"""From a name and settings to a method: what is honoured, and what is refused by name."""

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from nonpareil.errors import ConfigError
from nonpareil.methods import METHODS, build, method_class
from nonpareil.methods.base import Method, Targets, no_draw
from nonpareil.methods.bond import BOND
from nonpareil.setting_types import check_value
from tests.methods.every_method import SETTINGS

STORED = {name for name, cls in METHODS.items() if cls.stored_groups == "required"}
every = pytest.mark.parametrize("name", METHODS)


@every
def test_every_setting_of_a_method_is_set_and_none_is_left_untested(name):
    built = build(name, SETTINGS[name], stored=name in STORED)
    assert isinstance(built, METHODS[name])
    assert {key: getattr(built, key) for key in SETTINGS[name]} == SETTINGS[name]
    assert {field.name for field in fields(built)} - {"stored"} == set(SETTINGS[name])
    default = build(name, {}, stored=name in STORED)
    assert all(getattr(default, key) != value for key, value in SETTINGS[name].items())


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"method='bonbom' is unknown; did you mean bonbon\?.*file\.py:Class"
    ):
        build("bonbom", {})
    with pytest.raises(ConfigError, match="method='ppo' is unknown; there are jbond, bond, vbon, bonbon"):
        method_class("ppo")
    assert method_class("bond") is BOND


@every
def test_a_setting_that_the_method_does_not_read_is_refused_by_name(name):
    foreign = {key: value for other in SETTINGS.values() for key, value in other.items()}
    foreign = {key: value for key, value in foreign.items() if key not in SETTINGS[name]}
    assert foreign
    for key, value in (foreign | {"stored": True, "smallest_group": 3}).items():
        with pytest.raises(
            ConfigError, match=f"{key}=.* is not read by method={name}, which reads .*remove {key}"
        ):
            build(name, {key: value}, stored=name in STORED)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("regression", {"num_generations": 2}),
        ("regression", {"num_reference_samples": 2}),
        ("regression", {"quantile_estimator": "plug_in"}),
        ("vbon", {"num_reference_samples": 2}),
    ],
)
def test_what_stored_groups_replace_is_refused_with_them_only(name, setting):
    (key,) = setting
    with pytest.raises(ConfigError, match=f"{key}=.* is not read by method={name} with groups"):
        build(name, setting, stored=True)
    assert getattr(build(name, setting), key) == setting[key]


def test_groups_are_required_refused_or_taken():
    for name in ("bonbon", "sft_bon"):
        with pytest.raises(ConfigError, match=f"groups is missing: method={name} trains on stored groups"):
            build(name, {})
    for name in ("jbond", "bond", "rloo"):
        with pytest.raises(ConfigError, match=f"groups is not read by method={name}.*remove groups"):
            build(name, {}, stored=True)
    for name, own in (("vbon", 4), ("regression", 0)):
        fresh, stored = build(name, {}), build(name, {}, stored=True)
        assert (fresh.policy_draws, fresh.anchor_draws) == (4, 16)
        assert (stored.policy_draws, stored.anchor_draws) == (own, 0)


def test_draws_of_the_others():
    draws = {
        name: (built.policy_draws, built.anchor_draws)
        for name in ("jbond", "bond", "bonbon", "sft_bon", "rloo")
        for built in [build(name, {}, stored=name in STORED)]
    }
    assert draws == {"jbond": (1, 2), "bond": (1, 16), "bonbon": (0, 0), "sft_bon": (0, 0), "rloo": (4, 0)}


def test_the_anchor_moves_for_jbond_and_bond_only():
    rates = {name: cls.anchor_ema_rate for name, cls in METHODS.items() if cls.anchor_ema_rate is not None}
    assert rates == {"jbond": 0.02, "bond": 0.0}


@pytest.mark.parametrize("name", [name for name in METHODS if "n" in SETTINGS[name]])
@pytest.mark.parametrize("n", [1, 0, -2])
def test_best_of_1_is_refused(name, n):
    with pytest.raises(ConfigError, match=f"n={n} must be at least 2: best-of-1 is the reference itself"):
        build(name, {"n": n}, stored=name in STORED)


def test_methods_whose_target_is_best_of_n_have_an_n():
    with_n = {name for name in METHODS if "n" in SETTINGS[name]}
    assert with_n >= {"bond", "vbon", "bonbon", "sft_bon", "regression"}
    assert not with_n & {"jbond", "rloo"}


def test_fewer_references_than_n_where_winners_are_imitated():
    with pytest.raises(ConfigError, match=r"num_reference_samples=16 is fewer than n=32.*jeffreys_weight=1"):
        build("bond", {"n": 32})
    for name, settings in (("bond", {"jeffreys_weight": 1.0}), ("vbon", {}), ("regression", {})):
        assert build(name, {"n": 32, "num_reference_samples": 2, **settings}).anchor_draws == 2
    for name in ("bonbon", "sft_bon"):
        assert build(name, {"n": 32}, stored=True).smallest_group == 32
    assert build("regression", {"n": 32}, stored=True).smallest_group == 2
    assert build("vbon", {"n": 32}, stored=True).smallest_group == 1


@dataclass(frozen=True)
class Own(Method):
    """A user's own method."""

    strength: float = 1.0
    policy_draws: ClassVar = 2

    def targets(self, draws):
        return Targets(~draws.policy_rewards.isnan(), no_draw(draws.anchor_rewards))

    def loss(self, policy_logprobs, anchor_logprobs, targets):
        return self.strength * policy_logprobs.sum((-1, -2))


@dataclass(frozen=True)
class OwnStored(Own):
    """The same from stored groups, where given."""

    stored: bool = False
    stored_groups: ClassVar = "optional"
    unread_with_groups: ClassVar = ("strength",)


def test_a_users_own_class_is_built_and_refused_by_the_same_rules():
    assert build(Own, {}) == Own()
    assert build(Own, {"strength": 2.0}).strength == 2.0
    with pytest.raises(ConfigError, match="n=4 is not read by method=Own, which reads strength; remove n"):
        build(Own, {"n": 4})
    with pytest.raises(ConfigError, match="groups is not read by method=Own"):
        build(Own, {}, stored=True)
    assert build(OwnStored, {"strength": 3.0}) == OwnStored(3.0, False)
    assert build(OwnStored, {}, stored=True).stored
    with pytest.raises(ConfigError, match=r"strength=3\.0 is not read by method=OwnStored with groups"):
        build(OwnStored, {"strength": 3.0}, stored=True)


def test_ranges_and_choices_say_what_is_allowed():
    for value in (-1, 0, 0.5, 1, 2):
        if 0 <= value <= 1:
            check_value("w", value, float, at_least=0, at_most=1)
        else:
            with pytest.raises(ConfigError, match=f"w={value} must be at least 0 and at most 1"):
                check_value("w", value, float, at_least=0, at_most=1)
    with pytest.raises(ConfigError, match=r"^k=0 must be at least 1: draw more$"):
        check_value("k", 0, int, at_least=1, why="draw more")
    with pytest.raises(ConfigError, match="w=nan"):
        check_value("w", float("nan"), float, at_least=0, at_most=1)
    check_value("word", "a", str, choices=("a", "b"))
    with pytest.raises(ConfigError, match="word='c' must be one of a, b"):
        check_value("word", "c", str, choices=("a", "b"))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("vbon", {"epsilon": 0.1}, "epsilon=0.1 is not read by method=vbon with num_iterations=1"),
        (
            "bond",
            {"jeffreys_weight": 1.0, "imitate": "all"},
            "imitate='all' is not read .* jeffreys_weight=1",
        ),
        ("bond", {"jeffreys_weight": 0.0, "baseline": "batch"}, "baseline='batch' is not read .*=0"),
        ("bonbon", {"sft_weight": 1.0, "contrast": "dpo"}, "contrast='dpo' is not read .* sft_weight=1"),
    ],
)
def test_a_setting_that_another_one_makes_idle_is_refused(name, settings, says):
    with pytest.raises(ConfigError, match=says):
        build(name, settings, stored=name == "bonbon")
