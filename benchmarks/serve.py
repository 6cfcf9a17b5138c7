"""What best-of-N costs beyond its draws: `nonpareil serve` against its upstream alone with n = best_of.

    python benchmarks/serve.py --base_url http://127.0.0.1:8001/v1 --model NAME --reward ./my-reward-model
    python benchmarks/serve.py [--best_of 8] [--clients 8] [--requests 64] [--max_tokens 128] [--write RESULTS.json]
    python benchmarks/serve.py --smoke

Clients ask one request after another, once the upstream itself for n answers and once the server for the best of as
many, in rounds that take turns. Tokens are those that `usage` counts, so both draw the same; the reward, choosing,
and (with --groups) keeping the groups are what differs. Goals: .95 of the upstream's token throughput, and less
than 5% more latency at the median.

Without --base_url the upstream is a stand-in in a process of its own that takes --token_ms a token, whatever n is
and however many ask, as a GPU that is not yet full does: what is measured then is the server's own time, on top of
a known one. The reward is by default a function that counts letters. Load generator, server and stand-in share the
machine's cores.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PROMPT = "Write a review of the film that you saw last night, number {}, in a few sentences."
REWARD = """
def letters(completions, **_):
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(sum(map(str.isalpha, text))) for text in texts]
"""
STARTUP = 120.0


def paced(port: int, token_ms: float) -> None:
    """The stand-in upstream."""
    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "paced", "owned_by": "vllm", "max_model_len": 8192}]}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {}

    @app.post("/v1/completions")
    async def completions(request: Request) -> dict[str, Any]:
        body = await request.json()
        n, tokens = body["n"], body["max_tokens"]
        await asyncio.sleep(tokens * token_ms / 1000)
        ids = {"token_ids": list(range(tokens)), "prompt_token_ids": list(range(20))}
        logprobs = {
            "token_logprobs": [-1.5] * tokens,
            "tokens": [" word"] * tokens,
            "text_offset": [0] * tokens,
        }
        choices = [
            {
                **{"index": i, "finish_reason": "length", "text": f" w{i}rd" * tokens},
                **(ids if body.get("return_token_ids") else {}),
                "logprobs": logprobs if body.get("logprobs") is not None else None,
            }
            for i in range(n)
        ]
        return {
            "model": "paced",
            "choices": choices,
            "usage": {"prompt_tokens": 20, "completion_tokens": n * tokens},
        }

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


@contextmanager
def process(command: list[str], health: str) -> Iterator[None]:
    """A server of ours, which has ended when the block has."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + STARTUP
        while True:
            try:
                if httpx.get(health, timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(command)} does not answer at {health}")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def load(url: str, fields: dict[str, Any], args: argparse.Namespace, first: int) -> dict[str, float]:
    """One round: seconds of each request, and tokens per second of all."""
    numbers = iter(range(first, first + args.requests))
    seconds: list[float] = []
    tokens = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        for number in numbers:
            begun = time.perf_counter()
            answer = await http.post(
                f"{url}/completions",
                json={
                    "prompt": PROMPT.format(number),
                    "max_tokens": args.max_tokens,
                    "temperature": 1.0,
                    **fields,
                },
            )
            seconds.append(time.perf_counter() - begun)
            if answer.status_code != 200:
                raise SystemExit(f"{url}: {answer.status_code} {answer.text[:300]}")
            tokens += answer.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        begun = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(args.clients)))
        whole = time.perf_counter() - begun
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"tokens_per_second": tokens / whole, "p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def measure(upstream: str, model: str, served: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds that take turns; of each figure the median over them."""
    rounds: dict[str, list[dict[str, float]]] = {"alone": [], "served": []}
    for number in range(args.rounds + 1):
        first = number * args.requests
        alone = asyncio.run(load(upstream, {"model": model, "n": args.best_of}, args, first))
        ours = asyncio.run(load(served, {"model": model, "best_of": args.best_of}, args, first))
        if number:  # the first opens connections, and warms caches
            rounds["alone"].append(alone)
            rounds["served"].append(ours)
    found: dict[str, Any] = {
        side: {name: statistics.median(one[name] for one in some) for name in some[0]}
        for side, some in rounds.items()
    }
    alone, ours = found["alone"], found["served"]
    found["share_of_throughput"] = ours["tokens_per_second"] / alone["tokens_per_second"]
    found["added_to_median_latency"] = ours["p50"] / alone["p50"] - 1
    return found


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    (folder / "reward.py").write_text(REWARD)
    reward = args.reward or f"{folder / 'reward.py'}:letters"
    named = "--reward_funcs" if ".py:" in reward else "--reward_model_name_or_path"
    port = free_port()
    command = [
        *(sys.executable, "-m", "nonpareil", "serve", "--port", str(port), "--best_of", str(args.best_of)),
        *(named, reward, "--max_running", str(max(64, args.clients))),
    ]
    if args.groups:
        command += ["--groups", str(folder / "groups")]

    def beside(upstream: str, model: str) -> dict[str, Any]:
        whole = [*command, "--base_url", upstream, "--model_name_or_path", model]
        with process(whole, f"http://127.0.0.1:{port}/health"):
            return measure(upstream, model, f"http://127.0.0.1:{port}/v1", args)

    if args.base_url is not None:
        return beside(args.base_url, args.model)
    here = free_port()
    stand_in = [sys.executable, __file__, "--paced", str(here), "--token_ms", str(args.token_ms)]
    with process(stand_in, f"http://127.0.0.1:{here}/health"):
        return beside(f"http://127.0.0.1:{here}/v1", "paced")


def show(found: dict[str, Any]) -> None:
    print(f"{'':10}{'tokens/s':>12}{'p50 s':>10}{'p90 s':>10}{'p99 s':>10}")
    for side in ("alone", "served"):
        one = found[side]
        print(
            f"{side:10}{one['tokens_per_second']:12.0f}{one['p50']:10.3f}{one['p90']:10.3f}{one['p99']:10.3f}"
        )
    share, added = found["share_of_throughput"], found["added_to_median_latency"]
    print(f"{share:.3f} of the upstream's throughput (goal .95); {added:+.1%} at the median (goal below 5%)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base_url")
    parser.add_argument("--model")
    parser.add_argument("--reward", help="a reward model's folder, or file.py:function")
    parser.add_argument("--best_of", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--token_ms", type=float, default=10.0, help="of the stand-in, for a token")
    parser.add_argument("--groups", action="store_true", help="keep the groups, too")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few short requests")
    parser.add_argument("--paced", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.paced is not None:
        paced(args.paced, args.token_ms)
        return
    if (args.base_url is None) != (args.model is None):
        parser.error("give base_url and model together")
    if args.smoke:
        args.requests, args.rounds, args.clients, args.max_tokens = 4, 1, 2, 4
    with tempfile.TemporaryDirectory() as folder:
        found = run(args, Path(folder))
    show(found)
    if args.write is not None:
        asked = {
            k: v for k, v in vars(args).items() if k not in ("write", "paced", "smoke", "base_url", "reward")
        }
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        args.write.write_text(json.dumps({**found, "asked": asked, **machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
