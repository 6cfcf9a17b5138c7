"""What a user may call a verifier."""

import importlib
import importlib.metadata
from pathlib import Path

import pytest

from nonpareil.errors import ConfigError
from nonpareil.rewards import load_rewards
from nonpareil.rewards.specs import kind_of
from nonpareil.rewards.verifiers.length import Length
from nonpareil.rewards.verifiers.names import VERIFIERS, make_verifier
from nonpareil.settings import settings_of


@pytest.mark.parametrize("name", VERIFIERS)
def test_each_name_has_a_class_whose_settings_say_what_they_are(name):
    module, _, attribute = VERIFIERS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    assert cls.name == name
    assert all(setting.help for setting in settings_of(cls).values())
    assert kind_of(name) == "verifier"


def test_a_name_with_its_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reward = load_rewards(["length:at_most=20", "length:target=4", "format: style = answer ", "format:"])
    assert reward.names == ["length", "length_2", "format", "format_2"]
    settings = [one.describe()["settings"] for one in reward.rewards]
    assert settings[0] == {"target": None, "at_most": 20}
    assert settings[1] == {"target": 4, "at_most": None}
    assert [one["style"] for one in settings[2:]] == ["answer", "think"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("length", r"reward 'length': give one of target and at_most"),
        ("length:at_most=0", r"reward 'length': at_most=0 must be at least 1"),
        ("length:at_most=x", r"reward 'length': at_most='x' must be a whole number"),
        ("length:at_mots=3", r"'length' has no setting 'at_mots'; did you mean 'at_most'\?"),
        ("length:at_most=3,at_most=4", r"at_most is given twice"),
        ("length:at_most=3,4", r"'4' is no setting=value"),
        ("length:timeout=3", r"'length' has no setting 'timeout'"),
        ("format:style=thnk", r"must be one of think, think_answer, answer; did you mean think\?"),
        ("lenght", r"no verifier is called 'lenght'; did you mean 'length'\?"),
        ("acuracy:read=any", r"no verifier is called 'acuracy'; did you mean 'accuracy'\?"),
        ("mine:a=b", r"no verifier is called 'mine'; there are: accuracy, format"),
    ],
)
def test_what_is_badly_written_is_refused_in_one_line(spec, said):
    with pytest.raises(ConfigError, match=said) as refused:
        load_rewards(spec)
    assert "\n" not in str(refused.value)


def test_a_folder_of_the_name_is_asked_about_and_a_function_is_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "format").mkdir()
    assert kind_of("format") == "verifier"
    assert kind_of("./format") == kind_of(Path("format")) == "model"
    (tmp_path / "format" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"write ./format for the model, or format: for the verifier"):
        kind_of("format")
    assert kind_of("format:") == "verifier"
    assert kind_of("accuracy:fn") == "function"
    assert kind_of("org/accuracy") == kind_of("gpt2") == "model"
    (tmp_path / "lengths").mkdir()
    assert kind_of("lengths") == "model"


def test_a_missing_package_says_what_installs_it(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    for name, package, extra in (
        ("accuracy", "math-verify", "verifiers"),
        ("similarity", "sacrebleu", "verifiers"),
        ("reasoning_gym", "reasoning-gym", "gym"),
    ):
        with pytest.raises(ConfigError, match=rf'{package}, .*: pip install "nonpareil\[{extra}\]"$'):
            load_rewards(name)


def test_the_commands_limit_is_each_verifiers_own_unless_it_has_one(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    assert make_verifier("accuracy").timeout == 10
    assert make_verifier("accuracy", 3).timeout == 3
    assert make_verifier("accuracy:timeout=4", 3).timeout == 4
    assert isinstance(make_verifier("length:target=1", 3), Length)
