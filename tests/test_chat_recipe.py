"""recipes/chat: what its verifier and its checkers count as right, and its prompts."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from nonpareil.models.loading import load_policy
from tests.tiny import make_model, make_tokenizer

ROOT = Path(__file__).parents[1]
CHAT = ROOT / "recipes" / "chat"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"chat_{name}", CHAT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "like", "answer"),
    [
        ("4 + 3 = 7.", "7", "7"),
        ("The answer is -1,250.50", "12", "-1250.50"),
        ("Five.", "5", ""),
        ("No. 2068 is no leap year", "Yes", "No"),
        ("It is true, not false", "False", "True"),
        ("Let us see\n**Answer: wife.**\n", "mother", "wife"),
        ("12:30", "11:15", "12:30"),
        ("", "wife", ""),
    ],
)
def test_the_stated_answer_is_taken_out_of_a_completion(text: str, like: str, answer: str) -> None:
    assert script("verifier").stated_answer(text, like) == answer


def test_a_sum_is_right_or_wrong_and_nothing_between() -> None:
    pytest.importorskip("reasoning_gym", reason="the recipe's generators")
    entry = json.dumps({"question": "Calculate 4 + 3.", "answer": "7", "metadata": {}})
    texts = ["7", "4 + 3 = 7", "It is 17", "seven", "", "7 or 8"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {"generator": ["chain_sum"] * 6, "entry": [entry] * 6}
    for completions in (texts, conversations):
        assert script("verifier").solved(completions, **columns) == [1, 1, 0, 0, 0, 0]


def test_no_answer_is_run_as_python() -> None:
    pytest.importorskip("reasoning_gym", reason="the recipe's generators")
    verifier = script("verifier")
    assert len(verifier.UNSAFE) == 9
    with pytest.raises(ValueError, match="would run a model's answer"):
        verifier.solved(["1"], generator=["countdown"], entry=[json.dumps({"answer": "1"})])


def test_checkers_of_advice() -> None:
    rubric = script("rubric")
    good = "Drink water every morning before you eat a thing."
    assert rubric.length([good, "Drink water.", good + " " + good], words=[10, 10, 9]) == [1, 2 / 8, 9 / 18]
    assert rubric.keyword([good, "Waters", "underwater"], keyword=["water"] * 3) == [1, 1, 0]
    assert rubric.whole([good, "no capital.", "Sorry, and no end", ""]) == [1, 0.5, 0, 0]
    assert rubric.plain([good, "Enormously", "1. Drink it", ""]) == [8 / 9, 0, 0, 0]
    columns = {"words": [10], "keyword": ["water"]}
    assert rubric.all_four([good], **columns) == [pytest.approx(2 + 1.5 + 1 + 1.5 * 8 / 9)]


def test_the_peer_is_given_the_same_reward_as_the_methods() -> None:
    """TRL's takes the sum of what the comparison's file weighs."""
    spec = yaml.safe_load((ROOT / "recipes" / "chat-advice.yaml").read_text())
    rubric = script("rubric")
    names = [path.rsplit(":", 1)[1] for path in spec["reward_funcs"]]
    completions = ["Drink water.", "never mind", "1. A list of water and more things that go on"]
    columns = {"words": [8, 10, 12], "keyword": ["water", "light", "water"]}
    parts = [getattr(rubric, name)(completions, **columns) for name in names]
    weighted = [
        sum(w * v for w, v in zip(spec["reward_weights"], each, strict=True))
        for each in zip(*parts, strict=True)
    ]
    assert rubric.all_four(completions, **columns) == pytest.approx(weighted)


def test_prompts_are_the_same_each_time_and_held_out_ones_apart(tmp_path, monkeypatch) -> None:
    prompts = script("prompts")
    assert not set(prompts.TOPICS) & set(prompts.HELD_OUT_TOPICS)
    rows = prompts.advice(prompts.TOPICS, 40, 0)
    assert rows == prompts.advice(prompts.TOPICS, 40, 0) != prompts.advice(prompts.TOPICS, 40, 1)
    for row in rows:
        text = row["prompt"][0]["content"]
        assert f'"{row["keyword"]}"' in text
        assert f"{row['words']} words" in text

    pytest.importorskip("reasoning_gym", reason="the recipe's generators")
    monkeypatch.setattr(sys, "path", [*sys.path])
    train, test = prompts.sums(60, 20)
    asked = [row["prompt"][0]["content"] for row in [*train, *test]]
    assert len(set(asked)) == 80
    assert {row["generator"] for row in train} == set(prompts.SUMS)
    answers = [f"It is {row['answer']}" for row in test]
    columns = {name: [row[name] for row in test] for name in ("generator", "entry")}
    assert script("verifier").solved(answers, **columns) == [1] * 20


def test_trls_grpo_draws_what_the_budget_says_and_leaves_a_policy(tmp_path, monkeypatch) -> None:
    pytest.importorskip("trl", reason="the peer of the comparison, not a dependency")
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": text, "wanted": 2} for text in ("the film was", "a good film", "not bad", "a very")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def short(completion_ids, wanted, **_):\n"
        "    return [-abs(len(i) - w) for i, w in zip(completion_ids, wanted)]\n"
    )
    settings = {
        "model": tmp_path / "model",
        "prompts": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path / "out",
    }
    settings |= {
        "reward": f"{tmp_path / 'reward.py'}:short",
        "completions": 16,
        "batch_size": 8,
        "micro_batch": 4,
    }
    settings |= {"num_generations": 4, "max_completion_length": 6, "learning_rate": 0.05, "seed": 1}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["trl_grpo.py", *words])
    script("trl_grpo").main()

    spent = json.loads((tmp_path / "out" / "spent.json").read_text())
    assert (spent["completions_drawn"], spent["steps"]) == (16, 2)
    assert 16 <= spent["tokens_drawn"] < spent["tokens_trained"], "prompts are trained through, too"
    ids = torch.tensor([[1, 7, 8, 9]])
    trained, base = load_policy(str(tmp_path / "out"), dtype="float32")[0], make_model()
    assert (trained(ids).logits - base(ids).logits).abs().max() > 1e-3
