"""Write film reviews as one file, and the prompts of vBoN's sentiment task (arXiv:2407.06057, code).

    python recipes/imdb/prepare.py --reviews aclImdb_v1.tar.gz
    python recipes/imdb/prepare.py --tokenizer models/imdb-lm

`--reviews` writes `--data` (columns split, label, text) from the large film review data set of Maas et al. (ACL
2011): the archive that its authors publish (ai.stanford.edu/~amaas/data/sentiment), the folder in it, or a name that
`datasets.load_dataset` downloads, such as stanfordnlp/imdb.

`--tokenizer` writes the prompts, the first 2-8 tokens of reviews: `train.parquet` (5,000) and `tune.parquet` (512,
for choosing settings) come from different train reviews, `test.parquet` (1,024, for results and nothing else) from
test reviews. No text stands in two files or twice in one. Test is drawn first: as many reviews begin alike, the files
drawn later have fewer of the commonest openings.
"""

import argparse
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

HERE = Path(__file__).parent
LENGTHS = range(2, 9)
FILE = re.compile(r"(?:.*/)?(train|test)/(neg|pos|unsup)/(\d+)_\d+\.txt")
LABELS = {"neg": 0, "pos": 1, "unsup": -1}


def published_files(source: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each file of the authors' archive, or of the folder in it."""
    if source.is_dir():
        for path in source.rglob("*.txt"):
            yield path.relative_to(source).as_posix(), path.read_text(encoding="utf-8")
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and FILE.fullmatch(member.name):
                yield member.name, archive.extractfile(member).read().decode("utf-8")


def reviews(source: str) -> pd.DataFrame:
    """Columns split (train, test, unsupervised), label (1, 0, -1) and text, in the authors' order of each."""
    if Path(source).exists():
        rows = []
        for name, text in published_files(Path(source)):
            if found := FILE.fullmatch(name):
                split, kind, number = found.groups()
                rows.append(("unsupervised" if kind == "unsup" else split, LABELS[kind], int(number), text))
        table = pd.DataFrame(sorted(rows), columns=["split", "label", "number", "text"])
    else:
        from datasets import load_dataset

        splits = load_dataset(source)
        table = pd.concat([splits[name].to_pandas().assign(split=name) for name in sorted(splits)])
    if not {"train", "test"} <= set(table["split"]):
        raise SystemExit(f"--reviews {source}: no reviews of train and test, such as train/pos/0_9.txt")
    text = table["text"].str.replace(r"<br ?/?>", "\n", regex=True)
    return table[["split", "label"]].assign(text=text).reset_index(drop=True)


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


def write_prompts(args: argparse.Namespace) -> None:
    """The three files of prompts, the same each time."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reviews", help="archive, folder or name of the data set; writes --data")
    parser.add_argument("--data", type=Path, default=Path("data/imdb.parquet"), help="columns split and text")
    parser.add_argument("--tokenizer", type=Path, help="the policy's folder; writes the prompts")
    parser.add_argument("--output_dir", type=Path, default=HERE / "prompts")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--tune", type=int, default=512)
    parser.add_argument("--test", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.reviews or args.tokenizer):
        parser.error("give --reviews, --tokenizer or both")
    if args.reviews:
        table = reviews(args.reviews)
        args.data.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(args.data, index=False)
        print(f"{len(table)} reviews: {args.data}")
    if args.tokenizer:
        write_prompts(args)


if __name__ == "__main__":
    main()
