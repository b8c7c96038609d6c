"""A small Hub on 127.0.0.1: serves folders as model and dataset repositories, counts requests, breaks on demand.

Speaks the part of the Hub's HTTP interface that ``huggingface_hub`` and ``datasets`` use to read: repository
info, tree listing, path info, refs, and file content with ETag, commit and Range headers. Use it through the
``loopback_hub`` fixture::

    def test_something(loopback_hub, tmp_path):
        loopback_hub.add_repo("org/set", {"data/test-00000-of-00001.parquet": table_bytes})
        subprocess.run([...], env=loopback_hub.env(tmp_path / "home"))

Both libraries read HF_ENDPOINT and HF_HOME when they are imported, hence the subprocess.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

# What git-lfs would track: such a file's ETag is its SHA-256, any other's is its git blob hash.
LFS_SUFFIXES = (".parquet", ".safetensors", ".zip", ".tar", ".gz", ".mp4", ".bin", ".png", ".jpg", ".arrow")
_CHUNK = 1 << 16


@dataclass
class RepoFile:
    """One served file: its bytes, or the file on disk they are read from."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def is_lfs(self) -> bool:
        return self.path.lower().endswith(LFS_SUFFIXES)

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content[start:stop]
            return
        with self.content.open("rb") as handle:
            handle.seek(start)
            while start < stop and (chunk := handle.read(min(_CHUNK, stop - start))):
                start += len(chunk)
                yield chunk

    @functools.cached_property
    def git_oid(self) -> str:
        return self._hash(hashlib.sha1(b"blob %d\0" % self.size))

    @functools.cached_property
    def sha256(self) -> str:
        return self._hash(hashlib.sha256())

    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self) -> dict[str, Any]:
        """The file as the tree listing shows it."""
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.git_oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return entry

    def _hash(self, digest: Any) -> str:
        for chunk in self.chunks(0, self.size):
            digest.update(chunk)
        return str(digest.hexdigest())


