"""nonpareil sample."""

from collections.abc import Sequence

from nonpareil.cli.parsing import parse
from nonpareil.cli.result import CommandResult
from nonpareil.commands import sample
from nonpareil.console import console
from nonpareil.options.demo import demo_defaults, uses_demo

EXAMPLE = (
    "nonpareil sample --model_name_or_path ./my-model --dataset_name prompts.jsonl \\\n"
    "      --reward_model_name_or_path ./my-reward-model --num_generations 16 --output_dir groups"
)


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, draw, say where the groups are."""

    def parsed(defaults: dict) -> tuple:
        return parse(
            "sample",
            [sample.SampleOptions],
            argv,
            description=sample.__doc__ or "",
            example=EXAMPLE,
            defaults=defaults,
        )

    (options,), given, as_json = parsed({})
    if uses_demo([options], given):
        (options,), _, _ = parsed({**demo_defaults("test"), "max_prompts": 128})
    figures = sample.run(options)
    terminal = console()
    terminal.print(
        f"{figures['prompts']} groups of {options.num_generations} in {figures['output_dir']} "
        f"({figures['shards_drawn']} shards drawn now). Next: nonpareil curve --groups {figures['output_dir']}",
        soft_wrap=True,
    )
    for name, failed in figures["failed_rewards"].items():
        if failed["count"]:
            reasons = "; ".join(f"{count} times {reason}" for reason, count in failed["reasons"].items())
            terminal.print(f"{failed['count']} rewards of {name} are null: {reasons}", soft_wrap=True)
    if figures.get("judge"):
        asked = ", ".join(f"{value} {key}" for key, value in figures["judge"].items())
        terminal.print(f"The judge: {asked}", soft_wrap=True)
    return CommandResult(figures if as_json else None)
