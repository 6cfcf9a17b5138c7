"""docs/own-method.md: its example runs as it is written, and says what it does."""

import ast
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from nonpareil import DistillationConfig, DistillationTrainer, load_prompts, tokenize_prompts
from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.spec import read_spec
from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method
from nonpareil.user_code.load import load_function
from tests.methods.tabular import draws_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-method.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
COMMAND = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)[0].replace("\\\n", " ")
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 6,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "evaluate_after": False,
}


@pytest.fixture
def here(files, monkeypatch):
    """A folder in which the page's names mean the tiny model, its prompts and reward."""
    monkeypatch.chdir(files)
    (files / "my-org").mkdir()
    (files / "policy").rename(files / "my-org" / "my-model")
    (files / "rm").rename(files / "my-org" / "my-reward-model")
    (files / "train.jsonl").rename(files / "prompts.jsonl")
    (files / "test.jsonl").rename(files / "held-out.jsonl")
    (files / "tilt.py").write_text(EXAMPLE)
    (files / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return files


def run(nonpareil, *more):
    words = shlex.split(COMMAND)[1:]
    without_steps = words[: words.index("--max_steps")]
    return nonpareil(*without_steps, "--config", "small.yaml", *more)


def test_the_example_runs_as_written(nonpareil, here):
    assert len(EXAMPLE.splitlines()) < 60
    status, _, err = run(nonpareil)
    assert status == 0, err
    lines = [json.loads(line) for line in (here / "tilted" / "metrics.jsonl").read_text().splitlines()]
    assert 1 / 8 < lines[0]["tilt/largest_weight"] < 1
    spent = json.loads((here / "tilted" / "spent.json").read_text())
    assert spent["completions_drawn"] == 2 * 4 * 8
    card = (here / "tilted" / "README.md").read_text()
    assert "tilt.py:Tilt: num_reference_samples=8, kl_coef=0.5" in card
    assert "the one with the most wins" in card
    assert str(here) not in card


def test_the_example_weighs_reference_draws_by_their_quantile(here):
    spec = importlib.util.spec_from_file_location("tilt", here / "tilt.py")
    tilt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tilt)
    rewards = torch.tensor([0.0, 1.0, 1.0, torch.nan])
    log_pi = torch.full((4,), 0.25).log()
    none = torch.zeros(1, 0, dtype=torch.long)
    draws = draws_of(none, torch.tensor([[0, 1, 2, 3]]), rewards, log_pi, log_pi)
    method = tilt.Tilt(num_reference_samples=4, kl_coef=0.5)
    targets = method.targets(draws)
    # Quantiles 1/6, 2/3 and 2/3 of the three draws that were scored.
    odds = torch.tensor([1 / 6, 2 / 3, 2 / 3]).div(0.5).exp()
    torch.testing.assert_close(targets.weights[0, :3], odds / odds.sum())
    assert targets.weights[0, 3] == 0
    assert targets.train_anchor.tolist() == [[True, True, True, False]]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["tilt/largest_weight"]) for line in lines if "loss" in line]


def test_a_setting_of_a_new_name_is_given_by_flag_by_yaml_and_from_python(nonpareil, here):
    """One file is all that a new method needs, here with settings of new names: an `option`, and a plain field."""
    new = EXAMPLE.replace("kl_coef", "reach").replace("num_reference_samples", "rivals")
    assert (new.count("reach"), new.count("rivals")) == (3, 2)
    (here / "tilt.py").write_text(new)
    words = shlex.split(COMMAND)[1:]
    command = [word for word in words[: words.index("--max_steps")] if word not in ("--kl_coef", "0.5")]
    for name, given, settings in (
        ("flags", ["--reach", "0.125", "--rivals", "4"], {}),
        ("yaml", [], {"reach": 0.125, "rivals": 4}),
        ("both", ["--reach=0.125"], {"reach": 3.0, "rivals": 4}),  # a flag replaces YAML
    ):
        (here / "small.yaml").write_text(yaml.safe_dump({**SMALL, **settings}))
        status, _, err = nonpareil(*command, "--config", "small.yaml", *given, "--output_dir", name)
        assert status == 0, err
        assert "tilt.py:Tilt: rivals=4, reach=0.125" in (here / name / "README.md").read_text()
    trained = losses(here / "flags")
    assert len(trained) == 2
    assert trained == losses(here / "yaml") == losses(here / "both")

    tilt = load_function("tilt.py:Tilt")
    config = DistillationConfig(
        output_dir="python",
        method=tilt(rivals=4, reach=0.125),
        **{name: value for name, value in SMALL.items() if name != "evaluate_after"},
    )
    tokenizer = AutoTokenizer.from_pretrained("my-org/my-model")
    DistillationTrainer(
        "my-org/my-model",
        "my-org/my-reward-model",
        config,
        tokenize_prompts(load_prompts("prompts.jsonl"), tokenizer),
        processing_class=tokenizer,
    ).train()
    assert losses(here / "python") == trained


