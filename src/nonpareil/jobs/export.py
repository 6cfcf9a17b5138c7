"""Turn stored groups into TRL's preference, SFT or unpaired datasets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.jobs.options import _help


@dataclass
class ExportOptions:
    """Options of `nonpareil export`."""

    groups: str | None = field(
        default=None,
        metadata=_help("A folder written by `nonpareil sample`, one of its shards, or vBoN's JSON lines."),
    )
    format: str = field(
        default="preference", metadata=_help("preference, sft or unpaired: TRL's dataset formats.")
    )
    output: str | None = field(default=None, metadata=_help("The .jsonl or .parquet file to write."))
    n: int | None = field(
        default=None,
        metadata=_help("Look at the first n completions of each group: best-of-n for several n."),
    )
    seed: int = field(default=0, metadata=_help("Of the draw among tied completions."))
    truncated: str = field(default="allow", metadata=_help("allow, or exclude completions that were cut."))
    overwrite: bool = field(default=False, metadata=_help("Replace the file."))


def run(options: ExportOptions) -> dict[str, Any]:
    """Write the file; returns how many rows it has and how many groups gave none, by reason.

    Raises:
        NonpareilError: no groups or file named, groups without rewards, or a file that exists.
    """
    for name in ("groups", "output"):
        if getattr(options, name) is None:
            raise ConfigError(f"{name} is missing; give --{name}")
    if options.truncated not in ("allow", "exclude"):
        raise ConfigError(f"truncated={options.truncated!r} must be allow or exclude")
    from nonpareil.rollouts.export import export
    from nonpareil.rollouts.reading import read_groups
    from nonpareil.rollouts.vbon import read_vbon

    source = Path(options.groups or "")
    groups = read_vbon(source) if source.suffix in (".json", ".jsonl") else read_groups(source)
    report = export(
        groups,
        options.output or "",
        options.format,  # type: ignore[arg-type]
        n=options.n,
        seed=options.seed,
        truncated=options.truncated,  # type: ignore[arg-type]
        overwrite=options.overwrite,
    )
    return {
        "output": str(report.path),
        "groups": report.groups,
        "rows": report.rows,
        "skipped": report.skipped,
    }
