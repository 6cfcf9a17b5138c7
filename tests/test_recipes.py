"""Recipes: every one parses, states its method, and runs dry; their scripts do what they say."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from nonpareil.cli.main import main
from nonpareil.cli.parsing import parse
from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.spec import read_spec
from nonpareil.commands.distill.credits import makes_credits
from nonpareil.errors import ConfigError
from nonpareil.methods import METHODS, method_settings, name_of
from nonpareil.options.distill import DistillOptions
from nonpareil.training.config import DistillationConfig
from nonpareil.training.method import method_of

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
COMPARISONS = [
    "chat-advice",
    "chat-advice-gpu",
    "chat-sums",
    "chat-sums-gpu",
    "imdb-compare",
    "imdb-frontier",
    "imdb-long",
    "imdb-verifier",
]
OTHER_PROGRAMS = {"imdb-dpo", *COMPARISONS}
DISTILL = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in OTHER_PROGRAMS)
PAPERS = ["bond-xsum", "jbond-gemma", "bonbon-hh", "bonbon-tldr", "vbon-tldr"]


def parsed(recipe: str) -> tuple[DistillOptions, DistillationConfig, dict[str, Any]]:
    (options, config), given, _ = parse(
        "distill",
        [DistillOptions, DistillationConfig],
        ["--config", str(RECIPES / f"{recipe}.yaml")],
    )
    return options, config, given


# --- The YAML files


def test_the_recipes_are_there():
    assert set(DISTILL) >= {*PAPERS, *(f"imdb-{method}" for method in METHODS)}
    assert all((RECIPES / f"{name}.yaml").read_text().startswith("# ") for name in [*DISTILL, "imdb-dpo"])


@pytest.mark.parametrize("recipe", DISTILL)
def test_a_recipe_parses_and_its_method_takes_the_settings(recipe):
    options, config, given = parsed(recipe)
    credited = options.credits is not None or makes_credits(options, config)
    method = method_of(config, stored=options.groups is not None, credited=credited)
    assert type(method) is METHODS[given["method"]]
    assert {"model_name_or_path", "max_completion_length", "temperature", "output_dir"} <= set(given)
    assert options.groups or options.dataset_name
    assert options.reward_model_name_or_path or options.reward_funcs
    # What the file says is what the method runs with.
    stated = {*method_settings(type(method))} & {*given}
    assert stated or given["method"] == "jbond"
    for name in stated:
        assert getattr(method, name) == given[name]


@pytest.mark.parametrize("recipe", [name for name in DISTILL if name.startswith("imdb-")])
def test_imdb_recipes_name_one_task(recipe):
    options, config, _ = parsed(recipe)
    assert options.model_name_or_path == "models/imdb-lm"
    assert options.reward_model_name_or_path == "models/imdb-rm"
    assert options.reward_prepend_bos
    assert options.eval_dataset_name == "recipes/imdb/prompts/test.parquet"
    assert (config.max_completion_length, config.temperature) == (40, 1.0)
    trained_on = options.groups or options.dataset_name
    assert trained_on in ("nonpareil-imdb/groups", "recipes/imdb/prompts/train.parquet")


def test_settings_that_the_papers_state():
    _, jbond, _ = parsed("jbond-gemma")
    assert (jbond.per_device_train_batch_size, jbond.learning_rate, jbond.warmup_steps) == (128, 3e-6, 100)
    assert (jbond.method.jeffreys_weight, jbond.anchor_ema_rate) == (0.5, 0.05)
    _, bond, _ = parsed("bond-xsum")
    assert (bond.method.n, bond.method.num_reference_samples, bond.method.jeffreys_weight) == (8, 16, 0.5)
    for name in ("bonbon-hh", "bonbon-tldr"):
        _, bonbon, _ = parsed(name)
        assert (bonbon.method.n, bonbon.method.sft_weight, bonbon.method.contrast) == (8, 0.005, "ipo")
        assert (bonbon.per_device_train_batch_size, bonbon.learning_rate) == (64, 5e-7)
        assert (bonbon.optim, bonbon.warmup_steps, bonbon.max_grad_norm) == ("rmsprop", 150, 10)
    _, vbon, _ = parsed("vbon-tldr")
    assert 1 / (vbon.method.n - 1) == 0.005
    assert (vbon.temperature, vbon.max_completion_length, vbon.learning_rate) == (0.7, 50, 3e-6)


def test_an_unknown_key_in_a_recipe_is_refused(tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text((RECIPES / "imdb-bond.yaml").read_text() + "num_reference_sample: 3\n")
    with pytest.raises(
        ConfigError, match="unknown key 'num_reference_sample'; did you mean num_reference_samples"
    ):
        parse(
            "distill",
            [DistillOptions, DistillationConfig],
            ["--config", str(copy)],
        )


# --- Dry runs of the papers' recipes, on tiny stand-ins


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, rm/, prompts.jsonl and a reward function."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        num_labels=1,
    )
    LlamaForCausalLM(settings).save_pretrained(folder / "policy")
    LlamaForSequenceClassification(settings).save_pretrained(folder / "rm")
    for name in ("policy", "rm"):
        byte_tokenizer().save_pretrained(folder / name)
    rows = [{"prompt": f"Prompt number {i}", "document": f"Document {i}"} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(
        "def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One byte per token: text with characters of several bytes is cut inside them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|pad|>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=end, eos_token=end, pad_token="<|pad|>", model_max_length=1024
    )


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_papers_recipe_runs_dry(recipe, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # recipes name the reward functions beside them
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # one's reward asks for a model of the hub
    options, config, _ = parsed(recipe)
    stand_ins = {"model_name_or_path": tiny / "policy", "max_completion_length": 4}
    if options.reward_model_name_or_path:
        stand_ins["reward_model_name_or_path"] = tiny / "rm"
    prompts = tiny / "prompts.jsonl"
    if options.groups:
        shared = {**stand_ins, "temperature": config.temperature, "reward_overlong": options.reward_overlong}
        shared["reward_append_eos"] = str(options.reward_append_eos).lower()
        draw = {**shared, "dataset_name": prompts, "num_generations": 8, "output_dir": tmp_path / "groups"}
        functions = ["--reward_funcs", *options.reward_funcs] if options.reward_funcs else []
        assert main(["sample", *flags(draw), *functions]) == 0, capsys.readouterr().err
        stand_ins["groups"] = tmp_path / "groups"
        stand_ins |= {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
        }  # there are six prompts
    else:
        stand_ins["dataset_name"] = prompts
    stand_ins |= {"eval_dataset_name": prompts, "output_dir": tmp_path / "out", "dry_run": "true"}
    stand_ins["dataset_test_split"] = "test"  # a file has none
    capsys.readouterr()
    status = main(["distill", "--config", str(RECIPES / f"{recipe}.yaml"), *flags(stand_ins), "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    figures = json.loads(output.out.splitlines()[-1])
    assert figures["dry_run"] is True
    assert figures["method"] == name_of(type(config.method))
    assert figures["model_class"] == "LlamaForCausalLM"
    assert figures["prompts"] == 6
    assert figures["columns"] == ["document"]
    # Weights, gradients and the optimizer's state: one number per weight in RMSprop, two in Adam.
    least = 12 if config.optim == "rmsprop" else 16
    assert figures["memory_bytes"]["total"] >= least * figures["parameters"]
    assert figures["settings"] == vars(config.method)
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_value_distillation_needs_the_groups_alone(tiny, tmp_path, capsys):
    """Value and credits are made of them: the dry run says of how many completions."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Prompt number {i}"}) + "\n" for i in range(20)))
    shared = {"model_name_or_path": tiny / "policy", "reward_model_name_or_path": tiny / "rm"}
    shared |= {"reward_prepend_bos": "true", "max_completion_length": 4, "temperature": 1.0}
    draw = {"dataset_name": prompts, "num_generations": 10, "output_dir": tmp_path / "groups"}
    assert main(["sample", *flags(shared | draw)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    stand_ins = {**shared, "groups": tmp_path / "groups", "output_dir": tmp_path / "out", "dry_run": "true"}
    recipe = RECIPES / "imdb-value_distillation.yaml"
    eval_prompts = ["--eval_dataset_name", str(prompts)]
    status = main(["distill", "--config", str(recipe), *flags(stand_ins), *eval_prompts, "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    figures = json.loads(output.out.splitlines()[-1])
    assert (figures["method"], figures["prompts"]) == ("value_distillation", 20)
    assert (figures["credits"]["fitted_completions"], figures["credits"]["completions"]) == (200, 160)
    assert figures["credits"]["candidates"] >= 160 * 25
    assert not (tmp_path / "out").exists()


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


# --- The scripts beside them


def script(path: str) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reviews(path: Path) -> Path:
    """Reviews that often begin alike, and that hold characters of several bytes."""
    rng = np.random.default_rng(0)
    words = [
        "I",
        "saw",
        "this",
        "film",
        "café",
        "naïve",
        "“best”",
        "it",
        "was",
        "…",
        "two",
        "and",
        "Ünder",
        "9",
    ]
    rows = [
        {"split": split, "label": 0, "id": i, "rating": 5, "text": " ".join(rng.choice(words, 8))}
        for split in ("train", "test", "unsupervised")
        for i in range(600)
    ]
    pd.DataFrame(rows).to_parquet(path)
    return path


def prepared(folder: Path, data: Path, tokenizer: Path, *more: str) -> dict[str, list[str]]:
    argv = ["prepare.py", *flags({"data": data, "tokenizer": tokenizer, "output_dir": folder}), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        script("recipes/imdb/prepare.py").main()
    return {path.stem: pd.read_parquet(path)["prompt"].tolist() for path in folder.iterdir()}


def test_prompts_are_the_same_each_time_and_the_splits_disjoint(tmp_path, tiny):
    data = reviews(tmp_path / "reviews.parquet")
    sizes = ["--train", "100", "--tune", "30", "--test", "40"]
    first = prepared(tmp_path / "a", data, tiny / "policy", *sizes)
    assert {name: len(prompts) for name, prompts in first.items()} == {"train": 100, "tune": 30, "test": 40}
    everything = [prompt for prompts in first.values() for prompt in prompts]
    assert len(set(everything)) == len(everything), "no text twice, in one file or in two"
    assert prepared(tmp_path / "b", data, tiny / "policy", *sizes) == first
    assert prepared(tmp_path / "c", data, tiny / "policy", *sizes, "--seed", "1") != first

    texts = pd.read_parquet(data)
    for name, prompts in first.items():
        own = tuple(texts[texts["split"] == ("test" if name == "test" else "train")]["text"])
        assert all(any(text.startswith(prompt) for text in own) for prompt in prompts)


def test_prompts_encode_to_2_to_8_tokens_and_back(tmp_path, tiny):
    prompts = prepared(
        tmp_path / "out",
        reviews(tmp_path / "reviews.parquet"),
        tiny / "policy",
        "--train",
        "150",
        "--tune",
        "30",
        "--test",
        "40",
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny / "policy")
    everything = [prompt for each in prompts.values() for prompt in each]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in everything]
    assert set(lengths) == set(range(2, 9))
    assert all(tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt for prompt in everything)
    assert not any("\N{REPLACEMENT CHARACTER}" in prompt for prompt in everything)
    assert any("é" in prompt for prompt in everything), "the data must hold characters of several bytes"


def test_too_few_reviews_are_said_to_be_too_few(tmp_path, tiny):
    with pytest.raises(SystemExit, match=r"only \d+ of 5000 prompts: --data has too few reviews"):
        prepared(
            tmp_path / "out",
            reviews(tmp_path / "reviews.parquet"),
            tiny / "policy",
            "--test",
            "40",
            "--tune",
            "30",
        )


def published_reviews(folder: Path) -> pd.DataFrame:
    """A small folder as the authors' archive holds it; returns what is to be read from it."""
    rows = [
        ("test", "neg", 0, 0, "Dull."),
        ("test", "pos", 1, 2, "Good,<br /><br />it was."),
        ("train", "neg", 0, 2, "Bad."),
        ("train", "neg", 0, 10, "Café, weak."),  # behind 2_*.txt
        ("train", "pos", 1, 1, "Fine."),
        ("train", "unsup", -1, 4, "So so."),
    ]
    for split, kind, _, number, text in rows:
        path = folder / split / kind / f"{number}_{number % 10}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "README.txt").write_text("not a review")
    (folder / "train" / "labeledBow.feat").write_text("nor this")
    splits = ["unsupervised" if kind == "unsup" else split for split, kind, *_ in rows]
    texts = [text.replace("<br />", "\n") for *_, text in rows]
    return pd.DataFrame({"split": splits, "label": [label for _, _, label, *_ in rows], "text": texts})


@pytest.mark.parametrize("kind", ["folder", "archive", "data set"])
def test_reviews_are_read_as_they_are_published(kind, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "aclImdb"
    want = published_reviews(folder)
    source, data = folder, tmp_path / "data" / "imdb.parquet"
    if kind == "archive":
        source = shutil.make_archive(str(tmp_path / "aclImdb_v1"), "gztar", tmp_path, "aclImdb")
    if kind == "data set":  # of the `datasets` library: a folder of one file per split, read from its parent
        for split, rows in want.groupby("split"):
            (tmp_path / "org" / "imdb").mkdir(parents=True, exist_ok=True)
            rows[["text", "label"]].to_parquet(tmp_path / "org" / "imdb" / f"{split}-0.parquet")
        splits = {
            split: str(next((tmp_path / "org" / "imdb").glob(f"{split}-*"))) for split in set(want["split"])
        }
        loaded = datasets.load_dataset("parquet", data_files=splits, cache_dir=str(tmp_path / "cache"))
        monkeypatch.setattr(datasets, "load_dataset", lambda name: {"org/imdb": loaded}[name])
        source = "org/imdb"
    monkeypatch.setattr(sys, "argv", ["prepare.py", *flags({"reviews": source, "data": data})])
    script("recipes/imdb/prepare.py").main()
    assert capsys.readouterr().out == f"6 reviews: {data}\n"
    pd.testing.assert_frame_equal(pd.read_parquet(data), want)
    # What trains the recipe's models reads it too.
    texts, labels = script("recipes/demo/data.py").reviews(data, "train", "unsupervised")
    assert (len(texts), labels.tolist()) == (4, [0, 0, 1, -1])


def test_a_folder_without_reviews_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *flags({"reviews": tmp_path, "data": tmp_path / "x"})])
    with pytest.raises(SystemExit, match="no reviews of train and test"):
        script("recipes/imdb/prepare.py").main()
    assert not (tmp_path / "x").exists()


def test_a_summary_without_an_end_scores_minus_20():
    unfinished = script("recipes/tldr.py").unfinished
    assert unfinished(completion_ids=[[5, 0], [5, 6], []], prompts=[], other=[]) == [0.0, -20.0, -20.0]


def test_entailment_is_the_log_odds_of_its_label(tiny, tmp_path, monkeypatch):
    torch.manual_seed(1)
    labels = {0: "contradiction", 1: "Entailment", 2: "neutral"}
    settings = LlamaConfig.from_pretrained(tiny / "rm", num_labels=3, id2label=labels)
    model = LlamaForSequenceClassification(settings).eval()
    model.save_pretrained(tmp_path / "nli")
    byte_tokenizer().save_pretrained(tmp_path / "nli")
    module = script("recipes/xsum.py")
    monkeypatch.setattr(module, "NLI", str(tmp_path / "nli"))
    rows = {"document": ["Some document.", "Another", "x" * 900], "prompts": ["a", "b", "c"]}
    answer = [{"role": "assistant", "content": "It is so."}]
    scores = module.entailment(completions=["It was.", answer, "Yes."], batch_size=2, **rows)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "nli")
    for document, summary, score in zip(
        rows["document"], ["It was.", "It is so.", "Yes."], scores, strict=True
    ):
        summary_ids = tokenizer(summary)["input_ids"]
        ids = tokenizer(document)["input_ids"][: 512 - len(summary_ids)] + summary_ids
        chance = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[1].item()
        assert score == pytest.approx(np.log(chance / (1 - chance)), abs=1e-4)


@pytest.mark.parametrize("recipe", COMPARISONS)
def test_a_comparison_fits_its_budget(recipe: str) -> None:
    """Each run spends at most the budget, stored groups counted in."""
    spec = read_spec(RECIPES / f"{recipe}.yaml")
    plans = plan_runs(spec)
    assert len(plans) == len(spec.methods) * len(spec.options.seeds)
    assert spec.budget.completions is not None
    for plan in plans:
        assert 0 <= plan.pool_completions <= spec.budget.completions


@pytest.mark.parametrize("name", ["ddp", "sharded", "nodes"])
def test_launch_files_are_accelerates(name: str) -> None:
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    file = RECIPES / "launch" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.distributed_type.value == "MULTI_GPU"
    text = file.read_text()
    commands = text[text.index("accelerate launch") :].split("compute_environment")[0]
    words = commands.replace("#", " ").replace("\\", " ").split("accelerate starts")[0].split("output_dir")[0]
    arguments = words.split("per_device")[0].split()[2:]
    parsed = launch_command_parser().parse_args(arguments)
    assert parsed.training_script == "nonpareil"
    assert parsed.training_script_args[0] == "distill"
    classes = (DistillOptions, DistillationConfig, *METHODS.values())
    names = {f"--{f}" for cls in classes for f in cls.__dataclass_fields__}
    flags = [word for word in parsed.training_script_args if word.startswith("--")]
    assert flags[0] == "--config"
    assert set(flags[1:]) <= names
