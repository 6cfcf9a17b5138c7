"""Turn stored groups into TRL's preference, SFT or unpaired datasets."""

from pathlib import Path
from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.commands.selection import check_reads
from nonpareil.console import console
from nonpareil.errors import ConfigError
from nonpareil.folders import writing_file
from nonpareil.options.export import ExportOptions
from nonpareil.selection import parse_rule


def run(options: ExportOptions) -> dict[str, Any]:
    """Write the file; returns how many rows it has and how many groups gave none, by reason.

    Raises:
        NonpareilError: no groups or file named, groups without rewards, or a file that exists and, with
            `overwrite`, that we did not write.
    """
    for name in ("groups", "output"):
        if getattr(options, name) is None:
            raise ConfigError(f"{name} is missing; give --{name}")
    rule = None if options.rule is None else parse_rule(options.rule)
    check_reads(options, [] if rule is None else [rule])
    from nonpareil.rollouts.export import export, unread_by
    from nonpareil.rollouts.manifest import read_manifest
    from nonpareil.rollouts.reading import stored_groups
    from nonpareil.rollouts.resume import tell_old_texts
    from nonpareil.rollouts.select import Choice

    source, output = Path(options.groups or ""), Path(options.output or "")
    _check_output(options, source, output)
    if source.is_dir():
        tell_old_texts(source, read_manifest(source))
    with writing_file(output, "export", option="output") as folder:
        if options.overwrite:
            folder.refuse_foreign([output.name])
        report = export(
            stored_groups(source, without=unread_by(rule)),
            output,
            options.format,  # type: ignore[arg-type]
            n=options.n,
            seed=options.seed,
            truncated=options.truncated,  # type: ignore[arg-type]
            min_reward=options.min_reward,
            min_margin=options.min_margin,
            choice=None if rule is None else Choice(rule, options.answers, options.similarity),
            overwrite=options.overwrite,
        )
    return {
        "output": str(report.path),
        "groups": report.groups,
        "rows": report.rows,
        "skipped": report.skipped,
    }


def _check_output(options: ExportOptions, source: Path, output: Path) -> None:
    check_output("output", output, inputs_of(options))
    shards = source / "data" if (source / "data").is_dir() else source
    if shards.is_dir() and output.parent.is_dir() and shards.samefile(output.parent):
        raise ConfigError(
            f"output={str(output)!r} would lie among the shards of groups={str(source)!r}; name another place"
        )


def show(result: dict[str, Any]) -> None:
    """How many rows are where, and which groups gave none; on stderr."""
    skipped = "".join(f"; {count} groups skipped: {reason}" for reason, count in result["skipped"].items())
    console().print(f"{result['rows']} rows in {result['output']}{skipped}", soft_wrap=True)


COMMAND = Command(
    description=__doc__,
    example="nonpareil export --groups nonpareil-groups --format preference --output pairs.jsonl",
    options=lambda: [ExportOptions],
    run=run,
    show=show,
)
