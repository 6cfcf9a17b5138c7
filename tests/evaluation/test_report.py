import dataclasses
import json
import math
from html.parser import HTMLParser

import pytest
import torch

from nonpareil.evaluation import best_of_n_report, evaluate_groups, plots
from nonpareil.evaluation.report import sample_pairs, write_curve, write_report

HOSTILE = "<script>alert('x')</script> </td> & \"quotes\" {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Every tag, address and the visible text; fails on a tag closed out of turn."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def written(draw, tmp_path):
    reference = torch.full((30, 6), 1 / 6, dtype=torch.float64)
    rewards = torch.arange(6).double().expand(30, 6)
    policy = torch.softmax(0.5 * rewards, dim=-1)
    sides = draw(policy, rewards, 4, 0).groups, draw(reference, rewards, 8, 1).groups
    for group in sides[0]:
        group.completions = [HOSTILE] * 4
    sides[0][0].prompt = sides[1][0].prompt = [{"role": "user", "content": "<b>hello</b>"}]
    sides[1][3].rewards[0] = None
    evaluation = evaluate_groups(
        *sides, policy_kl=torch.full((30, 4), 0.4), policy_log_ratio=torch.full((30, 4), 0.4), n=(2, 4)
    )
    context = {"policy": HOSTILE, "sampling": {"temperature": 1.0, "top_p": math.nan}, "seeds": [1, 2]}
    curve = best_of_n_report(sides[1])
    path = write_report(evaluation, curve, *sides, tmp_path / "out", "A <title>", context)
    return path, evaluation, curve, sides


def test_html_is_one_file_and_escapes_completions(written):
    path, *_ = written
    source = path.read_text()
    page = Page()
    page.feed(source)
    assert page.open == []
    assert "script" not in page.tags
    assert len(page.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert HOSTILE in page.text
    assert "A <title>" in page.text
    assert "Win rate" in page.text
    assert "sampling.temperature" in page.text
    assert "prompts are rough" not in page.text, "thirty are enough"
    assert "dataset_source" not in page.text, "of a mixture alone"


def test_a_report_of_few_prompts_says_so(written, tmp_path):
    _, evaluation, curve, sides = written
    few = dataclasses.replace(evaluation, num_prompts=29)
    path = write_report(few, curve, *sides, tmp_path / "few", "A title", {})
    assert path.read_text().count("Intervals over 29 prompts are rough: take 30 or more.") == 1


def test_json_and_pictures_are_whole(written):
    path, evaluation, curve, _ = written

    def refuse(text):
        raise AssertionError(text)

    content = json.loads((path.parent / "report.json").read_text(), parse_constant=refuse)
    assert content["evaluation"] == evaluation.to_dict()
    assert content["curve"] == curve.to_dict()
    assert content["curve"]["failed_rewards"] == 1
    assert content["context"]["sampling"] == {"temperature": 1.0, "top_p": None}
    files = {file.name for file in path.parent.iterdir()}
    assert files == {"report.json", "report.html", "frontier.png", "curve.png", "rewards.png", "lengths.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in path.parent.glob("*.png"))


def test_samples_are_chosen_by_the_seed_alone(written):
    *_, (policy, reference) = written
    first = sample_pairs(policy, reference, seed=1)
    assert len(first) == 12
    assert first == sample_pairs(policy[::-1], reference[::-1], seed=1)
    assert first != sample_pairs(policy, reference, seed=2)


def test_curve_files(written, tmp_path):
    _, _, curve, _ = written
    path = write_curve(curve, tmp_path / "curve")
    content = json.loads(path.read_text())
    assert [point["n"] for point in content["points"]] == list(range(1, 9))
    assert content["points"][-1]["win_rate"] is None
    assert (tmp_path / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_take_several_policies_and_are_reproducible(written):
    _, evaluation, *_ = written
    both = {"step 100": evaluation, "step 200": evaluation}
    pictures = [plots.png(plots.frontier_figure(both)) for _ in range(2)]
    assert pictures[0] == pictures[1]
    labels = [text.get_text() for text in plots.frontier_figure(both).legends[0].get_texts()]
    assert labels == ["best possible", "best-of-N", "step 100", "step 200"]
    flat = plots.reward_figure(torch.ones(3, 2), torch.full((3, 2), math.nan))
    assert plots.png(flat).startswith(b"\x89PNG")
