"""Every setting of every command refuses what it cannot be: from flags, from YAML and from Python."""

import dataclasses
import importlib
import json
import math
import pkgutil
import re
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from transformers import HfArgumentParser

import nonpareil
from nonpareil.cli.parsing import parse
from nonpareil.commands.compare.command import ComparisonFlags
from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.spec import (
    BudgetOptions,
    CompareOptions,
    EvaluationOptions,
    PoolOptions,
    read_spec,
)
from nonpareil.errors import ConfigError, DataError
from nonpareil.methods import METHODS
from nonpareil.options.curve import CurveOptions
from nonpareil.options.distill import DistillOptions
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.export import ExportOptions
from nonpareil.options.join import JoinOptions
from nonpareil.options.rewards import ANY_MODEL, ENDPOINTS, FIRST_MODEL, LIMITED, LOADED_MODEL
from nonpareil.options.sample import SampleOptions
from nonpareil.options.search import SearchOptions
from nonpareil.options.selection import READS_ANSWERS, READS_SIMILARITY
from nonpareil.options.serve import CHOOSES, ServeOptions
from nonpareil.options.shared import (
    DRAWS_POOL,
    HELD_OUT_SPLITS,
    HUB_DATASETS,
    OWN_PROMPTS,
    STREAMS,
    TRAINING_SPLITS,
    WITH_SPLITS,
)
from nonpareil.options.strengths import InterpolateOptions
from nonpareil.options.tilt import TiltOptions
from nonpareil.options.unread import absent_rewards
from nonpareil.options.values import CreditsOptions, ValueOptions
from nonpareil.options.view import ViewOptions
from nonpareil.options.yaml import dump_yaml, load_yaml
from nonpareil.records import SamplingParams
from nonpareil.rollouts.prompts import load_prompts, tokenize_prompts
from nonpareil.settings import CheckedOptions, Setting, check_settings, refuse_unread, settings_of
from nonpareil.training.config import DistillationConfig
from nonpareil.values.settings import MAKES_CREDITS

COMMANDS = (
    *(SampleOptions, CurveOptions, DistillOptions, DistillationConfig, EvaluateOptions, ExportOptions),
    *(ComparisonFlags, ValueOptions, CreditsOptions, InterpolateOptions, TiltOptions),
    *(JoinOptions, SearchOptions, ServeOptions, ViewOptions),
)
SECTIONS = {
    "": CompareOptions,
    "budget": BudgetOptions,
    "groups": PoolOptions,
    "evaluation": EvaluationOptions,
}
FLOORS_OF_SETTINGS = ("options", "commands", "training", "methods")
UNBOUNDED = {"stop_at_reward", "reward_weights", "min_reward"}  # any number that is finite


def all_settings(*classes: type) -> list[tuple[type, Setting]]:
    return [(cls, setting) for cls in classes for setting in settings_of(cls).values()]


# --- What a setting cannot be, told from its type and limits


def wrong_types(setting: Setting) -> list[Any]:
    """Values of Python that are none of its types, or of no meaning; there is one at least."""
    kinds, found = setting.kinds, [object(), b"bytes"]
    if not any(
        (isinstance(kind, type) and issubclass(kind, dict)) or get_origin(kind) is dict for kind in kinds
    ):
        found.append({})
    if str in kinds:
        found += ["", "  ", "a\0b"]
    if bool not in kinds and not any(get_origin(kind) is Literal for kind in kinds):
        found.append(3.5 if float not in kinds else math.nan)
    if bool not in kinds and True not in setting.limits.also:
        found.append(True)
    if float in kinds:
        found += [math.inf, -math.inf, 10**400]
    if int in kinds or float in kinds:
        found.append("seven")
    if int in kinds:
        found += [10**30, 10**5000]
    if setting.is_list:
        found += [[object()], [[1]]]
    if NoneType not in kinds and None not in setting.limits.also:
        found.append(None)
    return [value for value in found if value != setting.default]


