"""Look at stored groups and training runs in a browser: pages of this machine, or a folder of pages to send."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.places import check_output, inputs_of
from nonpareil.console import console
from nonpareil.errors import ConfigError, ModelError
from nonpareil.folders import writing
from nonpareil.options.view import ViewOptions
from nonpareil.terminal import reason_of, tell

if TYPE_CHECKING:
    from nonpareil.viewing.site import Site, Vocabulary


def run(options: ViewOptions) -> dict[str, Any]:
    """Serve the pages until Ctrl-C, or write the bundle; returns where.

    Raises:
        NonpareilError: nothing to show, folders that are none, a port in use, or a place that cannot be written to.
    """
    if not options.groups and not options.runs:
        raise ConfigError(
            "groups is missing; give folders of groups or of runs: --groups FOLDER, or --runs FOLDER"
        )
    _check_extra()
    if options.bundle is None:
        return _serve(options)
    from nonpareil.viewing.bundle import FILES, write_bundle

    if not options.groups or len(options.groups) > 1 or options.runs:
        raise ConfigError("bundle holds one folder of groups; give one folder by --groups, and no runs")
    site = _site(options)
    check_output("bundle", options.bundle, inputs_of(options), deletes=options.overwrite)
    with writing(Path(options.bundle), "view") as folder:
        folder.refuse_foreign(FILES)
        if options.overwrite:
            for place in folder.listed():
                folder.delete(place)
        count = write_bundle(site, Path(options.bundle), options.bundle_query or "", options.bundle_groups)
    return {"bundle": options.bundle, "groups": count}


def _check_extra() -> None:
    try:
        import duckdb  # noqa: F401
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"nonpareil view needs the extra view ({error.name} is missing): pip install 'nonpareil[view]'"
        ) from error


def _site(options: ViewOptions) -> "Site":
    from nonpareil.viewing.runs import check_run
    from nonpareil.viewing.shards import check_place
    from nonpareil.viewing.site import Site

    for name, given in (("groups", options.groups), ("runs", options.runs)):
        if given and len({*given}) < len(given):
            raise ConfigError(f"{name}={given!r} names a folder twice; name each once")
    groups = [(path, check_place(path)) for path in options.groups or ()]
    if options.bundle is not None:  # whoever gets it need not know where it lay here
        groups = [(place.absolute().name, place) for _, place in groups]
    runs = [(path, check_run(path)) for path in options.runs or ()]
    return Site.of(groups, runs, None if options.tokenizer is None else _vocabulary(options.tokenizer))


def _vocabulary(name: str) -> "Vocabulary":
    """Texts of tokens by their ids."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"tokenizer={name!r} cannot be loaded: {reason_of(error)}") from error
    # Each by itself: bytes of a letter that several tokens share are shown as the replacement character.
    return lambda ids: tokenizer.batch_decode([[each] for each in ids])


def _serve(options: ViewOptions) -> dict[str, Any]:
    from nonpareil.viewing.app import address_of, app_of
    from nonpareil.viewing.server import listen, serve

    opened = listen(options.host, options.port)
    with opened:
        site = _site(options)
        app = app_of(site, [*(options.allowed_hosts or ()), options.host])
        for source in site.groups:
            source.index.freshen(0)
        address = address_of(options.host, opened.getsockname()[1])
        tell(f"pages at {address} (Ctrl-C ends)")
        with suppress(KeyboardInterrupt):  # the way to end it
            serve(app, opened)
    return {"address": address}


def show(result: dict[str, Any]) -> None:
    """What was written; on stderr."""
    if "bundle" in result:
        count = "1 group" if result["groups"] == 1 else f"{result['groups']} groups"
        console().print(
            f"{count} in {result['bundle']}; open {Path(result['bundle']) / 'index.html'}", soft_wrap=True
        )


COMMAND = Command(
    description=__doc__,
    example="nonpareil view --groups nonpareil-groups",
    options=lambda: [ViewOptions],
    run=run,
    show=show,
)
