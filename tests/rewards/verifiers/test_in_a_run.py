"""Verifiers in a real run: drawn, scored by name with weights, stored, and scored again when a setting changes."""

import json

import pytest

from nonpareil.rollouts.reading import read_groups
from tests.cli.conftest import files, nonpareil  # noqa: F401  (fixtures)


def test_sample_scores_with_two_verifiers_and_weights(nonpareil, files):  # noqa: F811
    code, _, error = nonpareil(
        "sample", reward_funcs="format:style=answer length:target=4", reward_weights="2 0.5"
    )
    assert code == 0, error
    for group in read_groups(files / "out"):
        for place in range(len(group)):
            ended = group.finish_reasons[place] == "stop"
            tokens = len(group.completion_token_ids[place]) - ended
            length, tags = (group.rewards_by_name[name][place] for name in ("length", "format"))
            assert (tags, length) == (0, pytest.approx(-abs(tokens - 4) / 4))
            assert group.rewards[place] == pytest.approx(0.5 * length)
    assert any(len({*group.rewards}) > 1 for group in read_groups(files / "out"))
    manifest = json.loads((files / "out" / "manifest.json").read_text())
    assert '"kind": "verifier"' in json.dumps(manifest)


def test_what_a_verifier_lacks_is_said_before_the_policy_is_loaded(nonpareil, files):  # noqa: F811
    pytest.importorskip("math_verify")
    code, _, error = nonpareil("sample", reward_funcs="accuracy")
    assert code == 2
    assert "reward 'accuracy' reads the column 'answer', which the prompts lack (they have: id)" in error
    assert not (files / "out" / "data").exists()
