"""A chat model whose template closes a turn with a token that neither its configs nor its tokenizer name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from nonpareil.models.loading import load_policy, stored_end_token_ids
from nonpareil.rollouts import read_groups
from nonpareil.rollouts.manifest import read_manifest, write_manifest
from nonpareil.rollouts.store import notes_of, read_shard, read_table, with_notes, write_shard, write_table
from tests.cli.conftest import WORDS, Command, config, tokenizer

EOS, TURN = 2, 4 + len(WORDS)
TEMPLATE = "{{ bos_token }} {% for m in messages %}{{ m['content'] }} <turn> {% endfor %}"
REWARD = "def long(completion_ids, **_):\n    return [len(ids) + ids[0] / 100 for ids in completion_ids]\n"


@pytest.fixture
def chat(files: Path) -> Path:
    """The files with a chat model in the policy's place, conversations for prompts, and a reward by ids."""
    chats = tokenizer()
    chats.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    chats.chat_template = TEMPLATE
    torch.manual_seed(0)
    LlamaForCausalLM(config(vocab_size=TURN + 1)).save_pretrained(files / "policy")
    chats.save_pretrained(files / "policy")
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        talks = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        (files / f"{name}-chat.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (files / "rewards.py").write_text(REWARD)
    return files


def run(nonpareil: Command, command: str, **changes: Any) -> tuple[int, str]:
    files, split = nonpareil.files, "test" if command == "evaluate" else "train"
    given = {"dataset_name": files / f"{split}-chat.jsonl", "reward_funcs": f"{files}/rewards.py:long"}
    if command == "distill":
        given |= {"eval_dataset_name": files / "test-chat.jsonl"}
    status, _, said = nonpareil(command, **{**given, **changes})
    return status, said


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def saved_ends(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_completions_end_where_the_template_closes_a_turn(nonpareil: Command, chat: Path) -> None:
    status, said = run(nonpareil, "sample", num_generations=16, max_completion_length=12)
    assert status == 0, said
    assert f"a completion also ends with {TURN} ('<turn>')" in said
    manifest = read_manifest(chat / "out") or {}
    assert manifest["draw"]["model"]["end_token_ids"] == [EOS, TURN]
    assert manifest["draw"]["model"]["turn_end_token_id"] == TURN
    lasts = set()
    for group in read_groups(chat / "out"):
        for ids, reason in zip(group.completion_token_ids, group.finish_reasons, strict=True):
            assert not {EOS, TURN} & set(ids[:-1])
            assert reason == ("stop" if ids[-1] in (EOS, TURN) else "length")
            lasts.add(ids[-1])
    assert {EOS, TURN} < lasts
    # Strings are no turns: the model's own word holds.
    status, said = run(nonpareil, "sample", dataset_name=chat / "train.jsonl", output_dir=chat / "strings")
    assert status == 0, said
    assert (read_manifest(chat / "strings") or {})["draw"]["model"]["end_token_ids"] == [EOS]
    assert any(TURN in ids for group in read_groups(chat / "strings") for ids in group.completion_token_ids)


@pytest.mark.parametrize("use_peft", ["false", "true"])
def test_what_is_trained_ends_there_when_it_is_loaded_anew(
    use_peft: str, nonpareil: Command, chat: Path
) -> None:
    lora = {"use_peft": "true", "merge": "true", "lora_r": 2} if use_peft == "true" else {}
    status, said = run(nonpareil, "distill", max_steps=2, save_steps=1, **lora)
    assert status == 0, said  # its own evaluation, against the model as it was, among it
    folders = [chat / "out", chat / "out" / "checkpoint-1", *([chat / "out" / "merged"] if lora else [])]
    for folder in folders:
        assert saved_ends(folder) == [EOS, TURN]
        model, own = load_policy(str(folder), dtype="float32")
        assert model.generation_config.eos_token_id == [EOS, TURN]
        assert stored_end_token_ids(str(folder), own) == {EOS, TURN}
    assert saved_ends(chat / "policy") == EOS
    for side in ("policy", "reference"):
        model_info = (read_manifest(chat / "out" / "evaluation" / side) or {})["draw"]["model"]
        assert model_info["end_token_ids"] == [EOS, TURN]


def test_the_tokenizers_own_end_is_told_of_and_not_taken_up_by_saving(nonpareil: Command, chat: Path) -> None:
    """transformers' Trainer writes the tokenizer's end into the configs when it begins to train."""
    changed = AutoTokenizer.from_pretrained(chat / "policy")
    changed.eos_token = "dull"
    changed.save_pretrained(chat / "policy")
    dull = changed.eos_token_id
    strings = {"dataset_name": chat / "train.jsonl", "eval_dataset_name": chat / "test.jsonl"}
    status, said = run(nonpareil, "distill", max_steps=1, **strings)
    assert status == 0, said
    assert f"a completion ends with {EOS} ('</s>'), as the model's configs say, and not with the" in said
    assert f"tokenizer's {dull} ('dull')" in said
    assert saved_ends(chat / "out") == EOS
    assert json.loads((chat / "out" / "config.json").read_text())["eos_token_id"] == EOS
    groups = read_groups(chat / "out" / "evaluation" / "policy")
    assert any(dull in ids[:-1] for group in groups for ids in group.completion_token_ids)


def test_policy_and_reference_that_end_differently_are_refused(nonpareil: Command, chat: Path) -> None:
    AutoModelForCausalLM.from_pretrained(chat / "policy").save_pretrained(chat / "other")
    AutoTokenizer.from_pretrained(chat / "policy").save_pretrained(chat / "other")
    edit(chat / "other" / "generation_config.json", eos_token_id=[EOS, 8])
    strings = {"dataset_name": chat / "test.jsonl", "model_name_or_path": chat / "other"}
    status, said = run(nonpareil, "evaluate", **strings)
    assert status == 2
    assert f"ends a completion with {EOS} ('</s>') and 8 ('good'), and" in said
    assert f"reference_model_name_or_path='{chat / 'policy'}' with {EOS} ('</s>'): " in said
    assert not list((chat / "out").rglob("manifest.json"))
    edit(chat / "policy" / "generation_config.json", eos_token_id=[8, EOS])
    assert run(nonpareil, "evaluate", **strings)[0] == 0


def test_a_folder_of_completions_that_ended_elsewhere_is_refused(nonpareil: Command, chat: Path) -> None:
    assert run(nonpareil, "sample")[0] == 0
    edit(chat / "policy" / "generation_config.json", eos_token_id=[EOS, 8])
    status, said = run(nonpareil, "sample")
    assert status == 2
    assert (
        f"model.end_token_ids: [{EOS}, {TURN}] there, [{EOS}, 8, {TURN}] now (where a completion ends)"
        in said
    )
    training = {"groups": chat / "out", "dataset_name": None, "method": "sft_bon", "n": 2}
    status, said = run(nonpareil, "distill", **training, output_dir=chat / "trained")
    assert status == 2
    assert f"was drawn with completions that end with the ids [{EOS}, {TURN}]" in said
    assert not (chat / "trained").exists()


def as_earlier_versions_wrote(folder: Path) -> None:
    """Without a word on where completions end, in manifest and shards; one shard is still to be drawn."""
    manifest = read_manifest(folder) or {}
    for name in ("end_token_ids", "turn_end_token_id"):
        manifest["draw"]["model"].pop(name, None)
    write_manifest(folder, {**manifest, "complete": False})
    last, *others = sorted((folder / "data").iterdir(), reverse=True)
    last.unlink()
    for shard in others:
        table = read_table(shard)
        write_table(shard, with_notes(table, replace(notes_of(table.schema), draw=manifest["draw"])))


def test_earlier_folders_go_on_where_no_turns_end_was_added(nonpareil: Command, chat: Path) -> None:
    strings = {"dataset_name": chat / "train.jsonl"}
    assert run(nonpareil, "sample", **strings)[0] == 0
    as_earlier_versions_wrote(chat / "out")
    status, said = run(nonpareil, "sample", **strings)
    assert status == 0, said
    assert len(read_groups(chat / "out")) == 12
    assert run(nonpareil, "sample", output_dir=chat / "chats")[0] == 0
    as_earlier_versions_wrote(chat / "chats")
    status, said = run(nonpareil, "sample", output_dir=chat / "chats")
    assert status == 2
    assert f"model.turn_end_token_id: None there, {TURN} now" in said


def test_stored_completions_that_go_on_behind_an_end_are_not_trained_on(
    nonpareil: Command, chat: Path
) -> None:
    """As an earlier version drew them, whose manifest does not say where completions end."""
    assert run(nonpareil, "sample", shard_size=64, seed=1)[0] == 0
    manifest = read_manifest(chat / "out") or {}
    for name in ("end_token_ids", "turn_end_token_id"):
        del manifest["draw"]["model"][name]
    write_manifest(chat / "out", manifest)
    shard = chat / "out" / "data" / "shard-00000.parquet"
    notes = replace(notes_of(read_table(shard).schema), draw=manifest["draw"])
    groups = read_shard(shard)
    training = {"groups": chat / "out", "dataset_name": None, "method": "sft_bon", "n": 2, "dry_run": "true"}
    write_shard(shard, groups, notes=notes)
    status, said = run(nonpareil, "distill", **training)
    assert status == 0, said
    groups[3].completion_token_ids[1].insert(0, TURN)
    groups[3].logprobs[1].insert(0, -1.0)
    write_shard(shard, groups, notes=notes)
    status, said = run(nonpareil, "distill", **training)
    assert status == 2
    assert f"a completion of prompt {groups[3].prompt_id} goes on behind the id {TURN}" in said


def test_a_training_is_not_taken_up_with_other_ends(nonpareil: Command, chat: Path) -> None:
    settings = {"max_steps": 2, "save_steps": 1, "evaluate_after": "false"}
    assert run(nonpareil, "distill", **settings)[0] == 0
    edit(chat / "policy" / "generation_config.json", eos_token_id=8)
    status, said = run(nonpareil, "distill", **settings, resume_from_checkpoint=chat / "out" / "checkpoint-1")
    assert status == 2
    assert f"end_token_ids: [{EOS}, {TURN}] there, [8, {TURN}] now" in said


def test_training_and_held_out_prompts_must_end_alike(nonpareil: Command, chat: Path) -> None:
    status, said = run(nonpareil, "distill", eval_dataset_name=chat / "test.jsonl")
    assert status == 2
    assert f"the training prompts ends with {EOS} ('</s>') and {TURN} ('<turn>')" in said
    assert not (chat / "out" / "metrics.jsonl").exists()
