"""The options of `nonpareil join`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.shared import FileOptions
from nonpareil.settings import option


@dataclass
class JoinOptions(FileOptions):
    """Options of `nonpareil join`."""

    HEADING: ClassVar = "Options"

    groups: list[str] | None = option(
        None, "The folders of `nonpareil sample` to join, drawn and scored alike.", names="input"
    )
    output_dir: str = option("nonpareil-joined", "Where the joined groups go.", path=True)
    shard_size: int = option(64, "Prompts per file.", at_least=1)
    overwrite: bool = option(False, "Delete groups of an earlier run there first.")
