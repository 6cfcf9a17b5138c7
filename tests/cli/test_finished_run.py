"""What a run that came to its end leaves, and evaluations that share a reference."""

import json

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.rollouts.manifest import read_manifest


def last_json(output):
    return json.loads(output.strip().splitlines()[-1])


def test_a_run_out_of_seconds_is_saved_and_evaluated(nonpareil, files):
    status, out, err = nonpareil(
        "distill", "--json", max_train_seconds=1e-6, max_steps=50, max_eval_prompts=4
    )
    figures = last_json(out)
    assert status == 0, err
    assert figures["steps"] == 1
    assert figures["interrupted"] is False
    assert figures["evaluation"]["num_prompts"] == 4
    assert (files / "out" / "model.safetensors").is_file()
    assert json.loads((files / "out" / "spent.json").read_text())["steps"] == 1


def test_two_evaluations_share_one_reference(nonpareil, files, monkeypatch):
    drawn = []
    draw = TransformersEngine.draw

    def counted(self, prompts, m, *args):
        drawn.append((len(prompts), m))
        return draw(self, prompts, m, *args)

    monkeypatch.setattr(TransformersEngine, "draw", counted)
    shared = {"reference_dir": files / "shared", "num_generations": 3, "max_prompts": 4}
    for name in ("one", "two"):
        status, _, err = nonpareil("evaluate", "--overwrite", "true", output_dir=files / name, **shared)
        assert status == 0, err
    assert drawn == [(4, 8), (4, 3), (4, 3)], "of the reference once only, whatever overwrite says"
    assert not (files / "one" / "reference").exists()
    manifest = read_manifest(files / "shared")
    assert manifest["draw"]["num_generations"] == 8
    for changes, says in (
        ({"temperature": 0.5}, "sampling.temperature: 1.0 there, 0.5 now"),
        ({"max_prompts": 3}, "prompts.count: 4 there, 3 now"),
        ({"num_reference_samples": 4}, "num_generations: 8 there, 4 now"),
        ({"seed": 3}, "seed: 1 there, 7 now"),
    ):
        status, _, err = nonpareil(
            "evaluate", "--overwrite", "true", output_dir=files / "two", **{**shared, **changes}
        )
        assert status == 2
        assert str(files / "shared") in err
        assert says in err
    assert read_manifest(files / "shared") == manifest
