"""Prompts of both tasks of the chat recipe, training and held-out, as JSON lines.

    pip install reasoning-gym
    python recipes/chat/prompts.py --output_dir nonpareil-chat/prompts

`sums-train.jsonl` and `sums-test.jsonl`: a mixture of reasoning-gym generators that SmolLM2-135M-Instruct solves
part of the time (docs/chat.md has the rates of all). No question is in both files. `advice-train.jsonl` and
`advice-test.jsonl`: a tip on a topic, with a word to use and a limit of words; no topic is in both. The same
files each time.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOPICS = [
    *("sleeping better", "learning a language", "cooking rice", "saving money", "training a puppy"),
    *("growing tomatoes", "writing a letter", "running a first mile", "making new friends"),
    *("packing a suitcase", "fixing a bicycle tyre", "reading more books", "drinking more water"),
    *("keeping a tidy desk", "giving a speech", "planning a trip", "painting a wall", "baking bread"),
    *("studying for an exam", "calming down", "waking up early", "playing the guitar", "taking good photos"),
    *("walking in the rain", "hosting a dinner", "using less plastic", "caring for a cat", "choosing a gift"),
    *("repairing a shirt", "swimming safely", "remembering names", "meeting a deadline", "eating vegetables"),
    *("planting a tree", "cleaning windows", "staying warm in winter", "finding a hobby", "driving in snow"),
    *("washing wool", "telling a story", "asking for help", "making tea", "listening well"),
    *("camping with children", "riding a horse", "starting a garden", "learning to draw", "sharing a flat"),
    *("carrying heavy bags", "singing in a choir"),
]
HELD_OUT_TOPICS = [
    *("buying used shoes", "learning to swim", "keeping plants alive", "making soup", "writing a poem"),
    *("crossing a busy road", "getting over a cold", "moving house", "playing chess", "walking a dog"),
    *("waiting in line", "saving electricity"),
]
KEYWORDS = [
    *("water", "morning", "friend", "slowly", "paper", "music", "hands", "light", "often", "small", "breath"),
    *("table", "window", "weather", "smile", "pocket", "list", "clock", "quiet", "enough", "simple"),
    *("careful", "ready", "fresh"),
]
LIMITS = (8, 10, 12, 15, 20)
ASKED = (
    'Give me one tip for {topic}. Use the word "{keyword}" and at most {words} words.',
    'What helps with {topic}? Answer in at most {words} words and use the word "{keyword}".',
    'In no more than {words} words, give advice on {topic}. It must contain the word "{keyword}".',
)
SUMS: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        **{"max_terms": 2, "max_digits": 1, "allow_negation": False, "allow_parentheses": False},
        "operators": ("+", "-", "*"),  # its answer to a division by zero is 42
    },
    "chain_sum": {"max_terms": 2, "max_digits": 1},
    "gcd": {"max_value": 15},
    "products": {"max_digits": 1},
}
"""Generator: its settings."""
MOST = 300
"""Questions of a generator; some have fewer."""


def advice(topics: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with prompt, keyword and words, no two alike."""
    draw, rows = random.Random(seed), {}
    while len(rows) < count:
        filled = {
            "topic": draw.choice(topics),
            "keyword": draw.choice(KEYWORDS),
            "words": draw.choice(LIMITS),
        }
        text = draw.choice(ASKED).format(**filled)
        prompt = [{"role": "user", "content": text}]
        rows[text] = {"prompt": prompt, "keyword": filled["keyword"], "words": filled["words"]}
    return list(rows.values())


def sums(train: int, test: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows with prompt, generator, answer and entry of both files, the generators mixed; no question twice."""
    import reasoning_gym

    sys.path.insert(0, str(HERE))
    from rates import ASKED as BRIEFLY

    rows = {}
    for name, options in SUMS.items():
        of_it = {}
        for entry in reasoning_gym.create_dataset(name, seed=7, size=4000, **options):
            prompt = [{"role": "user", "content": entry["question"].strip() + BRIEFLY}]
            row = {"prompt": prompt, "generator": name, "answer": str(entry["answer"])}
            of_it.setdefault(entry["question"], row | {"entry": json.dumps(entry, default=str)})
        rows |= dict(list(of_it.items())[:MOST])
    mixed = list(rows.values())
    random.Random(7).shuffle(mixed)
    return mixed[test : test + train], mixed[:test]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} prompts: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("nonpareil-chat/prompts"))
    parser.add_argument("--train", type=int, default=768)
    parser.add_argument("--test", type=int, default=128)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write(args.output_dir / "advice-train.jsonl", advice(TOPICS, args.train, 0))
    write(args.output_dir / "advice-test.jsonl", advice(HELD_OUT_TOPICS, args.test, 1))
    train, test = sums(args.train, args.test)
    write(args.output_dir / "sums-train.jsonl", train)
    write(args.output_dir / "sums-test.jsonl", test)


if __name__ == "__main__":
    main()
