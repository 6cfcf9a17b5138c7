"""A folder of made-up groups, as large as one likes, in seconds: what `nonpareil sample` would have left there.

    python benchmarks/made_up_groups.py FOLDER --groups 10000 [--completions 64] [--tokens 64] [--rewards distinct]

Token ids, texts, log-probs and rewards are random numbers made shard by shard as Arrow columns; no model draws, no
list is made of a completion. All else is the package's own: `draw_and_score` divides the prompts, writes each
shard with its notes and checksum, and the manifest before and after: every reader takes the folder for a run's.
A second call with the same arguments goes on where the first was stopped.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from nonpareil.engines.decoding import TEXT
from nonpareil.records import Prompt, SamplingParams, prompt_id_of
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rewards.functions.function_reward import FunctionReward
from nonpareil.rollouts import RolloutResult, draw_and_score
from nonpareil.rollouts.checksum import sealed_parquet
from nonpareil.rollouts.cluster import FinishedShard, ShardTask, ShardWorkers
from nonpareil.rollouts.scoring import reward_settings
from nonpareil.rollouts.store import REWARD_PREFIX, REWARD_TYPE, with_notes

VOCABULARY = 50_000
LETTERS_PER_TOKEN = 4
ENGINE = {"engine": "made up", **TEXT}
MODEL = {"path": "made-up", "fingerprint": "made-up"}
REWARDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "distinct": lambda random, count: random.standard_normal(count),
    "scores": lambda random, count: random.integers(1, 11, count).astype(float),
    "zero-one": lambda random, count: (random.random(count) < 0.3).astype(float),
}
"""How rewards tie: never, as a rubric's scores of 1 to 10, or as successes."""


def made_up(completions: list[str], **columns: object) -> list[float]:
    """Stands for the reward in the manifest; the rewards are made with the groups."""
    raise AssertionError("the rewards of made-up groups are made with them")


def made_up_prompts(count: int) -> list[Prompt]:
    """The prompts of a folder of so many groups."""
    texts = [f"Prompt {position}, made up." for position in range(count)]
    return [
        Prompt(prompt_id_of(text, position), text, [1, 2 + position % (VOCABULARY - 2), 3, 4])
        for position, text in enumerate(texts)
    ]


def fill_folder(
    folder: str | Path,
    groups: int,
    completions: int = 64,
    tokens: int = 64,
    *,
    rewards: str = "distinct",
    failed: float = 0.0,
    shard_size: int = 64,
    seed: int = 0,
) -> RolloutResult:
    """Fill a folder with scored groups.

    Args:
        folder: new, empty, or of an earlier call with the same arguments.
        groups: how many prompts.
        completions: per prompt.
        tokens: of nine completions in ten; the others end earlier.
        rewards: a key of `REWARDS`.
        failed: the share of rewards that are null.
        shard_size: prompts per file.
        seed: of all that is random.
    """
    scorer = CombinedReward([FunctionReward(made_up)])
    settings = reward_settings(scorer)

    def finished(_: object, tasks: Iterable[ShardTask]) -> Iterator[FinishedShard]:
        for task in tasks:
            random = np.random.default_rng((seed, task.index))
            scores = REWARDS[rewards](random, len(task.prompts) * completions)
            nulls = random.random(len(scores)) < failed
            table = _table(task, completions, tokens, pa.array(scores, mask=nulls), random)
            task.notes.rewards = settings
            task.notes.failures = {"made_up": {"made up": int(nulls.sum())} if nulls.any() else {}}
            task.notes.aggregate = {"made_up": 1.0}
            content = sealed_parquet(with_notes(table, task.notes))
            yield FinishedShard(task.index, content, len(task.prompts), len(scores) * tokens)

    workers = ShardWorkers(lambda: None, lambda: scorer, ENGINE, finished)
    sampling = SamplingParams(max_completion_length=tokens, seed=seed)
    return draw_and_score(
        made_up_prompts(groups),
        workers,
        scorer,
        sampling,
        completions,
        folder,
        model_info=MODEL,
        shard_size=shard_size,
    )


def _table(
    task: ShardTask, completions: int, tokens: int, scores: pa.Array, random: np.random.Generator
) -> pa.Table:
    """A shard's columns, in the store's order and types."""
    count = len(task.prompts) * completions
    shorter = random.random(count) < 0.1
    lengths = np.where(shorter, random.integers(1, tokens + 1, count), tokens)
    total = int(lengths.sum())
    ids = (random.random(total) ** 3 * VOCABULARY).astype(np.int32)  # small ids are common, as in a tokenizer
    letters = random.integers(ord("a"), ord("z") + 1, total * LETTERS_PER_TOKEN, dtype=np.uint8)
    letters[::LETTERS_PER_TOKEN] = ord(" ")
    starts = _offsets(lengths)
    texts = pa.StringArray.from_buffers(
        count, pa.py_buffer(starts * LETTERS_PER_TOKEN), pa.py_buffer(letters)
    )
    logprobs = -random.exponential(2.0, total).astype(np.float32)
    by_prompt = _offsets(np.full(len(task.prompts), completions))

    def grouped(values: pa.Array, kind: pa.DataType | None = None) -> pa.Array:
        array = pa.ListArray.from_arrays(by_prompt, values)
        return array if kind is None else array.cast(kind)

    reasons = pa.array(np.where(shorter, "stop", "length"), pa.string())
    return pa.table(
        {
            "prompt_id": [prompt.prompt_id for prompt in task.prompts],
            "prompt": [prompt.prompt for prompt in task.prompts],
            "prompt_token_ids": pa.array([p.token_ids for p in task.prompts], pa.list_(pa.int32())),
            "completions": grouped(texts),
            "completion_token_ids": grouped(pa.ListArray.from_arrays(starts, ids)),
            "finish_reasons": grouped(reasons),
            "logprobs": grouped(pa.ListArray.from_arrays(starts, logprobs)),
            REWARD_PREFIX + "made_up": grouped(scores, REWARD_TYPE),
            "rewards": grouped(scores, REWARD_TYPE),
        }
    )


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--completions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rewards", choices=REWARDS, default="distinct")
    parser.add_argument("--failed", type=float, default=0.0)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    asked = vars(parser.parse_args())
    began = time.perf_counter()
    result = fill_folder(**asked)
    size = sum(path.stat().st_size for path in Path(result.output_dir).rglob("*.parquet"))
    seconds = time.perf_counter() - began
    print(f"{asked['groups']} groups, {size / 1e9:.2f} GB, {seconds:.1f} s: {result.output_dir}")
