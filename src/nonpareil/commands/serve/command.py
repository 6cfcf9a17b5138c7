"""`nonpareil serve`: its options, and the demo that stands in for them where none are given."""

from collections.abc import Mapping
from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.serve import run as serve
from nonpareil.console import console
from nonpareil.options.demo import demo_defaults, uses_demo
from nonpareil.options.serve import ServeOptions
from nonpareil.settings import settings_of

REWARDS = ("reward_model_name_or_path", "reward_funcs", "reward_endpoints", "judge_model")
"""Options each of which names rewards: without any, one answer is served as it is drawn."""


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    if uses_demo(ServeOptions, given):
        known = settings_of(ServeOptions)
        return {name: value for name, value in demo_defaults("test").items() if name in known}
    engine = {"engine": "openai"} if given.get("base_url") is not None else {}
    return engine if any(given.get(name) for name in REWARDS) else {**engine, "best_of": 1}


def show(result: dict[str, Any]) -> None:
    """What was served; on stderr."""
    failed = f", {result['failed']} were told an error" if result["failed"] else ""
    console().print(f"{result['answered']} requests were answered{failed}", soft_wrap=True)
    for reason, count in result.get("not_stored", {}).items():
        console().print(f"{count} of them left no group: {reason}", soft_wrap=True)
    if result.get("groups"):
        first = result["groups"][0]
        console().print(
            f"{result['stored']} groups kept. Next: nonpareil curve --groups {first}", soft_wrap=True
        )


COMMAND = Command(
    description=f"{serve.__doc__}\nWithout an upstream, a policy and a reward: the embedded demo.\n"
    "Without a reward alone: one answer a request, as it is drawn.",
    example=(
        "nonpareil serve --base_url http://127.0.0.1:8001/v1 \\\n"
        "      --reward_model_name_or_path ./my-reward-model --best_of 8"
    ),
    options=lambda: [ServeOptions],
    run=serve.run,
    show=show,
    defaults=_defaults,
)
