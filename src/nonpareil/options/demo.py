"""The embedded demo: what stands in for options that were not given."""

from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.assets import demo_path
from nonpareil.settings import settings_of


def uses_demo(options: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """Whether the embedded demo is meant: none of policy, prompts and rewards was named.

    `given` has the settings of the options that were given, by name.
    """
    return not any(
        given.get(name)
        for each in options
        for name, setting in settings_of(type(each)).items()
        if setting.limits.replaces_demo
    )


def demo_defaults(split: str) -> dict[str, Any]:
    """The demo's policy, prompts and reward, as options."""
    return {
        "model_name_or_path": str(demo_path("policy")),
        "dataset_name": str(demo_path("prompts") / f"{split}.parquet"),
        "reward_model_name_or_path": str(demo_path("reward")),
        "max_completion_length": 40,
    }
