"""`distill --at_win_rate` and `--at_n`: the policy of an asked win rate, written and measured beside another."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nonpareil.commands.distill.asked_strength import found_among
from nonpareil.commands.distill.folder import NOTES, asked_place, delete_outdated, kept_fingerprint
from nonpareil.evaluation.strength_path import strength_at
from nonpareil.files import write_json
from nonpareil.folders import writing
from nonpareil.models.trained import trained_temperature
from nonpareil.options.distill import DistillOptions
from tests.cli.conftest import WORDS, Command

SETTINGS: dict[str, Any] = {
    "max_eval_prompts": 8,
    "num_generations_eval": 8,
    "num_reference_samples_eval": 8,
    "learning_rate": 0.02,
    "max_steps": 6,
    "use_cpu": "true",
    "bf16": "false",
    "save_strategy": "steps",
    "save_steps": 6,
    "save_only_model": "false",
}


def last_json(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return found


def read(folder: Path) -> Any:
    return json.loads(folder.read_text())


def test_the_policy_of_an_asked_win_rate_is_written_and_measured(nonpareil: Command, files: Path) -> None:
    out, place = files / "out", files / "out" / "at-win-rate-0.6"
    status, result, said = nonpareil("distill", "--json", **SETTINGS, at_win_rate=0.6, temperature=0.9)
    assert status == 0, said
    found = last_json(result)["at_strength"]
    assert found["asked"] == {"n": None, "win_rate": 0.6}
    by_strength = {point["strength"]: point["win_rate"] for point in found["path"]}
    trained = last_json(result)["evaluation"]["comparison"]["win_rate"]["estimate"]
    assert by_strength[1.0] == pytest.approx(trained)
    assert trained > 0.6
    assert 0 < found["strength"] < 1
    assert found["strength"] == pytest.approx(strength_at(by_strength, 0.6), rel=1e-3)

    ours, theirs, there = weights(out), weights(files / "policy"), weights(place)
    for name, value in there.items():
        expected = theirs[name] + found["strength"] * (ours[name] - theirs[name])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    assert trained_temperature(str(place)) == 0.9

    report = read(place / "evaluation" / "report.json")["evaluation"]
    assert found["win_rate"] == report["comparison"]["win_rate"]
    assert found["kl"] == report["kl"]
    assert 0 < found["kl"]["estimate"] < last_json(result)["evaluation"]["kl"]["estimate"]
    assert read(place / NOTES)["win_rate"] == found["win_rate"]
    assert f"At strength {found['strength']:.3g}: {place}" in said
    # By random numbers of its own, against the very completions of the reference that the strength was found by.
    draws = [
        *(out / "evaluation").glob("**/manifest.json"),
        place / "evaluation" / "policy" / "manifest.json",
    ]
    seeds = {str(each.parent.relative_to(out)): read(each)["draw"]["seed"] for each in draws}
    assert seeds.pop("at-win-rate-0.6/evaluation/policy") not in seeds.values()
    assert len(seeds) == 1 + len(found["path"]), "the reference once, and each strength"
    assert not (place / "evaluation" / "reference").exists()

    # Another one of the same training, which is out of reach: nothing else is lost.
    again = {**SETTINGS, "temperature": 0.9, "resume_from_checkpoint": "true"}
    status, result, said = nonpareil("distill", "--json", **again, at_win_rate=0.999)
    assert status == 0, said
    assert "at_win_rate=0.999 is out of this training's reach" in said
    unreached = last_json(result)["at_strength"]
    assert unreached["strength"] is None
    assert [point["strength"] for point in unreached["path"]] == [1, 1.5, 2, 3]
    assert f"{max(point['win_rate'] for point in unreached['path']):.3f}" in said
    assert not (out / "at-win-rate-0.999").exists()
    assert last_json(result)["evaluation"]["comparison"]["win_rate"]["estimate"] == trained
    assert (place / "model.safetensors").is_file(), "it is of this training"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"at_win_rate": 0.7, "at_n": 4}, "at_win_rate=0.7 and at_n=4 ask for two policies"),
        ({"at_win_rate": 0.5}, "at_win_rate=0.5 must lie between 0.5 and 1"),
        ({"at_win_rate": 1.0}, "at_win_rate=1.0 must lie between 0.5 and 1"),
        ({"at_win_rate": "nan"}, "at_win_rate='nan' must be"),
        ({"at_n": 1}, "at_n=1 must be at least 2"),
        ({"at_n": 4}, "at_n=4 is more than num_reference_samples_eval=4 shows, which is best-of-3 at most"),
        ({"at_n": 3, "evaluate_after": "false"}, "at_n=3 is not read without evaluate_after"),
        (
            {"at_win_rate": 0.7, "evaluate_after": "false"},
            "at_win_rate=0.7 is not read without evaluate_after",
        ),
        ({"at_win_rate": 0.7, "eval_dataset_name": None}, "give eval_dataset_name"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_read(
    changes: dict[str, Any], says: str, nonpareil: Command, files: Path
) -> None:
    status, _, said = nonpareil("distill", **changes, model_name_or_path="no/model")
    assert status == 2
    assert says in said
    assert not (files / "out").exists()


def test_weights_between_which_nothing_lies_are_refused_before_any_is_read(
    nonpareil: Command, files: Path
) -> None:
    config = read(files / "policy" / "config.json")
    write_json(files / "policy" / "config.json", {**config, "quantization_config": {"quant_method": "fp8"}})
    (files / "policy" / "model.safetensors").unlink()
    status, _, said = nonpareil("distill", at_win_rate=0.7)
    assert status == 2
    assert "quantised weights" in said


def test_files_of_others_at_the_place_are_refused_before_training(nonpareil: Command, files: Path) -> None:
    with writing(files / "out", "distill") as folder:
        folder.mark()
        (folder.path / "at-n-3").mkdir()
        (folder.path / "at-n-3" / "config.json").write_text("{}")
    status, _, said = nonpareil("distill", at_n=3)
    assert status == 2
    assert "'at-n-3/config.json'" in said


def win_rate_of_best_of(n: int, rewards: list[float]) -> float:
    """By all draws of a group against all n-subsets of the others, ties one half."""
    won = []
    for place, one in enumerate(rewards):
        others = rewards[:place] + rewards[place + 1 :]
        for subset in combinations(others, n):
            won.append((max(subset) > one) + 0.5 * (max(subset) == one))
    return sum(won) / len(won)


def test_best_of_n_wins_what_the_references_own_groups_say() -> None:
    groups = [[0.0, 0, 0, 1, 0, 0], [0.0, 1, 1, 1, 0, 1], [1.0, 2, 3, 4, 5, 6]]
    rewards = torch.tensor([*groups, [float("nan")] * 6], dtype=torch.float64)
    drawn = {
        1.0: torch.tensor([0.6, 0.5, 0.7, float("nan")], dtype=torch.float64),
        2.0: torch.tensor([0.7, float("nan"), 0.9, float("nan")], dtype=torch.float64),
    }
    for n in (2, 3, 5):
        found = found_among({1.0: drawn[1.0]}, rewards, DistillOptions(at_n=n))
        expected = sum(win_rate_of_best_of(n, group) for group in groups) / 3
        assert found.target == pytest.approx(expected)
        assert found.win_rates == {1.0: pytest.approx(0.6)}
        found = found_among(drawn, rewards, DistillOptions(at_n=n))
        both = [win_rate_of_best_of(n, groups[place]) for place in (0, 2)]
        assert found.target == pytest.approx(sum(both) / 2), "over the prompts with a win rate at both"
        assert found.win_rates == {1.0: pytest.approx(0.65), 2.0: pytest.approx(0.8)}
    assert 2 / 3 - found_among(drawn, rewards, DistillOptions(at_n=2)).target > 0.02, "they tie"
    beyond = found_among(drawn, rewards, DistillOptions(at_n=6))
    assert beyond.target != beyond.target
    assert beyond.strength is None
    tied = found_among({1.0: drawn[1.0][:2]}, torch.ones(2, 6).double(), DistillOptions(at_n=2))
    assert (tied.target, tied.strength) == (0.5, None)


def test_policies_of_another_training_are_deleted_and_those_of_this_one_stay(files: Path) -> None:
    names = {"at-n-2": True, "at-n-3": True, "at-win-rate-0.7": False, "at-win-rate-0.8": None}
    out = files / "policy"
    with writing(out, "distill") as folder:
        for name, same in names.items():
            if same is not None:
                now = kept_fingerprint(out) if same else "sha256-2:other"
                write_json(out / name / NOTES, {"trained_fingerprint": now})
            write_json(out / name / "config.json", {})
        (out / "at-win-rate-0.7" / "mine.txt").write_text("mine")
        (out / "at-win-rate-mine").mkdir()
        (out / "at-win-rate-mine" / "config.json").write_text("{}")
        delete_outdated(out, "at-n-3")
        assert sorted(name for name in folder.entries() if name.startswith("at-")) == ["at-n-2"]
    left = sorted(path.relative_to(out).as_posix() for path in out.glob("at-*/*"))
    assert left == [
        "at-n-2/config.json",
        "at-n-2/strength.json",
        "at-win-rate-0.7/mine.txt",
        "at-win-rate-mine/config.json",
    ]


def test_no_two_win_rates_have_the_same_folder() -> None:
    near = [0.75, 0.7500001, 0.1 + 0.5, 0.6, 0.6 + 1e-12]
    places = {asked_place(DistillOptions(at_win_rate=each)) for each in near}
    assert len(places) == len(set(near))
    assert "at-win-rate-0.75" in places
    assert asked_place(DistillOptions(at_n=4)) == "at-n-4"
    assert asked_place(DistillOptions()) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rloo", "bond", "vbon"])
def test_it_is_written_for_every_method_and_made_anew(method: str, nonpareil: Command, files: Path) -> None:
    settings = {**SETTINGS, "method": method, "at_n": 2}
    status, result, said = nonpareil("distill", "--json", **settings)
    assert status == 0, said
    found = last_json(result)["at_strength"]
    assert found["strength"] is not None, said
    assert abs(found["asked"]["win_rate"] - 2 / 3) < 0.05
    place = files / "out" / "at-n-2"
    first = weights(place)
    status, result, said = nonpareil("distill", "--json", "--overwrite", **settings)
    assert status == 0, said
    assert last_json(result)["at_strength"] == found, "the same command writes the same policy"
    assert all(torch.equal(value, first[name]) for name, value in weights(place).items())
    status, _, said = nonpareil("distill", "--overwrite", **{**settings, "at_n": None})
    assert status == 0, said
    assert not place.exists(), "it was of the training that was deleted"


@pytest.mark.slow
def test_it_is_written_after_a_training_on_credits(nonpareil: Command, files: Path) -> None:
    prompts = [f"the film was {one} {other}" for one in WORDS[:6] for other in WORDS[4:9]]
    (files / "train.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    credits = {"num_generations_pool": 6, "likeliest": 4, "from_tail": 2, "credited_completions": 2}
    settings = {**SETTINGS, **credits, "method": "value_distillation", "at_win_rate": 0.51, "max_steps": 30}
    status, result, said = nonpareil("distill", "--json", **settings)
    assert status == 0, said
    found = last_json(result)["at_strength"]
    assert found["strength"] is not None, said
    assert (files / "out" / "at-win-rate-0.51" / NOTES).is_file()
    assert (files / "out" / "value").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", ["false", "true"])
def test_an_adapter_s_is_merged(bf16: str, nonpareil: Command, files: Path) -> None:
    lora = {"use_peft": "true", "lora_target_modules": "all-linear", "learning_rate": 0.1}
    lora["unseen_reward"] = str(files / "rm")
    settings = {**SETTINGS, **lora, "bf16": bf16, "at_win_rate": 0.55, "max_steps": 12}
    status, result, said = nonpareil("distill", "--json", **settings)
    assert status == 0, said
    found = last_json(result)["at_strength"]
    assert found["strength"] is not None, said
    place = files / "out" / "at-win-rate-0.55"
    assert not (place / "adapter_config.json").exists()
    assert found["kl"]["estimate"] > 0.001
    measured = read(place / "evaluation" / "report.json")["evaluation"]
    assert measured["unseen"]["num_prompts"] == 8
    moved = weights(place)
    base = weights(files / "policy")
    assert any(not torch.equal(value, base[name]) for name, value in moved.items())


@pytest.mark.slow
def test_a_strength_without_rewards_ends_the_path_and_not_the_run(nonpareil: Command, files: Path) -> None:
    far = files / "out" / "evaluation" / "strength-1.5"
    (files / "rewards.py").write_text(
        "from pathlib import Path\n\n\n"
        "def good(completions, **columns):\n"
        f"    if Path({str(far)!r}).exists():\n"
        "        return [None] * len(completions)\n"
        "    return [float(text.split().count('good')) + 0.01 * len(text) for text in completions]\n"
    )
    status, _, said = nonpareil("distill", **SETTINGS, at_win_rate=0.99)
    assert status == 0, said
    assert "the path ends before strength 1.5" in said
    assert "at_win_rate=0.99 is out of this training's reach" in said
    assert not (files / "out" / "at-win-rate-0.99").exists()


@pytest.mark.slow
def test_what_cannot_be_measured_is_not_left_there(nonpareil: Command, files: Path) -> None:
    """The reward fails for good once the strength was found: its policy's completions are a text it never saw."""
    (files / "rewards.py").write_text(
        "from pathlib import Path\n\n\n"
        "def good(completions, **columns):\n"
        f"    if Path({str(files / 'out' / 'at-win-rate-0.6' / 'model.safetensors')!r}).exists():\n"
        "        return [None] * len(completions)\n"
        "    return [float(text.split().count('good')) + 0.01 * len(text) for text in completions]\n"
    )
    status, _, said = nonpareil("distill", **SETTINGS, at_win_rate=0.6)
    assert status == 1, said
    out = files / "out"
    assert not list((out / "at-win-rate-0.6").rglob("*"))
    assert (out / "model.safetensors").is_file()
    assert (out / "README.md").is_file()
    assert (out / "evaluation" / "report.json").is_file()