def out_of_range(setting: Setting) -> list[Any]:
    """The nearest values outside the bounds, and a word that is no choice; of a list, in it."""
    limits, step = setting.limits, 1 if int in element_kinds(setting) else 1e-9
    found: list[Any] = []
    for bound, outside in (
        (limits.at_least, -step),
        (limits.above, 0),
        (limits.at_most, step),
        (limits.below, 0),
    ):
        if bound is not None:
            value = bound + outside if int not in element_kinds(setting) else int(bound) + outside
            found.append(value - 2 if value in limits.also else value)
    enums = [kind for kind in setting.kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    words = any(get_origin(kind) is Literal for kind in setting.kinds) and str not in setting.kinds
    if limits.choices or enums or words:
        found.append("no-such-word")
    if limits.path:
        found.append("a" * 256)
    return [[value] for value in found] if setting.is_list and str not in setting.kinds else found


def element_kinds(setting: Setting) -> tuple[Any, ...]:
    lists = [kind for kind in setting.kinds if get_origin(kind) is list]
    return get_args(lists[0]) if lists else setting.kinds


def wrong_words(setting: Setting) -> list[list[str]]:
    """What a flag cannot say."""
    kinds = element_kinds(setting)
    texts = {
        int: ["x", "1.5", "010", "1:30", "0x10", "1_000", "9" * 30, "9" * 5000],
        float: ["x", "nan", "1e400"],
    }
    words = [text for kind, those in texts.items() if kind in kinds and str not in kinds for text in those]
    words += ["maybe"] if setting.kinds[0] is bool else []
    words += [""] if str in kinds and setting.default != "" else []
    outside = [value[0] if isinstance(value, list) else value for value in out_of_range(setting)]
    return [[word] for word in words] + [[str(value)] for value in outside]


@pytest.mark.parametrize(("cls", "setting"), all_settings(*COMMANDS), ids=lambda x: getattr(x, "name", ""))
def test_a_setting_refuses_what_it_cannot_be(cls, setting):
    bad = [*wrong_types(setting), *out_of_range(setting)]
    assert bad
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^{setting.name}="):
            cls(**{setting.name: value})
    for words in wrong_words(setting):
        flag = f"--{setting.name}={words[0]}" if not words[0] else f"--{setting.name}"
        with pytest.raises(ConfigError, match=rf"^{setting.name}="):
            parse("x", [cls], [flag, *filter(None, words)])


@pytest.mark.parametrize("section", SECTIONS)
def test_a_setting_of_a_comparison_refuses_what_it_cannot_be(section, tmp_path):
    cls = SECTIONS[section]
    for setting in settings_of(cls).values():
        name = f"{section}.{setting.name}" if section else setting.name
        for value in (*wrong_types(setting), *out_of_range(setting)):
            with pytest.raises(ConfigError, match=rf"^{setting.name}="):
                cls(**{setting.name: value})
        for value in out_of_range(setting) or [3]:
            content = {setting.name: value}
            (tmp_path / "c.yaml").write_text(json.dumps({section: content} if section else content))
            with pytest.raises(ConfigError, match=rf"^{name}="):
                read_spec(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_of_a_method_refuses_what_it_cannot_be(name):
    cls = METHODS[name]
    assert len(settings_of(cls)) >= 2
    for setting in settings_of(cls).values():
        for value in (*wrong_types(setting), *out_of_range(setting)):
            if value in setting.limits.also:
                continue
            with pytest.raises(ConfigError, match=rf"^{setting.name}="):
                cls(**{setting.name: value})


def test_how_completions_are_drawn_is_checked_where_they_are():
    for setting in settings_of(SamplingParams).values():
        for value in (*wrong_types(setting), *out_of_range(setting)):
            with pytest.raises(ConfigError, match=rf"^{setting.name}="):
                check_settings(SamplingParams(**{setting.name: value}))


def test_every_class_of_options_was_looked_at():
    found = set()
    folders = {name: str(Path(nonpareil.__file__).parent / name) for name in FLOORS_OF_SETTINGS}
    for package, folder in folders.items():
        for module in pkgutil.walk_packages([folder], f"nonpareil.{package}."):
            loaded = importlib.import_module(module.name)
            found |= {
                cls
                for cls in vars(loaded).values()
                if isinstance(cls, type)
                and dataclasses.is_dataclass(cls)
                and cls.__module__.startswith("nonpareil.")
                # A rule's parameters are told by the rule's name.
                and not cls.__module__.startswith("nonpareil.selection.")
                and (issubclass(cls, CheckedOptions) or cls.__name__.endswith(("Options", "Config")))
            }
    tried = {*COMMANDS, *SECTIONS.values()}
    parts = {cls for cls in found if any(cls in other.__mro__[1:] for other in tried)}
    assert tried <= found
    assert found - parts == tried
    assert all(issubclass(cls, CheckedOptions) or cls is DistillationConfig for cls in found)


def test_every_number_has_a_range():
    """One that may be anything is named above, with the reason; the inherited are in `training/inherited.py`."""
    bare = set()
    for _, setting in all_settings(*COMMANDS, *SECTIONS.values(), *METHODS.values()):
        limits = setting.limits
        if {int, float} & {*element_kinds(setting)} and not limits.range() and not limits.unread:
            bare.add(setting.name)
    assert bare == UNBOUNDED


def test_what_reads_a_setting_is_there():
    """An owner is another setting, with a value that it can have; a reader is one that may be absent."""
    everything = all_settings(*COMMANDS, *SECTIONS.values())
    owners: dict[str, list[Setting]] = {}
    for _, setting in everything:
        owners.setdefault(setting.name, []).append(setting)
    readers = {ANY_MODEL, ENDPOINTS, FIRST_MODEL, HELD_OUT_SPLITS, HUB_DATASETS, LIMITED, LOADED_MODEL}
    readers |= {READS_ANSWERS, READS_SIMILARITY, CHOOSES, STREAMS}
    readers |= {OWN_PROMPTS, TRAINING_SPLITS, WITH_SPLITS, MAKES_CREDITS, DRAWS_POOL}
    for _, setting in everything:
        owner, _, wanted = (setting.limits.of or "").partition("=")
        assert not owner or owner in owners, setting
        for word in filter(None, wanted.split("|")):
            for one in owners[owner]:
                one.check(word)
        assert setting.limits.reader in {None, *readers}, setting


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"base_url": "x"},
            "base_url='x' is not read with engine=transformers; give engine=openai, or remove",
        ),
        (
            {"engine": "openai", "dtype": "float16"},
            "dtype='float16' is not read with engine=openai; give engine=transformers or vllm or ray, or",
        ),
        (
            {"judge_cache": "x"},
            "judge_cache='x' is not read without judge_model; give that, or remove judge_cache",
        ),
        (
            {"engine": "ray", "num_workers": 2, "dtype": "float16", "judge_model": "m", "judge_cache": "x"},
            None,
        ),
    ],
    ids=["another value", "a server", "without", "read"],
)
def test_a_setting_without_what_it_belongs_to_is_refused(settings, says):
    if says is None:
        SampleOptions(**settings)
        return
    with pytest.raises(ConfigError, match=re.escape(says)):
        SampleOptions(**settings)


