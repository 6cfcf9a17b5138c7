"""The hub's libraries on a machine that cannot reach it: its cache at once, in place of a minute of tries."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from nonpareil.setting_types import nearest_name

TIMEOUT = 3.0
"""Seconds for the hub to answer anything at all."""


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Within it, what is no folder comes from the hub, or from its cache alone where the hub does not answer."""
    if Path(name).expanduser().is_dir() or hub_answers():
        yield
        return
    from huggingface_hub import constants  # slow to import, and folders do without

    datasets = sys.modules.get("datasets")  # has its own copy of the switch
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    if datasets is not None:
        datasets_before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if datasets is not None:
            datasets.config.HF_HUB_OFFLINE = datasets_before


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached; asked once per process, and for three seconds at most.

    Its own libraries try each of a model's files again for the better part of a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # noqa: BLE001  (of whatever client the library has in this version)
        return False
    return answer.status_code < 500  # above are the words of a proxy before it, or of a hub that is down


def missing(name: str) -> str:
    """Why a name that is no folder here was not found."""
    if Path(name).expanduser().is_symlink():
        return f"a symbolic link to nowhere ({str(Path(name).expanduser().readlink())!r})"
    if hub_answers():
        return "no such directory"
    from huggingface_hub import constants

    off = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
    return f"no such directory, not whole in the hub's cache, and no hub within reach{off}"


def nearest_path(name: str) -> str:
    """ "; did you mean ...?" of what lies in the same folder, or nothing."""
    path = Path(name).expanduser()
    others = path.parent.iterdir() if path.parent.is_dir() else ()
    beside = {other.name: str(other) for other in others if other.name != path.name}
    near = nearest_name(path.name, beside)
    return "" if near is None else f"; did you mean {beside[near]!r}?"
