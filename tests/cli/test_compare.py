"""`nonpareil compare` on tiny models: runs, budgets, resuming, failures, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from nonpareil.cli.main import main
from nonpareil.commands.compare import evaluator as comparison_evaluation
from nonpareil.commands.compare.budget import over_budget
from nonpareil.commands.compare.costs import Cost
from nonpareil.commands.compare.inputs import files_of
from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.processes import Finished, last_lines, locked, run_logged
from nonpareil.commands.compare.results import RunRecord
from nonpareil.commands.compare.spec import EvaluationOptions, read_spec
from nonpareil.errors import ConfigError
from nonpareil.evaluation.log_ratios import read_log_ratios
from nonpareil.models.fingerprint import fingerprint
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.yaml import load_yaml
from nonpareil.settings import settings_of
from nonpareil.values.settings import FitSettings
from tests.cli.conftest import WORDS, tokenizer
from tests.rewards.servers import serve

COPY = """
import json, shutil, sys
model, output, seed = sys.argv[1:]
shutil.copytree(model, output)
shutil.copytree(model, output + "/checkpoint-5")
"""


@pytest.fixture
def comparison(files, capsys):
    """Write a comparison of one copying command, changed as asked, and run it; status, JSON figures, stderr."""
    (files / "copy.py").write_text(COPY)
    copy = ["{python}", str(files / "copy.py"), "{model}", "{output_dir}", "{seed}"]

    def compare(*flags, **changes):
        settings = {
            "output_dir": str(files / "out"),
            "model_name_or_path": str(files / "policy"),
            "dataset_name": str(files / "train.jsonl"),
            "eval_dataset_name": str(files / "test.jsonl"),
            "reward_funcs": [f"{files}/rewards.py:good"],
            "max_completion_length": 6,
            "n": [2, 4],
            "seeds": [0, 1],
            "checkpoints": 0,
            "budget": {"completions": 60},
            "groups": {"num_generations": 4, "max_prompts": 8},
            "evaluation": {
                "num_generations": 2,
                "num_reference_samples": 4,
                "checkpoint_prompts": 6,
                "checkpoint_num_generations": 2,
            },
            "training": {"per_device_train_batch_size": 4, "learning_rate": "1e-3", "logging_steps": 1},
            "methods": {"copy": {"command": copy}},
        }
        settings = {k: v for k, v in {**settings, **changes}.items() if v is not None}
        (files / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        status = main(["compare", "--config", str(files / "c.yaml"), "--json", *flags])
        output = capsys.readouterr()
        lines = output.out.strip().splitlines()
        return status, json.loads(lines[-1]) if lines and lines[-1].startswith('{"') else None, output.err

    compare.copy = copy
    return compare


@pytest.fixture
def in_process(monkeypatch):
    """Distillations run in this process (starting one takes seconds); gives the commands that were run."""
    ran = []

    def run(command, log, lock):
        ran.append(command)
        if "distill" not in command:
            return run_logged(command, log, lock)
        status = main(command[command.index("distill") :])
        if status == 130:
            raise KeyboardInterrupt
        return Finished(status, 1.0, 2**20)

    monkeypatch.setattr("nonpareil.commands.compare.run.run_logged", run)
    return ran


# --- The whole path


def test_methods_and_seeds_on_one_report_and_nothing_is_done_twice(
    comparison, in_process, files, monkeypatch
):
    methods = {
        "jbond": {},
        "best": {"method": "sft_bon", "n": 4, "stored": True, "max_steps": 2},
        "peer": {"command": [*comparison.copy[:-1], "{pairs}"]},
    }
    settings = {"methods": methods, "gold_reward": str(files / "rm"), "checkpoints": 1}
    status, figures, error = comparison(**settings)
    assert status == 0, error
    assert figures["failures"] == []
    rows = figures["comparison"]
    assert list(rows) == ["jbond", "best", "peer"]
    assert all(row["seeds"] == [0, 1] for row in rows.values())
    # 5 steps of 4 prompts x (1 + 2) draws; the pool of 8 x 4; the pool again, through its pairs.
    drawn = {name: row["figures"]["completions_drawn"]["values"] for name, row in rows.items()}
    assert drawn == {"jbond": [60, 60], "best": [32, 32], "peer": [32, 32]}
    assert rows["peer"]["figures"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["jbond"]["figures"]["kl"]["mean"] > 0
    assert [len(row["path"]) for row in rows.values()] == [1, 1, 1]
    assert rows["jbond"]["figures"]["gold_win_rate"] is not None
    assert [(pair["first"], pair["second"]) for pair in figures["pairs"]] == [
        ("jbond", "best"),
        ("jbond", "peer"),
        ("best", "peer"),
    ]
    gained = {name: row["figures"]["win_rate"]["mean"] for name, row in rows.items()}
    for pair in figures["pairs"]:
        gap = gained[pair["first"]] - gained[pair["second"]]
        assert pair["win_rate"]["estimate"] == pytest.approx(gap), "the mean of what was paired"
        assert pair["gold_win_rate"]["low"] <= pair["gold_win_rate"]["high"]
    assert "Which is better" in error
    assert "Noise or direction" in error
    out = files / "out"
    told = {each["name"]: each for each in json.loads((out / "comparison.json").read_text())["agreements"]}
    assert {name: each["one_pool"] for name, each in told.items()} == {
        "jbond": False,
        "best": True,
        "peer": True,
    }
    assert told["peer"]["correlation"] is None, "copies of the reference"
    assert told["jbond"]["correlation"]["estimate"] > 0
    kept = [read_log_ratios(out / f"runs/{name}/seed-1/evaluation/final") for name in ("jbond", "peer")]
    assert kept[0].same_draws(kept[1])
    assert kept[0].log_ratio.shape[1] == 4
    for name in (
        "comparison.html",
        "comparison.md",
        "comparison.json",
        "pareto.png",
        "gold.png",
        "pairs.jsonl",
    ):
        assert (out / name).stat().st_size > 0, name
    for name in ("run.yaml", "settings.json", "done.json", "model/model.safetensors"):
        assert (out / "runs/jbond/seed-1" / name).is_file(), name
    assert str(files) not in (out / "comparison.md").read_text()
    assert "method" in error
    assert "On the Pareto front" in error
    assert len(in_process) == 6

    monkeypatch.setattr(comparison_evaluation.evaluate, "run", None)
    again_status, again, error = comparison(**settings)
    assert again_status == 0, error
    assert again == figures
    assert len(in_process) == 6


def test_methods_at_equal_win_rate_along_checkpoints_and_strengths(comparison, files):
    """Halfway through this training lies the policy of half its strength, so both paths are one."""
    for name, moves in (("whole", 1.0), ("half", 0.5)):
        model = AutoModelForCausalLM.from_pretrained(files / "policy")
        with torch.no_grad():
            states = model.model(torch.tensor([[1, 5, 6, 7, 4, 9, 8, 10, 5, 6]])).last_hidden_state[0]
            model.lm_head.weight[8] += 0.25 * moves * states.mean(0)  # the word that is rewarded
        model.save_pretrained(files / name)
        tokenizer().save_pretrained(files / name)
    script = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[3]); "
    script += "shutil.copytree(sys.argv[2], sys.argv[3] + '/checkpoint-5')"
    words = ["{python}", "-c", script, str(files / "whole"), str(files / "half"), "{output_dir}"]
    settings = {
        "methods": {"moved": {"command": words}},
        "seeds": [0],
        "checkpoints": 1,
        "max_eval_prompts": 6,
    }
    alike = {"num_generations": 8, "num_reference_samples": 8, "checkpoint_num_generations": 8}
    alike["checkpoint_prompts"] = 6
    settings["evaluation"] = alike | {"strengths": [1.5, 0.5], "at_win_rates": [0.99, 0.55]}
    status, figures, error = comparison(**settings)
    assert status == 0, error
    equal = figures["equal_win_rate"]
    along, between = equal["paths"]
    assert (along["path"], between["path"]) == ("checkpoints", "interpolation")
    assert len(between["points"]) == 3
    assert between["points"][1] == along["points"][1], "the policy itself"
    assert between["points"][0]["kl"] == pytest.approx(along["points"][0]["kl"], rel=1e-4)
    assert between["highest"] > along["highest"] > 0.55
    assert equal["win_rates"] == [0.55, 0.99]
    reached = [path["at"][0]["kl"]["estimate"] for path in (along, between)]
    assert 0 < reached[0] < along["points"][1]["kl"]
    assert reached[1] == pytest.approx(reached[0], rel=0.2), "between the same points, bent by the one beyond"
    assert [path["at"][1]["kl"] for path in (along, between)] == [None, None]
    assert "KL at equal win rate" in error
    assert "not reached" in (files / "out/comparison.html").read_text()
    evaluations = files / "out/runs/moved/seed-0/evaluation"
    assert (evaluations / "strength-1.5/report.json").is_file()
    before = (evaluations / "final/report.json").stat().st_mtime_ns
    settings["evaluation"] = alike | {"strengths": [0.5], "at_win_rates": [0.6]}
    status, figures, error = comparison(**settings)
    assert status == 0, error  # what is told of paths makes no evaluation another
    assert (evaluations / "final/report.json").stat().st_mtime_ns == before
    assert len(figures["equal_win_rate"]["paths"][1]["points"]) == 2


VALUE = {"method": "value_distillation", "stored": True, "target_n": 3, "likeliest": 4, "from_tail": 2}
VALUE |= {"credited_completions": 2, "max_steps": 3}


@pytest.fixture
def of_value(comparison, in_process, files, monkeypatch):
    """A comparison with enough prompts for a value, a reward that it can tell, and a fit for so small a network."""
    (files / "long.py").write_text(
        "def long(completions, **columns):\n    return [0.01 * len(text) for text in completions]\n"
    )
    prompts = [f"the film was {one} {other}" for one in WORDS[:6] for other in WORDS[4:8]]
    (files / "train.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    fit = partial(FitSettings, bins=4, learning_rate=0.02, num_train_epochs=6, per_device_train_batch_size=24)
    monkeypatch.setattr("nonpareil.commands.distill.credits.FitSettings", fit)
    return partial(
        comparison,
        reward_funcs=[f"{files}/long.py:long"],
        budget={"completions": 144},
        groups={"num_generations": 6, "max_prompts": 24},
    )


def test_a_value_is_each_seeds_own_and_all_that_it_took_is_counted(of_value, in_process, files):
    methods = {"value": VALUE, "best": {"method": "sft_bon", "n": 4, "stored": True, "max_steps": 2}}
    status, _, error = of_value(methods={**methods, "value": {**VALUE, "from_tail": 14}})
    assert status == 2
    assert "methods.value: likeliest=4 and from_tail=14 are, with the completion's own, more than" in error
    assert not (files / "out" / "groups").exists(), "refused before anything is drawn"
    status, figures, error = of_value(methods=methods)
    assert status == 0, error
    assert figures["failures"] == []
    rows = {name: row["figures"] for name, row in figures["comparison"].items()}
    assert rows["value"]["completions_drawn"]["values"] == [144, 144]
    stages = ("pool_seconds", "value_seconds", "credits_seconds", "training_seconds")
    for place in (0, 1):
        parts = [rows["value"][name]["values"][place] for name in stages]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(rows["value"]["seconds"]["values"][place])
        run = files / "out" / "runs" / "value" / f"seed-{place}" / "model"
        totals = json.loads((run / "credits" / "totals.json").read_text())
        assert totals["completions"] == 48
        scored = rows["value"]["candidates_scored"]["values"][place]
        assert scored == totals["positions"] * 7
        # Four fifths of the pool or more, prompts included, six times each.
        assert rows["value"]["tokens_fitted"]["values"][place] >= 6 * 0.8 * 144 * 6
    assert rows["best"]["value_seconds"] is rows["best"]["candidates_scored"] is None
    assert rows["best"]["seconds"]["mean"] == pytest.approx(
        sum(rows["best"][name]["mean"] for name in ("pool_seconds", "training_seconds"))
    )
    networks = [files / "out" / "runs" / "value" / f"seed-{each}" / "model" / "value" for each in (0, 1)]
    assert fingerprint(str(networks[0])) != fingerprint(str(networks[1]))
    page = (files / "out" / "comparison.md").read_text()
    assert "| of the pool | of the value | of the credits | of the training |" in page
    assert "Every seed of value fits a value of its own" in page

    # With other credits the run is made anew, and its value with it; the other one is kept.
    ran = len(in_process)
    changed = {**methods, "value": {**VALUE, "target_n": 2}}
    status, _, error = of_value(methods=changed, seeds=[0])
    assert status == 2
    assert "settings.target_n: 3.0 instead of 2.0" in error
    status, _, error = of_value("--overwrite", methods=changed, seeds=[0])
    assert status == 0, error
    assert len(in_process) == ran + 1
    assert "completions to fit" in error or "fitting a value" in error


@pytest.mark.slow
def test_a_run_that_was_killed_behind_its_value_does_not_fit_it_again(of_value, files, monkeypatch):
    from nonpareil.commands import credits

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(credits, "write_all", killed)
        assert of_value(methods={"value": VALUE}, seeds=[0])[0] == 130
    status, figures, error = of_value(methods={"value": VALUE}, seeds=[0])
    assert status == 0, error
    assert "fitting a value" not in error
    spent = json.loads(
        (files / "out" / "runs" / "value" / "seed-0" / "model" / "value" / "spent.json").read_text()
    )
    assert figures["comparison"]["value"]["figures"]["value_seconds"]["values"] == [spent["seconds"]]


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"strengths": [0.5, 1]}, "evaluation.strengths=[0.5, 1.0]: 1 is the final policy"),
        ({"strengths": [0.5, 0.5]}, "evaluation.strengths=[0.5, 0.5] has one of them twice"),
        ({"strengths": [0]}, "evaluation.strengths=[0.0] must be above 0"),
        ({"at_win_rates": [0.5]}, "evaluation.at_win_rates=[0.5] must lie between 0.5 and 1"),
        ({"at_win_rates": [0.7, 0.7]}, "evaluation.at_win_rates=[0.7, 0.7] has one of them twice"),
    ],
)
def test_what_is_no_path_is_refused(comparison, files, evaluation, says):
    comparison(dataset_name="nowhere.jsonl")  # written, then refused
    status, _, error = comparison(evaluation=evaluation)
    assert status == 2
    assert says in error


def test_an_interrupted_run_goes_on_from_its_checkpoint(comparison, in_process, files):
    """Ctrl-C in the third scoring: the step is finished, saved, and the second call trains what is left."""
    (files / "stops.py").write_text(
        f"""
