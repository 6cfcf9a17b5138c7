"""The model card of a trained policy: what was done, with what, what was reached, how to draw from it."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil import __version__
from nonpareil.errors import ConfigError, DataError
from nonpareil.files import write_bytes
from nonpareil.folders import held_folder
from nonpareil.markdown import code, plain
from nonpareil.markers import OutputFolder
from nonpareil.methods import spec_of
from nonpareil.terminal import printable, tell
from nonpareil.training.card_use import how_to_use
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

CARD = "README.md"
OWNER = "distill"
"""The command of a training's folder, as its list of files names it."""
OURS = "<!-- nonpareil writes this card anew after a training and its evaluation; without this line it is yours -->"
NOT_YET = (
    "Not evaluated yet: nothing is known of how this model compares with the one it was trained from. "
    "`nonpareil evaluate` tells."
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_TEXT = """{front}{ours}

# {title}

{base}, trained with {method} by nonpareil {version}.
{about}
## What was reached

{measured}

## How it was trained

| | |
|---|---|
| policy and reference | {base} |
| prompts | {prompts} |
| reward | {reward} |
| steps | {steps}, {batch} prompts each |
| learning rate | {learning_rate} |
| method | {method_name}: {settings} |
{credits}| anchor | {anchor} |
| temperature, max_completion_length | {temperature}, {max_completion_length} |
| seed | {seed} |

## Use

{use}
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a training, but for its steps and what was reached."""

    config: "DistillationConfig"
    method: "Method"
    base: str
    """The policy as it was named: a hub name, or a folder, of which only the last part is told."""
    rewards: Sequence[str]
    adapter: bool
    """Whether what is saved is an adapter of the base."""
    chat: bool
    """Whether it was trained on conversations."""
    license: tuple[tuple[str, str], ...] = ()
    """As `models.license.license_of` has it."""
    prompts: str | None = None
    """Their source, as it was named; None where they came from memory."""
    split: str | None = None
    credits: str | Path | None = None
    """The folder of the credits that were trained on, or where they may lie."""
    title: str | None = None
    datasets: Sequence[str] = ()
    """Hub names beside that of `prompts`."""
    tags: Sequence[str] = ()


def is_writable(path: Path) -> bool:
    """Whether a card may be written there: none is there, or one of ours that its owner did not take over.

    Ours is what the folder's list has, unchanged, whatever it says (cards of earlier versions have no such line);
    where no list tells, a card with the line.
    """
    if not path.exists():
        return True
    try:
        held = held_folder(path)
        folder = held or OutputFolder(path.parent.resolve(), OWNER, where=f"{str(path.parent)!r}")
        if held is not None or folder.is_ours(path):
            return folder.is_ours(path)
        return OURS in path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ConfigError):  # ConfigError: a damaged list, by which nobody knows whose the card is
        return False


def write_card(
    path: Path, facts: CardFacts, steps: int, measured: str = NOT_YET, *, anew: bool = False
) -> None:
    """Write the card, unless one that is not ours has come there; `anew`: whatever is there was just written.

    `measured`: in Markdown, what was reached.
    """
    if not anew and not is_writable(path):
        tell(f"{path} is not ours, so no model card was written")
        return
    config, method_name = facts.config, spec_of(type(facts.method))
    text = _TEXT.format(
        front=front_matter(facts),
        ours=OURS,
        title=plain(facts.title or _name(config)),
        base=code(label(facts.base)) if facts.base else "a model in memory",
        method=code(method_name),
        version=__version__,
        about=_about(facts.method),
        measured=measured,
        prompts=_prompts(facts),
        reward=", ".join(code(label(reward)) for reward in facts.rewards),
        steps=steps,
        batch=config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
        learning_rate=config.learning_rate,
        method_name=plain(method_name),
        settings=plain(", ".join(f"{k}={value}" for k, value in vars(facts.method).items()) or "no settings"),
        credits=_credits(facts),
        anchor=_anchor(facts),
        temperature=config.temperature,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        use=how_to_use(
            _quoted(config.hub_model_id or _name(config)),
            chat=facts.chat,
            adapter=facts.adapter,
            temperature=config.temperature,
            most_tokens=config.max_completion_length,
        ),
    )
    write_bytes(path, text.encode())


def front_matter(facts: CardFacts) -> str:
    """The card's YAML, as the hub reads it; names of this machine's folders are no names there."""
    from huggingface_hub import ModelCardData

    sets = [name for name in dict.fromkeys([facts.prompts or "", *facts.datasets]) if is_hub_name(name)]
    license: Any = dict(facts.license)
    data = ModelCardData(
        base_model=facts.base if is_hub_name(facts.base) else None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=sets or None,
        tags=[
            *dict.fromkeys(("best-of-n", printable(spec_of(type(facts.method))), "nonpareil", *facts.tags))
        ],
        **license,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def is_hub_name(name: str) -> bool:
    """Whether a name leads to the hub, and not to what lies on this machine."""
    named = _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
    return named and Path(name).suffix not in (".parquet", ".json", ".jsonl", ".csv", ".txt")


def label(name: str) -> str:
    """A local path's last part: a card travels, and must not carry a machine's folders."""
    path, colon, function = name.partition(":")
    return f"{Path(path).name}{colon}{function}" if Path(path).exists() else name


def _name(config: "DistillationConfig") -> str:
    """By the hub's name or the folder's."""
    return (config.hub_model_id or "").split("/")[-1] or Path(str(config.output_dir)).name


def _quoted(name: str) -> str:
    return printable(json.dumps(name, ensure_ascii=False))


def _prompts(facts: CardFacts) -> str:
    if facts.prompts is None:
        return "given in Python"
    split = f", split {code(facts.split)}" if facts.split else ""
    return f"{code(label(facts.prompts))}{split}"


def _about(method: "Method") -> str:
    """The first line of the method's file, which names its paper."""
    lines = (sys.modules[type(method).__module__].__doc__ or "").strip().splitlines()
    return f"\n{plain(lines[0])}\n" if lines else ""


def _credits(facts: CardFacts) -> str:
    """The row of the credits that were trained on; none where there are none, or they are gone meanwhile."""
    from nonpareil.methods.credited import CreditedMethod
    from nonpareil.rollouts.credits import read_source

    if facts.credits is None or not isinstance(facts.method, CreditedMethod):
        return ""
    with suppress(DataError):
        made: Any = read_source(Path(facts.credits)).value
        value = made.get("fingerprint") or label(str(made.get("function", "not named")))
        settings = {each.name: made[each.name] for each in fields(CreditSettings) if each.name in made}
        told = ", ".join((f"value {code(value)}", *(f"{k}={plain(str(v))}" for k, v in settings.items())))
        return f"| credits | {told} |\n"
    return ""


def _anchor(facts: CardFacts) -> str:
    from nonpareil.training.method import anchor_motion

    rate, refresh_steps = anchor_motion(facts.config, facts.method)
    if refresh_steps:
        return f"a copy of the policy every {refresh_steps} steps"
    return f"follows the policy, EMA rate {rate}" if rate else "the reference, fixed"
