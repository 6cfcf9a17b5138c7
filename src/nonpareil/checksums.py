"""The SHA-256 of whole files, read once for each state that a file is in."""

import hashlib
from pathlib import Path

_known: dict[tuple[int, int], tuple[int, int, str]] = {}
"""By device and inode: size, time of modification in ns, and the checksum then."""


def file_sha256(path: Path) -> str:
    """In hexadecimal; a file that was read before, and at most renamed since, is not read again.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        status = path.stat()
        place, state = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
        if _known.get(place, ())[:2] != state:
            _known[place] = (*state, hashlib.file_digest(stream, "sha256").hexdigest())
    return _known[place][2]
