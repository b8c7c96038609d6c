"""What the Hub on 127.0.0.1 serves: files, revisions and their listings, as the Hub's interface shows them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
