"""benchmarks/trl_dpo.py: what TRL's DPOTrainer is given, and what the script leaves behind. Needs the extra trl."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from nonpareil.cli.main import main
from tests.tiny import BOS, END, PAD, VOCABULARY, make_model, make_tokenizer, said

pytest.importorskip("trl", reason="the peer of the benchmark, not a dependency")

ROOT = Path(__file__).parents[1]
TEXT = {"prompt": "the film", "chosen": " was good", "rejected": " was very bad"}


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_dpo", ROOT / "benchmarks" / "trl_dpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def spell(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def trainer(
    peer: ModuleType, policy: Path, rows: list[dict[str, Any]], *more: str, added_end: int | None = END
):
    words = ["--model", str(policy), "--output_dir", str(policy / "out"), "--pairs", "x", "--bf16", "false"]
    collator = peer.DrawnIds(pad_token_id=PAD, max_length=64)
    collator.added_end = added_end
    return peer.CountedDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        args=peer.settings(peer.arguments([*words, *more])),
        data_collator=collator,
        train_dataset=peer.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )


def sequences(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_text_is_trained_on_without_the_end_that_trl_adds(peer, policy):
    spelled = [[BOS, *spell(f"the film{TEXT[side]}")] for side in ("chosen", "rejected")]
    assert sequences(next(iter(trainer(peer, policy, [TEXT]).get_train_dataloader()))) == spelled
    left = trainer(peer, policy, [TEXT], added_end=None)
    assert sequences(next(iter(left.get_train_dataloader()))) == [[*ids, END] for ids in spelled], (
        "TRL no longer ends completions: the collator is not needed any more"
    )


def test_drawn_ids_take_the_place_of_trls(peer, policy):
    drawn = {"drawn_prompt_ids": [1, 6], "drawn_chosen_ids": [7, END], "drawn_rejected_ids": [8, 9, 10]}
    made = trainer(peer, policy, [TEXT | drawn])
    batch = next(iter(made.get_train_dataloader()))
    assert sequences(batch) == [[1, 6, 7, END], [1, 6, 8, 9, 10]]
    assert batch["completion_mask"].sum(-1).tolist() == [2, 3]
    assert peer.respelled(made.train_dataset, END) == 1
    same = {"drawn_prompt_ids": [BOS, *spell("the film")]}
    same |= {"drawn_chosen_ids": [*spell("was good"), END], "drawn_rejected_ids": spell("was very bad")}
    assert peer.respelled(trainer(peer, policy, [TEXT | same]).train_dataset, END) == 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_sums_and_ipo_averages(peer, policy, loss_type):
    made = trainer(peer, policy, [TEXT], "--loss_type", loss_type, "--beta", "0.5")
    before = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    batch = next(iter(made.get_train_dataloader()))

    def log_probs(model: torch.nn.Module) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (tokens * batch["completion_mask"][:, 1:]).sum(-1)

    with torch.no_grad():
        chosen, rejected = log_probs(made.model) - log_probs(before)
        loss = made.compute_loss(made.model, batch).item()
    if loss_type == "sigmoid":
        expected = -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected))
    else:
        expected = (chosen / 2 - rejected / 3 - 1).square()  # "was good" has 2 tokens, "was very bad" 3
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert abs(chosen - rejected) > 0.1


def test_a_run_writes_a_model_and_what_it_spent(peer, policy, tmp_path, monkeypatch, capsys):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    row = {"prompt": "the film", "chosen": " was\u0085good", "rejected": " bad"}
    pairs.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 4)
    words = ["--model", policy, "--pairs", pairs, "--output_dir", out, "--batch_size", 2, "--save_steps", 1]
    monkeypatch.setattr(sys, "argv", ["trl_dpo.py", *map(str, words), "--learning_rate", "1e-2"])
    peer.main()
    spent = json.loads((out / "spent.json").read_text())
    assert spent == json.loads(capsys.readouterr().out.splitlines()[-1])
    begin, prompt, chosen, rejected = 1, 2, 2, 1
    tokens = (begin + prompt + chosen) + (begin + prompt + rejected)
    assert (spent["steps"], spent["tokens_trained"]) == (2, 4 * tokens)
    assert (spent["completions_drawn"], spent["tokens_drawn"]) == (0, 0)
    assert spent["seconds"] > 0
    assert spent["peak_memory_bytes"] > 0
    weights = [
        AutoModelForCausalLM.from_pretrained(f).lm_head.weight for f in (policy, out / "checkpoint-1", out)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert AutoTokenizer.from_pretrained(out)("the film")["input_ids"] == [BOS, *spell("the film")]


def test_groups_give_the_pairs_of_the_export(peer, policy, tmp_path, capsys):
    prompts, groups = tmp_path / "prompts.jsonl", tmp_path / "groups"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"the {word}"}) + "\n" for word in ("film", "good", "bad"))
    )
    (tmp_path / "reward.py").write_text(
        "def good(completions, **columns):\n    return [float(c.count('good')) for c in completions]\n"
    )
    draw = {
        "model_name_or_path": policy,
        "dataset_name": prompts,
        "reward_funcs": f"{tmp_path}/reward.py:good",
    }
    draw |= {"num_generations": 8, "max_completion_length": 6, "output_dir": groups}
    assert (
        main(["sample", *[str(word) for name, value in draw.items() for word in (f"--{name}", value)]]) == 0
    )
    exported = tmp_path / "pairs.jsonl"
    export = ["export", "--groups", str(groups), "--output", str(exported), "--truncated", "allow"]
    assert main(export) == 0
    capsys.readouterr()
    rows = peer.pairs_of_groups(groups, None)
    assert [{side: row[side] for side in peer.SIDES} for row in rows] == peer.pairs_of_text(exported)
    for row in rows:
        for side in ("chosen", "rejected"):
            assert said(row[f"drawn_{side}_ids"]) == row[side]


def test_the_recipe_is_read_and_unknown_keys_are_refused(peer, tmp_path, capsys):
    recipe = ROOT / "recipes" / "imdb-dpo.yaml"
    given = yaml.safe_load(recipe.read_text())
    args = peer.arguments(["--config", str(recipe), "--seed", "3"])
    assert set(given) <= set(vars(args))
    assert (args.model, str(args.groups), args.beta) == (given["model"], given["groups"], given["beta"])
    assert (args.learning_rate, args.max_steps, args.seed) == (given["learning_rate"], given["max_steps"], 3)
    with pytest.raises(SystemExit):
        peer.arguments(["--config", str(recipe), "--pairs", "x.jsonl"])
    assert "either --pairs or --groups" in capsys.readouterr().err
    (tmp_path / "typo.yaml").write_text("betta: 1")
    with pytest.raises(SystemExit, match="unknown key 'betta'"):
        peer.arguments(["--config", str(tmp_path / "typo.yaml")])
