"""A server on loopback that speaks OpenAI's protocol as vLLM does or as a plainer one does, with a bounded prefix cache
that counts hits, and with faults: what it does to single requests is scripted."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IMAGE_TOKENS = 10
Answer = Callable[[list[dict[str, Any]]], str]
# Of one request: an HTTP status with a message and headers, bytes that are sent in place of an answer, a drip, a cut.
Fault = tuple[int, str, Mapping[str, str]] | bytes | str


class ServedServer:
    """Answers ``answer(parts)``, the parts of the last message.

    Args:
        answer: what it says; not asked of the check that clients make.
        dialect: "vllm" tells token ids, log-probabilities and what its cache had; "plain" refuses what it does not know
            and tells text and usage alone.
        room: tokens that its prefix cache holds.
        faults: by the number of a request with pictures or a raw prompt, what goes wrong with it.
        samples: it answers the check by chance.

    Attributes:
        asked: the parts of every such request, in the order in which they came.
        hits: tokens that the cache had of each.
        bodies: of every request.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        dialect: str = "vllm",
        room: int = 10**9,
        faults: Mapping[int, Fault] | None = None,
        samples: bool = False,
        model: str = "tiny",
        key: str = "",
        owner: str | None = None,
    ) -> None:
        self.answer, self.dialect, self.room, self.faults = answer, dialect, room, dict(faults or {})
        self.samples, self.model, self.key = samples, model, key
        self.owner = dialect if owner is None else owner
        self.answers_as = model
        self.shift = 0  # of the token ids that it tells, so that they are another tokenizer's
        self.asked: list[list[dict[str, Any]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.hits: list[int] = []
        self.at_once = self.most_at_once = 0
        self._cache: OrderedDict[tuple[int, str], int] = OrderedDict()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ServedServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def cached(self, parts: list[dict[str, Any]]) -> tuple[int, int]:
        """(prompt tokens, those that the cache had), and the prompt is in it now; the oldest is let go."""
        behind, whole, had, hit = 0, 0, 0, True
        path = []
        for part in parts:
            kind = part["type"]
            text = part["text"] if kind == "text" else part[kind]["url"]
            # A video is one item.
            count = len(text.encode()) if kind == "text" else IMAGE_TOKENS
            place = (behind, text)
            behind = hash(place)
            whole += count
            hit = hit and place in self._cache
            had += count if hit else 0
            path.append((place, count))
        for place, count in reversed(path):
            self._cache[place] = count
            self._cache.move_to_end(place)
        while sum(self._cache.values()) > self.room:
            self._cache.popitem(last=False)
        return whole, had


class _Handler(BaseHTTPRequestHandler):
    owner: ServedServer

    def _send(self, status: int, told: Any, headers: Mapping[str, str] | None = None) -> None:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        if self.owner.key and self.headers.get("Authorization") != f"Bearer {self.owner.key}":
            self._send(401, {"error": {"message": "Incorrect API key provided"}})
            return True
        return False

    def do_GET(self) -> None:
        if not self._refused():
            self._send(200, {"object": "list", "data": [{"id": self.owner.model, "owned_by": self.owner.owner}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        server = self.owner
        if self.path == "/tokenize":
            vllm = server.dialect == "vllm"
            self._send(200 if vllm else 404, {"tokens": _ids(asked["prompt"])} if vllm else {})
            return
        server.bodies.append(asked)
        known = {"model", "messages", "prompt", "temperature", "max_tokens", "frequency_penalty", "stop"}
        if server.dialect == "plain" and (more := asked.keys() - known):
            self._send(422, {"detail": f"Unexpected fields in the request: {more}"})
            return
        raw = "prompt" in asked
        parts = [{"type": "text", "text": asked["prompt"]}] if raw else asked["messages"][-1]["content"]
        if not raw and len(parts) == 1 and parts[0]["text"].startswith("Write ten words"):
            text = str(random.random()) if server.samples else "blue deep"
            self._send(200, self._completion(text, asked, raw, (5, 0)))
            return
        with server._lock:
            number = len(server.asked)
            server.asked.append(parts)
            usage = server.cached(parts)
            server.hits.append(usage[1])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self._answer(number, parts, asked, raw, usage)
        finally:
            with server._lock:
                server.at_once -= 1

    def _answer(self, number: int, parts: Any, asked: Any, raw: bool, usage: tuple[int, int]) -> None:
        server = self.owner
        fault = server.faults.get(number)
        text = server.answer(parts)[: asked["max_tokens"]]
        told = self._completion(text, asked, raw, usage)
        if isinstance(fault, tuple):
            status, message, headers = fault
            self._send(status, {"error": {"message": message}}, headers)
        elif isinstance(fault, bytes):
            self._send(200, fault)
        elif fault == "cut":
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                return
        elif fault == "empty choice":
            self._send(200, {**told, "choices": []})
        elif fault in ("empty", "refused"):
            message = {"content": "" if fault == "empty" else None}
            message |= {"refusal": "I cannot look at this."} if fault == "refused" else {}
            usage_told = {"prompt_tokens": usage[0], "completion_tokens": 0}
            self._send(200, {"model": server.model, "choices": [{"message": message}], "usage": usage_told})
        elif fault == "other model":
            self._send(200, {**told, "model": "another"})
        else:
            self._send(200, told)

    def _completion(self, text: str, asked: Any, raw: bool, usage: tuple[int, int]) -> dict[str, Any]:
        server = self.owner
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if raw else {"message": {"role": "assistant", "content": text}}
        told: dict[str, Any] = {"prompt_tokens": usage[0], "completion_tokens": len(_ids(text))}
        if server.dialect == "vllm":
            told["prompt_tokens_details"] = {"cached_tokens": usage[1]}
            if asked.get("return_token_ids"):
                choice["token_ids"] = [one + server.shift for one in _ids(text)]
            if asked.get("logprobs"):
                pieces = [{"token": one, "bytes": list(one.encode()), "logprob": -0.5} for one in text]
                values = {"tokens": list(text), "token_logprobs": [-0.5] * len(text)}
                choice["logprobs"] = values if raw else {"content": pieces}
        return {"model": server.answers_as, "choices": [choice], "usage": told}

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def _ids(text: str) -> list[int]:
    """A character is a token."""
    return [ord(one) for one in text]