import os, signal
from pathlib import Path
calls = []
def good(prompts, completions, **columns):
    calls.append(1)
    mark = Path({str(files / "stopped")!r})
    if len(calls) == 4 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(text)) for text in completions]
"""
    )
    settings = {"methods": {"jbond": {}}, "seeds": [3], "reward_funcs": [f"{files}/stops.py:good"]}
    status, _, error = comparison(**settings)
    assert status == 130
    assert "the same command goes on from here" in error
    assert (files / "stopped").exists()
    model = files / "out/runs/jbond/seed-3/model"
    assert not (model / "config.json").exists()
    status, figures, error = comparison(**settings)
    assert status == 0, error
    assert "taken up from its last checkpoint" in error
    assert in_process[1][-2:] == ["--resume_from_checkpoint", "true"]
    assert figures["comparison"]["jbond"]["figures"]["completions_drawn"]["values"] == [60]
    steps = {json.loads(line)["step"] for line in (model / "metrics.jsonl").read_text().splitlines()}
    assert steps == {1, 2, 3, 4, 5}


def test_served_rewards_move_and_leave_no_address(comparison, in_process, files):
    """Wherever an endpoint may be named; the second time nothing is left to do."""

    def longer(request):
        return {"scores": [float(len(text)) for text in request["completions"]]}

    for times in range(2):
        with serve(longer) as server:
            status, _, error = comparison(
                methods={"jbond": {}},
                seeds=[0],
                reward_funcs=[f"json+{server.url}/a#first"],
                reward_endpoints=[f"json+{server.url}/b#second"],
                gold_reward=f"json+{server.url}/c#gold",
            )
        assert status == 0, error
        assert len(in_process) == 1
        if not times:
            assert {"/a", "/b", "/c"} == set(server.paths)
    texts = {p: p.read_text(errors="replace") for p in (files / "out").rglob("*") if p.is_file()}
    assert [path for path, text in texts.items() if "127.0.0.1" in text] == []
    assert "first" in (files / "out/runs/jbond/seed-0/run.yaml").read_text()


def test_a_run_in_a_process_of_its_own(comparison, files):
    """As users have it: one real process per run, its log and its memory."""
    status, figures, error = comparison(methods={"jbond": {"max_steps": 1}}, seeds=[0], groups=None)
    assert status == 0, error
    folder = files / "out/runs/jbond/seed-0"
    assert "jbond, seed 0: trained in" in error
    assert (folder / "log.txt").is_file()
    done = json.loads((folder / "done.json").read_text())
    assert done["steps"] == 1
    assert 100 * 2**20 < done["peak_memory_bytes"] < 20 * 2**30
    assert figures["comparison"]["jbond"]["figures"]["seconds"]["mean"] == done["seconds"]


def test_adapters_are_compared_as_models_are(comparison, in_process, files):
    """The folder of a run with `use_peft` holds an adapter and no config.json, and so do its checkpoints."""
    method = {
        "use_peft": True,
        "lora_target_modules": ["all-linear"],
        "learning_rate": "5e-2",
        "max_steps": 2,
    }
    status, figures, error = comparison(methods={"jbond": method}, seeds=[0], groups=None, checkpoints=1)
    assert status == 0, error
    assert not (files / "out/runs/jbond/seed-0/model/config.json").exists()
    assert figures["comparison"]["jbond"]["figures"]["kl"]["mean"] > 0.01, (
        "the adapter was measured, not the base"
    )
    assert sorted(path.name for path in (files / "out/runs/jbond/seed-0/evaluation").iterdir()) == [
        "checkpoint-1",
        "final",
    ]


# --- Failures


def test_a_failing_run_is_told_and_the_others_go_on(comparison, files):
    broken = ["{python}", "-c", "import sys; print('why it broke {output_dir}'); sys.exit(3)"]
    nothing = ["{python}", "-c", "print('{output_dir}')"]
    methods = {
        "broken": {"command": broken},
        "copy": {"command": comparison.copy},
        "nothing": {"command": nothing},
    }
    status, figures, error = comparison(methods=methods, seeds=[0])
    assert status == 1
    assert list(figures["comparison"]) == ["copy"]
    reasons = {failure["run"]: failure["reason"] for failure in figures["failures"]}
    assert "status 3" in reasons["broken, seed 0"]
    assert "why it broke" in reasons["broken, seed 0"]
    assert "left no model" in reasons["nothing, seed 0"]
    assert "why it broke" in error
    assert "2 runs failed" in (files / "out/comparison.html").read_text()
    # Mended (the words are its settings, so it is another run), it is run, and what was done is kept.
    methods = {"broken": {"command": comparison.copy}, "copy": {"command": comparison.copy}}
    status, _, error = comparison(methods=methods, seeds=[0])
    assert (status, "broken" in error) == (2, True)
    status, figures, error = comparison("--overwrite", methods=methods, seeds=[0])
    assert status == 0, error
    assert list(figures["comparison"]) == ["broken", "copy"]
    assert "copy, seed 0: trained already" in error


def test_one_method_alone_and_a_seed_more(comparison):
    methods = {"one": {"command": comparison.copy}, "two": {"command": comparison.copy}}
    _, figures, _ = comparison("--only", "two", methods=methods, seeds=[0])
    assert list(figures["comparison"]) == ["two"]
    _, figures, error = comparison(methods=methods, seeds=[0, 1])
    assert [row["seeds"] for row in figures["comparison"].values()] == [[0, 1], [0, 1]]
    assert "two, seed 0: trained already" in error
    status, _, error = comparison("--only", "tow", methods=methods)
    assert status == 2
    assert "only='tow' is no method" in error


def test_another_protocol_is_refused_and_overwrite_keeps_the_models(comparison, files):
    assert comparison(seeds=[0])[0] == 0
    status, _, error = comparison(seeds=[0], temperature=0.7)
    assert status == 2
    assert "temperature: 1.0 instead of 0.7" in error
    assert "--overwrite" in error
    status, _, error = comparison("--overwrite", seeds=[0], temperature=0.7)
    assert status == 0, error
    assert "trained already" in error
    page = json.loads((files / "out/comparison.json").read_text())
    assert page["runs"][0]["protocol"]["policy"]["sampling"]["temperature"] == 0.7


def test_evaluations_by_an_earlier_version_are_refused_and_overwrite_makes_them_anew(comparison, files):
    """Before anything is trained: a second seed is asked for, and not begun."""
    assert comparison(seeds=[0])[0] == 0
    final = files / "out/runs/copy/seed-0/evaluation/final"
    (final / "log_ratios.parquet").unlink()
    status, _, error = comparison(seeds=[0, 1])
    assert status == 1
    assert "copy, seed 0 was evaluated by an earlier version" in error
    assert "log_ratios.parquet cannot be read" in error
    assert not (files / "out/runs/copy/seed-1/model").exists()
    status, _, error = comparison("--overwrite", seeds=[0])
    assert status == 0, error
    assert "trained already" in error
    assert (final / "log_ratios.parquet").is_file()


def test_a_policy_replaced_behind_its_path_is_noticed(comparison, files):
    assert comparison(seeds=[0])[0] == 0
    config = files / "policy" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    status, _, error = comparison(seeds=[0])
    assert status == 2
    assert "copy/seed-0: model: 'sha256-2:" in error


REPLACED = [
    ("train.jsonl", "film", "dull film", "copy/seed-0: prompts.sha256: '", True),
    ("rewards.py", '"good"', '"bad"', "copy/seed-0: reward.good.source: '", True),
    ("copy.py", "json, ", "", "copy/seed-0: files.{files}/copy.py: '", True),
    ("test.jsonl", "film", "dull film", "evaluation.json: prompts.sha256: '", False),
    ("gold.py", "text.split()", "text", "evaluation.json: gold.words.source: '", False),
]


def test_content_replaced_behind_a_path_is_noticed(comparison, files):
    gold = files / "gold.py"
    gold.write_text(
        "def words(completions, **_):\n    return [float(len(text.split())) for text in completions]\n"
    )
    settings = {"seeds": [0], "gold_reward": f"{gold}:words"}
    assert comparison(**settings)[0] == 0
    for (
        file,
        old,
        new,
        told,
        trained_anew,
    ) in REPLACED:  # one after the other, each beside the last one's models
        text = (files / file).read_text()
        assert old in text
        (files / file).write_text(text.replace(old, new))
        status, _, error = comparison(**settings)
        assert status == 2, file
        assert told.format(files=files) in error
        status, _, error = comparison("--overwrite", **settings)
        assert status == 0, error
        assert ("trained already" not in error) == trained_anew, file


def test_an_own_method_is_known_by_its_file(comparison, files):
    text = "from nonpareil.methods.rloo import RLOO\n\nclass Own(RLOO):\n    pass\n"
    (files / "own.py").write_text(text)
    settings = {"methods": {"own": {"method": f"{files}/own.py:Own"}}, "seeds": [0]}
    comparison(**settings, dataset_name="nowhere.jsonl")  # written, then refused
    (entry,) = read_spec(files / "c.yaml").methods
    before = files_of(entry)
    assert list(before) == [f"{files}/own.py:Own"]
    (files / "own.py").write_text(text.replace("pass", "kl_coef: float = 0.5"))
    assert files_of(entry) != before


def test_a_kill_in_the_first_evaluation_can_be_repaired(comparison, files, monkeypatch):
    """What was drawn before it, with other settings, is refused; --overwrite deletes it and keeps the model."""
    with monkeypatch.context() as patch:
        patch.setattr("nonpareil.commands.evaluate.run.divergence", killed)
        with pytest.raises(Killed):
            comparison(seeds=[0])
    assert (files / "out/reference/manifest.json").is_file()
    status, _, error = comparison(seeds=[0], temperature=0.7)
    assert status == 2
    assert "evaluation.json: temperature: 1.0 instead of 0.7" in error
    status, _, error = comparison("--overwrite", seeds=[0], temperature=0.7)
    assert status == 0, error
    assert "trained already" in error


class Killed(BaseException):
    """Nothing holds it in, as nothing holds in a kill."""


def killed(*arguments):
    raise Killed


def test_evaluations_of_two_protocols_are_never_put_into_one_table(comparison, files):
    assert comparison()[0] == 0
    stored = files / "out/runs/copy/seed-1/evaluation/final/protocol.json"
    protocol = json.loads(stored.read_text())
    protocol["policy"]["prompts"]["sha256"] = "other"
    stored.write_text(json.dumps(protocol))
    status, _, error = comparison()
    assert status == 1
    assert "copy, seed 1: policy.prompts.sha256: 'other' instead of" in error


# --- Refusals, before anything is computed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "unknown key 'metods'; did you mean methods?"),
        ({"methods": {}}, "methods is missing or empty"),
        ({"methods": {"../up": {}}}, "the name becomes a folder"),
        ({"methods": {"jbnd": {}}}, "methods.jbnd: method='jbnd' is unknown; did you mean jbond?"),
        (
            {"methods": {"jbond": {"learning_rat": 1}}},
            "methods.jbond: unknown key 'learning_rat'; did you mean",
        ),
        ({"methods": {"jbond": {"learning_rate": "fast"}}}, "methods.jbond.learning_rate='fast' must be"),
        ({"methods": {"jbond": {"n": 4}}}, "methods.jbond: n=4 is not read"),
        (
            {"methods": {"jbond": {"temperature": 0.5}}},
            "methods.jbond.temperature=0.5: runs that differ in it",
        ),
        (
            {"methods": {"jbond": {"seed": 1}}},
            "methods.jbond.seed=1 is set by the comparison; seeds at the top",
        ),
        ({"methods": {"jbond": {"stored": "yes"}}}, "methods.jbond.stored='yes' must be true or false"),
        ({"methods": {"jbond": {"max_steps": 6}}}, "max_steps=6 is over the budget, which allows 5 steps"),
        ({"methods": {"bonbon": {}}}, "methods.bonbon: groups is missing"),
        ({"methods": {"bonbon": {"n": 4, "stored": True}}}, "draws nothing, so the budget sets no end"),
        ({"methods": {"bonbon": {"n": 8, "stored": True}}}, "raise groups.num_generations=4, or lower n"),
        (
            {"methods": {"rloo": {"num_train_epochs": 3}}},
            "methods.rloo: num_train_epochs=3 is not read by rloo: the budget allows 3 steps; remove it",
        ),
        (
            {"training": {"per_device_train_batch_size": 4, "num_train_epochs": 3}, "methods": {"jbond": {}}},
            "training: num_train_epochs=3 is not read by jbond: the budget allows 5 steps; give it to methods",
        ),
        (
            {"methods": {"bonbon": {"n": 4, "stored": True, "max_steps": 2, "num_train_epochs": 3}}},
            "methods.bonbon: num_train_epochs=3 is not read by bonbon: max_steps=2 ends the training",
        ),
        (
            {"budget": {"seconds": 9}, "methods": {"rloo": {"max_steps": 2, "num_train_epochs": 3}}},
            "num_train_epochs=3 is not read by rloo: max_steps=2 ends the training",
        ),
        (
            {"training": {"save_total_limit": 1}},
            "training.save_total_limit=1 is set by the comparison; checkpoints at the top",
        ),
        ({"training": {"method": "bond"}}, "training.method='bond' is set by the comparison"),
        ({"training": {"max_trian_prompts": 3}}, "training: unknown key 'max_trian_prompts'"),
        ({"budget": {}}, "budget takes either completions or seconds, and neither is given"),
        ({"budget": {"completions": 9, "seconds": 9}}, "both are given"),
        ({"budget": {"completions": 11}, "methods": {"jbond": {}}}, "a step draws 12 completions"),
        ({"budget": {"seconds": 9}, "methods": {"jbond": {}}}, "methods.jbond: max_steps is missing"),
        (
            {"budget": {"completions": 31}, "methods": {"bonbon": {"stored": True, "n": 2}}},
            "learns from 32 stored",
        ),
        (
            {"groups": None, "methods": {"bonbon": {"stored": True}}},
            "methods.bonbon learns from stored groups",
        ),
        (
            {"methods": {"value_distillation": {"max_steps": 2}}},
            "methods.value_distillation: groups is missing",
        ),
        (
            {"methods": {"value_distillation": {"stored": True}}},
            "methods.value_distillation: groups.max_prompts=8, and a value needs 20 prompts",
        ),
        (
            {"methods": {"v": {"method": "value_distillation", "stored": True, "max_train_prompts": 3}}},
            "methods.v: max_train_prompts=3, and a value needs 20 prompts",
        ),
        (
            {"methods": {"value_distillation": {"stored": True, "max_steps": 2}}, "budget": {"seconds": 9}},
            "budget.seconds=9 stops a training alone; give budget.completions",
        ),
        (
            {"methods": {"value_distillation": {"stored": True, "value": "some"}}},
            "methods.value_distillation.value='some' is set by the comparison; it is of groups that are there",
        ),
        (
            {"methods": {"value_distillation": {"stored": True, "credits": "some"}}},
            "a comparison draws its own",
        ),
        ({"groups": {"num_generations": 4}}, "groups.max_prompts is missing"),
        ({"groups": {"num_generations": 4, "max_prompts": 13}}, "has 12 training prompts"),
        ({"evaluation": {"num_prompts": 4}}, "evaluation: unknown key 'num_prompts'"),
        ({"n": [2, 8]}, "evaluation.num_reference_samples=4"),
        ({"n": 4}, "n=4 must be a list"),
        ({"seeds": [0, 0]}, "seeds=[0, 0] must be a list of different whole numbers"),
        ({"checkpoints": -1}, "checkpoints=-1 must be at least 0"),
        ({"reward_funcs": None}, "no reward"),
        ({"eval_dataset_name": None}, "held-out prompts would be the training prompts"),
        ({"gold_reward": "nowhere.py:good"}, "nowhere.py"),
        ({"gold_reward": "{files}/rewards.py:good"}, "its name 'good' is also the reward's"),
        (
            {"methods": {"c": {"command": ["no-such-program", "{output_dir}"]}}},
            "no program 'no-such-program'",
        ),
        ({"methods": {"c": {"command": ["{python}", "{output}"]}}}, "unknown placeholder {output}"),
        ({"methods": {"c": {"command": ["{python}"]}}}, "{output_dir} is missing"),
        ({"methods": {"c": {"command": "train"}}}, "must be a list of words"),
        (
            {"methods": {"c": {"command": ["{python}", "{output_dir}"], "n": 4}}},
            "n is not read beside command",
        ),
    ],
    ids=lambda value: value.replace("/", "_")[:40] if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_first(comparison, files, changes, message):
    if "gold_reward" in changes:
        changes = {"gold_reward": changes["gold_reward"].format(files=files)}
    status, figures, error = comparison(**changes)
    assert status == 2
    assert message in error
    assert figures is None
    assert not (files / "out" / "runs").exists()
    assert not (files / "out" / "groups").exists()


def test_files_that_cannot_be_read(files, capsys):
    for content, message in (
        (None, "no such file"),
        ("a: [", "is not YAML"),
        ("[1]", "must hold keys and values"),
        ("methods:\n  jbond: {}\n  jbond: {}\n", "'jbond' is given twice"),
    ):
        if content is not None:
            (files / "bad.yaml").write_text(content)
        assert main(["compare", "--config", str(files / "bad.yaml")]) == 2
        assert message in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert "config is missing" in capsys.readouterr().err
    assert main(["compare", "--conifg", "x"]) == 2
    assert "did you mean --config?" in capsys.readouterr().err


def test_help_lists_the_keys_and_an_example(capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "nonpareil compare" in text.split("example:")[1]
    assert "{output_dir}" in text


def test_a_key_given_twice_is_refused_everywhere_and_merged_ones_are_not(files, nonpareil):
    config = files / "d.yaml"
    config.write_text("learning_rate: 1e-3\nmax_steps: 2\nlearning_rate: 1e-4\n")
    status, _, error = nonpareil("distill", "--config", config)
    assert status == 2
    assert "'learning_rate' is given twice" in error
    config.write_text("training: &same {n: 2, seed: 0}\nmethods:\n  a: {<<: *same, seed: 1}\n")
    assert load_yaml(config)["methods"] == {"a": {"n": 2, "seed": 1}}


# --- The budget


def test_a_command_over_the_budget_is_told(comparison, files):
    """Nothing of ours bounds it, so that the report says what it spent."""
    spends = (
        "import json, shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2]); "
        "json.dump({'completions_drawn': int(sys.argv[3])}, open(sys.argv[2] + '/spent.json', 'w'))"
    )
    words = ["{python}", "-c", spends, "{model}", "{output_dir}"]
    methods = {
        "within": {"command": [*words, "60"]},
        "over": {"command": [*words, "29"], "stored": True},  # and the pool's 32
    }
    status, figures, error = comparison(methods=methods, seeds=[0])
    assert status == 0, error
    told = [{"run": "over, seed 0", "reason": "61 completions, more than budget.completions=60"}]
    assert figures["over_budget"] == told
    assert "Over the budget: over, seed 0: 61 completions" in error
    assert "Over the budget; the other runs" in (files / "out/comparison.html").read_text()
    assert "- over, seed 0: 61" in (files / "out/comparison.md").read_text()


def test_only_a_command_can_be_over_the_clock(planned, files):
    planned(
        methods={"copy": {"command": ["{python}", "{output_dir}"]}, "rloo": {"max_steps": 2}},
        budget={"seconds": 9},
    )
    evaluation = {}
    records = [
        RunRecord(name, 0, evaluation, (), Cost(None, None, None, seconds, None), {})
        for name, seconds in (("copy", 9.0), ("copy", 12.4), ("rloo", 9.3))
    ]
    over = over_budget(read_spec(files / "c.yaml"), records)
    assert over == [{"run": "copy, seed 0", "reason": "12 seconds, more than budget.seconds=9"}]


def test_what_the_file_says_of_evaluation_reaches_every_evaluation():
    """By name: what `nonpareil evaluate` does not have is the checkpoints' alone."""
    own = set(settings_of(EvaluationOptions)) - set(settings_of(EvaluateOptions))
    assert own == {"checkpoint_prompts", "checkpoint_num_generations"}