def test_what_belongs_to_an_unread_setting_is_refused_with_it(tmp_path):
    for settings, says in (
        ({"vllm_mode": "server"}, "vllm_mode='server' is not read without use_vllm"),
        ({"vllm_gpu_memory_utilization": 0.5}, "without use_vllm"),
        ({"vllm_importance_sampling_cap": 3.0}, "without use_vllm"),
        (
            {"use_vllm": True, "vllm_importance_sampling_cap": 3.0},
            "vllm_importance_sampling_cap=3.0 is not read without vllm_importance_sampling_correction",
        ),
        (
            {"use_vllm": True, "vllm_server_base_url": "http://127.0.0.1:1"},
            "is not read with vllm_mode=colocate; give vllm_mode=server, or remove vllm_server_base_url",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            DistillationConfig(output_dir=str(tmp_path), **settings)


def test_absent_readers_are_said_with_their_reason():
    options = SampleOptions(reward_funcs=["a.py:f"], reward_dtype="float16", dataset_config="main")
    absent = absent_rewards(options, None)
    assert set(absent) == {LOADED_MODEL, ANY_MODEL, FIRST_MODEL}
    with pytest.raises(
        ConfigError, match=r"reward_dtype='float16' is read by a reward model only, and none is"
    ):
        refuse_unread(options, absent)
    assert set(absent_rewards(options, "vllm+http://127.0.0.1:1#m")) == {LOADED_MODEL, FIRST_MODEL}
    assert absent_rewards(SampleOptions(reward_model_name_or_path="org/m"), None) == {
        LIMITED: "none is named"
    }
    with pytest.raises(
        ConfigError, match=r"dataset_config='main' is read by hub datasets only, and 'x' is one"
    ):
        refuse_unread(options, {HUB_DATASETS: "'x' is one file"})


def test_defaults_are_taken():
    for cls in (*COMMANDS, *SECTIONS.values(), *METHODS.values()):
        cls()


# --- YAML


@pytest.mark.parametrize(
    "text",
    [
        *("num_generations: 1:30", "num_generations: 010", "num_generations: 0b", "num_generations: 1_000"),
        *("num_generations: [4]", "num_generations: {a: 4}", "num_generations:", "num_generations: null"),
        *(
            "num_generations: 4.0",
            "num_generations: yes",
            "num_generations: 2026-13-01",
            "num_generations: 0x10",
        ),
        *("temperature: 1e400", "temperature: .inf", "temperature: .nan", "temperature: true"),
        *(f"seed: {'9' * 30}", f"seed: {'9' * 5000}", "overwrite: 3", "overwrite: [true]"),
        *("reward_funcs: rewards.py:good", "reward_funcs: [[a]]", "reward_funcs: [1]", "reward_weights: 0.5"),
        *("model_name_or_path: 123", "model_name_or_path: [a]", "model_name_or_path: true", "output_dir:"),
        *("dtype: no", "prompt_column: ''", "output_dir: {a: b}"),
    ],
)
def test_yaml_that_would_be_read_as_something_else_is_refused(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=rf"^{text.split(':')[0]}="):
        parse("x", [SampleOptions], ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: " + "[" * 500, "nested too deeply"),
        ("seeds: &s [*s]", "nested too deeply"),
        ("? [1]\n: 2", "a key is no word"),
        ("1: 2", "unknown key '1'"),
        ("seed: !!python/name:os.system x", "tag"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("seed: 1\n---\nseed: 2", "is not YAML"),
        ("- 1", "must hold keys and values"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d]",
            "more than 10,000 values",
        ),
    ],
    ids=lambda value: value[:20] if value.isprintable() else "",
)
def test_a_file_that_is_no_options_is_refused(text, says, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says) as refused:
        parse("x", [SampleOptions], ["--config", str(tmp_path / "c.yaml")])
    assert "\n" not in str(refused.value)


def test_yaml_says_what_flags_say(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "\ufefftemperature: 1e-1\nmax_prompts: '4'\ntop_k: 5\noverwrite: true\nprompt_column: no\n"
        "dataset_split: 2026-11-26\nreward_weights: [1, .5]\noutput_dir: '123'\nmax_tokens_per_batch: 64 # few\n"
    )
    argv = ["--config", str(tmp_path / "c.yaml"), "--top_k", "6", "--reward-funcs", "a.py:f", "b.py:g"]
    (options,), given, as_json = parse("x", [SampleOptions], argv)
    assert (options.temperature, options.max_prompts, options.top_k, options.overwrite) == (0.1, 4, 6, True)
    assert (options.prompt_column, options.dataset_split, options.output_dir) == ("no", "2026-11-26", "123")
    assert (options.reward_weights, options.reward_funcs) == ([1.0, 0.5], ["a.py:f", "b.py:g"])
    assert all(type(weight) is float for weight in options.reward_weights)
    assert set(given) >= {"temperature", "top_k", "reward_funcs"}
    assert "seed" not in given
    assert not as_json


def test_values_written_are_read_back(tmp_path):
    values = {"a": "1e5", "b": 1e-6, "c": "010", "d": "no", "e": None, "f": ["1", 2.0, {"g": "1:30"}]}
    values |= {
        "h": True,
        "i": "\u2028x: y",
        "j": "null",
        "k": "1_000",
        "l": "=",
        "m": "2026-11-26",
        "n": "😀",
    }
    (tmp_path / "v.yaml").write_text(dump_yaml(values))
    assert load_yaml(tmp_path / "v.yaml") == values
    assert yaml.safe_load(dump_yaml(values)) == values


def test_a_number_beyond_all_floats_is_shown_as_it_was_written(tmp_path):
    (tmp_path / "v.yaml").write_text(f"a: 1e400\nb: {'9' * 400}\nc: -1e400\n")
    assert load_yaml(tmp_path / "v.yaml") == {"a": "1e400", "b": "9" * 400, "c": "-1e400"}


# --- Flags


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--beta", "1"], "unknown flag --beta; did you mean --kl_coef?"),
        (["--lr", "1"], "did you mean --learning_rate?"),
        (["--batch_size", "1"], "did you mean --per_device_train_batch_size?"),
        (["--max-new-tokens", "1"], "did you mean --max_completion_length?"),
        (["--model", "x"], "did you mean --model_name_or_path?"),
        (["--num_return_sequences", "1"], "did you mean --num_generations?"),
        (["--epochs", "1"], "did you mean --num_train_epochs?"),
        (["--lerning_rate", "1"], "did you mean --learning_rate?"),
        (["--dtype", "bfloat16"], "did you mean --bf16?"),
        (["--torch_dtype", "bfloat16"], "did you mean --bf16?"),
        (["--seed"], "--seed.*expected one argument"),
        (["--lr_scheduler_kwargs", "{x"], "^lr_scheduler_kwargs='{x' must be a JSON object"),
        (["--reward_funcs", ""], "reward_funcs=.* must be a list of text; one of them is empty"),
        (["--learning_rate", "1e400"], "learning_rate='1e400' must be a finite number"),
        (["words"], "unrecognized arguments: words"),
    ],
)
def test_a_flag_of_another_library_hints_at_ours(argv, says):
    with pytest.raises(ConfigError, match=says):
        parse("distill", [DistillOptions, DistillationConfig], argv)


