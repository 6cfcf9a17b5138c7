"""Checksums over a Parquet file, in the file itself: of every byte and of the footer; unseen by other readers."""

import hashlib
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CHECKSUM_KEY = "nonpareil.sha256"
"""Of the footer's key-value metadata, which every reader of Parquet passes over."""
FOOTER_KEY = "nonpareil.footer_sha256"
"""Beside it: whoever reads the footer and a few columns need not read all bytes to know that it is whole. The pages
of those columns have checksums of their own."""
_MARK = b"nonpareil-sha256:"
_FOOTER_MARK = b"nonpareil-footer-sha256:"
_ZEROS = b"0" * 64
_MAGIC = b"PAR1"
_LENGTH_BYTES = 4


def sealed_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file, with a checksum on every page, one of the footer and one of the whole file."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        # Last, so that no other text of the file can stand behind them.
        for key, mark in ((FOOTER_KEY, _FOOTER_MARK), (CHECKSUM_KEY, _MARK)):
            writer.add_key_value_metadata({key: (mark + _ZEROS).decode()})
    content = bytearray(buffer.getvalue())
    _write_digest(
        content, _FOOTER_MARK, _footer_digest(bytes(content[_footer_start(content) :]), len(content))
    )
    _write_digest(content, _MARK, hashlib.sha256(content).hexdigest().encode())
    return bytes(content)


def seal_holds(content: bytes) -> bool | None:
    """Whether the file is as it was written, to the last bit; None where no checksum is found in it."""
    found = _seal_in(content, _MARK)
    if found is None:
        return None
    view = memoryview(content)  # a slice of bytes would be a copy
    digest = hashlib.sha256(view[: found.start(1)])
    digest.update(_ZEROS)
    digest.update(view[found.end(1) :])
    return digest.hexdigest().encode() == found[1]


def sealed_footer(path: Path) -> bytes | None:
    """A file's footer, of which every bit is as it was written; None where it is not, or has no checksum.

    The length of the file is part of the checksum, so that a footer is never read as that of a longer file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _LENGTH_BYTES - len(_MAGIC)))
        tail = file.read()
        start = size - len(tail) - int.from_bytes(tail[:_LENGTH_BYTES], "little")
        if tail[_LENGTH_BYTES:] != _MAGIC or start < 0:
            return None
        file.seek(start)
        footer = file.read()
    found = _seal_in(footer, _FOOTER_MARK)
    return footer if found is not None and found[1] == _footer_digest(footer, size) else None


def _footer_start(content: bytes | bytearray) -> int:
    end = len(content) - _LENGTH_BYTES - len(_MAGIC)
    return end - int.from_bytes(content[end : end + _LENGTH_BYTES], "little")


def _footer_digest(footer: bytes, file_bytes: int) -> bytes:
    """Of the footer with zeros in the place of both digests, and of the file's length."""
    for mark in (_FOOTER_MARK, _MARK):
        if (found := _seal_in(footer, mark)) is not None:
            footer = footer[: found.start(1)] + _ZEROS + footer[found.end(1) :]
    return hashlib.sha256(b"%d " % file_bytes + footer).hexdigest().encode()


def _seal_in(content: bytes, mark: bytes) -> re.Match[bytes] | None:
    place = content.rfind(mark)
    return re.compile(re.escape(mark) + rb"([0-9a-f]{64})").match(content, place) if place >= 0 else None


def _write_digest(content: bytearray, mark: bytes, digest: bytes) -> None:
    place = content.rindex(mark + _ZEROS) + len(mark)
    content[place : place + len(_ZEROS)] = digest