@pytest.fixture
def planned(comparison, files):
    """The settings that each method's run would have."""

    def plan(**changes):
        comparison(**changes, dataset_name="nowhere.jsonl")  # written, then refused
        return {run.entry.name: run for run in plan_runs(read_spec(files / "c.yaml")) if run.seed == 0}

    return plan


def test_a_budget_of_completions_becomes_steps(planned):
    methods = {
        "jbond": {},
        "vbon": {"n": 4, "stored": True, "num_generations": 2},
        "ppo": {"method": "vbon", "n": 4, "stored": True, "num_generations": 2, "num_iterations": 3},
        "few": {"method": "vbon", "n": 4, "stored": True, "num_generations": 2, "max_train_prompts": 4},
        "best": {"method": "bonbon", "n": 4, "stored": True, "num_train_epochs": 2},
    }
    runs = planned(methods=methods, budget={"completions": 100}, checkpoints=2)
    steps = {name: run.settings["max_steps"] for name, run in runs.items()}
    # 100 / 12; (100 - 32) / 8; three optimizer steps on each of those draws; (100 - 16) / 8; epochs.
    assert steps == {"jbond": 8, "vbon": 8, "ppo": 24, "few": 10, "best": -1}
    saved = {name: run.settings["save_steps"] for name, run in runs.items()}
    assert saved == {"jbond": 3, "vbon": 3, "ppo": 9, "few": 4, "best": pytest.approx(1 / 3)}
    pool = {name: run.pool_completions for name, run in runs.items()}
    assert pool == {"jbond": 0, "vbon": 32, "ppo": 32, "few": 16, "best": 32}


