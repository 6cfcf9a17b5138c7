"""Folders of groups and of a run as the package writes them, with numbers worked by hand and texts of ill will."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.records import Group
from nonpareil.rollouts.store import DATA_FOLDER, ShardNotes, write_shard

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</title></main><style>*{display:none}</style>",
    "right\u202eto left, \u2066isolated, z\u200bero, \x1b[31mred, \x00NUL, \ufeff, \U000e0041 tag",
    "{{ 7 * 7 }} {% raw %} ${7*7} javascript:alert(1)",
)
"""Lone surrogates are no text that Parquet holds; they reach a page by an address only."""


def group(
    place: int,
    rewards: Sequence[float | None] | None,
    *,
    texts: Sequence[str] | None = None,
    prompt: Any = None,
    others: dict[str, list[float | None]] | None = None,
    lengths: Sequence[int] | None = None,
    cut: int = 0,
    **columns: Any,
) -> Group:
    """A group of as many completions as rewards; the last `cut` of them ended at the limit."""
    size = len(rewards or texts or [])
    sizes = list(lengths or range(2, size + 2))
    return Group(
        prompt_id=f"p-{place}",
        prompt=f"prompt number {place}" if prompt is None else prompt,
        prompt_token_ids=[1, 7, place],
        completions=list(texts or [f"answer {j} of {place}" for j in range(size)]),
        completion_token_ids=[[100 * j + i for i in range(sizes[j])] for j in range(size)],
        finish_reasons=["stop"] * (size - cut) + ["length"] * cut,  # type: ignore[list-item]
        logprobs=[[-0.05 * (i + 1) ** 2 for i in range(sizes[j])] for j in range(size)],
        rewards=None if rewards is None else list(rewards),
        rewards_by_name={} if rewards is None else {"first": list(rewards), **(others or {})},
        columns=columns,
    )


def write(folder: Path, index: int, groups: Sequence[Group], **notes: Any) -> Path:
    """A shard of a folder."""
    path = folder / DATA_FOLDER / f"shard-{index:05d}.parquet"
    return write_shard(path, groups, notes=ShardNotes(**notes))


def two_shards(folder: Path) -> Path:
    """Four groups with two rewards and three dataset columns, in two shards.

    Of the aggregate: gains 1.5, 0 (all equal), 1 (a tie at the top, a null), 3; of the two rewards 0 and 2 order
    everything oppositely, 3 alike.
    """
    write(
        folder,
        0,
        [
            group(
                0,
                [0, 1, 2, 3],
                others={"second": [3, 2, 1, 0]},
                cut=1,
                level=5,
                topic="films",
                extra={"a": 1},
            ),
            group(1, [2, 2, 2, 2], others={"second": [0, 1, 2, 3]}, level=3, topic="books", extra={"b": [2]}),
        ],
        failures={"first": {}, "second": {}},
    )
    write(
        folder,
        1,
        [
            group(
                2,
                [1, 3, None, 1, 3, None],
                others={"second": [2, 1, 1, 2, 1, 0]},
                level=9,
                topic="Films",
                extra=None,
            ),
            group(
                3, [0, 0, 0, 4], others={"second": [1, 1, 1, 2]}, cut=4, level=None, topic=None, extra=None
            ),
        ],
        failures={"first": {"the judge <b>timed out</b>": 2}, "second": {}},
    )
    return folder


def hostile(folder: Path) -> Path:
    """One group whose every text wants to be more than text."""
    conversation = [
        {"role": HOSTILE[0], "content": HOSTILE[1]},
        {"role": "user", "content": "\n".join(HOSTILE)},
    ]
    one = group(0, [1, 5, 2, 4, 3], texts=list(HOSTILE), prompt=conversation, **{HOSTILE[1]: HOSTILE[0]})
    one.prompt_id = HOSTILE[2]
    write(folder, 0, [one], failures={HOSTILE[0]: {HOSTILE[1]: 3}})
    return folder


def training_run(folder: Path, steps: int = 3) -> Path:
    """A run that has logged so many steps."""
    from nonpareil.training.step.completions import write_completions

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        logged = {
            "step": step,
            "reward": 0.5 * step,
            "loss": 1.0 / step,
            "kl": None if step == 2 else 0.1 * step,
        }
        lines.append(json.dumps({**logged, "epoch": step / 10, "note": "text"}))
        rows = [
            {
                "step": step,
                "prompt": "the film was",
                "completion": text,
                "drawn_by": "policy",
                "good": 0.5 * step,
                "advantage": 0.25,
            }
            for text in (f"good at step {step}", HOSTILE[0])
        ]
        write_completions(folder, step, rows)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder
