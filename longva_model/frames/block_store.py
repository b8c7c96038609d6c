"""Blocks of frame embeddings on disk: written atomically, checked when read, the least recently used removed.

Knows tensors and files; nothing of frames or models. Several processes may use one folder at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vniah.files import flush, lock
from vniah.notices import notice

BLOCK = 64
# Other processes fill the folder too, so what it holds is counted anew now and then.
_COUNT_EVERY = 16
_ABANDONED_SECONDS = 3600.0
# The last of a disk belongs to results: a journal in the same cache needs little and cannot do without. So much is left
# free, but no more than a share of a small disk.
_KEPT_FREE_BYTES = 1 << 28
_KEPT_FREE_SHARE = 8


class BlockStore:
    """Tensors by (key, index), in ``folder/key/index.safetensors``.

    A block is of ``BLOCK`` rows but for the last of a source, which says its rows in its name: a source that
    grows (a haystack whose longer form continues the shorter) must not take a short block for a whole one.
    Its metadata holds a hash over its key, index, type, shape and bytes. A block that does not match is as good as
    none, which is said once.

    Args:
        folder: made when first written to.
        max_bytes: bound of the folder.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.writable = True
        self._held: int | None = None
        self._stored = 0
        self._damaged = False

    def has(self, key: str, index: int, rows: int) -> bool:
        return self._path(key, index, rows).exists()

    def load(self, key: str, index: int, rows: int) -> torch.Tensor | None:
        """The block, or ``None`` when it is not there, cannot be read, or is not what was stored."""
        path = self._path(key, index, rows)
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tokens = file.metadata() or {}, file.get_tensor("tokens")
            sound = tokens.shape[:1] == (rows,) and metadata == _described(key, index, tokens)
        except (SafetensorError, OSError, KeyError, RuntimeError):
            # Another process may have removed it, between two looks of safetensors as well, which torch tells by a
            # RuntimeError. A file that is still there is damaged.
            if not path.exists():
                return None
            sound = False
        if not sound:
            if not self._damaged:
                notice(
                    f"cached frame embeddings do not match their checksum or cannot be read ({path}, perhaps others); "
                    "their frames are encoded again"
                )
            self._damaged = True
            return None
        # In a cache that may only be read, the order of use is not kept.
        with contextlib.suppress(OSError):
            os.utime(path)
        return tokens

    def store(self, key: str, index: int, tokens_NtD: torch.Tensor) -> None:
        """Keep a block. A disk that takes no more is a warning, once: what is there is read on."""
        if not self.writable:
            return
        path = self._path(key, index, tokens_NtD.shape[0])
        try:
            with self._part(path.parent) as part:
                disk = shutil.disk_usage(self.folder)
                if disk.free - tokens_NtD.nbytes < min(disk.total // _KEPT_FREE_SHARE, _KEPT_FREE_BYTES):
                    raise OSError(errno.ENOSPC, "the disk is nearly full", str(self.folder))
                tokens_NtD = tokens_NtD.contiguous()
                save_file({"tokens": tokens_NtD}, part, _described(key, index, tokens_NtD))
                size = part.stat().st_size
                flush(part)
                os.replace(part, path)
            self._make_room(path, size)
        except (OSError, SafetensorError) as error:
            self.writable = False
            notice(
                f"frame embeddings are not kept on disk: {error}; the run goes on and encodes frames again when "
                "needed. Free space, or choose another folder with VNIAH_CACHE"
            )

    def _path(self, key: str, index: int, rows: int) -> Path:
        name = f"{index:06d}" if rows == BLOCK else f"{index:06d}-{rows}"
        return self.folder / key / f"{name}.safetensors"

    @contextlib.contextmanager
    def _part(self, folder: Path) -> Iterator[Path]:
        """A new file in ``folder``, which others see to be in use; removed when it was not renamed."""
        for _ in range(8):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
                break
            except (FileNotFoundError, FileExistsError):
                # Another process took the folder for a left-over in between. mkdir says "exists" when the folder
                # is gone again by the time it looks whether it is one.
                continue
        else:
            raise OSError(f"{folder} is removed as often as it is made")
        os.close(handle)
        part = Path(name)
        try:
            with lock(part) or contextlib.nullcontext():  # not every file system locks
                yield part
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, newest: Path, newest_bytes: int) -> None:
        """Remove the least recently used blocks past ``max_bytes``, never ``newest``."""
        self._stored += 1
        if self._held is not None and self._stored % _COUNT_EVERY:
            self._held += newest_bytes
            if self._held <= self.max_bytes:
                return
        found = []
        now = time.time()
        for path in (Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names):
            # Other processes remove files and folders at any time.
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.suffix == ".safetensors":
                    found.append((stat.st_mtime, stat.st_size, path))
                elif path.suffix == ".part" and now - stat.st_mtime > _ABANDONED_SECONDS and (held := lock(path)):
                    # Of a process that was killed while it wrote.
                    with held:
                        path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                total -= size
        self._held = total
        for folder in list(self.folder.iterdir()):
            # Refused unless empty, which is the point.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _described(key: str, index: int, tokens_NtD: torch.Tensor) -> dict[str, str]:
    """The metadata of a block's file: what it is, and a hash over that and its bytes. One entry: safetensors
    shuffles several, and the same block shall be the same bytes."""
    kind, shape = str(tokens_NtD.dtype).removeprefix("torch."), "x".join(map(str, tokens_NtD.shape))
    about = f"key={key} index={index} dtype={kind} shape={shape}"
    digest = hashlib.sha256(about.encode())
    digest.update(tokens_NtD.contiguous().view(torch.uint8).numpy().data)
    return {"block": f"{about} sha256={digest.hexdigest()}"}
