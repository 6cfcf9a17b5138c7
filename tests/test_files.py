import json
import math
from dataclasses import dataclass

import pytest
import torch

from nonpareil.errors import DataError
from nonpareil.files import from_jsonable, jsonable, write_bytes, write_json


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


@dataclass(frozen=True)
class Part:
    value: float
    name: str = "unnamed"


@dataclass(frozen=True)
class Whole:
    part: Part
    parts: tuple[Part, ...]
    by_name: dict[str, Part | None]
    count: int | None


def test_what_json_holds_of_a_dataclass_is_read_back():
    whole = Whole(Part(1.0), (Part(math.inf), Part(-0.5, "b")), {"x": None, "y": Part(2.0)}, None)
    assert from_jsonable(Whole, json.loads(json.dumps(jsonable(whole, keep_infinities=True)))) == whole
    assert math.isnan(from_jsonable(Part, {"value": None}).value)


def test_a_field_that_json_lacks_is_named():
    with pytest.raises(DataError, match=r"^whole\.part\.value is missing$"):
        from_jsonable(Whole, {"part": {}, "parts": [], "by_name": {}, "count": 1}, "whole")
