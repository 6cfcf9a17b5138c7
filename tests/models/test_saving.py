"""What is read and cannot be written is found before a training; what merely has no effect is mended."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from nonpareil.errors import ModelError
from nonpareil.models.saving import check_savable, mend_generation_config, prepare_saving
from tests.tiny import make_model, make_tokenizer


def base_with(folder: Path, **generation: Any) -> Any:
    """A model on disk whose generation config says so, as transformers reads it."""
    make_model().save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **generation}))
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("generation", "idle"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6}),
        ({"temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({"do_sample": False, "temperature": 1.0, "min_p": 0.1}, {"min_p": 0.1}),
        ({"length_penalty": 2.0}, {"length_penalty": 2.0}),
        ({"pad_token_id": -1}, {"pad_token_id": -1}),
        ({"do_sample": True, "temperature": 0.9, "top_p": 0.6}, {}),
        ({}, {}),
    ],
)
def test_what_has_no_effect_is_taken_out_and_all_else_kept(
    generation: dict[str, Any], idle: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base_with(tmp_path / "base", **generation)
    if idle:
        try:
            model.generation_config.save_pretrained(tmp_path / "none")
        except ValueError as error:
            assert "Fix these issues to save the configuration" in str(error)  # noqa: PT017
        else:
            pytest.skip("this version of transformers writes it as it is")
    prepare_saving(model, make_tokenizer())
    said = capsys.readouterr().err
    assert all(f"{name}={value!r}" in said for name, value in idle.items())
    assert ("generation config has" in said) == bool(idle)
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    for name, value in generation.items():
        assert getattr(saved, name) == (None if name in idle else value)
    assert saved.eos_token_id == model.config.eos_token_id
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 7, 8]])
    if not generation.get("do_sample") and "pad_token_id" not in generation:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        ours, theirs = (each.generate(ids, max_new_tokens=4) for each in (loaded, base))
        assert torch.equal(ours, theirs), "greedy decoding is as it was"


def test_what_is_wrong_in_another_way_is_refused_in_one_line(tmp_path: Path) -> None:
    model = base_with(tmp_path)
    model.generation_config.cache_implementation = "no such cache"
    assert mend_generation_config(model) == {}
    with pytest.raises(
        ModelError, match=r"the generation config of .* was read and cannot be written"
    ) as caught:
        check_savable(model, make_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_a_config_or_tokenizer_that_cannot_be_written_is_refused(part: str, tmp_path: Path) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    if part == "config":
        model.config.something = {1, 2}  # which JSON has no form for
    else:
        tokenizer.init_kwargs["something"] = {1, 2}
    with pytest.raises(ModelError, match=rf"the {part} of .* was read and cannot be written"):
        check_savable(model, tokenizer)
