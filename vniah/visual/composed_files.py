"""The folder of composed videos: each file carries its hash, what is in use is held, the rest is bounded.

A file is called ``RECIPE-HASH.mp4``: RECIPE is what it was made of, and HASH is that of its content, of RECIPE and of
its folder's name. So one that was changed, cut short, renamed, or moved from another haystack's folder is known and
made again. Processes share the folder. Each keeps a list of what it uses, locked until the process ends: whatever the
clock says, nobody deletes what stands there. Whatever fails in the folder is an OSError as ``telling`` says it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from vniah.files import lock, put_in_place
from vniah.notices import notice

_ABANDONED_SECONDS = 86400.0


def whole_file(folder: Path, recipe: str, fill: Callable[[BinaryIO], object]) -> Path:
    """The file of a recipe: the one that is there, if it is as it was written, which then counts as used just now.

    Else ``fill`` writes it, and it is on the disk, whole, before it takes its name. Where one is not as it was written,
    the run says so. A recipe is letters, digits and dashes.
    """
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{recipe}-*.mp4"):
            with contextlib.suppress(FileNotFoundError):
                if path == _named(folder, recipe, path):
                    os.utime(path)
                    return path
                notice(f"composed videos in {folder.parent} are damaged: what is not as it was written is made again")
    part = folder / f".{recipe}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        fill_file(part, fill)
        with telling(folder):
            path = _named(folder, recipe, part)
            put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    for other in folder.glob(f"{recipe}-*.mp4"):
        # Another process may have written the same and handed it out.
        if other != path and other != _named(folder, recipe, other):
            other.unlink(missing_ok=True)
    return path


def fill_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let ``fill`` write a file through PyAV, which itself says no more of an error than that a callback failed."""
    with telling(path.parent):
        watched = _Watched(path)
    try:
        fill(cast(BinaryIO, watched))
    except Exception:
        if watched.error is None:
            raise
        with telling(path.parent):
            raise watched.error from None
    finally:
        watched.close()


class _Watched:
    """What PyAV needs of a file, and the error that its writing ended with."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        done = 0
        try:
            while done < len(data):  # of a file without a buffer, a part may be written
                done += self._file.write(data[done:])
        except OSError as error:
            self.error = error
            raise
        return done


@contextlib.contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Around what is done to files in a folder of composed videos.

    Raises:
        OSError: the disk is full or read-only, or takes no file; says where and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename and Path(str(error.filename)) != folder else ""
        raise OSError(
            f"cannot write composed videos in {folder}: {reason}{place}; make room there, or give another folder that "
            "can be written (VNIAH_CACHE for the cache)"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder, made when missing, that no other process is at."""
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock", wait=True)
    assert held is not None
    with held:
        yield


def _named(folder: Path, recipe: str, content: Path) -> Path:
    """The path in ``folder`` that a recipe's file of this content has."""
    # The folder's name is part of what a chunk is of: every haystack's are numbered alike.
    digest = hashlib.blake2b(f"{folder.name}/{recipe}\0".encode(), digest_size=16)
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return folder / f"{recipe}-{digest.hexdigest()}.mp4"


class Holds:
    """What one composer uses of a folder, told to every other process for as long as this object lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "in-use"
        self._names: set[str] = set()
        # Let go of when this object or its process ends, however it ends.
        self._list: BinaryIO | None = None

    def hold(self, name: str) -> None:
        """From now on no process deletes what is called ``name`` or begins with it and a dash."""
        if name in self._names:
            return
        with locked(self._folder), telling(self._folder):
            if self._list is None:
                self._list = lock(self._folder / f"{os.getpid()}-{uuid.uuid4().hex}.txt")
                assert self._list is not None
            self._list.write(f"{name}\n".encode())
            self._list.flush()
            self._names.add(name)

    @contextlib.contextmanager
    def all(self) -> Iterator[set[str]]:
        """The names that processes hold, this object's among them; while it is open nobody begins to hold another."""
        with locked(self._folder), telling(self._folder):
            held: set[str] = set()
            for path in self._folder.glob("*.txt"):
                if (ended := lock(path)) is None:
                    held.update(path.read_text(encoding="utf-8").split())
                else:
                    with ended:
                        path.unlink(missing_ok=True)
            yield held


def make_room(folder: Path, max_bytes: int, holds: Holds) -> None:
    """Delete what was not used for longest until the folder is within its limit, encodings last; what is held stays.

    Where what is held is more than the limit, the folder exceeds it and the run says so.
    """
    now = time.time()
    with holds.all() as held:
        files = []
        for path in folder.rglob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # its writer has given it its name
            # RECIPE of .RECIPE.WRITER.part and of RECIPE-HASH.mp4
            recipe = path.name.split(".")[1] if path.suffix == ".part" else path.stem.rpartition("-")[0]
            free = not held & {path.parent.name, recipe}
            if path.suffix == ".mp4":
                files.append((path.parent.name != "cells", stat.st_mtime, stat.st_size, path, free))
            elif path.suffix == ".part" and free and now - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(entry[2] for entry in files)
        for _, _, size, path, free in sorted(files):
            if total <= max_bytes:
                return
            if free:
                path.unlink(missing_ok=True)
                total -= size
    if total > max_bytes:
        notice(
            f"the composed videos that runs use are more than {max_bytes / 1e9:g} GB (VNIAH_CACHE_GB): none of them is "
            "deleted before its run ends"
        )