def planned(here, methods):
    """The settings of each run of a comparison of these methods."""
    comparison = {
        "output_dir": "compared",
        "model_name_or_path": "my-org/my-model",
        "dataset_name": "prompts.jsonl",
        "eval_dataset_name": "held-out.jsonl",
        "reward_model_name_or_path": "my-org/my-reward-model",
        "seeds": [0],
        "budget": {"completions": 64},
        "training": {"per_device_train_batch_size": 4},
        "methods": methods,
    }
    (here / "compare.yaml").write_text(yaml.safe_dump(comparison))
    return {run.entry.name: run.settings for run in plan_runs(read_spec("compare.yaml"))}


def test_a_setting_of_a_new_name_is_given_in_a_comparison(here):
    (here / "tilt.py").write_text(EXAMPLE.replace("kl_coef", "reach"))
    tilt = {"method": "tilt.py:Tilt", "num_reference_samples": "4"}
    runs = planned(here, {"near": {**tilt, "reach": "1"}, "far": {**tilt, "reach": 0.125}, "rloo": {}})
    assert {name: run.get("reach") for name, run in runs.items()} == {"near": 1.0, "far": 0.125, "rloo": None}
    assert {name: run["max_steps"] for name, run in runs.items()} == {"near": 4, "far": 4, "rloo": 4}
    for entry, says in (
        ({"reach": 0}, r"^methods\.own: reach=0\.0 must be above 0"),
        ({"reech": 1}, r"^methods\.own: unknown key 'reech'; did you mean reach\?"),
        (
            {"n": 4},
            r"^methods\.own: n=4 is not read by method=Tilt, which reads num_reference_samples, reach",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            planned(here, {"own": {**tilt, **entry}})
    with pytest.raises(ConfigError, match=r"^methods\.rloo: unknown key 'reach'"):
        planned(here, {"own": tilt, "rloo": {"reach": 1}})


def test_two_methods_may_mean_two_things_by_one_name(nonpareil, here):
    """bond's n is a whole number, this one's is not; null is the default of either."""
    (here / "tilt.py").write_text(EXAMPLE.replace("kl_coef", "n"))
    bond, own = (
        {"method": "bond", "n": 4, "per_device_train_batch_size": 2},
        {"method": "tilt.py:Tilt", "n": 2},
    )
    for methods in ({"bond": bond, "own": own}, {"own": own, "bond": bond}):
        runs = planned(here, methods)
        assert (repr(runs["bond"]["n"]), repr(runs["own"]["n"])) == ("4", "2.0")
    with pytest.raises(ConfigError, match=r"^methods\.bond: n='four' must be a whole number"):
        planned(here, {"own": own, "bond": {**bond, "n": "four"}})
    (here / "small.yaml").write_text(yaml.safe_dump({**SMALL, "method": "bond", "n": None}))
    words = (
        "--model_name_or_path",
        "my-org/my-model",
        "--dataset_name",
        "prompts.jsonl",
        "--config",
        "small.yaml",
    )
    reward = ("--reward_model_name_or_path", "my-org/my-reward-model")
    status, out, err = nonpareil("distill", *words, *reward, "--dry_run", "true", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["settings"]["n"] == 4


def test_the_page_names_every_part_of_a_method_with_its_default():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE.split("## What each part is for")[1], re.MULTILINE)
    told = {name: default.strip("`") for names, default in rows for name in re.findall(r"`(\w+)", names)}
    parts = {name for name in {**vars(Method), **Method.__annotations__} if not name.startswith("_")}
    assert parts - {"stored"} == set(told), "`stored` is told of with stored_groups"

    @dataclass(frozen=True)
    class Bare(Method):
        def targets(self, draws):
            raise NotImplementedError

        def loss(self, policy_logprobs, anchor_logprobs, targets):
            raise NotImplementedError

    for name, default in told.items():
        if name not in ("targets", "loss", "metrics"):
            assert getattr(Bare(), name) == ast.literal_eval(default), name
    assert Bare().metrics(None) == ast.literal_eval(told["metrics"])


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (("", ""), ["--n", "4"], ["n=4", "not read by method=Tilt", "remove n"]),
        (("", ""), ["--anchor_ema_rate", "0.1"], ["anchor_ema_rate=0.1", "reference is fixed"]),
        (("", ""), ["--groups", "g"], ["groups is not read by method=Tilt"]),
        (("", ""), ["--kl_coef", "0"], ["kl_coef=0.0 must be above 0"]),
        (("", ""), ["--num_reference_samples", "x"], ["num_reference_samples='x' must be a whole number"]),
        (("", ""), ["--kl_coeff", "1"], ["unknown flag --kl_coeff; did you mean --kl_coef?"]),
        (("", ""), ["--method", "tilt.py:Tlit"], ["Tlit", "did you mean 'Tilt'"]),
        (("", ""), ["--method", "tlit.py:Tilt"], ["no such file", "tlit.py"]),
        (("def loss", "def cost"), [], ["tilt.py:Tilt", "has no loss", "docs/own-method.md"]),
        (("@dataclass(frozen=True)\nclass Tilt(", "class Tilt("), [], ["must be a dataclass"]),
        (("Tilt(Method)", "Tilt"), [], ["'tilt.py:Tilt' must be a subclass of", "class Tilt(Method)"]),
        (("samples: int = 8", "samples: int"), [], ["'num_reference_samples' has no default"]),
        (("option(0.25", "option(float('x')"), [], ["importing", "failed", "could not convert"]),
        (("samples: int = 8", "samples: 'Int' = 8"), [], ["types of its fields cannot be read", "'Int'"]),
        (("samples: int = 8", "samples: int = 8\n    seed: int = 1"), [], ["setting 'seed' has the name of"]),
        (
            ("samples: int = 8", "samples: int = 8\n    anchor_ema_rate: float = 0.1"),
            [],
            ["'anchor_ema_rate' has the name of", "declare it as anchor_ema_rate: ClassVar"],
        ),
        (("samples: int = 8", "samples: int = 8\n    json: int = 1"), [], ["setting 'json' has the name of"]),
        (("samples: int = 8", "samples: int = 8\n    no_use_vllm: int = 1"), [], ["'no_use_vllm'", "rename"]),
        (
            ("samples: int = 8", "samples: int = 8\n    a: bool = True\n    no_a: int = 1"),
            [],
            ["'no_a'", "rename"],
        ),
        (
            ("samples: int = 8", 'samples: int = 8\n    stored_groups = "optional"'),
            [],
            ["stored_groups='optional'", "no field `stored: bool = False`"],
        ),
    ],
)
def test_what_cannot_be_a_method_is_refused(nonpareil, here, change, more, says):
    assert change[0] in EXAMPLE
    (here / "tilt.py").write_text(EXAMPLE.replace(*change) if change[0] else EXAMPLE)
    status, out, err = run(nonpareil, *more)
    assert status in (1, 2)
    assert "Traceback" not in err
    assert out == ""
    for part in says:
        assert part in err
    assert not (here / "tilted").exists()


def test_a_loss_that_is_no_number_per_prompt_is_refused(nonpareil, here):
    changed = EXAMPLE.replace("anchor_logprobs.sum(-1)).sum(-1)", "anchor_logprobs.sum(-1)).mean()")
    assert changed != EXAMPLE
    (here / "tilt.py").write_text(changed)
    status, _, err = run(nonpareil)
    assert status == 2
    assert "the loss of Tilt has shape [], and must be one number per prompt, [4]" in err
