"""`nonpareil distill`: its options, and the demo that stands in for them where none are given."""

from collections.abc import Mapping
from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.distill import run as distill
from nonpareil.commands.distill.manifest_defaults import drawn_from_demo, manifest_defaults
from nonpareil.commands.distill.show import show, status
from nonpareil.commands.evaluate.show import as_json
from nonpareil.options.demo import demo_training, uses_demo
from nonpareil.options.distill import DistillOptions
from nonpareil.options.methods import training_defaults


def _option_classes() -> list[type]:
    from nonpareil.training.config import DistillationConfig

    return [DistillOptions, DistillationConfig]


def _listed_classes() -> list[type]:
    from nonpareil.training.settings import DistillationSettings

    return [DistillOptions, DistillationSettings]


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    stored = manifest_defaults(given)
    if uses_demo(DistillOptions, given) and drawn_from_demo(stored):
        return {**demo_training(given), **stored}
    return {"output_dir": "nonpareil-distilled", **training_defaults(given.get("method")), **stored}


COMMAND = Command(
    description=f"{distill.__doc__}\nWithout policy, prompts and reward: the embedded demo, with its own settings.",
    example=(
        "nonpareil distill --model_name_or_path ./my-model --dataset_name my-prompts \\\n"
        "      --reward_model_name_or_path ./my-reward-model --output_dir distilled --max_steps 500"
    ),
    options=_option_classes,
    listed=_listed_classes,
    run=distill.run,
    show=show,
    defaults=_defaults,
    as_json=as_json,
    status=status,
)
