"""What rewards and exports read is what the policy wrote, from its tokenizer to the file."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as RewardModel

from nonpareil.rollouts.manifest import read_manifest, write_manifest
from nonpareil.rollouts.reading import read_groups
from nonpareil.rollouts.store import notes_of, read_shard, read_table, write_shard
from tests.cli.conftest import config
from tests.tokenizers_of_all_kinds import BOS, EOS, KINDS, PAD, THINK, THOUGHT, UNK

BORDERS = {UNK, BOS, EOS, PAD}
REWARDS = """
def text(prompts, completions, **_):
    return [float(sum(map(ord, p + c))) for p, c in zip(prompts, completions)]

def thinks(completions, **_):
    return [float("<think>" in c or "</think>" in c) for c in completions]
"""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def spoken(files):
    """The policy and the reward model speak by SentencePiece, and the policy thinks often."""
    tokenizer = KINDS["llama_2"]()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "pad_token_id": PAD}
    policy = LlamaForCausalLM(config(**settings))
    policy.lm_head.weight.data[[THINK, THOUGHT]] *= 5
    reward = RewardModel(config(**settings))
    for name, model in (("policy", policy), ("rm", reward)):
        model.save_pretrained(files / name)
        tokenizer.save_pretrained(files / name)
    rows = [{"prompt": text} for text in ("The film was", "He said:", "naïve cafés", " two  spaces")]
    (files / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (files / "rewards.py").write_text(REWARDS)
    return files


def whole(tokenizer, ids):
    kept = [token for token in ids if token not in BORDERS]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_functions_models_and_exports_read_prompt_and_completion_as_written(nonpareil, spoken):
    named = {"reward_funcs": f"{spoken}/rewards.py:text {spoken}/rewards.py:thinks", "dtype": "float32"}
    named |= {"reward_model_name_or_path": spoken / "rm", "reward_dtype": "float32", "num_generations": 12}
    status, _, err = nonpareil("sample", **named)
    assert status == 0, err
    assert json.loads((spoken / "out" / "manifest.json").read_text())["draw"]["engine"] == {
        "engine": "transformers", "dtype": "float32", "special_tokens": "in the text"
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(spoken / "policy")
    model = AutoModelForSequenceClassification.from_pretrained(spoken / "rm", dtype=torch.float32).eval()
    thought = spaced = 0
    groups = read_groups(spoken / "out")
    assert [len(group) for group in groups] == [12] * 4
    for group in groups:
        scores = zip(*(group.rewards_by_name[name] for name in ("rm", "text", "thinks")), strict=True)
        drawn = zip(group.completions, group.completion_token_ids, scores, strict=True)
        for completion, ids, (of_model, of_text, thinks) in drawn:
            read = whole(tokenizer, group.prompt_token_ids + ids)
            assert group.prompt + completion == read
            assert of_text == sum(map(ord, read))
            with torch.no_grad():
                logit = model(torch.tensor([tokenizer(read)["input_ids"]])).logits.item()
            assert of_model == pytest.approx(logit, abs=1e-4)
            assert thinks == bool({THINK, THOUGHT} & set(ids))
            thought, spaced = thought + thinks, spaced + completion.startswith(" ")
    assert thought > 10
    assert spaced > 0

    exported = spoken / "sft.jsonl"
    assert (
        nonpareil(
            "export",
            "--groups",
            spoken / "out",
            "--format",
            "sft",
            "--truncated",
            "allow",
            "--output",
            exported,
        )[0]
        == 0
    )
    rows = [json.loads(line) for line in exported.read_text().splitlines()]
    for row, group in zip(rows, groups, strict=True):
        assert row["completion"] in group.completions


def test_texts_that_an_earlier_version_decoded_are_told_where_they_are_read(nonpareil, spoken):
    named = {"reward_funcs": f"{spoken}/rewards.py:text"}
    export = (
        "export",
        "--groups",
        spoken / "out",
        "--format",
        "sft",
        "--truncated",
        "allow",
        "--output",
        spoken / "sft.jsonl",
    )
    status, _, err = nonpareil("sample", **named)
    assert (status, "an earlier version" in err) == (0, False)
    manifest = read_manifest(spoken / "out")
    del manifest["draw"]["engine"]["special_tokens"]
    write_manifest(spoken / "out", manifest)
    shard = spoken / "out" / "data" / "shard-00000.parquet"
    notes = replace(notes_of(read_table(shard).schema), draw=manifest["draw"])
    write_shard(shard, read_shard(shard), notes=notes)
    for command in (("sample",), export):
        settings = {"reward_funcs": f"{spoken}/rewards.py:thinks"} if command == ("sample",) else {}
        status, _, err = nonpareil(*command, **settings)
        assert (status, err.count("an earlier version decoded these completions")) == (0, 1), err


def test_rewards_are_spared_special_tokens_on_request_and_the_change_is_noticed(nonpareil, spoken):
    named = {"reward_funcs": f"{spoken}/rewards.py:thinks {spoken}/rewards.py:text", "num_generations": 12}
    assert nonpareil("sample", **named)[0] == 0
    seen = read_groups(spoken / "out")
    status, out, err = nonpareil("sample", "--json", **named, reward_skip_special_tokens="true")
    assert status == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["shards_drawn"], figures["shards_scored"]) == (0, 1), "scored anew, nothing drawn"
    spared = read_groups(spoken / "out")
    assert [group.completions for group in spared] == [group.completions for group in seen]
    assert sum(sum(group.rewards_by_name["thinks"]) for group in seen) > 10
    assert sum(sum(group.rewards_by_name["thinks"]) for group in spared) == 0
    for group in spared:
        texts = [
            t.replace("<think>", "").replace("</think>", "").replace("<|im_end|>", "")
            for t in group.completions
        ]
        assert group.rewards_by_name["text"] == [sum(map(ord, group.prompt + text)) for text in texts]
    manifest = json.loads((spoken / "out" / "manifest.json").read_text())
    assert all(one["skip_special_tokens"] for one in manifest["rewards"]["rewards"])
    # A training on these groups, and its resume, must have the same.
    trained = {"method": "bonbon", "n": 12, "groups": spoken / "out", "dataset_name": None, "max_steps": 1}
    trained |= {
        "reward_funcs": named["reward_funcs"],
        "evaluate_after": "false",
        "per_device_train_batch_size": 4,
    }
    status, _, err = nonpareil("distill", **trained, output_dir=spoken / "t")
    assert (status, "scored with thinks.skip_special_tokens=True, and this run has None" in err) == (
        2,
        True,
    ), err

    trained |= {"method": "jbond", "n": None, "groups": None, "dataset_name": spoken / "train.jsonl"}
    trained |= {"max_steps": 2, "save_steps": 1, "output_dir": spoken / "r", "num_generations": None}
    assert nonpareil("distill", **trained)[0] == 0
    again = {
        **trained,
        "max_steps": 3,
        "resume_from_checkpoint": "true",
        "reward_skip_special_tokens": "true",
    }
    status, _, err = nonpareil("distill", **again)
    assert (status, "skip_special_tokens" in err) == (2, True), err


def test_texts_of_an_earlier_version_are_not_mixed_with_those_of_this_one(nonpareil, spoken, monkeypatch):
    (spoken / "test.jsonl").write_text((spoken / "train.jsonl").read_text())
    with monkeypatch.context() as earlier:
        for module in ("decoding", "transformers"):
            earlier.setattr(f"nonpareil.engines.{module}.TEXT", {})
        named = {"reward_funcs": f"{spoken}/rewards.py:thinks", "shard_size": 2}
        assert nonpareil("sample", **named)[0] == 0
        measured = {"reward_funcs": named["reward_funcs"], "reference_dir": spoken / "reference"}
        assert nonpareil("evaluate", **measured, output_dir=spoken / "e")[0] == 0
    said = "engine.special_tokens: None there, 'in the text' now"
    status, _, err = nonpareil("evaluate", **measured, output_dir=spoken / "e2")
    assert (status, said in err) == (2, True), err
    assert nonpareil("sample", reward_funcs=f"{spoken}/rewards.py:text")[0] == 0, "scored anew"
    (spoken / "out" / "data" / "shard-00001.parquet").unlink()
    status, _, err = nonpareil("sample", **named)
    assert (status, said in err) == (2, True), err


def test_a_server_without_a_tokenizer_here_cannot_be_asked_which_tokens_are_special(nonpareil, spoken):
    served = {"engine": "openai", "base_url": "http://127.0.0.1:9/v1", "model_name_or_path": "m"}
    status, _, err = nonpareil("sample", **served, reward_skip_special_tokens="true")
    assert (status, "reward_skip_special_tokens=true: which tokens" in err) == (2, True), err


def test_a_reward_that_is_constant_on_chats_is_told_by_every_command(nonpareil, spoken):
    """`-len(completion)` of a list with one message."""
    (spoken / "rewards.py").write_text(
        REWARDS + "def brief(completions, **_):\n    return [-len(c) / 1000 for c in completions]\n"
        "def short(completions, **_):\n    return [-len(c[-1]['content']) / 1000 for c in completions]\n"
    )
    for name in ("train", "test"):
        rows = [{"prompt": [{"role": "user", "content": f"The film was {i}"}]} for i in range(12)]
        (spoken / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "reward 'brief' is equal for all completions of a prompt, at each of the {} prompts scored so far"
    both = {"reward_funcs": f"{spoken}/rewards.py:brief {spoken}/rewards.py:short"}
    status, out, err = nonpareil("sample", "--json", **both)
    assert status == 0, err
    assert err.count(said.format(12)) == 1
    assert "'short'" not in err
    assert json.loads(out.splitlines()[-1])["constant_rewards"] == ["brief"]
    status, _, err = nonpareil("sample", reward_funcs=f"{spoken}/rewards.py:short")
    assert (status, "is equal for all" in err) == (0, False), "no longer asked for"

    trained = {**both, "evaluate_after": "false", "output_dir": spoken / "t", "max_steps": 4}
    status, _, err = nonpareil("distill", **trained)
    assert status == 0, err
    assert err.count(said.format(4)) == 1, "4 prompts per step: the first says so, and no other"
    status, _, err = nonpareil("evaluate", **both, output_dir=spoken / "e")
    assert status == 0, err
    assert err.count(said.format(12)) == 1
