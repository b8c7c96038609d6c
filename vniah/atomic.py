"""Files that are whole or absent, whatever happens while they are written, and that one process holds at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder that becomes ``path`` when all went well and is removed when not.

    What was written is on the disk before it takes the name: a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder takes no file.
    """
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        flush(part)
        os.replace(part, path)
        with contextlib.suppress(OSError):  # not every file system flushes folders
            flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(draft: Path, folder: Path) -> None:
    """Give a finished folder its name, all of it on the disk before. ``folder`` is not there or is empty."""
    for path in (*draft.rglob("*"), draft):
        flush(path)
    os.replace(draft, folder)


def lock(path: Path) -> BinaryIO | None:
    """Open a file, made when absent, and lock it until it is closed or its process ends; ``None``: another holds it.

    Not by filelock: once lmms-eval is loaded, all of filelock's locks of one path in one process are one and the same,
    and whoever asks holds it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
