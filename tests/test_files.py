import math

import pytest
import torch

from nonpareil.files import jsonable, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a.json", b"old")

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_what_it_cannot_hold(tmp_path):
    assert jsonable({"a": (1, math.inf), 2: math.nan}) == {"a": [1, None], "2": None}
    with pytest.raises(TypeError, match="Tensor has no form in JSON"):
        write_json(tmp_path / "x.json", {"a": torch.ones(1)})
    assert not (tmp_path / "x.json").exists()