def test_truth_is_said_in_three_ways():
    def config(*argv):
        ((options, config), _, _) = parse("x", [DistillOptions, DistillationConfig], list(argv))
        return options.evaluate_after, config.use_peft

    assert config() == (True, False)
    assert config("--no_evaluate_after", "--use_peft") == (False, True)
    assert config("--evaluate-after=false", "--use_peft", "yes") == (False, True)


# --- Settings of transformers, and what nothing reads


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"fp16": True, "use_cpu": True}, "fp16=True needs a GPU"),
        ({"push_to_hub": True}, "push_to_hub=True, "),
        ({"hub_model_id": "x"}, "hub_model_id='x' is not read without push_to_hub"),
        ({"remove_unused_columns": True}, "rewards are given all columns"),
        ({"per_device_eval_batch_size": 2}, "per_device_eval_batch_size=2 is read by nothing here"),
        ({"report_to": "wandd"}, "did you mean wandb"),
        ({"optim": "lomo"}, "optim='lomo' needs the package lomo_optim"),
        ({"optim": "adamw_torch_fusd"}, "did you mean adamw_torch_fused"),
        ({"optim_args": "eps"}, "optim_args='eps' must be name=value"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type=cosine_with_min_lr: "),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"x": 1}},
            "lr_scheduler_kwargs={'x': 1}",
        ),
        ({"load_best_model_at_end": True}, "metric_for_best_model=None with load_best_model_at_end=True"),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "reward"},
            "eval_strategy=no never measures it",
        ),
        ({"metric_for_best_model": "reward"}, "is not read without load_best_model_at_end"),
        ({"accelerator_config": {"x": 1}}, "transformers cannot take these settings"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
            "accelerator_config: num_steps=4 of gradient_accumulation_kwargs is not read here; give "
            "gradient_accumulation_steps=4",
        ),
        ({"logging_steps": 1.5}, "logging_steps must be an integer"),
        ({"eval_steps": 3}, "eval_steps=3 is not read with eval_strategy=no; give eval_strategy=steps, or"),
        (
            {"save_strategy": "no", "save_total_limit": 3},
            "save_total_limit=3 is not read without save_strategy",
        ),
        ({"lora_r": 4}, "lora_r=4 is not read without use_peft"),
        ({"lora_target_modules": ["nope"]}, "is not read without use_peft"),
        ({"method": 3}, "method=3 must be text"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_fail_after_loading_or_not_be_read_is_refused(settings, says, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(says)):
        DistillationConfig(output_dir=str(tmp_path), **settings)


def test_what_goes_together_is_taken(tmp_path):
    for settings in (
        {"max_steps": -1, "warmup_steps": 0.1, "save_steps": 0.5, "report_to": ["tensorboard"]},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 1, "save_steps": 4},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'},
        {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]},
        {
            "eval_strategy": "steps",
            "eval_steps": 500,
            "load_best_model_at_end": True,
            "metric_for_best_model": "reward",
        },
    ):
        config = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
        assert config.greater_is_better in (None, True)


