"""Rows with tools all the way: drawn, trained on as stored groups, evaluated; the policy reads the same words."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from nonpareil.rollouts import read_groups

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}"
)
REWARD = """
def named(completions, tools, **columns):
    texts = [one[-1]["content"] for one in completions]
    return [float(t.count(u[0]["function"]["name"])) + 0.01 * len(t) for t, u in zip(texts, tools)]
"""
TOOLS = ("good", "bad", "dull")


def schema(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def test_tools_are_read_from_the_first_draw_to_the_report(nonpareil: Any, files: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files / "policy")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(files / "policy")
    (files / "rewards.py").write_text(REWARD)
    for name in ("train", "test"):
        chat = [{"role": "user", "content": f"the film {'was' if name == 'test' else ''}"}]
        rows = [{"prompt": chat, "tools": [schema(tool)], "wanted": tool} for tool in TOOLS]
        (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = {"reward_funcs": f"{files}/rewards.py:named"}

    def check_read(folder: Path) -> None:
        groups = read_groups(folder)
        assert [group.columns["wanted"] for group in groups] == [*TOOLS]
        for group, tool in zip(groups, TOOLS, strict=True):
            assert group.prompt_token_ids[0] == tokenizer.convert_tokens_to_ids(tool)
            assert group.columns["tools"] == [schema(tool)]
        assert len({tuple(group.prompt_token_ids[1:]) for group in groups}) == 1

    status, _, err = nonpareil("sample", **reward, output_dir=files / "groups")
    assert status == 0, err
    check_read(files / "groups")
    stored = {
        "groups": files / "groups",
        "dataset_name": None,
        "reward_funcs": None,
        "method": "sft_bon",
        "n": 2,
    }
    unread = dict.fromkeys(("eval_dataset_name", "num_generations_eval", "num_reference_samples_eval"))
    status, _, err = nonpareil(
        "distill", **stored, **unread, evaluate_after="false", max_steps=1, per_device_train_batch_size=3,
        model_name_or_path=None, max_completion_length=None, output_dir=files / "trained",
    )  # fmt: skip
    assert status == 0, err
    assert "groups: 3 of 3 carry signal" in err
    status, out, err = nonpareil(
        "evaluate", "--json", **reward, model_name_or_path=files / "trained", num_generations=2,
        num_reference_samples=2, output_dir=files / "report",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["evaluation"]["num_prompts"] == 3
    check_read(files / "report" / "reference")
