"""Which settings differ between two places, and which name was meant."""

from dataclasses import dataclass

import pytest

from nonpareil.errors import ConfigError
from nonpareil.setting_types import nearest, nearest_name
from nonpareil.settings import CheckedOptions, differing, flat, offered, option, settings_of, values_of


def test_settings_that_differ_are_told_with_both_values():
    there = {"seed": 1, "sampling": {"top_k": 0, "temperature": 1.0}, "old": True}
    here = {"sampling": {"top_k": 5, "temperature": 1.0}, "seed": 1, "new": [1]}
    assert differing(there, there) == {}
    assert differing(flat(there), flat(here)) == {
        "sampling.top_k": (0, 5),
        "old": (True, None),
        "new": (None, [1]),
    }
    assert list(differing(there, here)) == ["sampling", "old", "new"], (
        "in the order of the first, then the second"
    )
    assert flat({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1}


@dataclass
class Inner(CheckedOptions):
    size: int = option(1, "A size.")


@dataclass
class Outer(Inner):
    name: str = option("a", "A name.")


def test_the_values_of_some_of_the_settings():
    assert values_of(Outer(size=3), Inner) == {"size": 3}
    assert values_of(Outer(size=3, name="b"), Inner, Outer) == {"size": 3, "name": "b"}


def test_the_nearest_name_is_proposed_where_one_is_near():
    assert nearest_name("vbonn", ["vbon", "bond"]) == "vbon"
    assert nearest("vbonn", ["vbon", "bond"], "--") == "; did you mean --vbon?"
    assert nearest("vbonn", ["vbon"], quoted=True) == "; did you mean 'vbon'?"
    assert (nearest_name("x", ["vbon"]), nearest("x", ["vbon"])) == (None, "")


@dataclass
class Circle:
    one: int = option(1, "", of="two=3")
    two: int = option(1, "", of="three")
    three: int = option(1, "", of="one")
    outside: int = option(1, "", of="one")


@dataclass
class OfItself:
    alone: int = option(1, "", of="alone")


def test_settings_that_belong_to_one_another_in_a_circle_are_refused_where_they_are_declared():
    with pytest.raises(
        ConfigError, match=r"Circle: the setting 'one' belongs to itself .one of two of three of one"
    ):
        settings_of(Circle)
    with pytest.raises(ConfigError, match="'alone' belongs to itself"):
        settings_of(OfItself)


@dataclass
class Refusing(CheckedOptions):
    judge: str | None = option(None, "", refused="cannot be: no judges; remove it")
    cache: str | None = option(None, "", of="judge")
    size: int | None = option(None, "", of="cache")
    other: int = option(1, "")


def test_what_belongs_to_a_refused_setting_is_not_offered_and_refused_with_its_reason():
    assert list(offered(Refusing)) == ["other"]
    with pytest.raises(
        ConfigError, match="cache='x' is not read: judge cannot be: no judges; remove it; remove cache"
    ):
        Refusing(cache="x")
