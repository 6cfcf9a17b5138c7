"""The model card of a distilled policy: what was done, with what, how near it came, how to load it."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil import __version__
from nonpareil.files import write_bytes
from nonpareil.folders import held_folder
from nonpareil.markdown import code, plain
from nonpareil.options.rewards import reward_labels
from nonpareil.terminal import printable, tell

if TYPE_CHECKING:
    from nonpareil.evaluation.evaluation import Evaluation

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
| anchor | {anchor} |
| temperature, max_completion_length | {temperature}, {max_completion_length} |
| seed | {seed} |

## How near to best-of-N
{figures}

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})
```
Draw at temperature {temperature}, the whole vocabulary kept: that is the policy that was trained.
"""


def write_model_card(
    output_dir: Path, options: Any, config: Any, method: Any, steps: int, evaluation: "Evaluation | None"
) -> Path:
    """Write README.md beside the weights, unless one that is not ours has come there meanwhile."""
    path = output_dir / "README.md"
    if (folder := held_folder(path)) is not None and path.exists() and not folder.is_ours(path):
        tell(f"{path} is not ours, so no model card was written")
        return path
    figures = "Not evaluated; run `nonpareil evaluate`."
    if evaluation is not None:
        from nonpareil.evaluation.summary import headline

        figures = (
            f"{headline(evaluation)}. Measured on {evaluation.num_prompts} held-out prompts, both models in "
            f"{evaluation.dtype}, 95% intervals over prompts; the whole report is in `evaluation/report.html`."
        )
    text = CARD.format(
        title=plain(output_dir.name),
        name=printable(json.dumps(output_dir.name, ensure_ascii=False)),
        version=__version__,
        model=code(_label(options.model_name_or_path)),
        prompts=code(_label(options.groups or options.dataset_name)),
        split=code(options.dataset_train_split),
        reward=", ".join(code(_label(reward)) for reward in reward_labels(options)),
        steps=steps,
        batch=config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
        figures=figures,
        tag=_tag(Path(config.method).name),
        method=code(Path(config.method).name),
        method_name=plain(Path(config.method).name),
        about=_about(method),
        settings=plain(", ".join(f"{name}={value}" for name, value in vars(method).items()) or "no settings"),
        anchor=_anchor(config, method),
        **{
            name: getattr(config, name)
            for name in (
                "learning_rate",
                "temperature",
                "max_completion_length",
                "seed",
            )
        },
    )
    return write_bytes(path, text.encode())


def _about(method: Any) -> str:
    """The first line of the method's file, which names its paper."""
    lines = (sys.modules[type(method).__module__].__doc__ or "").strip().splitlines()
    return f"\n{plain(lines[0])}\n" if lines else ""


def _tag(name: str) -> str:
    """A word as YAML has it, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII) else json.dumps(name)


def _anchor(config: Any, method: Any) -> str:
    from nonpareil.training.method import anchor_motion

    rate, refresh_steps = anchor_motion(config, method)
    if refresh_steps:
        return f"a copy of the policy every {refresh_steps} steps"
    return f"follows the policy, EMA rate {rate}" if rate else "the reference, fixed"


def _label(name: str) -> str:
    """A local path's last part: a card travels, and must not carry a machine's folders."""
    path, colon, function = name.partition(":")
    return f"{Path(path).name}{colon}{function}" if Path(path).exists() else name
