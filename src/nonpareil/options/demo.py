"""The embedded demo: what stands in for options that were not given."""

from collections.abc import Mapping
from typing import Any

from nonpareil.assets import demo_path
from nonpareil.options.methods import reads_credits
from nonpareil.options.yaml import load_yaml
from nonpareil.settings import settings_of
from nonpareil.values.settings import CreditSettings


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


def demo_training(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the demo's distillation, from what was given: its models and prompts, and a file of settings.

    `assets/demo.yaml` is for methods that read credits, as the one that runs by default does, and
    `assets/demo-jbond.yaml` for all others.

    Raises:
        ConfigError: no such method.
    """
    folder, method = demo_path("policy").parent, given.get("method")
    settings = load_yaml(folder / "demo.yaml")
    if method not in (None, settings["method"]):
        del settings["strength"]  # the method's own, as J-BOND's below
    if method is not None and not reads_credits(method):
        settings = load_yaml(folder / "demo-jbond.yaml")
        if method != "jbond":
            del settings["anchor_ema_rate"]  # J-BOND's
    unread = set(settings_of(CreditSettings)) if given.get("credits") is not None else set()
    if given.get("groups") is not None:
        unread |= {"dataset_name", "max_train_prompts", "num_generations_pool"}
    options = {
        **demo_defaults("train"),
        "eval_dataset_name": str(demo_path("prompts") / "test.parquet"),
        **settings,
    }
    return {name: value for name, value in options.items() if name not in unread}
