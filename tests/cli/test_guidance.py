"""Draws guided by a value, from the command line: groups, evaluation, and what cannot be guided."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from nonpareil.commands.evaluate.guided import with_both_sides
from nonpareil.engines.guidance import Guide
from nonpareil.engines.guided_divergence import guided_divergence
from nonpareil.maths.guidance import Guidance
from nonpareil.models.fingerprint import fingerprint
from nonpareil.models.logprobs import TokenSequences, completion_logprobs
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import Group
from nonpareil.rollouts import read_groups
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.values.model import ValueModel, ValueNotes, load_value
from tests.cli.conftest import Command, config, tokenizer

BINS = 4


@pytest.fixture
def value(files: Path) -> Path:
    """Of the tiny policy; its weights are random, so that it is wrong, and moves everything."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(config(num_labels=BINS)).eval()
    nn.init.normal_(model.score.weight)
    policy, scored = fingerprint(str(files / "policy")), {"kind": "another"}
    notes = ValueNotes(BINS, policy=policy, rewards=scored, temperature=1.0)
    ValueModel(model, tokenizer(), notes).save(files / "value")
    return files / "value"


def expected(files: Path, groups: list[Group], n: int, likeliest: int) -> tuple[torch.Tensor, ...]:
    """KL of the guided policy along stored completions, its log-ratio there, and the reference's log-probs."""
    model = AutoModelForCausalLM.from_pretrained(files / "policy").eval()
    guide = Guide(load_value(files / "value", dtype="float32").at(n), Guidance(likeliest))
    sequences = TokenSequences(
        [group.prompt_token_ids for group in groups for _ in group.completions],
        [ids for group in groups for ids in group.completion_token_ids],
    )
    with torch.no_grad():
        return *guided_divergence(model, guide, sequences), completion_logprobs(model, sequences)


def test_groups_are_drawn_by_the_guided_law_and_never_mixed(
    nonpareil: Command, files: Path, value: Path
) -> None:
    settings = {"value": value, "n": 4, "likeliest": 5, "dtype": "float32"}
    status, _, said = nonpareil("sample", **settings)
    assert status == 0, said
    groups = read_groups(files / "out")
    _, ratio, reference = expected(files, groups, 4, 5)
    recorded = torch.tensor([sum(logprobs) for group in groups for logprobs in group.logprobs])
    torch.testing.assert_close(recorded, reference + ratio, rtol=0, atol=1e-4)
    assert ratio.abs().max() > 0.3
    draw = (read_manifest(files / "out") or {})["draw"]
    assert draw["model"]["guidance"] == {
        "value": {"fingerprint": fingerprint(str(value)), "target": "tilt", "n": 4.0},
        "likeliest": 5,
        "strength": 1.0,
        "max_advantage": 1.0,
        "balanced": False,
    }
    for change, named in (
        ({"n": 8}, "value.n: 4.0 there, 8.0 now"),
        ({"likeliest": 6}, "likeliest: 5 there, 6 now"),
    ):
        status, _, said = nonpareil("sample", **{**settings, **change})
        assert status == 2
        assert named in said
    status, _, said = nonpareil("sample", dtype="float32")
    assert status == 2
    assert "model.guidance.likeliest: 5 there, None now" in said
    status, _, said = nonpareil(
        "distill", groups=files / "out", dataset_name=None, method="bonbon", output_dir=files / "d"
    )
    assert status == 2
    assert "another policy; draw groups from the model that is trained" in " ".join(said.split())