def test_without_n_those_are_compared_with_that_the_references_completions_show(files, planned):
    planned(methods={"jbond": {}}, n=None)
    assert read_spec(files / "c.yaml").options.n == [2, 4]
    planned(methods={"jbond": {}}, n=None, evaluation={"num_reference_samples": 16})
    assert read_spec(files / "c.yaml").options.n == [2, 4, 8, 16]


def test_settings_of_a_method_override_those_of_all(planned):
    training = {"per_device_train_batch_size": 4, "learning_rate": 1e-3}
    runs = planned(training=training, methods={"jbond": {"learning_rate": 1e-4}, "rloo": {}})
    assert runs["jbond"].settings["learning_rate"] == 1e-4
    assert runs["rloo"].settings["learning_rate"] == 1e-3
    assert runs["rloo"].settings["temperature"] == 1.0


# --- Processes


def test_a_process_is_measured_by_itself(tmp_path):
    """Its peak memory is its own, not what it inherits from a large parent."""
    ballast = bytearray(600 * 2**20)
    with locked(tmp_path / "c") as lock:
        ended = run_logged([sys.executable, "-c", "print('said')"], tmp_path / "log.txt", lock)
    assert len(ballast) > 0
    assert ended.status == 0
    assert 2**20 < ended.peak_memory_bytes < 200 * 2**20
    assert last_lines(tmp_path / "log.txt") == "said"


