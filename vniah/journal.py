"""The journal: one JSON line a scored leaf, written as it comes, read back on a rerun.

A line is keyed by the content of what was computed (weights, segments, target, scoring, dtype), so a
rerun of the same command computes only what is missing. Before a run's first leaf stands a line that says what
the run is to measure, so that a part of it is never taken for the whole. A killed run loses at most the leaf in flight:
a torn last line is cut off; a broken line before it is an error and never a wrong score. Two processes
on one journal are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

_FIRST = b'{"key": "'


def content_key(*parts: Any) -> str:
    """A stable hash of dataclasses, mappings and plain values: the key of a journal line."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return [type(value).__name__, asdict(value)]
        raise TypeError(f"cannot hash a {type(value).__name__} into a journal key")

    def expand(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [expand(item) for item in value]
        return plain(value) if is_dataclass(value) else value

    text = json.dumps([expand(part) for part in parts], sort_keys=True, ensure_ascii=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """An append-only file of scored leaves, held by one process at a time. Use as a context manager.

    Args:
        path: the ``.jsonl`` file; made when absent. A lock file stands beside it while it is open.
        also: journals that are read too and not held: those of other processes of an earlier run.

    Raises:
        ValueError: another process holds it, or a line before the last cannot be read.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], also: Sequence[str | os.PathLike[str]] = ()) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"the journal {self.path} is a folder; give a file with journal=PATH")
        self._lock = FileLock(str(self.path) + ".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"the journal {self.path} is in use by another process; wait for it to end, "
                "or give this run its own with journal=PATH"
            ) from None
        except OSError as error:
            # A file system without locks raises one too.
            raise OSError(
                error.errno,
                f"cannot open the journal: {error.strerror}; choose another place with journal=PATH, or journal=none",
                str(self.path),
            ) from error
        try:
            self._rows = {key: row for other in also for key, row in _read(Path(other))[0].items()}
            own = self._load()
            self._own = set(own)
            self._rows.update(own)
            # Unbuffered: what a full disk did not take must not be written later, behind other lines.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held open until close)
        except BaseException:
            self._lock.release()
            raise

    def _load(self) -> dict[str, dict[str, Any]]:
        """The rows of our own file, whose torn end is mended."""
        if not self.path.exists():
            return {}
        rows, good = _read(self.path)
        size = self.path.stat().st_size
        with open(self.path, "rb+") as file:
            if good < size:
                file.truncate(good)
            elif good > size:
                # Whole, but its newline is missing.
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
        return rows

    def __len__(self) -> int:
        """How many results there are."""
        return sum("run" not in row for row in self._rows.values())

    def holds(self, key: str) -> bool:
        """Whether ``key`` stands in this very file and not only in those read beside it."""
        return key in self._own

    def get(self, key: str) -> dict[str, Any] | None:
        """The result stored under ``key``, or ``None``."""
        row = self._rows.get(key)
        return None if row is None else dict(row["result"])

    def describe(self, run: Mapping[str, Any]) -> None:
        """Say what the lines behind this one are part of; once a journal, however often a run is continued."""
        key = f"run-{content_key(dict(run))}"
        if not self.holds(key):
            self.put(key, {}, run=dict(run))

    def put(self, key: str, result: Mapping[str, Any], **about: Any) -> None:
        """Append a result and make sure that it is on the disk before returning.

        Raises:
            OSError: a full disk; the part of the line that was written is taken back.
        """
        row = {"key": key, **about, "result": dict(result)}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), before)
            raise OSError(
                error.errno,
                f"cannot write to the journal: {error.strerror}; scored leaves so far are kept",
                str(self.path),
            ) from error
        self._rows[key] = row
        self._own.add(key)

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The rows of a journal by key, and the length of what is whole: one more than the file's for a missing newline.

    Raises:
        ValueError: a line that cannot be read and is not a torn last one: the file is no journal of ours, or was
            changed by something else. Nothing of it is touched.
    """
    rows: dict[str, dict[str, Any]] = {}
    data = path.read_bytes()
    good = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        end = good + len(line)
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            if end < len(data) or not _torn(line):
                raise ValueError(
                    f"{path}:{number} is not a journal line; the file is another, or was changed by something else. "
                    "Give this run its own with journal=PATH, move the file away to start over, or mend that line"
                ) from None
            return rows, good
        good = end if line.endswith(b"\n") else end + 1
    return rows, good


def is_journal(path: Path) -> bool:
    """Whether a file begins as a journal does, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(_FIRST)) == _FIRST


def _torn(line: bytes) -> bool:
    """Whether a line is the first part of one of ours: without its end, or with zeros where a power cut left some."""
    written = line.rstrip(b"\0")
    return not line.endswith(b"\n") and (written.startswith(_FIRST) or _FIRST.startswith(written))
