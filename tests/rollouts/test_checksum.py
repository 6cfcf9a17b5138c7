"""No bit of a shard or of the manifest can change unseen."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import DataError
from nonpareil.rollouts import read_groups, read_shard
from nonpareil.rollouts.checksum import CHECKSUM_KEY, seal_holds, sealed_parquet
from nonpareil.rollouts.manifest import read_manifest
from tests.rollouts.conftest import never, roll, shards, state


def test_every_flipped_byte_of_a_shard_is_told(rollouts):
    path = shards(rollouts.output_dir)[1]
    content = path.read_bytes()
    assert len(content) > 4000
    assert seal_holds(content) is True
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        assert not seal_holds(bytes(damaged))
        if place % 11 and b"nonpareil" not in content[place - 20 : place + 20]:
            continue
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"shard-00001.parquet is corrupt .*delete it and rerun: only that"
        ):
            read_shard(path)


def test_every_flipped_bit_of_the_manifest_is_told_or_changes_nothing(rollouts):
    path = rollouts.output_dir / "manifest.json"
    content, manifest = path.read_bytes(), rollouts.manifest
    told = 0
    for place in range(0, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        if chr(content[place // 8]).isspace():
            with contextlib.suppress(DataError):  # still white space, or told
                assert read_manifest(rollouts.output_dir) == manifest
            continue
        told += 1
        with pytest.raises(DataError, match="is corrupt"):
            read_manifest(rollouts.output_dir)
    assert told > len(content)


@pytest.mark.parametrize("damage", ["cut", "longer", "footer"])
def test_the_damaged_shard_alone_is_drawn_anew(rollouts, damage):
    groups, paths = rollouts.groups(), shards(rollouts.output_dir)
    content, others = paths[2].read_bytes(), state([paths[0], paths[1], paths[3]])
    flipped = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
    paths[2].write_bytes({"cut": content[:-1], "longer": content + b"\0", "footer": flipped}[damage])
    for read in (lambda: read_groups(rollouts.output_dir), lambda: roll(rollouts.output_dir, engine=never)):
        with pytest.raises(
            DataError, match=r"shard-00002.parquet is corrupt .*delete it and rerun: only that"
        ):
            read()
    paths[2].unlink()
    again = roll(rollouts.output_dir)
    assert (again.shards_drawn, again.shards_scored) == (1, 1)
    assert again.groups() == groups
    assert state([paths[0], paths[1], paths[3]]) == others


def test_the_checksum_is_the_file_s_own_and_no_reader_stumbles_over_it():
    table = pa.table({"text": ["nonpareil-sha256:" + "0" * 64, "x"]})
    content = sealed_parquet(table.replace_schema_metadata({"note": "nonpareil-sha256:" + "0" * 64}))
    assert seal_holds(content) is True
    read = pq.read_table(pa.BufferReader(content))
    assert read["text"].to_pylist() == table["text"].to_pylist()
    assert read.schema.metadata[b"note"] == b"nonpareil-sha256:" + b"0" * 64
    footer = pq.ParquetFile(pa.BufferReader(content)).metadata.metadata
    assert len(footer[CHECKSUM_KEY.encode()]) == len("nonpareil-sha256:") + 64
    assert seal_holds(content + b"x") is False
    plain = pa.BufferOutputStream()
    pq.write_table(table, plain)
    # A text of the data that looks like a checksum is none: the footer's stands behind all data.
    assert seal_holds(plain.getvalue().to_pybytes()) in (None, False)


def test_an_old_folder_is_read_with_what_there_is(rollouts):
    folder, groups = rollouts.output_dir, rollouts.groups()
    for path in shards(folder):
        table = pq.read_table(path)
        notes = json.loads(table.schema.metadata[b"nonpareil"])
        for later in ("draw", "index", "shard_size"):
            del notes[later]
        pq.write_table(table.replace_schema_metadata({"nonpareil": json.dumps(notes)}), path)
    manifest = {**rollouts.manifest, "format": 1}
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_groups(folder) == groups
    shards(folder)[3].unlink()
    with pytest.raises(DataError, match="3 of 4 shards are there"):
        read_groups(folder)
