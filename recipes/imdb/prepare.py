"""Write the prompts of vBoN's sentiment task: the first 2-8 tokens of film reviews (arXiv:2407.06057, code).

    python recipes/imdb/prepare.py --data data/imdb.parquet --tokenizer models/imdb-lm

`train.parquet` (5,000) and `tune.parquet` (512, for choosing settings) come from different train reviews,
`test.parquet` (1,024, for results and nothing else) from test reviews. No text stands in two files or twice in one.
Test is drawn first: as many reviews begin alike, the files drawn later have fewer of the commonest openings.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

LENGTHS = range(2, 9)


def prefix(review: str, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> str | None:
    """The review's first 2-8 tokens as text that encodes to them again; None where no length gives that.

    Lengths are tried in random order. One fails where the cut falls inside a character.
    """
    ids = tokenizer(review[:400], add_special_tokens=False)["input_ids"]
    for length in rng.permutation(LENGTHS):
        text = tokenizer.decode(ids[:length])
        if len(ids) > length and tokenizer(text, add_special_tokens=False)["input_ids"] == ids[:length]:
            return text
    return None


def draw(prompts: Iterator[str | None], count: int, seen: set[str]) -> list[str]:
    """The next `count` prompts that are not in `seen`, which they join."""
    drawn: list[str] = []
    for prompt in prompts:
        if prompt is not None and prompt not in seen:
            seen.add(prompt)
            drawn.append(prompt)
            if len(drawn) == count:
                return drawn
    raise SystemExit(f"only {len(drawn)} of {count} prompts: --data has too few reviews; ask for fewer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet with columns split and text")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the policy's folder")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "prompts")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--tune", type=int, default=512)
    parser.add_argument("--test", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    table = pd.read_parquet(args.data, columns=["split", "text"])
    seen: set[str] = set()

    def stream(split: str, seed: int) -> Iterator[str | None]:
        rng = np.random.default_rng([args.seed, seed])
        texts = table.loc[table["split"] == split, "text"].to_numpy()
        return (prefix(texts[i], tokenizer, rng) for i in rng.permutation(len(texts)))

    test, train = stream("test", 0), stream("train", 1)
    files = {"test": draw(test, args.test, seen)}
    # One pass over the train reviews: no review gives a prompt to both.
    files["tune"] = draw(train, args.tune, seen)
    files["train"] = draw(train, args.train, seen)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, prompts in files.items():
        pd.DataFrame({"prompt": prompts}).to_parquet(args.output_dir / f"{name}.parquet", index=False)
        print(f"{len(prompts)} prompts: {args.output_dir / name}.parquet")


if __name__ == "__main__":
    main()
