"""How often a chat model solves reasoning-gym's generators: success rate and pass@4 of each, for choosing a task.

    pip install reasoning-gym
    python recipes/chat/rates.py --model models/smollm2 --output_dir nonpareil-chat/rates

Every generator whose verifier does not run the answer as Python (verifier.py) is tried in its easiest settings
(EASY, else its own defaults), on 30 prompts of at most 200 tokens, 4 answers to each. A task that the model
solves a fifth to seven tenths of the time is one to learn from: where it always or never does, no reward tells
one answer from another. Groups are drawn by `nonpareil sample`, so a run that was stopped goes on; the table is
written to rates.json and printed.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SKIPPED = {
    "composite": "made of others",
    "futoshiki": "slow to make",
    "codeio": "makes its questions by running Python",
    "knight_swap": "slow to make",
}
EASY: dict[str, dict[str, Any]] = {
    "base_conversion": {"min_value": 1, "max_value": 20, "max_base": 10},
    "basic_arithmetic": {
        "max_terms": 2,
        "max_digits": 1,
        "allow_negation": False,
        "allow_parentheses": False,
    },
    "binary_alternation": {"min_n": 4, "max_n": 6},
    "bitwise_arithmetic": {"difficulty": 1},
    "caesar_cipher": {"min_words": 3, "max_words": 4, "max_rotation": 1},
    "chain_sum": {"max_terms": 2, "max_digits": 2},
    "circuit_logic": {"min_terms": 1, "max_terms": 2, "max_inputs": 2},
    "coin_flip": {"min_trials": 1, "max_trials": 3},
    "color_cube_rotation": {"max_rotations": 1},
    "complex_arithmetic": {
        "min_real": 0,
        "max_real": 5,
        "min_imag": 0,
        "max_imag": 5,
        "operations_weights": [0.5, 0.5, 0, 0],
    },
    "count_bits": {"max_n": 8},
    "count_primes": {"max_n": 10},
    "course_schedule": {
        "min_num_courses": 3,
        "max_num_courses": 4,
        "min_cycle_length": 3,
        "max_cycle_length": 3,
    },
    "decimal_arithmetic": {"max_num_decimal_places": 1, "min_num_decimal_places": 1, "max_terms": 2},
    "decimal_chain_sum": {"max_terms": 2, "max_digits": 1, "max_decimal_places": 1},
    "dice": {"num_dice": 1, "max_dice_size": 6},
    "family_relationships": {"max_family_size": 4},
    "fraction_simplification": {"max_value": 10, "max_factor": 5, "styles": ("plain",)},
    "gcd": {"max_value": 20},
    "isomorphic_strings": {"max_string_length": 3},
    "largest_island": {"min_rows": 5, "max_rows": 5, "min_cols": 5, "max_cols": 5},
    "lcm": {"max_value": 10},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "max_instances": 4},
    "letter_counting": {"min_words": 3, "max_words": 4},
    "letter_jumble": {"max_word_len": 6, "min_words": 1, "max_words": 3, "max_corruption_level": 0.3},
    "maze": {"min_dist": 3, "max_dist": 4, "max_grid_size": 5},
    "needle_haystack": {"min_num_statements": 2, "max_num_statements": 4},
    "number_filtering": {"max_numbers": 4, "max_decimals": 0},
    "number_format": {"min_num_candidates": 2, "max_num_candidates": 2, "max_n": 10000},
    "number_sequence": {"min_value": 0, "max_value": 10, "max_complexity": 1},
    "number_sorting": {"max_numbers": 4, "max_decimals": 0},
    "palindrome_generation": {"max_length": 4},
    "pool_matrix": {"max_rows": 3, "max_cols": 3, "max_pool_size": 2},
    "power_function": {"min_base": -10, "max_base": 10, "max_exponent": 2},
    "prime_factorization": {"max_value": 30},
    "products": {"max_digits": 1},
    "ransom_note": {"max_note_length": 3, "max_magazine_length": 6},
    "rotate_matrix": {"max_n": 3, "max_rotations": 1},
    "sentence_reordering": {"min_words_in_sentence": 3, "max_words_in_sentence": 5},
    "shortest_path": {"min_rows": 5, "max_rows": 5, "min_cols": 5, "max_cols": 5},
    "simple_equations": {"max_terms": 2, "max_value": 10},
    "simple_geometry": {"max_sides": 4},
    "spell_backward": {"max_word_len": 4},
    "time_intervals": {"task_types": ("date",), "max_date_difference_days": 10},
    "tower_of_hanoi": {"max_disks": 3, "max_pegs": 3},
    "word_sequence_reversal": {"max_words": 4},
    "word_sorting": {"max_words": 4},
    "zebra_puzzles": {"num_people": 2, "num_characteristics": 2},
}
ASKED = "\nAnswer briefly, in a few words."


def questions(names: list[str], count: int, seed: int, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """Rows with prompt, generator, entry; of a generator none if half of its prompts have over `limit` tokens."""
    import reasoning_gym

    rows = []
    for name in names:
        made = reasoning_gym.create_dataset(name, seed=seed, size=4 * count, **EASY.get(name, {}))
        entries = {entry["question"]: entry for entry in made}  # no question twice
        kept = []
        for question, entry in entries.items():
            prompt = [{"role": "user", "content": question.strip() + ASKED}]
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            if len(ids) <= limit:
                kept.append({"prompt": prompt, "generator": name, "entry": json.dumps(entry, default=str)})
        if len(kept) >= min(count, len(entries)) / 2:
            rows += kept[:count]
        else:
            print(f"{name}: its prompts are longer than {limit} tokens", file=sys.stderr)
    return rows


def at_least_one(successes: int, drawn: int, n: int) -> float:
    """pass@n, unbiased, of a prompt with `successes` of `drawn` answers right."""
    return 1 - math.comb(drawn - successes, n) / math.comb(drawn, n)


def table(groups: Path) -> list[dict[str, Any]]:
    """A row for each generator: success rate, pass@4, prompts whose answers differ in reward, tokens, nulls."""
    from nonpareil.rollouts import read_groups

    found = defaultdict(list)
    for group in read_groups(groups):
        found[group.columns["generator"]].append(group)
    rows = []
    for name, all_groups in found.items():
        rewards = [[r for r in group.rewards if r is not None and r == r] for group in all_groups]
        sizes = [len(group.rewards) for group in all_groups]
        n = min(sizes)
        told = [r for r in rewards if len(r) >= n]
        lengths = [len(ids) for group in all_groups for ids in group.completion_token_ids]
        passed = [at_least_one(round(sum(r)), len(r), n) for r in told]
        rows.append(
            {
                "generator": name,
                "prompts": len(all_groups),
                "success": sum(map(sum, rewards)) / max(1, sum(map(len, rewards))),
                f"pass@{n}": sum(passed) / len(passed) if passed else None,
                "mixed": sum(0 < sum(r) < len(r) for r in rewards) / len(rewards),
                "tokens": sum(lengths) / len(lengths),
                "null": sum(sizes) - sum(map(len, rewards)),
            }
        )
    return sorted(rows, key=lambda row: -row["success"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--output_dir", type=Path, default=Path("nonpareil-chat/rates"))
    parser.add_argument("--prompts", type=int, default=30, help="of each generator")
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--max_prompt_tokens", type=int, default=200)
    parser.add_argument("--max_completion_length", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--generators", nargs="*", help="default: all that are safe")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from reasoning_gym.factory import DATASETS
    from transformers import AutoTokenizer
    from verifier import UNSAFE

    names = args.generators or [name for name in sorted(DATASETS) if name not in UNSAFE | SKIPPED.keys()]
    prompts = args.output_dir / "prompts.jsonl"
    if not prompts.is_file():
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        rows = questions(names, args.prompts, 0, tokenizer, args.max_prompt_tokens)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = args.output_dir / "groups"
    command = [sys.executable, "-m", "nonpareil", "sample", "--model_name_or_path", args.model]
    command += ["--dataset_name", str(prompts), "--reward_funcs", f"{HERE / 'verifier.py'}:solved"]
    command += ["--num_generations", str(args.answers), "--output_dir", str(groups)]
    command += ["--max_completion_length", str(args.max_completion_length), "--shard_size", "120"]
    command += ["--temperature", str(args.temperature)]
    subprocess.run(command, check=True)
    rows = table(groups)
    (args.output_dir / "rates.json").write_text(json.dumps(rows, indent=1) + "\n")
    keys = list(rows[0])
    print("| " + " | ".join(keys) + " |\n| :-- " + "| --: " * (len(keys) - 1) + "|")
    for row in rows:
        values = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
