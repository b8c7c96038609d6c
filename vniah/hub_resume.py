"""Files from the Hub, resumed where they broke off, also by another process, and checked by their hash.

A file is written to ``blobs/<etag>.resume`` in the Hub cache and moved to ``blobs/<etag>`` once its hash is
right, and then linked into the snapshot. That is where the Hub library looks, which fetches none of them again.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vniah.deadline import Pulse
from vniah.files import check_relative_name

if TYPE_CHECKING:
    from vniah.hub import RemoteFile

# Attempts in a row that bring no new byte before we give up.
ATTEMPTS = 5
READ_TIMEOUT = 30.0
# Seconds without bytes worth the name, over all files, before a Hub counts as unreachable.
PAUSE = 60.0
_CHUNK = 1 << 20
_PARALLEL = 4


def http_library() -> Any:
    """The HTTP library that this version of ``huggingface_hub`` is built on (httpx, or its successor)."""
    from huggingface_hub import get_session

    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


def fetch_blobs(
    repo_id: str,
    repo_type: str,
    commit: str,
    files: Iterable[RemoteFile],
    storage: Path,
    endpoint: str,
    *,
    progress: bool = True,
) -> None:
    """Fetch ``files`` into ``storage/blobs``, each checked by its hash.

    Args:
        storage: the repository's folder in the Hub cache.

    Raises:
        OSError: a file arrived damaged, or the Hub names no hash for it.
        TimeoutError: nothing, or next to nothing, comes for ``PAUSE`` seconds.
        The HTTP library's HTTPError: no more bytes arrive.
    """
    # A blob is named after its hash, and that name comes from the server: only a hash is taken for a name.
    wanted = {file.etag: file for file in files}
    for etag, file in wanted.items():
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
            raise OSError(f"{endpoint} names no hash for {file.name} of {repo_id}, so that nothing could check it")
    if not wanted:
        return
    from huggingface_hub import hf_hub_url
    from tqdm import tqdm

    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in wanted.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=repo_id, disable=not progress) as bar:
        transfer = _Transfer(storage, bar, Pulse(PAUSE))
        for file in wanted.values():
            url = hf_hub_url(repo_id, file.name, repo_type=repo_type, revision=commit, endpoint=endpoint)
            transfer.waiting.put((url, file))
        transfer.run()


class _Transfer:
    """Files that several threads fetch. A Hub may hold a thread for ever, so none is waited for without end."""

    def __init__(self, storage: Path, bar: Any, pulse: Pulse) -> None:
        self.storage, self.bar, self.pulse = storage, bar, pulse
        self.waiting: queue.SimpleQueue[tuple[str, RemoteFile]] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.failed: list[BaseException] = []
        self.locks: list[Any] = []

    def run(self) -> None:
        """Fetch all that wait; raise what went wrong first."""
        # Daemons, since an executor's threads are waited for when the process ends.
        threads = [threading.Thread(target=self._work, daemon=True, name="hub download") for _ in range(_PARALLEL)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self.failed:
                if self.pulse.left_s < 0:
                    raise TimeoutError(f"hardly anything came for {PAUSE:g} s")
                for thread in threads:
                    thread.join(0.02)
        finally:
            # After ^C or an error they must not go on for gigabytes. One that a Hub holds leaves its file to others.
            self.stop.set()
            for thread in threads:
                thread.join(0.5)
            for lock in self.locks:
                lock.release(force=True)
        if self.failed:
            raise self.failed[0]

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                url, file = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._fetch(url, file)
            except BaseException as error:
                self.failed.append(error)
                return

    def arrived(self, count: int) -> None:
        self.pulse.bytes_came(count)
        self.bar.update(count)

    def _fetch(self, url: str, file: RemoteFile) -> None:
        from filelock import FileLock, Timeout

        blobs = self.storage / "blobs"
        blob, partial = blobs / file.etag, blobs / f"{file.etag}.resume"
        # The lock that the Hub library takes for this blob, so that two programs do not write it at once.
        path = self.storage.parent / ".locks" / self.storage.name / f"{file.etag}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, thread_local=False)
        while not lock.is_locked:
            if self.stop.is_set():
                return
            try:
                lock.acquire(timeout=1)
            except Timeout:
                self.pulse.at_work()
        self.locks.append(lock)
        try:
            if blob.exists():
                self.bar.update(file.size)
            elif self._complete(url, file, partial):
                os.replace(partial, blob)
        finally:
            lock.release()

    def _complete(self, url: str, file: RemoteFile, partial: Path) -> bool:
        """Bring ``partial`` to its whole length and check it; False where it was stopped."""
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
        size = self._hash_present(partial, file.size, digest)
        self.bar.update(size)
        failures = 0
        while size < file.size:
            before = size
            try:
                _append(url, partial, size, file.size, digest, self)
                if self.stop.is_set():
                    return False
                reason: Exception = ConnectionError(f"{url} ended early")
            except http_library().HTTPError as error:
                if not _worth_a_retry(error):
                    raise
                reason = error
            size = partial.stat().st_size if partial.exists() else 0
            # A connection that brought bytes was a good one: only fruitless attempts count.
            failures = 0 if size > before else failures + 1
            if failures >= ATTEMPTS:
                raise reason
            if failures and self.stop.wait(0.1 * 4**failures):
                return False
        if digest.hexdigest() != file.etag:
            partial.unlink(missing_ok=True)
            raise OSError(f"{file.name} arrived damaged: its hash is {digest.hexdigest()}, expected {file.etag}")
        partial.touch()  # an empty file brings no byte that would make it
        return True

    def _hash_present(self, partial: Path, size: int, digest: Any) -> int:
        """Feed what an earlier run left into ``digest`` and return its length; too long a file is dropped."""
        if not partial.exists():
            return 0
        if partial.stat().st_size > size:
            partial.unlink()
            return 0
        with partial.open("rb") as handle:
            while (chunk := handle.read(_CHUNK)) and not self.stop.is_set():
                digest.update(chunk)
                self.pulse.at_work()
        return partial.stat().st_size


def link_snapshot(storage: Path, commit: str, files: Iterable[RemoteFile]) -> None:
    """Give the blobs of ``files`` their names in the snapshot of ``commit``, as the Hub library does.

    Raises:
        ValueError: a name that leaves the snapshot.
    """
    folder = storage / "snapshots" / commit
    for file in files:
        path = folder / check_relative_name(file.name)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = storage / "blobs" / file.etag
        # Under a name of its own first: two processes may link at once.
        draft = path.with_name(f".{file.etag}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            draft.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a file system without links
            shutil.copyfile(blob, draft)
        os.replace(draft, path)


def _worth_a_retry(error: Exception) -> bool:
    """A broken connection or a busy server may be gone the next time; any other answer stays what it is."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 429) or response.status_code >= 500


def _append(url: str, partial: Path, start: int, total: int, digest: Any, transfer: _Transfer) -> None:
    """Ask for the bytes from ``start`` on and append what comes, until the end, a broken connection or a stop."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT) as response:
        hf_raise_for_status(response)
        # A server that ignores the range sends the file from its beginning.
        skip = start if response.status_code == 200 else 0
        size = start
        with partial.open("ab") as out:
            # iter_raw hands bytes on as they come, so that none is lost in a buffer when the line breaks.
            for chunk in response.iter_raw():
                if transfer.stop.is_set():
                    return
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                size += len(fresh)
                if size > total:
                    raise OSError(f"{url} sent more than the {total} bytes it announced")
                out.write(fresh)
                digest.update(fresh)
                transfer.arrived(len(fresh))
