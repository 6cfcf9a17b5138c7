"""The embedded demo: what stands in for options that were not given."""

from collections.abc import Mapping
from typing import Any

from nonpareil.assets import demo_path
from nonpareil.options.yaml import load_yaml

DEMO_FIELDS = (
    "model_name_or_path",
    "dataset_name",
    *("reward_model_name_or_path", "reward_funcs", "reward_endpoints", "judge_model"),
    "base_url",  # a server does not have the demo's policy
)


def uses_demo(given: Mapping[str, Any]) -> bool:
    """Whether the embedded demo is meant: none of policy, prompts and rewards was named."""
    return not any(given.get(name) for name in DEMO_FIELDS)


def demo_defaults(split: str) -> dict[str, Any]:
    """The demo's policy, prompts and reward, as options."""
    return {
        "model_name_or_path": str(demo_path("policy")),
        "dataset_name": str(demo_path("prompts") / f"{split}.parquet"),
        "reward_model_name_or_path": str(demo_path("reward")),
        "max_completion_length": 40,
    }


def demo_training(method: str = "jbond") -> dict[str, Any]:
    """The options of the demo's distillation: its models and prompts, and the settings of `assets/demo.yaml`."""
    settings = load_yaml(demo_path("policy").parent / "demo.yaml")
    if method != "jbond":
        settings.pop("anchor_ema_rate")  # J-BOND's
    return {
        **demo_defaults("train"),
        "eval_dataset_name": str(demo_path("prompts") / "test.parquet"),
        **settings,
    }
