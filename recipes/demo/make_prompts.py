"""Write the demo's prompts: the first 2-8 tokens of film reviews.

    python recipes/demo/make_prompts.py --data imdb.parquet --lm demo-lm --output_dir demo-prompts

Split `train` comes from the train reviews, `test` from test reviews, which neither model has seen.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from data import encode, reviews
from transformers import AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--train", type=int, default=12800)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.lm)
    rng = np.random.default_rng(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", args.train), ("test", args.test)):
        texts, _ = reviews(args.data, split)
        prompts: dict[str, None] = {}
        for ids in encode(tokenizer, [texts[i] for i in rng.permutation(len(texts))]):
            prefix = ids[1 : 1 + int(rng.integers(2, 9))]
            prompt = tokenizer.decode(prefix)
            # A cut inside a character would not encode to the same tokens again.
            if tokenizer(prompt)["input_ids"][1:] == prefix:
                prompts[prompt] = None
            if len(prompts) == count:
                break
        pd.DataFrame({"prompt": list(prompts)}).to_parquet(args.output_dir / f"{split}.parquet", index=False)


if __name__ == "__main__":
    main()
