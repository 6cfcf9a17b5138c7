"""The model card of a distilled policy: what was done, with what, how near it came, how to load it."""

import json
import re
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil import __version__
from nonpareil.errors import DataError
from nonpareil.files import write_bytes
from nonpareil.folders import held_folder
from nonpareil.markdown import code, plain
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import reward_labels
from nonpareil.terminal import printable, tell
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.evaluation.evaluation import Evaluation
    from nonpareil.methods import Method
    from nonpareil.training.config import DistillationConfig

CREDITS = "credits"
"""Their folder in output_dir, where this distillation made them."""
CARD = """---
library_name: transformers
tags: [best-of-n, {tag}, nonpareil]
---
# {title}

Best-of-N distilled into the weights with {method} by nonpareil {version}: one sample of this
model is meant to be as good as the best of several samples of the model it came from.
{about}

| | |
|---|---|
| policy and reference | {model} |
| prompts | {prompts}, split {split} |
| reward | {reward} |
| steps | {steps}, {batch} prompts each |
| learning rate | {learning_rate} |
| method | {method_name}: {settings} |
{credits}| anchor | {anchor} |
| temperature, max_completion_length | {temperature}, {max_completion_length} |
| seed | {seed} |

## How near to best-of-N
{measured}

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})
```
Draw at temperature {temperature}, the whole vocabulary kept: that is the policy that was trained.
"""


def write_model_card(
    output_dir: Path,
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    steps: int,
    evaluation: "Evaluation | None",
) -> Path:
    """Write README.md beside the weights, unless one that is not ours has come there meanwhile."""
    from nonpareil.methods import spec_of

    path = output_dir / "README.md"
    if (folder := held_folder(path)) is not None and path.exists() and not folder.is_ours(path):
        tell(f"{path} is not ours, so no model card was written")
        return path
    method_name = spec_of(type(method))
    text = CARD.format(
        title=plain(output_dir.name),
        name=printable(json.dumps(output_dir.name, ensure_ascii=False)),
        version=__version__,
        model=code(_label(options.model_name_or_path or "")),
        prompts=code(_label(options.groups or options.dataset_name or "")),
        split=code(options.dataset_train_split),
        reward=", ".join(code(_label(reward)) for reward in reward_labels(options)),
        steps=steps,
        batch=config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
        learning_rate=config.learning_rate,
        temperature=config.temperature,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        measured=_measured(evaluation),
        tag=_tag(method_name),
        method=code(method_name),
        method_name=plain(method_name),
        about=_about(method),
        settings=plain(", ".join(f"{name}={value}" for name, value in vars(method).items()) or "no settings"),
        credits=_credits(options.credits or output_dir / CREDITS, method),
        anchor=_anchor(config, method),
    )
    return write_bytes(path, text.encode())


def _measured(evaluation: "Evaluation | None") -> str:
    """How near to best-of-N the policy came, in a sentence."""
    if evaluation is None:
        return "Not evaluated; run `nonpareil evaluate`."
    from nonpareil.evaluation.summary import headline

    return (
        f"{headline(evaluation)}. Measured on {evaluation.num_prompts} held-out prompts, both models in "
        f"{evaluation.dtype}, 95% intervals over prompts; the whole report is in `evaluation/report.html`."
    )


def _about(method: "Method") -> str:
    """The first line of the method's file, which names its paper."""
    lines = (sys.modules[type(method).__module__].__doc__ or "").strip().splitlines()
    return f"\n{plain(lines[0])}\n" if lines else ""


def _tag(name: str) -> str:
    """A word as YAML has it, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII) else json.dumps(name)


def _credits(folder: str | Path, method: "Method") -> str:
    """The row of the credits that were trained on; none where there are none, or they are gone meanwhile."""
    from nonpareil.methods.credited import CreditedMethod
    from nonpareil.rollouts.credits import read_source

    if not isinstance(method, CreditedMethod):
        return ""
    with suppress(DataError):
        made: Any = read_source(Path(folder)).value
        value = made.get("fingerprint") or _label(str(made.get("function", "not named")))
        settings = {each.name: made[each.name] for each in fields(CreditSettings) if each.name in made}
        told = ", ".join((f"value {code(value)}", *(f"{k}={plain(str(v))}" for k, v in settings.items())))
        return f"| credits | {told} |\n"
    return ""


def _anchor(config: "DistillationConfig", method: "Method") -> str:
    from nonpareil.training.method import anchor_motion

    rate, refresh_steps = anchor_motion(config, method)
    if refresh_steps:
        return f"a copy of the policy every {refresh_steps} steps"
    return f"follows the policy, EMA rate {rate}" if rate else "the reference, fixed"


def _label(name: str) -> str:
    """A local path's last part: a card travels, and must not carry a machine's folders."""
    path, colon, function = name.partition(":")
    return f"{Path(path).name}{colon}{function}" if Path(path).exists() else name