@pytest.mark.parametrize("of_trl", [False, True])
def test_the_parsers_of_transformers_and_trl_make_what_python_makes(of_trl, tmp_path):
    """Which give some defaults of transformers' own in another form: None for "", False for "no"."""
    flags = ["--output_dir", str(tmp_path), "--method", "rloo", "--use_peft", "--lora_r", "4", "--use_cpu"]
    if of_trl:
        parser = pytest.importorskip("trl").TrlParser((DistillationConfig,))
        (config,) = parser.parse_args_and_config(flags)
    else:
        (config,) = HfArgumentParser((DistillationConfig,)).parse_args_into_dataclasses(flags)
    usual = DistillationConfig(str(tmp_path), method="rloo", use_peft=True, lora_r=4, use_cpu=True)
    assert config.to_dict() == usual.to_dict()


FUNCTION, MODEL = "rewards.py:good", "some-org/some-model"


@pytest.mark.parametrize(
    ("command", "settings", "says"),
    [
        ("sample", {"reward_dtype": "float32"}, "reward_dtype='float32' is read by a reward model only"),
        ("sample", {"reward_overlong": "truncate"}, "reward_overlong='truncate' is read by"),
        ("sample", {"reward_append_eos": "true"}, "reward_append_eos=True is read by"),
        ("sample", {"reward_engine": "vllm"}, "reward_engine='vllm' is read by"),
        ("evaluate", {"reward_prepend_bos": "true"}, "reward_prepend_bos=True is read by"),
        ("sample", {"dataset_config": "main"}, "dataset_config='main' is read by hub datasets only"),
        ("sample", {"dataset_split": "test"}, "dataset_split='test' is read by datasets with splits"),
        ("evaluate", {"dataset_split": "train"}, "dataset_split='train' is read by datasets with splits"),
        ("distill", {"dataset_test_split": "dev"}, "dataset_test_split='dev' is read by datasets"),
        (
            "distill",
            {"evaluate_after": "false", "unseen_reward": "x.py:f"},
            "unseen_reward='x.py:f' is not read without evaluate_after",
        ),
        ("distill", {"unseen_reward": "nope.py:f"}, "unseen_reward='nope.py:f': no such file: nope.py"),
        ("distill", {"num_reference_samples_eval": 1}, "num_reference_samples_eval=1 must be at least 2"),
        ("distill", {"use_peft": "true", "lora_target_modules": "nope"}, "nope"),
        ("evaluate", {"kl_dtype": "float33"}, "kl_dtype='float33' must be one of"),
        ("evaluate", {"num_generations": 1}, "num_generations=1 must be at least 2"),
        ("sample", {"prompt_column": "question"}, "give prompt_column=<the column of prompts>"),
    ],
)
def test_what_the_given_options_do_not_read_is_refused_before_drawing(
    nonpareil, files, command, settings, says
):
    status, _, error = nonpareil(command, **settings)
    assert status in (1, 2)
    assert says in error
    assert "Traceback" not in error
    assert not any((files / "out").rglob("*.parquet"))
    assert not (files / "out" / "metrics.jsonl").exists()


