"""The embedded demo: what stands in for options that were not given."""

from collections.abc import Mapping
from typing import Any

from nonpareil.assets import demo_path
from nonpareil.options.yaml import load_yaml
from nonpareil.settings import settings_of


def uses_demo(cls: type, given: Mapping[str, Any]) -> bool:
    """Whether the embedded demo is meant: none of policy, prompts and rewards was named.

    `given` has the settings that were given, some of them of the class of options, by name.
    """
    replacing = (name for name, setting in settings_of(cls).items() if setting.limits.replaces_demo)
    return not any(given.get(name) for name in replacing)


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