def test_an_evaluation_of_the_guided_reference(nonpareil: Command, files: Path, value: Path) -> None:
    settings = {"value": value, "n": 4, "likeliest": 5, "num_generations": 3, "dtype": "float32"}
    status, _, said = nonpareil("evaluate", reference_model_name_or_path=None, **settings)
    assert status == 0, said
    assert "the reward evaluated is another than the one that value=" in " ".join(said.split())
    report = json.loads((files / "out" / "report.json").read_text())
    kl, ratio, _ = expected(files, read_groups(files / "out" / "policy"), 4, 5)
    _, of_reference, _ = expected(files, read_groups(files / "out" / "reference"), 4, 5)
    found = report["evaluation"]
    assert found["kl"]["estimate"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert kl.mean() > 0.1
    assert found["log_ratio"]["estimate"] == pytest.approx(ratio.mean().item(), rel=1e-4)
    assert report["title"] == "How near to best-of-N? (guided by value, n = 4)"
    assert report["context"]["policy"]["guidance"]["value"]["n"] == 4
    assert "guidance" not in report["context"]["reference"]
    assert [each["n"] for each in found["targets"]] == [4]
    assert of_reference.shape == (12 * 8,)

    notes = json.loads((value / "value.json").read_text())
    notes["rewards"] = (read_manifest(files / "out" / "reference") or {})["rewards"]
    (value / "value.json").write_text(json.dumps(notes))
    status, _, said = nonpareil("evaluate", reference_model_name_or_path=None, **settings)
    assert status == 0, said
    assert "the reward evaluated" not in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": None}, "give n, such as --n 4"),
        ({"value": None}, "n=4 is not read without value"),
        ({"value": None, "n": None, "likeliest": 8}, "likeliest=8 is not read without value"),
        ({"engine": "vllm"}, "is not read with engine=vllm; give engine=transformers"),
        ({"engine": "ray"}, "is not read with engine=ray; give engine=transformers"),
        ({"engine": "openai", "base_url": "http://127.0.0.1:9/v1"}, "is not read with engine=openai"),
        ({"value": "rm"}, "has no value.json"),
        ({"value": "nowhere"}, "nowhere"),
        ({"temperature": 0.7}, "drawn at temperature 1, and here draws are at 0.7"),
        ({"model_name_or_path": "other"}, "the value of prefixes of another policy"),
    ],
)
def test_what_cannot_be_guided_is_refused_by_name(
    nonpareil: Command, files: Path, value: Path, changes: dict[str, object], named: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(files / "policy")
    model.lm_head.weight.data += 1
    model.save_pretrained(files / "other")
    tokenizer().save_pretrained(files / "other")
    paths = {key: files / str(path) for key, path in changes.items() if path in ("rm", "nowhere", "other")}
    status, _, said = nonpareil("sample", **{"value": value, "n": 4, **changes, **paths})
    assert status in (1, 2)
    assert named in " ".join(said.split())
    assert not (files / "out").exists() or not list((files / "out").glob("data/*"))


def test_an_evaluation_guides_one_model_towards_one_n(nonpareil: Command, files: Path, value: Path) -> None:
    for changes, named in (
        ({"n": "2 4"}, "guides towards best-of-n of one n, and n=[2, 4]: give n, such as --n 4"),
        ({"reference_model_name_or_path": files / "rm"}, "are two models (or revisions); give one of them"),
        ({"strengths": "0.5 1"}, "evaluate them one after another"),
    ):
        status, _, said = nonpareil("evaluate", **{"value": value, "n": 4, **changes})
        assert status == 2
        assert named in " ".join(said.split())


@pytest.mark.parametrize("named", ["model_name_or_path", "reference_model_name_or_path"])
def test_the_guided_model_is_named_once(named: str) -> None:
    options = EvaluateOptions(
        **{named: "m", named.replace("name_or_path", "revision"): "r"}, value="v", n=[4]
    )
    both = with_both_sides(options)
    assert (both.model_name_or_path, both.model_revision) == ("m", "r")
    assert (both.reference_model_name_or_path, both.reference_model_revision) == ("m", "r")


def test_a_function_makes_the_value(nonpareil: Command, files: Path) -> None:
    """One that likes a word: it is drawn more often, and the file is of another guidance than another word's."""
    (files / "own.py").write_text(
        "import torch\n\n"
        "class Likes:\n"
        "    def __init__(self, token):\n"
        "        self.token = token\n\n"
        "    def prefix_values(self, sequences):\n"
        "        completions = sequences.completion_ids\n"
        "        longest = max(map(len, completions))\n"
        "        rows = [[i == self.token for i in ids] + [0] * (longest - len(ids)) for ids in completions]\n"
        "        return torch.tensor([[0, *row] for row in rows]).float().cumsum(-1)\n\n"
        "    def candidate_values(self, sequences, token_ids):\n"
        "        return self.prefix_values(sequences)[:, :-1, None] + (token_ids == self.token)\n\n"
        "    def describe(self):\n"
        "        return {'token': self.token}\n\n"
        "def good(target_n, target):\n"
        "    return Likes(8)\n\n"
        "def nothing(target_n, target):\n"
        "    return 3\n"
    )
    settings = {"n": 2, "likeliest": 17, "dtype": "float32"}
    counts = []
    for value, folder in ((None, "plain"), (f"{files}/own.py:good", "liked")):
        changes = settings | {"value": value} if value else {"dtype": "float32"}
        status, _, said = nonpareil("sample", output_dir=files / folder, **changes)
        assert status == 0, said
        ids = [i for group in read_groups(files / folder) for one in group.completion_token_ids for i in one]
        counts.append(ids.count(8) / len(ids))
    assert counts[1] > 1.5 * counts[0]
    named = (read_manifest(files / "liked") or {})["draw"]["model"]["guidance"]["value"]
    assert named["function"].endswith("own.py:good")
    assert named["token"] == 8
    status, _, said = nonpareil("sample", value=f"{files}/own.py:nothing", **settings)
    assert status == 2
    assert "made a int, without prefix_values" in " ".join(said.split())
