"""The journal: one JSON line a scored leaf, written as it comes, read back on a rerun.

A line is keyed by the content of what was computed (weights, segments, target, scoring, dtype), so a
rerun of the same command computes only what is missing. Before a run's first leaf stands a line that says what
the run is to measure, so that a part of it is never taken for the whole. A killed run loses at most the leaf in flight:
a torn last line is cut off. Each line ends with a checksum of what stands before it; a line that does not match is left
where it is, what it held is computed again, and the run says so. Two processes on one journal are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vniah.notices import notice

_FIRST = b'{"key": "'
_KEY = re.compile(rb'\{"key": ("(?:[^"\\]|\\.)*")')
_CHECK = re.compile(rb', "check": "([0-9a-f]{16})"\}\n?\Z')
_LISTED = 5  # damaged lines that a message names


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
                "or give this run an output folder of its own (a checkpoint takes journal=PATH too)"
            ) from None
        except OSError as error:
            # A file system without locks raises one too.
            raise OSError(
                error.errno,
                f"cannot open the journal: {error.strerror}; choose another place with journal=PATH, or journal=none",
                str(self.path),
            ) from error
        try:
            self._lines = {key: line for other in also for key, line in _read(Path(other))[0].items()}
            own, whole = _read(self.path) if self.path.exists() else ({}, 0)
            self._own = set(own)
            self._measured: dict[str, str] = {}
            self._lines.update(own)
            # Unbuffered: what a full disk did not take must not be written later, behind other lines.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held open until close)
            size = os.fstat(self._file.fileno()).st_size
            if whole < size:
                os.ftruncate(self._file.fileno(), whole)
            elif whole > size:
                self._file.write(b"\n")  # of a line that is whole without it
        except BaseException:
            self._lock.release()
            raise

    def __len__(self) -> int:
        """How many results there are."""
        return sum(not key.startswith(_RUN) for key in self._lines)

    def holds(self, key: str) -> bool:
        """Whether ``key`` stands in this very file and not only in those read beside it."""
        return _stored_key(key) in self._own

    def get(self, key: str) -> dict[str, Any] | None:
        """The result stored under ``key``, or ``None``."""
        line = self.line(key)
        return None if line is None else dict(line["result"])

    def line(self, key: str) -> dict[str, Any] | None:
        """The whole line of ``key``, its result and what was said about it, or ``None``."""
        line = self._lines.get(_stored_key(key))
        return None if line is None else dict(json.loads(line))

    def describe(self, run: Mapping[str, Any]) -> None:
        """Say what the lines of a task are part of; once a journal, however often a run is continued."""
        key = f"run-{content_key(dict(run))}"  # as _RUN begins
        if not self.holds(key):
            self.put(key, {}, run=dict(run))
        self._measured[str(run.get("task"))] = measured_key(run)

    def put(self, key: str, result: Mapping[str, Any], **about: Any) -> None:
        """Append a result and make sure that it is on the disk before returning.

        Raises:
            OSError: a full disk; the part of the line that was written is taken back.
        """
        measured = self._measured.get(str(about.get("task")))
        of = {} if measured is None else {"of": measured}
        line = sealed({"key": key, **of, **about, "result": dict(result)})
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
        stored = _stored_key(key)
        self._lines[stored] = line
        self._own.add(stored)

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_RUN = b'"run-'


def measured_key(run: Mapping[str, Any]) -> str:
    """What a line says that it is part of: a hash of what the run of its task is to measure."""
    return content_key(run.get("measured"))[:12]


def sealed(row: Mapping[str, Any]) -> bytes:
    """A line of a journal: ``row``, which begins with its key, and a checksum of the bytes before it."""
    content = json.dumps(row, ensure_ascii=False).encode().removesuffix(b"}")
    return content + b', "check": "' + _checksum(content) + b'"}\n'


def is_sound(line: bytes) -> bool | None:
    """Whether a line is as it was written, by its checksum; ``None`` for one that ends without any."""
    found = _CHECK.search(line)
    return None if found is None else found[1] == _checksum(line[: found.start()])


def say_damaged(path: Path, numbers: Sequence[int], then: str) -> None:
    """Say, once a file, which lines of a journal are not believed, and what becomes of that."""
    if numbers:
        listed = ", ".join(map(str, numbers[:_LISTED])) + (", ..." if len(numbers) > _LISTED else "")
        lines = f"{len(numbers)} line{'s' if len(numbers) > 1 else ''}"
        notice(f"{path}: {lines} of the journal ({listed}) do not match their checksum; {then}")


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def _stored_key(key: str) -> bytes:
    """A key as it stands in a line."""
    return json.dumps(key, ensure_ascii=False).encode()


def _read(path: Path) -> tuple[dict[bytes, bytes], int]:
    """The sound lines of a journal by key as stored, and its length without a torn end (one more than the file's for a
    missing newline). Damaged lines are told and left where they are.

    Lines are parsed when they are asked for: a journal may have a million.

    Raises:
        ValueError: the file is no journal of ours: none of its lines looks like one. Nothing of it is touched.
    """
    lines: dict[bytes, bytes] = {}
    whole = 0
    damaged: list[int] = []
    ours = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end = whole + len(line)
            key = _KEY.match(line)
            if key is not None and is_sound(line):
                lines[key[1]] = line
                ours = True
            elif not line.endswith(b"\n") and _torn(line):
                break
            else:
                damaged.append(number)
                ours = (ours and number > 1) or _looks_ours(line)
            whole = end if line.endswith(b"\n") else end + 1
    if not ours:
        raise ValueError(
            f"{path}:1 is not a journal line; the file is another, or was changed by something else. "
            "Give this run its own with journal=PATH, move the file away to start over, or mend that line"
        )
    say_damaged(path, damaged, "what they held is computed again")
    return lines, whole


def _looks_ours(line: bytes) -> bool:
    """Whether a damaged line was once of a journal, an earlier edition's without checksums included."""
    if not line.startswith(_FIRST):
        return False
    if is_sound(line) is not None:
        return True
    try:
        return "result" in json.loads(line)
    except (ValueError, RecursionError):
        return False


def is_journal(path: Path) -> bool:
    """Whether a file begins as a journal does, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(_FIRST)) == _FIRST


def _torn(line: bytes) -> bool:
    """Whether a line is the first part of one of ours: without its end, or with zeros where a power cut left some."""
    written = line.rstrip(b"\0")
    return not line.endswith(b"\n") and (written.startswith(_FIRST) or _FIRST.startswith(written))


def remove_journal(path: Path) -> None:
    """Remove a journal whose answers stand in results now, and its lock."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def what_continues(path: Path | None) -> str:
    """What continues a stopped call, by the journal in its output folder; ``None`` where it was given none."""
    if path is None:
        return "nothing of it is kept; give an output folder, and the same call continues"
    return f"what was answered is kept in {path}; the same call continues"
