"""`nonpareil compare`: its flags, and the help that lists the keys of its file."""

import textwrap
from dataclasses import dataclass
from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.compare import run as compare
from nonpareil.commands.compare.show import as_json, show, status
from nonpareil.commands.compare.spec import EvaluationOptions, PoolOptions
from nonpareil.errors import ConfigError
from nonpareil.options.shared import FileOptions
from nonpareil.settings import option, settings_of


@dataclass
class ComparisonFlags(FileOptions):
    """What is said beside the comparison's file."""

    output_dir: str | None = option(None, "In place of the file's.", path=True)
    only: str | None = option(None, "Run this method alone; the report has all that are done.")
    overwrite: bool = option(False, "Make anew what was made with other settings; keep the rest.")


def run(flags: ComparisonFlags) -> dict[str, Any]:
    """See `commands.compare.run.run`.

    Raises:
        ConfigError: no file is named, or as there.
    """
    if flags.config_file is None:
        raise ConfigError(
            "config is missing; give --config FILE.yaml (nonpareil compare --help lists its keys)"
        )
    return compare.run(
        flags.config_file, output_dir=flags.output_dir, overwrite=flags.overwrite, only=flags.only
    )


def _keys(section: str, options: type, meaning: str = "") -> str:
    """A section's line in the help."""
    text = ", ".join(settings_of(options)) + meaning
    start = f"  {section + ':':<13}"
    return textwrap.fill(text, 105, initial_indent=start, subsequent_indent=" " * len(start))


DESCRIPTION = f"""{compare.__doc__}

The file's keys: output_dir, model_name_or_path, dataset_name (training prompts), eval_dataset_name (held-out
prompts), the reward_* options, gold_reward, max_completion_length, temperature, n, seeds, checkpoints,
  budget:      completions or seconds, of each run (a command's own are counted, not bounded)
{_keys("groups", PoolOptions, ": the pool that methods with `stored: true` share")}
{_keys("evaluation", EvaluationOptions)}
  training:    any option of `nonpareil distill`, for all methods
  methods:     name: {{method: bond (default: the name), stored: true, any option of `nonpareil distill`}}
               or name: {{command: [words with {{output_dir}} {{seed}} {{groups}} {{pairs}} {{model}} {{python}}]}}
Run again to go on: what is done is not done twice.
"""

COMMAND = Command(
    description=DESCRIPTION,
    example="nonpareil compare --config comparison.yaml --output_dir comparison",
    options=lambda: [ComparisonFlags],
    run=run,
    show=show,
    as_json=as_json,
    status=status,
    config="What to compare.",
    config_is_options=False,
)
