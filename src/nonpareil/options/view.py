"""The options of `nonpareil view`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.shared import FileOptions
from nonpareil.settings import option


@dataclass
class ViewOptions(FileOptions):
    """Options of `nonpareil view`."""

    HEADING: ClassVar = "Options"

    groups: list[str] | None = option(
        None,
        "Folders written by `nonpareil sample`, or Parquet files of groups; also while they grow.",
        names="input",
    )
    runs: list[str] | None = option(
        None, "Output folders of `nonpareil distill`; also while they are trained.", names="input"
    )
    tokenizer: str | None = option(
        None, "Shows tokens as texts, not as ids: a model directory or hub name.", names="input"
    )
    host: str = option("127.0.0.1", "Address to listen on. Any other lets others read the groups.")
    port: int = option(8420, "Port to listen on; 0 takes any that is free.", at_least=0, at_most=65535)
    allowed_hosts: list[str] | None = option(
        None, "Names of this machine that a browser may ask by, beside localhost and addresses."
    )
    bundle: str | None = option(
        None, "Write a folder of static pages to send to somebody, and end; nothing is served.", path=True
    )
    bundle_groups: int = option(50, "Groups in it, the first ones.", at_least=1, at_most=10_000, of="bundle")
    bundle_query: str | None = option(
        None,
        "Which groups in which order: what stands behind ? in a table's address, as sort=gain. Default: all.",
        of="bundle",
    )
    overwrite: bool = option(False, "Delete pages of an earlier bundle there first.", of="bundle")
