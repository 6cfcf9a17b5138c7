"""Make one folder of several that were drawn and scored alike: of other prompts, or of other seeds."""

from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.console import console
from nonpareil.errors import ConfigError
from nonpareil.options.join import JoinOptions


def run(options: JoinOptions) -> dict[str, Any]:
    """Join; returns the counts of the manifest, and how many groups were copies.

    Raises:
        NonpareilError: folders that are missing, not finished or drawn otherwise, or an output that is no new one.
    """
    if not options.groups:
        raise ConfigError("groups is missing; give --groups and two folders at least")
    from nonpareil.rollouts.joining import join

    check_output("output_dir", options.output_dir, inputs_of(options), deletes=options.overwrite)
    report = join(
        options.groups, options.output_dir, shard_size=options.shard_size, overwrite=options.overwrite
    )
    return {"output_dir": options.output_dir, "copies": report.copies, **report.manifest["counts"]}


def show(result: dict[str, Any]) -> None:
    """How many groups are where; on stderr."""
    copies = f"; {result['copies']} that two folders had were taken once" if result["copies"] else ""
    console().print(
        f"{result['prompts']} groups of {result['completions'] // result['prompts']} in {result['output_dir']}"
        f"{copies}. Next: nonpareil curve --groups {result['output_dir']}",
        soft_wrap=True,
    )


COMMAND = Command(
    description=__doc__,
    example="nonpareil join --groups monday tuesday --output_dir both",
    options=lambda: [JoinOptions],
    run=run,
    show=show,
)
