"""A checksum over a whole Parquet file, in the file itself: written with it, unseen by other readers."""

import hashlib
import io
import re

import pyarrow as pa
import pyarrow.parquet as pq

CHECKSUM_KEY = "nonpareil.sha256"
"""Of the footer's key-value metadata, which every reader of Parquet passes over."""
_MARK = b"nonpareil-sha256:"
_ZEROS = b"0" * 64
_SEALED = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})")


def sealed_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file, with a checksum on every page and one over every byte of the file."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        # Last, so that no other text of the file can stand behind it.
        writer.add_key_value_metadata({CHECKSUM_KEY: (_MARK + _ZEROS).decode()})
    content = bytearray(buffer.getvalue())
    place = content.rindex(_MARK + _ZEROS) + len(_MARK)
    content[place : place + len(_ZEROS)] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def seal_holds(content: bytes) -> bool | None:
    """Whether the file is as it was written, to the last bit; None where no checksum is found in it."""
    mark = content.rfind(_MARK)
    found = _SEALED.match(content, mark) if mark >= 0 else None
    if found is None:
        return None
    view = memoryview(content)  # a slice of bytes would be a copy
    digest = hashlib.sha256(view[: found.start(1)])
    digest.update(_ZEROS)
    digest.update(view[found.end(1) :])
    return digest.hexdigest().encode() == found[1]
