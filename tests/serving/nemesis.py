"""An OpenAI-compatible server on loopback with the faults of real ones, and answers that tell whose they are.

The choice i of a request is `<prompt> | <seed + i>`: whoever gets another client's answer sees it.
"""

import asyncio
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

MODEL = "tiny"
Fault = Callable[[int, dict[str, Any]], str | None]
ENDLESS = 2**18
"""Bytes of a piece of an endless body."""


class Nemesis:
    """Answers, or fails as `fault` says of the number of a POST and its request.

    Faults: `429` (Retry-After 0), `429 later` (Retry-After 30), `401`, `400`, `503`, `500`, `reset`, `hang`,
    `cut` (half a body, then the end), `cut json` (half a body that claims to be whole), `endless`, `drip`,
    `few` and `many` choices, `twice` (one index for two), `nan`, `no usage`, `not json`.

    Args:
        fault: see above; None where there is none.
        owner: what it calls itself in its list of models.
        most: choices it answers, whatever n says.
        lists: whether it has a list of models.
        delay: seconds that an answer takes.
        ids: whether it gives token ids when asked, and log-probs.
        completions_only: it has no chat.
    """

    def __init__(
        self,
        fault: Fault = lambda number, request: None,
        *,
        owner: str = "nobody",
        most: int = 1000,
        lists: bool = True,
        delay: float = 0.0,
        ids: bool = False,
        completions_only: bool = False,
    ):
        self.fault, self.owner, self.most, self.lists = fault, owner, most, lists
        self.delay, self.ids, self.completions_only = delay, ids, completions_only
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.open = self.gone = 0
        """Requests under way, and those whose client went away before its answer."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def __enter__(self) -> "Nemesis":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            entry = {"id": MODEL, "owned_by": self.owner, "max_model_len": 4096}
            return await _answer(writer, 200 if self.lists else 404, {"data": [entry]})
        request = json.loads(body)
        number = len(self.posts)
        self.posts.append((path.removeprefix("/v1/"), request))
        self.headers.append(headers)
        if self.completions_only and "chat" in path:
            return await _answer(writer, 404, {"error": {"message": "no chat here"}})
        if request["model"] != MODEL:
            return await _answer(writer, 404, {"error": {"message": f"no model {request['model']!r}"}})
        fault = self.fault(number, request)
        self.faults[fault or "none"] += 1
        self.open += 1
        waits = asyncio.ensure_future(self._fail(fault, request, "chat" in path, writer))
        gone = asyncio.ensure_future(reader.read(1))  # b"" as soon as the client has gone
        try:
            await asyncio.wait([waits, gone], return_when=asyncio.FIRST_COMPLETED)
            if not waits.done():
                self.gone += 1
                return False
            return waits.result() and not gone.done()
        finally:
            self.open -= 1
            waits.cancel()
            gone.cancel()
            await asyncio.gather(waits, gone, return_exceptions=True)

    async def _fail(self, fault: str | None, request: dict, chat: bool, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self.delay)
        if fault is None:
            return await _answer(writer, 200, self.draw(request, chat))
        if fault.split()[0].isdigit():
            after = {"Retry-After": "30" if fault.endswith("later") else "0"} if fault[:3] == "429" else {}
            words = {"error": {"message": f"refused, {fault}", "param": "temperature"}}
            return await _answer(writer, int(fault[:3]), words, **after)
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        answer = self.draw(request, chat)
        spoil = getattr(self, f"_spoil_{fault.replace(' ', '_')}", None)
        if spoil is not None:
            spoil(answer)
            return await _answer(writer, 200, answer)
        content = json.dumps(answer).encode()
        if fault == "not json":
            content = b"<html>busy</html>"
        if fault == "cut json":
            content = content[: len(content) // 2]
        if fault in ("not json", "cut json"):
            return await _send(writer, 200, content)
        if fault == "cut":
            writer.write(_head(200, len(content)) + content[: len(content) // 2])
            await writer.drain()
            return False
        assert fault in ("endless", "drip"), fault
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
        while True:
            writer.write(b" " * (ENDLESS if fault == "endless" else 1))
            await writer.drain()
            await asyncio.sleep(0 if fault == "endless" else 0.02)

    def draw(self, request: dict[str, Any], chat: bool) -> dict[str, Any]:
        prompt = request["messages"][-1]["content"] if chat else request["prompt"]
        choices = []
        for i in range(min(request.get("n", 1), self.most)):
            text = f"{prompt} | {request['seed'] + i}"
            choice: dict[str, Any] = {"index": i, "finish_reason": "stop", "logprobs": None}
            if chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            if self.ids and request.get("return_token_ids"):
                choice["token_ids"] = [7, 8, 2]
                choice |= {} if chat else {"prompt_token_ids": [1, 5]}
            wanted = request.get("logprobs")
            if self.ids and wanted is not None and wanted is not False:  # 0 asks for the sampled token's
                rows = [{"token": "?", "logprob": -0.5} for _ in range(3)]
                choice["logprobs"] = {"content": rows} if chat else {"token_logprobs": [-0.5] * 3}
            choices.append(choice)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 3 * len(choices)}
        answer = {"model": request["model"], "choices": choices[::-1], "usage": usage}
        if chat and self.ids and request.get("return_token_ids"):
            answer["prompt_token_ids"] = [1, 5]
        return answer

    def _spoil_few(self, answer: dict) -> None:
        answer["choices"].pop()

    def _spoil_many(self, answer: dict) -> None:
        answer["choices"].append({**answer["choices"][0], "index": len(answer["choices"])})

    def _spoil_twice(self, answer: dict) -> None:
        answer["choices"][0]["index"] = answer["choices"][-1]["index"]

    def _spoil_nan(self, answer: dict) -> None:
        answer["choices"][0]["score"] = float("nan")

    def _spoil_no_usage(self, answer: dict) -> None:
        del answer["usage"]


async def _answer(writer: asyncio.StreamWriter, status: int, content: Any, **headers: str) -> bool:
    return await _send(writer, status, json.dumps(content).encode(), **headers)


async def _send(writer: asyncio.StreamWriter, status: int, content: bytes, **headers: str) -> bool:
    writer.write(_head(status, len(content), **headers) + content)
    await writer.drain()
    return True


def _head(status: int, length: int, **headers: str) -> bytes:
    given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{given}\r\n".encode()


def ask_all(url: str, bodies: list[dict[str, Any]], seconds: float = 60.0) -> list[httpx.Response]:
    """All at once, each from a client of its own; `stream` is not for this."""

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        path = "chat/completions" if "messages" in body else "completions"
        return await client.post(f"{url}/{path}", json=body)

    async def together() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=seconds, limits=limits) as client:
            return list(await asyncio.gather(*(one(client, body) for body in bodies)))

    return asyncio.run(together())
