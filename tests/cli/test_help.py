"""`nonpareil <command> --help`: quick, each setting once with its default, and nothing that is always refused."""

import re
import subprocess
import sys

import pytest

from nonpareil.cli.help import HEADINGS, INHERITED, by_heading
from nonpareil.cli.main import COMMANDS, main
from nonpareil.cli.method_help import settings_by_method
from nonpareil.commands.compare.command import COMMAND as COMPARE
from nonpareil.commands.distill.command import COMMAND as DISTILL
from nonpareil.methods import METHODS
from nonpareil.options.distill import DistillOptions
from nonpareil.settings import Setting, settings_of
from nonpareil.training.config import DistillationConfig
from nonpareil.training.settings import DistillationSettings

IN_A_NEW_PROCESS = """
import sys
from nonpareil.cli.main import main
code = main(sys.argv[1:])
print(sorted({"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib"} & set(sys.modules)), code)
"""
OWN_METHOD = '''
@dataclass(frozen=True)
class Tilt(Method):
    """A method of one's own."""

    strength: float = 2.5
    shape: Literal["flat", "steep"] = option("flat", "How the tilt grows.")
    policy_draws: ClassVar = 1
'''


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")


def is_refused(setting: Setting) -> bool:
    return setting.limits.unread is not None or setting.limits.refused is not None


def belongs_to_refused(cls: type, setting: Setting) -> bool:
    owner = settings_of(cls).get((setting.limits.of or "").partition("=")[0])
    return owner is not None and is_refused(owner)


def entries(text: str) -> dict[str, str]:
    """What is said of each flag or key, by its name; each is listed once."""
    found: dict[str, str] = {}
    name = None
    for line in text.partition("\nexample:\n")[0].splitlines():
        if entry := re.match(r"  (?:--no_\w+, )?(?:--)?(\w+)(?: |$)", line):
            name = entry[1]
            assert name not in found, name
            found[name] = line
        elif name and line.startswith("    "):
            found[name] += " " + line.strip()
        else:
            name = None
    return found


def help_of(capsys, *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "[] 0"
    assert lines[0].startswith(f"usage: nonpareil {command} ")
    assert f"  nonpareil {command}" in done.stdout
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "command", ["sample", "curve", "distill", "evaluate", "value", "credits", "interpolate", "export"]
)
def test_help_lists_each_setting_once_with_its_default(command, capsys):
    record = __import__(COMMANDS[command][0], fromlist=["COMMAND"]).COMMAND
    both = [(cls, one) for cls in (record.listed or record.options)() for one in settings_of(cls).values()]
    settings = [one for _, one in both]
    listed = entries(help_of(capsys, command, "--help"))
    for cls, setting in both:
        refused = is_refused(setting) or belongs_to_refused(cls, setting)
        assert (setting.name in listed) != refused, setting.name
        if not refused:
            assert "Default: " in listed[setting.name], setting.name
            if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
                assert f"Default: {setting.default:g}." in listed[setting.name]
    others = {"config", "json"} | {name for ours in settings_by_method().values() for name, *_ in ours}
    assert set(listed) - others <= {setting.name for setting in settings}


def test_the_long_help_lists_all_that_is_not_refused(capsys):
    settings = [one for cls in (DistillOptions, DistillationConfig) for one in settings_of(cls).values()]
    listed = entries(help_of(capsys, "distill", "--help-all"))
    assert {one.name for one in settings if not is_refused(one)} <= set(listed)
    assert not {one.name for one in settings if is_refused(one)} & set(listed)
    assert {"adam_beta1", "lr_scheduler_type", "eval_strategy"} <= set(listed)
    assert not {"top_p", "fsdp", "label_names", "remove_unused_columns"} & set(listed)
    assert "{no,steps,epoch" in listed["eval_strategy"]
    assert len(help_of(capsys, "distill", "--help").splitlines()) < 300


def test_the_light_settings_are_those_of_the_trainer():
    config, light = settings_of(DistillationConfig), settings_of(DistillationSettings)
    for name, setting in light.items():
        assert (setting.default, setting.limits, setting.help) == (
            config[name].default,
            config[name].limits,
            config[name].help,
        )
    for classes in (DISTILL.options(), COMPARE.keys().values(), COMPARE.options()):
        assert set(by_heading(classes)) <= {*HEADINGS, INHERITED}
    assert INHERITED not in by_heading([DistillOptions, DistillationSettings, *COMPARE.keys().values()])


def test_settings_of_methods_are_read_from_their_files_as_they_are():
    read = settings_by_method()
    assert list(read) == list(METHODS)
    for name, cls in METHODS.items():
        settings = {key: one for key, one in settings_of(cls).items() if key != "stored"}
        assert [(one.name, one.default, one.help) for one in read[name]] == [
            (one.name, str(one.default), one.help) for one in settings.values()
        ]
        for one in read[name]:
            kind = settings[one.name].hint
            assert one.value == {int: "N", float: "X"}.get(kind, one.value)
            if one.value.startswith("{"):
                assert one.value == f"{{{','.join(kind.__args__)}}}"


def test_help_says_which_method_reads_what(capsys):
    listed = entries(help_of(capsys, "distill", "--help"))
    assert "Default: 0.0 (jbond), 0.05 (rloo)." in listed["kl_coef"]
    assert "{batch,prompt}" in listed["baseline"]
    own = entries(help_of(capsys, "distill", "--method", "rloo", "--help"))
    assert "Default: 0.05." in own["kl_coef"]
    assert "bound" not in own


def test_help_of_a_method_lists_the_anchor_s_motion_where_it_may_move(capsys):
    """As `anchor_motion` takes it; without a method the help is that of all."""
    moving = {name for name, cls in METHODS.items() if cls.anchor_ema_rate is not None}
    assert moving == {"jbond", "bond"}
    for name in METHODS:
        listed = entries(help_of(capsys, "distill", "--method", name, "--help"))
        both = {"anchor_ema_rate", "anchor_refresh_steps"} & set(listed)
        assert len(both) == (2 if name in moving else 0), name
        assert "method" in listed
    assert "anchor_ema_rate" in entries(help_of(capsys, "distill", "--help"))


def test_no_help_lists_a_judge_where_policies_are_compared(capsys):
    assert "judge_model" in entries(help_of(capsys, "sample", "--help"))
    for command in ("evaluate", "compare"):
        assert "judge_" not in help_of(capsys, command, "--help")


def test_help_lists_the_settings_of_ones_own_method(capsys, tmp_path):
    (tmp_path / "tilt.py").write_text(OWN_METHOD)
    listed = entries(help_of(capsys, "distill", "--help", f"--method={tmp_path}/tilt.py:Tilt"))
    assert "--strength X" in listed["strength"]
    assert "Default: 2.5." in listed["strength"]
    assert re.search(r"How the tilt grows\. Default: flat\.", listed["shape"])
    assert not {"policy_draws", "kl_coef"} & set(listed)
    assert "bound" in entries(help_of(capsys, "distill", "--help", "--method", "nowhere.py:Tilt"))


def test_help_of_a_comparison_lists_the_keys_of_its_file(capsys):
    text = help_of(capsys, "compare", "--help")
    for cls in COMPARE.keys().values():
        for name in settings_of(cls):
            is_there = re.search(rf"^  {name}\b", text, re.MULTILINE)
            assert bool(is_there) != name.startswith("judge_"), name
    assert "Default: 128." in entries(text.partition("\nevaluation\n")[2])["checkpoint_prompts"]
    assert "engine=" not in text  # what its runs have none of