def test_a_process_ended_by_a_signal_has_its_number(tmp_path):
    with locked(tmp_path / "c") as lock:
        code = "import os; os.kill(os.getpid(), 9)"
        assert run_logged([sys.executable, "-c", code], tmp_path / "log.txt", lock).status == -9


def test_an_interrupt_lets_the_process_finish_what_it_does(tmp_path):
    """One SIGTERM reaches it, whatever signal the comparison got; the interrupt is raised when it has ended."""
    code = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2); print("saved", flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
    log = tmp_path / "log.txt"
    parent = f"""
import sys
from pathlib import Path
from nonpareil.commands.compare.processes import locked, run_logged
with locked(Path({str(tmp_path / "c")!r})) as lock:
    try:
        run_logged([sys.executable, "-c", {code!r}], Path({str(log)!r}), lock)
    except KeyboardInterrupt:
        print("interrupted after", Path({str(log)!r}).read_text().split())
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        log.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
        wait_for(lambda: log.is_file() and "ready" in log.read_text())
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=30)
        assert output.strip() == "interrupted after ['ready', 'saved']"


def test_a_killed_comparison_stops_its_run_and_holds_the_folder_until_then(tmp_path):
    code = "import time; print('ready', flush=True); time.sleep(60)"
    log, folder = tmp_path / "log.txt", tmp_path / "c"
    parent = f"""
import sys
from pathlib import Path
from nonpareil.commands.compare.processes import locked, run_logged
with locked(Path({str(folder)!r})) as lock:
    run_logged([sys.executable, "-c", {code!r}], Path({str(log)!r}), lock)
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_for(lambda: log.is_file() and "ready" in log.read_text())
    with pytest.raises(ConfigError, match="another comparison"), locked(folder):
        pass
    process.kill()
    process.wait()

    def free():
        try:
            with locked(folder):
                return True
        except ConfigError:
            return False

    wait_for(free)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_protocols_are_read_from_what_was_drawn(comparison, files):
    assert comparison(seeds=[0])[0] == 0
    folder = files / "out"
    protocol = comparison_evaluation._protocol(
        folder / "runs/copy/seed-0/evaluation/final", Path(folder / "reference")
    )
    assert protocol["policy"]["prompts"] == protocol["reference"]["prompts"]
    assert protocol["policy"]["seed"] != protocol["reference"]["seed"]
    assert protocol["reference"]["model"].startswith("sha256-2:")
