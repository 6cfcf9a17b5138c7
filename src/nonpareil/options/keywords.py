"""A command as a Python function: its signature and help, made of the settings that its option classes declare."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from nonpareil.settings import Setting, offered

HEADINGS = (
    *(
        "Policy",
        "Groups",
        "Prompts",
        "Rewards",
        "Method",
        "Drawing",
        "Search",
        "Engine",
        "Guidance",
        "Training",
        "LoRA",
    ),
    *("Hardware", "vLLM", "Fit", "Credits", "Evaluation", "Comparison", "Server", "Output", "Options"),
)
"""In the order in which they are listed."""
OTHERS = "transformers.TrainingArguments"
"""The heading of what is declared in no class of ours."""
_WIDTH = 110


def signature_of(
    function: Callable[..., Any], classes: Sequence[type], *, open_ended: bool
) -> inspect.Signature:
    """The function's own parameters, then each setting by keyword; `open_ended`: it takes others besides."""
    own = inspect.signature(function)
    kept = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.hint)
        for one in _listed(classes)
    ]
    rest = [one for one in own.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*kept, *settings, *(rest if open_ended else [])])


def options_text(name: str, classes: Sequence[type]) -> str:
    """Every setting with its default and what it means, by heading."""
    headings: dict[str, list[Setting]] = {}
    for setting in _listed(classes):
        headings.setdefault(setting.heading or OTHERS, []).append(setting)
    parts = [
        f"The options, by keyword, are those of `nonpareil {name}`; `config` names a YAML file of them, which "
        "keywords override."
    ]
    for heading, settings in headings.items():
        parts.append("\n".join([f"{heading}:", *(line for one in settings for line in _lines(one))]))
    return "\n\n".join(parts)


def _listed(classes: Sequence[type]) -> list[Setting]:
    """The settings that may have another value than their default, each once, in the order of their headings."""
    found = {name: one for cls in classes for name, one in offered(cls).items()}
    order = [*HEADINGS, "", OTHERS]
    return sorted(
        found.values(), key=lambda one: order.index(one.heading) if one.heading in order else len(order)
    )


def _lines(setting: Setting) -> list[str]:
    default = getattr(setting.default, "value", setting.default)
    text = " ".join(f"{setting.help}".replace("%%", "%").split())
    if setting.limits.range():
        text += f" Must {setting.limits.range()}."
    head = f"    {setting.name} (default {default!r}):"
    return textwrap.wrap(
        f"{head} {text}", _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False, break_long_words=False
    )
