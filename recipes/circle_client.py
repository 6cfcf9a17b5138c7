"""Asks servers of OpenAI's protocol for completions of prompts; keeps what came back, and how long it took.

    python recipes/circle_client.py --prompts PROMPTS.parquet --requests 480 --output_dir answers \
        --ask best=http://127.0.0.1:8000/v1,8 [--ask other=URL,BEST_OF ...] [--clients 4] [--max_tokens 40]

Each `--ask` is a way of serving: its name, the server's address, and best_of. `answers/NAME.jsonl` gets a line an
answer; a request's random numbers are those of `--seed`, its way and its prompt's place. The ways take turns, a
block of prompts each, so that a busy minute falls on all of them; what CPU seconds a server spent on a block is in
`answers/NAME.cost.jsonl`. Asked again, only what has no line yet is asked.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx
import pandas as pd

SEEDS_OF_A_RUN, SEEDS_OF_A_WAY = 10_000_000, 1_000_000


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The answers of one way; a line that was cut short by a kill is none."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def opened(path: Path) -> TextIO:
    """The file, to be written on behind its last whole line."""
    if path.exists():
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    return path.open("a", encoding="utf-8")


class Refused(Exception):
    """An answer with another status than 200."""


async def ask(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request: what came back, and the seconds until it was whole."""
    begun = time.perf_counter()
    answer = await http.post(f"{url}/completions", json=body)
    seconds = time.perf_counter() - begun
    if answer.status_code != 200:
        raise Refused(f"{url}: {answer.status_code} {answer.text[:300]}")
    found = answer.json()
    (choice,) = found["choices"]
    (chosen,) = found["nonpareil"]["chosen"]
    return {
        **{"prompt": body["prompt"], "text": choice["text"], "seconds": seconds},
        **{"tokens": found["usage"]["completion_tokens"], "reward": found["nonpareil"]["scores"][chosen]},
    }


async def cpu_seconds(http: httpx.AsyncClient, url: str) -> float | None:
    """What a server's process has spent since it began; None where its page does not say."""
    page = (await http.get(f"{url}/../metrics")).text
    found = re.search(r"^process_cpu_seconds_total (\S+)$", page, re.M)
    return float(found[1]) if found else None


async def ask_block(args: argparse.Namespace, index: int, block: dict[int, str]) -> None:
    """All prompts of a block by one way, so many at once."""
    name, _, where = args.ask[index].partition("=")
    url, _, best_of = where.rpartition(",")
    path = args.output_dir / f"{name}.jsonl"
    done = {line["place"] for line in read_lines(path)}
    asked = [place for place in block if place not in done]
    if not asked:
        return
    left, first = iter(asked), args.seed * SEEDS_OF_A_RUN + index * SEEDS_OF_A_WAY

    async def client(http: httpx.AsyncClient, file: TextIO, places: Iterator[int]) -> None:
        for place in places:
            body = {
                **{"prompt": block[place], "best_of": int(best_of), "max_tokens": args.max_tokens},
                **{"temperature": 1.0, "seed": first + place},
            }
            file.write(json.dumps({"place": place, **await ask(http, url, body)}) + "\n")
            file.flush()

    async with httpx.AsyncClient(timeout=600) as http:
        before = await cpu_seconds(http, url)
        with opened(path) as file:
            async with asyncio.TaskGroup() as clients:
                for _ in range(args.clients):
                    clients.create_task(client(http, file, left))
        after = await cpu_seconds(http, url)
    if before is not None and after is not None:
        with opened(path.with_suffix(".cost.jsonl")) as file:
            file.write(json.dumps({"answers": len(asked), "cpu_seconds": after - before}) + "\n")


async def ask_all(args: argparse.Namespace) -> None:
    prompts = dict(enumerate(pd.read_parquet(args.prompts)["prompt"][: args.requests]))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(prompts), args.block):
        block = {place: prompts[place] for place in range(first, min(first + args.block, len(prompts)))}
        for index in range(len(args.ask)):
            await ask_block(args, index, block)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--ask", action="append", required=True, metavar="NAME=URL,BEST_OF")
    parser.add_argument("--requests", type=int, default=None)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--max_tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        asyncio.run(ask_all(args))
    except* (Refused, httpx.HTTPError) as refused:  # by the first; the other clients were stopped
        while isinstance(refused, BaseExceptionGroup):
            refused = refused.exceptions[0]
        sys.exit(f"{type(refused).__name__}: {refused}")


if __name__ == "__main__":
    main()