def test_a_reward_model_has_no_time_limit(nonpareil, files):
    status, _, error = nonpareil(
        "sample", reward_funcs=None, reward_model_name_or_path=files / "rm", reward_timeout=5
    )
    assert status == 2
    assert "reward_timeout=5.0 is read by reward functions, verifiers, endpoints and the judge" in error


# --- The plan of a comparison


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": {"completions": math.inf}}, "budget.completions='.inf' must be a whole number"),
        ({"budget": {"seconds": math.nan}}, "budget.seconds='.nan' must be a finite number"),
        ({"training": {"learning_rate": None}}, "training.learning_rate=None must be"),
        ({"training": {"max_steps": 0}}, "training.max_steps=0 must be"),
        ({"methods": {"jbond": {"kl_coef": -1}}}, "methods.jbond: kl_coef=-1.0 must be at least 0"),
        ({"methods": {"jbond": {"max_train_prompts": 0}}}, "methods.jbond.max_train_prompts=0 must be"),
        ({"methods": {"jbond": {"merge": True}}}, "methods.jbond: merge=true without use_peft"),
        (
            {"methods": {"jbond": {"at_win_rate": 0.7}}},
            "remove it: evaluation.strengths and evaluation.at_win_rates",
        ),
        ({"methods": {"jbond": {"lora_r": 3}}}, "methods.jbond: lora_r=3 is not read without use_peft"),
        ({"methods": {"jbond": {"fp16": True, "use_cpu": True}}}, "methods.jbond: fp16=True needs a GPU"),
        (
            {"methods": {"jbond": {"likeliest": 3}}},
            "methods.jbond: likeliest=3 is read by what makes credits",
        ),
        ({"output_dir": None}, "output_dir=None must be text"),
        (
            {"reward_funcs": FUNCTION},
            "reward_funcs='rewards.py:good' must be a list of text, as [rewards.py:good]",
        ),
        ({"reward_dtype": "float16"}, "reward_dtype='float16' is read by a reward model only"),
        ({"n": [32]}, "n=[32] asks for more than evaluation.num_reference_samples=16"),
        ({"seeds": [-1]}, "seeds=[-1] must be at least 0"),
        ({"methods": {"jbond": {"method": ["a"]}}}, "methods.jbond.method=['a'] must be text"),
    ],
    ids=lambda value: "",
)
def test_a_comparison_refuses_in_its_plan_what_a_run_would(changes, says, tmp_path):
    content = {
        "model_name_or_path": MODEL,
        "dataset_name": "some-org/prompts",
        "reward_funcs": [FUNCTION],
        "budget": {"completions": 10_000},
        "methods": {"jbond": {}},
        **changes,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as refused:
        plan_runs(read_spec(tmp_path / "c.yaml"))
    assert says in str(refused.value)


def test_a_comparison_plans_runs_that_make_their_credits(tmp_path):
    content = {
        "model_name_or_path": MODEL,
        "dataset_name": "some-org/prompts",
        "reward_funcs": [FUNCTION],
        "budget": {"completions": 10_000},
        "groups": {"max_prompts": 100, "num_generations": 16},
        "methods": {"value_distillation": {"stored": True, "likeliest": 3, "target_n": 8, "max_steps": 4}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    plan, *_ = plan_runs(read_spec(tmp_path / "c.yaml"))
    assert plan.pool_completions == 1600
    assert (plan.settings["likeliest"], plan.settings["target_n"]) == (3, 8.0)


# --- From Python


def test_prompts_are_loaded_by_arguments_of_the_right_type(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    for argument in (
        {"limit": "3"},
        {"limit": 0},
        {"limit": 1.5},
        {"seed": "x"},
        {"split": 3},
        {"prompt_column": ""},
    ):
        (name,) = argument
        with pytest.raises(ConfigError, match=f"^{name}="):
            load_prompts(tmp_path / "p.jsonl", **argument)
    with pytest.raises(ConfigError, match=r"^source"):
        load_prompts(3)
    with pytest.raises(DataError, match="is a str"):
        tokenize_prompts(["a prompt"], None)
