"""Large files from the Hub, resumed where they broke off, also by another process, and checked by their hash.

A file is written to ``blobs/<etag>.resume`` in the Hub cache and moved to ``blobs/<etag>`` once its hash is
right. That is where the Hub library looks first, so it then only links the file into the snapshot.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vniah.hub import RemoteFile

# Smaller files are left to the Hub library: fetching one again costs less than hashing and locking.
RESUME_FROM_BYTES = 8 << 20
# Attempts in a row that bring no new byte before we give up.
ATTEMPTS = 5
READ_TIMEOUT = 30.0
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
    min_bytes: int | None = None,
) -> None:
    """Fetch the large ones of ``files`` into ``storage/blobs``.

    Args:
        storage: the repository's folder in the Hub cache.
        min_bytes: fetch files from this size on; RESUME_FROM_BYTES if None.

    Raises:
        OSError: a file arrived damaged.
        The HTTP library's HTTPError: no more bytes arrive.
    """
    least = RESUME_FROM_BYTES if min_bytes is None else min_bytes
    # A blob is named after its hash, and that name comes from the server: only a hash is taken for a name.
    large = {f.etag: f for f in files if f.size >= least and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", f.etag)}
    if not large:
        return
    from huggingface_hub import hf_hub_url
    from tqdm import tqdm

    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in large.values())
    stop = threading.Event()
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=repo_id, disable=not progress) as bar,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        jobs = [
            pool.submit(
                _fetch_one,
                hf_hub_url(repo_id, file.name, repo_type=repo_type, revision=commit, endpoint=endpoint),
                file,
                storage,
                bar,
                stop,
            )
            for file in large.values()
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            # Leaving the pool waits for its threads: they must not finish gigabytes first, after ^C or an error.
            stop.set()
            for job in jobs:
                job.cancel()
            raise


def _fetch_one(url: str, file: RemoteFile, storage: Path, bar: Any, stop: threading.Event) -> None:
    from filelock import FileLock

    blob, partial = storage / "blobs" / file.etag, storage / "blobs" / f"{file.etag}.resume"
    # The lock that the Hub library takes for this blob, so that two programs do not write it at once.
    lock = storage.parent / ".locks" / storage.name / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if blob.exists():
            bar.update(file.size)
            return
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
        size = _hash_present(partial, file.size, digest)
        bar.update(size)
        failures = 0
        while size < file.size:
            before = size
            try:
                _append(url, partial, size, file.size, digest, bar, stop)
                if stop.is_set():
                    return
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
            if failures:
                time.sleep(0.1 * 4**failures)
        if digest.hexdigest() != file.etag:
            partial.unlink()
            raise OSError(f"{file.name} arrived damaged: its hash is {digest.hexdigest()}, expected {file.etag}")
        os.replace(partial, blob)


def _worth_a_retry(error: Exception) -> bool:
    """A broken connection or a busy server may be gone the next time; any other answer stays what it is."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 429) or response.status_code >= 500


def _hash_present(partial: Path, size: int, digest: Any) -> int:
    """Feed what an earlier run left into ``digest`` and return its length; too long a file is dropped."""
    if not partial.exists():
        return 0
    if partial.stat().st_size > size:
        partial.unlink()
        return 0
    with partial.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return partial.stat().st_size


def _append(url: str, partial: Path, start: int, total: int, digest: Any, bar: Any, stop: threading.Event) -> None:
    """Ask for the bytes from ``start`` on and append what comes, until the end, a broken connection or ``stop``."""
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
                if stop.is_set():
                    return
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                size += len(fresh)
                if size > total:
                    raise OSError(f"{url} sent more than the {total} bytes it announced")
                out.write(fresh)
                digest.update(fresh)
                bar.update(len(fresh))
