"""A small OpenAI-compatible server over a tiny real model, with the habits and faults of real ones."""

import functools
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nonpareil.records import Prompt, SamplingParams
from tests.tiny import make_engine, make_tokenizer

MODEL = "tiny"

_engine = functools.cache(make_engine)  # all servers here draw from one, in turn
_turn = threading.Lock()


class OpenAIServer:
    """Draws choice i of a request with seed + i, as vLLM does.

    Args:
        owner: what it calls itself.
        most: choices it answers, whatever n says.
        refuses_many: it answers 400 to n > 1.
        ids, logprobs: whether it gives them when asked.
        ignores_seed: as a server that is greedy.
        repeats: it gives all choices of a request the same draw.
        spoil: changes an answer before it is sent; told the number of the POST and the request.
        lists_models: the status of its answer to /models.
        refuse: a status instead of an answer to the POST of this number, or None.
    """

    def __init__(
        self,
        *,
        owner: str = "vllm",
        most: int = 1000,
        refuses_many: bool = False,
        ids: bool = True,
        logprobs: bool = True,
        ignores_seed: bool = False,
        repeats: bool = False,
        lists_models: int = 200,
        spoil: Callable[[int, dict, dict], None] = lambda number, request, answer: None,
        refuse: Callable[[int], int | None] = lambda number: None,
    ):
        self.owner, self.most, self.refuses_many = owner, most, refuses_many
        self.ids, self.logprobs, self.ignores_seed = ids, logprobs, ignores_seed
        self.repeats = repeats
        self.lists_models, self.spoil, self.refuse = lists_models, spoil, refuse
        self.engine, self.tokenizer = _engine(), make_tokenizer()
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a client that ends its requests closes the connection
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if server.lists_models != 200:
                    return self.answer(server.lists_models, {"detail": "no list"})
                entry = {"id": MODEL, "owned_by": server.owner, "root": "a/private/place"}
                self.answer(200, {"object": "list", "data": [{"id": "another"}, entry]})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server._lock:
                    number = len(server.posts)
                    server.posts.append((self.path.removeprefix("/v1/"), request))
                    server.keys.add(self.headers.get("authorization"))
                status = server.refuse(number)
                if status is None and request["model"] != MODEL:
                    status = 404
                if status is None and server.refuses_many and request["n"] > 1:
                    status = 400
                if status is not None:
                    return self.answer(status, {"error": {"message": f"refused, {status}"}})
                with _turn:
                    answer = server.draw(self.path.endswith("chat/completions"), request)
                server.spoil(number, request, answer)
                self.answer(200, answer)

            def log_message(self, *_):
                pass

        return Handler

    def draw(self, chat: bool, request: dict[str, Any]) -> dict[str, Any]:
        if chat:
            words = " ".join(f"<{m['role']}> {m['content']}" for m in request["messages"])
            prompt = self.tokenizer(words + " <assistant>")["input_ids"]
        else:
            prompt = request["prompt"]
            prompt = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        sampling = SamplingParams(
            request["max_tokens"],
            request["temperature"],
            request["top_p"],
            request.get("top_k", 0),
            request.get("min_p", 0.0),
        )
        choices, spent = [], 0
        for i in range(min(request["n"], self.most)):
            seed = 0 if self.ignores_seed else request["seed"] + (0 if self.repeats else i)
            (drawn,) = self.engine.draw([Prompt(f"seed {seed}", "", prompt)], 1, sampling)
            ids, values = drawn.completion_token_ids[0], drawn.logprobs[0]
            spent += len(ids)
            choice: dict[str, Any] = {"index": i, "finish_reason": drawn.finish_reasons[0], "logprobs": None}
            if chat:
                choice["message"] = {"role": "assistant", "content": drawn.completions[0]}
            else:
                choice["text"] = drawn.completions[0]
            if request.get("return_token_ids") and self.ids:
                choice["token_ids"] = ids
                choice |= {} if chat else {"prompt_token_ids": prompt}
            asked = request.get("logprobs")
            if self.logprobs and asked is not None and asked is not False:  # 0 asks for the sampled token's
                content = [{"token": "?", "logprob": value} for value in values]
                choice["logprobs"] = {"content": content} if chat else {"token_logprobs": values}
            choices.append(choice)
        answer = {"choices": choices[::-1], "usage": {"completion_tokens": spent}}
        if chat and request.get("return_token_ids") and self.ids:
            answer["prompt_token_ids"] = prompt
        return answer
