"""`nonpareil compare`: its flags, and the help that lists the keys of its file."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.commands.command import Command
from nonpareil.commands.compare import run as compare
from nonpareil.commands.compare.show import as_json, show, status
from nonpareil.commands.compare.spec import BudgetOptions, CompareOptions, EvaluationOptions, PoolOptions
from nonpareil.errors import ConfigError
from nonpareil.options.shared import FileOptions
from nonpareil.settings import option


@dataclass
class ComparisonFlags(FileOptions):
    """What is said beside the comparison's file."""

    HEADING: ClassVar = "Options"

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


DESCRIPTION = f"""{compare.__doc__}

The file's sections `training` and `methods` hold settings of `nonpareil distill`; its other keys are listed below.
  training:    for all methods
  methods:     name: {{method: bond (default: the name), stored: true, any setting of `nonpareil distill`}}
               or name: {{command: [words with {{output_dir}} {{seed}} {{groups}} {{pairs}} {{model}} {{python}}]}}
Run again to go on: what is done is not done twice.
"""


def _keys() -> dict[str, type]:
    return {
        "The file's keys": CompareOptions,
        "budget: of each run (a command's own are counted, not bounded)": BudgetOptions,
        "groups: the pool that methods with `stored: true` share": PoolOptions,
        "evaluation": EvaluationOptions,
    }


COMMAND = Command(
    description=DESCRIPTION,
    example="nonpareil compare --config comparison.yaml --output_dir comparison",
    options=lambda: [ComparisonFlags],
    run=run,
    show=show,
    as_json=as_json,
    status=status,
    keys=_keys,
    config="What to compare.",
    config_is_options=False,
)
