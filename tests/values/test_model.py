"""A value at every prefix, against plain passes over each prefix alone; its folder, and what is refused."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.maths.target_weights import log_target_weights
from nonpareil.models.logprobs import TokenSequences
from nonpareil.values.base import PrefixValue
from nonpareil.values.model import (
    ValueModel,
    ValueNotes,
    check_temperature_of,
    check_value_of,
    load_value,
    read_notes,
)
from nonpareil.values.network import check_reads_prefixes, load_network
from tests.architectures import known, tiny_config
from tests.tiny import END, make_model, make_tokenizer

SEQUENCES = TokenSequences(
    prompt_ids=[[1, 7, 8, 9, 10, 11, 12], [1, 7], [5], [1, 7]],
    completion_ids=[[8, 9, END], [17, 16, 15, 14, 13, END], [6] * 5, []],
)
BINS = 4
CANDIDATES = torch.randint(4, 19, (4, 6, 3), generator=torch.Generator().manual_seed(0))


def classifier(kind: str = "llama", labels: int = BINS) -> PreTrainedModel:
    torch.manual_seed(0)
    model = (
        AutoModelForSequenceClassification.from_config(tiny_config(kind, num_labels=labels)).float().eval()
    )
    nn.init.normal_(model.score.weight)
    return model


def value_of(model: PreTrainedModel) -> ValueModel:
    return ValueModel(model, make_tokenizer(), ValueNotes(model.config.num_labels, policy="sha256-2:p"))


@torch.no_grad()
def alone(model: PreTrainedModel, ids: list[int], n: float) -> float:
    """log E[W] by the classifier itself on one unpadded text."""
    probs = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
    return (probs @ log_target_weights("tilt", n, BINS).exp()).log().item()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma2", "opt"])
def test_values_are_those_of_each_prefix_alone(kind: str) -> None:
    if not known(kind):
        pytest.skip("not in this version of transformers")
    model = classifier(kind)
    check_reads_prefixes(model, kind)
    value = value_of(model).at(4, max_tokens_per_batch=16)
    assert isinstance(value, PrefixValue)
    found, of_candidates = value.prefix_values(SEQUENCES), value.candidate_values(SEQUENCES, CANDIDATES)
    assert found.shape == (4, 7)
    assert of_candidates.shape == (4, 6, 3)
    for row, (prompt, completion) in enumerate(
        zip(SEQUENCES.prompt_ids, SEQUENCES.completion_ids, strict=True)
    ):
        start = alone(model, prompt, 4)
        for t in range(7):
            here = alone(model, prompt + completion[:t], 4) - start if t <= len(completion) else 0
            assert found[row, t].item() == pytest.approx(here, abs=2e-5)
            if t == 6:
                continue
            for k in range(3):
                text = [*prompt, *completion[:t], int(CANDIDATES[row, t, k])]
                there = alone(model, text, 4) - start if t < len(completion) else 0
                assert of_candidates[row, t, k].item() == pytest.approx(there, abs=2e-5)
    assert (found[:, 0] == 0).all()


def test_no_batch_changes_a_value_and_every_n_comes_from_one_network() -> None:
    value = value_of(classifier())
    whole = value.at(2).prefix_values(SEQUENCES)
    torch.testing.assert_close(whole, value.at(2, max_tokens_per_batch=1).prefix_values(SEQUENCES))
    back = TokenSequences(SEQUENCES.prompt_ids[::-1], SEQUENCES.completion_ids[::-1])
    torch.testing.assert_close(whole.flip(0), value.at(2).prefix_values(back))
    assert value.at(1).prefix_values(SEQUENCES).abs().max() < 1e-6
    assert not torch.allclose(whole, value.at(8).prefix_values(SEQUENCES), atol=0.05)
    assert value.at(2).describe() != value.at(8).describe()


def test_what_the_network_was_trained_to_begin_with_is_read_before_each_prompt(tmp_path) -> None:
    model, first = classifier(), [3, 18]
    value = ValueModel(model, make_tokenizer(), ValueNotes(BINS, policy="sha256-2:p", first_ids=first))
    value.save(tmp_path)
    again = load_value(tmp_path, dtype="float32").at(4)
    behind = TokenSequences([[*first, *ids] for ids in SEQUENCES.prompt_ids], SEQUENCES.completion_ids)
    without = value_of(model).at(4)
    for each in (value.at(4), again):
        torch.testing.assert_close(each.prefix_values(SEQUENCES), without.prefix_values(behind))
        torch.testing.assert_close(
            each.candidate_values(SEQUENCES, CANDIDATES), without.candidate_values(behind, CANDIDATES)
        )
        torch.testing.assert_close(
            each.prefix_values(behind), each.prefix_values(SEQUENCES)
        )  # once is enough
    assert not torch.allclose(
        without.prefix_values(SEQUENCES), value.at(4).prefix_values(SEQUENCES), atol=1e-3
    )


def test_a_folder_has_it_all_and_begins_alike(tmp_path) -> None:
    value = value_of(classifier())
    value.save(tmp_path / "value")
    assert read_notes(tmp_path / "value") == value.notes
    again = load_value(tmp_path / "value", dtype="float32")
    torch.testing.assert_close(again.at(4).prefix_values(SEQUENCES), value.at(4).prefix_values(SEQUENCES))
    assert again.tokenizer.get_vocab() == value.tokenizer.get_vocab()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    assert plain.config.num_labels == BINS
    half = load_value(tmp_path / "value", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.model.score.weight.dtype == torch.float32
    torch.testing.assert_close(
        half.at(4).prefix_values(SEQUENCES), value.at(4).prefix_values(SEQUENCES), atol=0.1, rtol=0.1
    )


@pytest.mark.parametrize("pad", [0, 3, 4, None])
def test_no_padding_token_keeps_a_network_from_being_one(pad: int | None) -> None:
    model = classifier()
    model.config.pad_token_id = pad
    check_reads_prefixes(model, "it")


@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied", "gpt2", "gemma2_capped"])
def test_begun_from_a_policy_all_bins_are_alike(tmp_path, kind: str) -> None:
    policy = make_model(kind)
    policy.save_pretrained(tmp_path)
    model = load_network(str(tmp_path), BINS, fresh_head=True)
    assert (value_of(model).at(4).prefix_values(SEQUENCES) == 0).all()
    ids = torch.tensor([[1, 7, 8]])
    torch.testing.assert_close(
        model.base_model(input_ids=ids).last_hidden_state, policy.base_model(input_ids=ids).last_hidden_state
    )
    with pytest.raises(ModelError, match=r"score.weight"):
        load_network(str(tmp_path), BINS, fresh_head=False)


def test_begun_from_a_reward_model_its_head_is_exchanged(tmp_path) -> None:
    classifier(labels=1).save_pretrained(tmp_path)
    model = load_network(str(tmp_path), BINS, fresh_head=True)
    assert model.score.weight.shape == (BINS, 32)
    assert not model.score.weight.any()


def test_what_is_no_value_is_refused_by_name(tmp_path, capsys) -> None:
    value = value_of(classifier())
    value.save(tmp_path / "value")
    with pytest.raises(ModelError, match=r"8 bins.* 4 labels"):
        ValueModel(value.model, value.tokenizer, ValueNotes(8))
    check_value_of(value.notes, "sha256-2:p", "value='v'")
    with pytest.raises(ConfigError, match=r"another policy.*sha256-2:p.*sha256-2:q"):
        check_value_of(value.notes, "sha256-2:q", "value='v'")
    with pytest.raises(ConfigError, match="at least 1"):
        value.at(0.5)
    check_temperature_of(ValueNotes(8, temperature=0.7), 0.7, "value='v'")
    with pytest.raises(ConfigError, match=r"value='v'.* temperature 0.7, and here draws are at 1"):
        check_temperature_of(ValueNotes(8, temperature=0.7), 1.0, "value='v'")
    notes = tmp_path / "value" / "value.json"
    said = json.loads(notes.read_text())
    notes.write_text(json.dumps({key: x for key, x in said.items() if key != "temperature"}))
    check_temperature_of(read_notes(tmp_path / "value"), 0.5, "value='v'")
    assert "value='v' does not say at which temperature" in capsys.readouterr().err
    notes.write_text(json.dumps({**said, "temperature": "1"}))
    with pytest.raises(DataError, match="damaged"):
        read_notes(tmp_path / "value")
    notes.write_text(json.dumps({**said, "bins": 8}))
    with pytest.raises(ModelError, match=r"score.weight"):
        load_value(tmp_path / "value")
    notes.write_text(json.dumps({**said, "bins": "8"}))
    with pytest.raises(DataError, match="damaged"):
        load_value(tmp_path / "value")
    notes.unlink()
    with pytest.raises(ModelError, match=r"no value.json"):
        load_value(tmp_path / "value")


def test_a_model_that_looks_ahead_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=19, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no head 'score'|does not hold"):
        load_network(str(tmp_path), BINS, fresh_head=True)

    looking_ahead = classifier()
    forward = looking_ahead.model.norm.forward
    looking_ahead.model.norm.forward = lambda states: forward(states + states.mean(1, keepdim=True))
    with pytest.raises(ModelError, match="looks ahead"):
        check_reads_prefixes(looking_ahead, "it")
