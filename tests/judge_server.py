"""A chat-completions endpoint on 127.0.0.1 that answers as a test scripts it, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any

from hub_server import pour


@dataclass(frozen=True)
class Drip:
    """An answer that never ends: a byte each ``every_s`` seconds, in its headers or in its body."""

    every_s: float
    headers: bool = False


@dataclass(frozen=True)
class Flood:
    """An answer that never ends, sent as fast as it is read."""

    status: int = 200


# What to do with one request: a reply's text, an HTTP status, raw bytes, or seconds to sleep before hanging up.
Step = str | int | bytes | float | Drip | Flood


class JudgeServer:
    """``script`` maps a request (decoded JSON) to a step. ``requests`` holds (headers, body) as they came."""

    def __init__(self, script: Callable[[dict[str, Any]], Step]) -> None:
        self.script = script
        self.requests: list[tuple[Message, dict[str, Any]]] = []
        self.flooded: SimpleQueue[int] = SimpleQueue()  # bytes of a flood that each request took
        handler = type("Handler", (_Handler,), {"judge": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.judge.requests.append((self.headers, body))
        step = self.judge.script(body) if self.path == "/v1/chat/completions" else 404
        if isinstance(step, Drip):
            start = b"HTTP/1.0 200 OK\r\n" if step.headers else b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n"
            pour(self.wfile, start, b"x", step.every_s)
            return
        if isinstance(step, Flood):
            self.judge.flooded.put(pour(self.wfile, b"HTTP/1.0 %d So\r\n\r\n" % step.status, b" " * (1 << 20)))
            return
        if isinstance(step, float):
            time.sleep(step)
            return
        status = step if isinstance(step, int) else 200
        if isinstance(step, str):
            step = json.dumps({"choices": [{"message": {"role": "assistant", "content": step}}]}).encode()
        payload = step if isinstance(step, bytes) else b"{}"
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""
