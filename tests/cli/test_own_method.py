"""docs/own-method.md: its example runs as it is written, and says what it does."""

import importlib.util
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from nonpareil.training.config import METHOD_SETTINGS, DistillationConfig
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


def test_the_page_names_every_setting():
    text = PAGE.split("## Settings")[1]
    assert set(METHOD_SETTINGS) <= {field.name for field in fields(DistillationConfig)}
    assert set(METHOD_SETTINGS) <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (("", ""), ["--n", "4"], ["n=4", "not read by method=Tilt", "remove n"]),
        (("", ""), ["--anchor_ema_rate", "0.1"], ["anchor_ema_rate=0.1", "reference is fixed"]),
        (("", ""), ["--groups", "g"], ["groups is not read by method=Tilt"]),
        (("", ""), ["--kl_coef", "0"], ["kl_coef=0.0 must be above 0"]),
        (("", ""), ["--method", "tilt.py:Tlit"], ["Tlit", "did you mean 'Tilt'"]),
        (("", ""), ["--method", "tlit.py:Tilt"], ["no such file", "tlit.py"]),
        (("def metrics", "def figures"), [], ["tilt.py:Tilt", "has no metrics", "docs/own-method.md"]),
        (("@dataclass(frozen=True)\nclass Tilt:", "class Tilt:"), [], ["must be a dataclass"]),
        (("samples: int = 8", "samples: int"), [], ["'num_reference_samples' has no default"]),
        (("ClassVar = 0  # k", "ClassVar = int('x')"), [], ["importing", "failed", "invalid literal"]),
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
