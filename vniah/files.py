"""Files: which one a name means, how text and JSON of strangers are read, and how ours are written.

JSON is read in one way everywhere: UTF-8 with or without a byte order mark; lines end at a line feed and nowhere
else, since U+2028 and its like may stand inside a text; and what is nested or large beyond reason is one
``ValueError`` that names the file and the line, not a crash later on.
What is written is whole or absent, whatever happens meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NoReturn

# Bytes of a JSON file, or of one line of a JSON-lines file. Reading takes about ten times as much memory.
MAX_JSON_BYTES = 256 << 20
MAX_JSON_DEPTH = 100
# A tokenizer's "no limit" is written with 31 digits; a number of this many still fits a float.
MAX_JSON_DIGITS = 40
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LARGE_NUMBER = re.compile(rf"[0-9]{{{MAX_JSON_DIGITS + 1}}}|[eE]\+?[0-9]{{3}}")


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user means: the file of that very name if there is one, else with ``~`` as the home folder."""
    text = os.fspath(text)
    return Path(text if os.path.lexists(text) else os.path.expanduser(text))


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is written as a repository of the Hub is named, ``owner/name``."""
    return bool(_HUB_ID.fullmatch(text))


def check_relative_name(name: str) -> PurePosixPath:
    """The name as a relative path, if it stays below whatever folder it is joined to on any system.

    Raises:
        ValueError: an empty name, a NUL, an absolute path, a drive letter or a ``..``.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a file name is empty or no text: {name!r}; expected a path inside its folder")
    windows = PureWindowsPath(name)
    # PureWindowsPath splits at both kinds of slash, so this also finds '..\\' in a name made for Linux.
    if "\0" in name or name.startswith(("/", "\\")) or windows.drive or windows.root or ".." in windows.parts:
        raise ValueError(f"the file name {name!r} leaves its folder; expected a relative path without '..'")
    return PurePosixPath(name)


def safe_relative_path(name: str, root: Path, *, links_within: Path | None = None) -> Path:
    """``root / name``, once it is sure that it lies inside ``root``, symbolic links followed.

    Args:
        links_within: where links may lead instead of ``root``; a Hub snapshot links to the blobs beside it.

    Raises:
        ValueError: the name, or a link on the way, leaves the folder.
    """
    path = root / check_relative_name(name)
    boundary = (links_within or root).resolve()
    if not path.resolve().is_relative_to(boundary):
        raise ValueError(f"{name!r} in {root} is a link that leads out of {boundary}; copy the file in instead")
    return path


def text_files(folder: Path) -> list[Path]:
    """The .txt files of a folder by name, whatever the case of their ending; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.casefold() == ".txt" and not path.name.startswith(".") and path.is_file()
    )


def read_text(path: Path) -> str:
    """A UTF-8 file, without its byte order mark, every line end a line feed. ``ValueError``: it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it, or take it out of the folder"
        ) from None


def parse_json(text: str | bytes, what: str) -> Any:
    """The value of a JSON text (bytes are UTF-8), which an error calls ``what``.

    Raises:
        ValueError: not JSON, nested deeper than ``MAX_JSON_DEPTH``, with a number out of reason, or with half a
            character (a surrogate without its pair), which no file could be written of.
    """
    was_bytes = isinstance(text, bytes)
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text.removeprefix("\ufeff"), **(_CHECKED if _LARGE_NUMBER.search(text) else {}))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not JSON: it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        _too_deep(what)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        nested = [item for item in level if isinstance(item, (dict, list))]
        if not nested:
            if not was_bytes or _MAY_BE_HALF.search(text):
                _check_characters(value, what)
            return value
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    _too_deep(what)


def read_json(path: str | os.PathLike[str], *, max_bytes: int | None = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file. One of more than ``max_bytes`` is refused before it is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: see ``parse_json``, with the file named; or it is too large.
    """
    size = os.stat(path).st_size
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{path} has {size:,} bytes; a JSON file of at most {max_bytes:,} was expected")
    return parse_json(Path(path).read_bytes(), str(path))


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Stream (line number from 1, value) of a JSON-lines file; blank lines are passed over.

    Raises:
        OSError: it cannot be opened.
        ValueError: see ``parse_json``, with file and line named; or a line of more than ``MAX_JSON_BYTES``.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_JSON_BYTES + 1):
            number += 1
            if len(line) > MAX_JSON_BYTES:
                raise ValueError(f"{path}, line {number} has more than {MAX_JSON_BYTES:,} bytes")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, parse_json(line, f"{path}, line {number}")


def _too_deep(what: str) -> NoReturn:
    raise ValueError(f"{what} is not JSON that can be used: it is nested deeper than {MAX_JSON_DEPTH} levels")


def _check_characters(value: Any, what: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end]
        raise ValueError(
            f"{what} is not JSON that can be used: half a character, {error.object[error.start]!a}, stands behind "
            f"{near[:-1]!a}; write it whole or take it out"
        ) from None


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_JSON_DIGITS:
        raise ValueError(f"a whole number of more than {MAX_JSON_DIGITS} digits ({digits[:12]}...)")
    return int(digits)


def _fraction(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"a number that is too large ({digits[:24]})")
    return number


_CHECKED: dict[str, Any] = {"parse_int": _whole_number, "parse_float": _fraction}


def sha256_of(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> str:
    """The SHA-256 of a file's bytes, or of those from ``start`` to ``stop``, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 20 if stop is None else min(1 << 20, stop - file.tell())):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder that becomes ``path`` when all went well and is removed when not.

    What was written is on the disk before it takes the name: a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder takes no file.
    """
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(draft: Path, target: Path) -> None:
    """Give a finished file or folder its name, all of it on the disk before. A folder that is there must be empty."""
    for path in (*draft.rglob("*"), draft):
        flush(path)
    os.replace(draft, target)
    with contextlib.suppress(OSError):  # not every file system flushes folders
        flush(target.parent)


def lock(path: Path, *, wait: bool = False) -> BinaryIO | None:
    """Open a file, made when absent, and lock it until it is closed or its process ends.

    ``None`` where another holds it, unless one is to ``wait``.

    Not by filelock: once lmms-eval is loaded, all of filelock's locks of one path in one process are one and the same,
    and whoever asks holds it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        if wait:
            raise
        return None
    return file


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