@dataclass
class Repo:
    """One revision of a repository."""

    repo_id: str
    commit: str
    files: dict[str, RepoFile]

    def info(self) -> dict[str, Any]:
        return {
            "id": self.repo_id,
            "_id": self.commit[:24],
            "sha": self.commit,
            "lastModified": "2024-07-01T00:00:00.000Z",
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": name} for name in self.files],
        }

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Entries below ``folder``; without ``recursive``, its direct children only."""
        prefix = f"{folder}/" if folder else ""
        folders: set[str] = set()
        entries = []
        for name, file in self.files.items():
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            deepest = len(parts) - 1 if recursive else min(1, len(parts) - 1)
            folders.update(prefix + "/".join(parts[: depth + 1]) for depth in range(deepest))
            if recursive or len(parts) == 1:
                entries.append(file.entry())
        return [self._folder(name) for name in sorted(folders) if name] + entries

    def path_info(self, path: str) -> dict[str, Any] | None:
        if path in self.files:
            return self.files[path].entry()
        is_folder = any(name.startswith(f"{path}/") for name in self.files)
        return self._folder(path) if is_folder else None

    @staticmethod
    def _folder(path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


@dataclass
class Fault:
    """Something that goes wrong for requests whose path contains ``match``, ``times`` times (None: always)."""

    match: str
    times: int | None = 1
    status: int | None = None
    drop_after: int | None = None
    drip_s: float | None = None
    headers_too: bool = False
    flood: tuple[int, str] | None = None
    location: str | None = None
    answer: bytes | None = None

    def take(self) -> None:
        if self.times is not None:
            self.times -= 1


@dataclass
class LoopbackHub:
    """The server and what it saw. ``requests`` holds (method, path, Range header or "")."""

    repos: dict[tuple[str, str], dict[str, Repo]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: set[socket.socket] = field(default_factory=set)
    flooded: SimpleQueue[int] = field(default_factory=SimpleQueue)
    _server: ThreadingHTTPServer | None = None
    _port: int = 0

    def start(self) -> LoopbackHub:
        """Listen; after ``stop`` the same port is taken again, so a client's endpoint stays valid."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        # A short poll keeps `stop` from waiting the default half second in every test.
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Take the Hub down: open connections are cut and new ones refused from here on."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def env(self, home: Path, **extra: str) -> dict[str, str]:
        """An environment for a subprocess that sees this Hub, a cache of its own, and no one's token."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        env.update(HF_ENDPOINT=self.url, HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1")
        # A proxy of the machine must not see requests to this server.
        env.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **extra)
        return env

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str | Path] | Path,
        *,
        repo_type: str = "dataset",
        revision: str = "main",
    ) -> str:
        """Serve ``files`` (names to content, or a folder) and return the commit hash of this revision."""
        if isinstance(files, Path):
            root = files
            files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
        served = {
            name: RepoFile(name, content.encode() if isinstance(content, str) else content)
            for name, content in files.items()
        }
        state = json.dumps([(name, file.git_oid) for name, file in sorted(served.items())])
        commit = hashlib.sha1(f"{repo_type}/{repo_id}/{state}".encode()).hexdigest()
        repo = Repo(repo_id, commit, served)
        self.repos.setdefault((repo_type, repo_id), {}).update({revision: repo, commit: repo})
        return commit

    def fail(self, match: str, status: int, times: int | None = None) -> None:
        """Answer ``status`` to requests whose path contains ``match``."""
        self.faults.append(Fault(match, times, status=status))

    def drop(self, match: str, after: int, times: int | None = 1) -> None:
        """Close the connection after ``after`` bytes of a file whose path contains ``match``."""
        self.faults.append(Fault(match, times, drop_after=after))

    def drip(self, match: str, every_s: float, *, headers: bool = False) -> None:
        """Send a byte each ``every_s`` seconds, without end, in place of what was asked for (or of its headers)."""
        self.faults.append(Fault(match, None, drip_s=every_s, headers_too=headers))

    def flood(self, match: str, status: int = 200, *, header: str = "X-Nothing: 0") -> None:
        """Answer without end as fast as it is read; ``flooded`` gets the bytes that each client took."""
        self.faults.append(Fault(match, None, flood=(status, header)))

    def redirect(self, match: str, location: str) -> None:
        """Send whoever reads a path that contains ``match`` on to ``location``, as the Hub does for large files."""
        self.faults.append(Fault(match, None, location=location))

    def answer(self, match: str, body: bytes) -> None:
        """Answer ``body`` to whoever reads a path that contains ``match``."""
        self.faults.append(Fault(match, None, answer=body))

    def count(self, method: str, match: str = "") -> int:
        """Requests seen by ``method`` whose path contains ``match``."""
        return sum(seen == method and match in path for seen, path, _ in self.requests)


def pour(out: BinaryIO, start: bytes, piece: bytes, every_s: float = 0.0) -> int:
    """Write ``start`` and then ``piece`` without end; the bytes of pieces that went out before nobody took more."""
    sent = 0
    with contextlib.suppress(OSError):
        out.write(start)
        while True:
            time.sleep(every_s)
            sent += out.write(piece)
            out.flush()
    return sent


class _Handler(BaseHTTPRequestHandler):
    """Routes one request. ``hub`` is set on the subclass that a server makes."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        # A client that goes away in the middle, as killed ones do, is nothing to report.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent; ``hub.requests`` is the log."""

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
            fault = next((f for f in self.hub.faults if f.match in path and f.times != 0), None)
            # A drop bites the transfer of content alone, so that a HEAD does not use it up.
            if fault is not None and (fault.status is not None or self.command == "GET"):
                fault.take()
            else:
                fault = None
        if fault is not None and fault.status is not None:
            return self._error(fault.status, "", "made to fail")
        if fault is not None and fault.drip_s is not None:
            return self._drip(fault.drip_s, fault.headers_too)
        if fault is not None and fault.flood is not None:
            return self._flood(*fault.flood)
        if fault is not None and fault.location is not None:
            self.send_response(302)
            self.send_header("Location", fault.location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault is not None and fault.answer is not None:
            return self._send(fault.answer)

        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs)(?:/(.*))?)?", path)
        if api:
            kind, repo_id, action, rest = api.groups()
            return self._api(kind[:-1], repo_id, action or "revision", rest or "", parse_qs(url.query), body)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file:
            dataset, repo_id, revision, name = file.groups()
            repo = self._repo("dataset" if dataset else "model", repo_id, revision)
            return self._file(repo, name, fault) if repo else None
        return self._error(404, "", f"no such route: {path}")

    def _repo(self, repo_type: str, repo_id: str, revision: str) -> Repo | None:
        """The repository at a revision, or None after the error was answered."""
        revisions = self.hub.repos.get((repo_type, repo_id))
        if revisions is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif revision not in revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return revisions[revision]
        return None

    def _api(
        self, repo_type: str, repo_id: str, action: str, rest: str, query: dict[str, list[str]], body: bytes
    ) -> None:
        revision, _, path = rest.partition("/")
        repo = self._repo(repo_type, repo_id, revision or "main")
        if repo is None:
            return None
        if action == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}]
            return self._json({"branches": branches, "tags": [], "converts": []})
        if action == "tree":
            if path and repo.path_info(path) is None:
                return self._error(404, "EntryNotFound", f"{path} does not exist")
            return self._json(repo.tree(path, query.get("recursive", ["false"])[0].lower() == "true"))
        if action == "paths-info":
            wanted = self._paths(body)
            return self._json([info for name in wanted if (info := repo.path_info(name))])
        return self._json(repo.info())

    def _paths(self, body: bytes) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return list(json.loads(body)["paths"])
        return parse_qs(body.decode()).get("paths", [])

    def _file(self, repo: Repo, name: str, fault: Fault | None) -> None:
        file = repo.files.get(name)
        if file is None:
            return self._error(404, "EntryNotFound", f"{name} does not exist", commit=repo.commit)
        start, stop, status = 0, file.size, 200
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged:
            start, status = int(ranged[1]), 206
            stop = min(int(ranged[2]) + 1, file.size) if ranged[2] else file.size
            if start >= file.size:
                return self._error(416, "", "range not satisfiable")
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{file.etag()}"')
        self.send_header("X-Repo-Commit", repo.commit)
        if file.is_lfs:
            self.send_header("X-Linked-Etag", f'"{file.etag()}"')
            self.send_header("X-Linked-Size", str(file.size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{file.size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is not None and fault.drop_after is not None:
            stop = min(stop, start + fault.drop_after)
            self.close_connection = True
        for chunk in file.chunks(start, stop):
            self.wfile.write(chunk)
        return None

    def _drip(self, every_s: float, headers: bool) -> None:
        self.close_connection = True
        start = b"HTTP/1.1 200 OK\r\n"
        pour(self.wfile, start if headers else start + b"Content-Length: 1000000\r\n\r\n", b"x", every_s)

    def _flood(self, status: int, header: str) -> None:
        self.close_connection = True
        piece = zlib.compress(bytes(1 << 20)) if "Encoding" in header else b" " * (1 << 20)
        self.hub.flooded.put(pour(self.wfile, f"HTTP/1.1 {status} So\r\n{header}\r\n\r\n".encode(), piece))

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    def _send(self, payload: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def _error(self, status: int, code: str, message: str, commit: str = "") -> None:
        payload = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("X-Error-Message", message)
        if code:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)
