"""Downloads from the Hugging Face Hub: the local cache first, then the Hub; the caller decides what comes third.

Files land in the ordinary Hub cache, where ``transformers`` and ``datasets`` find them too. Endpoint and cache
folder are read from the environment at each call. The Hub library lists, links and notes what is whole; files are
fetched here, since it keeps nothing of a file whose line broke, checks no hash, and waits for ever on a trickle.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vniah.files import check_relative_name, lock, put_in_place

RepoType = Literal["model", "dataset"]
_T = TypeVar("_T")

# What a checkpoint needs. Pickle files (.bin, .pt, .ckpt) run code when loaded and are never fetched.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# Seconds to wait for the Hub's first answer, for a whole listing, and for a read of a file.
ANSWER_TIMEOUT, LISTING_TIMEOUT, READ_TIMEOUT = 10.0, 60.0, 30.0
# Seconds without bytes worth the name, over all files, before a Hub counts as unreachable.
PAUSE = 60.0
# Attempts in a row that bring no new byte before we give up on a file.
ATTEMPTS = 5
_MAX_FILES = 1_000_000
# Bytes of an answer other than a file, and of one that came packed though asked not to: it may grow a thousandfold.
_MAX_BYTES, _MAX_PACKED = 64 << 20, 64 << 10
_PARALLEL = 4
_PLAIN = {"Accept-Encoding": "identity"}
# Held while the hooks of the Hub library's client are changed.
_HOOKS = threading.Lock()


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at a commit.

    ``digest``, its name in the cache, is a large file's SHA-256 or another's git blob hash.
    """

    path: str
    size: int
    digest: str = ""
    commit: str = ""


class HubUnreachableError(OSError):
    """The Hub did not answer, or offline mode is on, and the cache does not have what was asked for."""


class RepositoryMissingError(FileNotFoundError):
    """The Hub answered, and has no such repository or revision for this user."""


class NoRepositoryError(RepositoryMissingError):
    """No repository of that name, or none that this user may know of."""

    def __init__(self, kind: str, repo_id: str) -> None:
        super().__init__(
            f"no {kind} {repo_id!r} on {hub_endpoint()}, or none that you may read; check the name, "
            "or log in by `hf auth login` if it is private"
        )


class RevisionMissingError(RepositoryMissingError):
    """The repository is there, the revision is not."""


def hub_endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the public Hub."""
    from huggingface_hub import constants

    # ``constants.ENDPOINT`` is what HF_ENDPOINT was when the library was imported.
    return (os.environ.get("HF_ENDPOINT") or constants.HUGGINGFACE_CO_URL_HOME).rstrip("/")


def hub_cache_dir() -> Path:
    """The Hub cache as the environment names it: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        named = str(Path(home) / "hub")
    return Path(os.path.expandvars(named)).expanduser()


def is_offline() -> bool:
    """Whether the user forbids network calls by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    asked = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(answer in ("1", "ON", "YES", "TRUE") for answer in asked)


def cached_snapshot(
    repo_id: str,
    repo_type: RepoType = "model",
    revision: str | None = None,
    *,
    allow_patterns: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    known_whole: bool = True,
) -> Path | None:
    """The snapshot folder if the cache holds all of it; never touches the network.

    Libraries that fetch single files leave snapshots of which nobody knows what is lacking. Such a one does not
    count unless ``known_whole`` is False and it has a file that is asked for.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    where: dict[str, Any] = {"repo_type": repo_type, "cache_dir": cache_dir or hub_cache_dir()}
    patterns = list(allow_patterns) if allow_patterns else None
    try:
        found = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, local_files_only=True, **where)
        # The call above has compared the snapshot with this listing, if there is one.
        get_cached_repo_tree(repo_id, revision=(folder := Path(found)).name, **where)
    except LocalEntryNotFoundError:
        return None
    except CachedRepoTreeNotFoundError:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return folder if not known_whole and any(filter_repo_objects(names, allow_patterns=patterns)) else None
    return folder


def fetch_snapshot(
    repo_id: str,
    repo_type: RepoType = "model",
    revision: str | None = None,
    *,
    allow_patterns: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    refresh: bool = False,
    progress: bool = True,
) -> Path:
    """The folder of a repository's files, from the cache if it is whole there, else from the Hub.

    Args:
        revision: branch, tag or commit; the default branch if None.
        allow_patterns: file name patterns to fetch; all files if None.
        refresh: ask the Hub for a newer revision even if the cache has one.

    Raises:
        HubUnreachableError: no answer and not in the cache.
        RepositoryMissingError: no such repository or revision, or none that this user may read.
        ValueError: a malformed ``repo_id``, or a file name in the repository that would leave its folder.
        OSError: the disk is too small, or a file arrived damaged.
    """
    from huggingface_hub import hf_hub_url, snapshot_download
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
    from tqdm.auto import tqdm

    from vniah.runs.progress import Bar

    cache, patterns = cache_dir or hub_cache_dir(), list(allow_patterns) if allow_patterns else None
    wanted: dict[str, Any] = {"repo_type": repo_type, "revision": revision, "allow_patterns": patterns}
    wanted["cache_dir"] = cache
    if not refresh and (found := cached_snapshot(repo_id, **wanted)):
        return found
    try:
        commit, listed = _list_files(repo_id, repo_type, revision)
    except HubUnreachableError:
        if refresh or not (found := cached_snapshot(repo_id, known_whole=False, **wanted)):
            raise
        return found
    files = list(filter_repo_objects(listed, allow_patterns=patterns, key=lambda file: file.path))
    storage = cache / "--".join([f"{repo_type}s", *repo_id.split("/")])
    missing = {file.digest: file for file in files if not (storage / "blobs" / file.digest).exists()}
    needed = sum(file.size for file in missing.values())
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(cache).free):
        raise OSError(
            f"{repo_id} needs {needed / 1e9:.1f} GB, but {cache} has {free / 1e9:.1f} GB free; "
            "make room or set HF_HOME to a larger disk"
        )

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    def complete() -> Any:
        # All files are there: the library asks the Hub for its listing once more and notes that this is whole.
        return snapshot_download(repo_id, endpoint=hub_endpoint(), headers=_PLAIN, tqdm_class=Silent, **wanted)

    waiting, pulse = iter(missing.values()), Pulse(PAUSE)

    def fetch_some() -> None:
        for file in waiting:
            url = hf_hub_url(repo_id, file.path, repo_type=repo_type, revision=commit, endpoint=hub_endpoint())
            _fetch(file, url, storage, pulse)

    with _plain_errors(repo_id, repo_type, revision):
        with Bar(total=needed, unit="B", unit_scale=True, desc=repo_id, disable=not (progress and missing)) as bar:
            # Moved here alone: a thread that is stopped inside a bar leaves it locked.
            dead = f"hardly anything came for {PAUSE:g} s"
            _together([fetch_some] * _PARALLEL, pulse, dead, meanwhile=lambda: bar.update(pulse.came - bar.n))
        for file in files:
            _link(storage / "blobs" / file.digest, storage / "snapshots" / commit / file.path)
        snapshot = Path(_ask(LISTING_TIMEOUT, complete))
    if snapshot.name != commit:
        raise HubUnreachableError(f"{repo_id} changed on {hub_endpoint()} while it was fetched; run it again")
    return snapshot


def fetch_dataset(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """``fetch_snapshot`` of a dataset repository."""
    return fetch_snapshot(repo_id, "dataset", revision, **options)


def fetch_model(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """A checkpoint's safetensors, configuration and tokenizer files; options as ``fetch_snapshot``'s.

    Raises:
        ValueError: the repository has no safetensors weights (pickle files are refused).
    """
    folder = fetch_snapshot(repo_id, revision=revision, allow_patterns=MODEL_FILES, **options)
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(
            f"{repo_id} has no *.safetensors weights; pickle weights (*.bin, *.pt, *.pth, *.ckpt, *.pkl) can run code "
            "and are not read. Convert them first, or name another revision"
        )
    return folder


def list_files(repo_id: str, repo_type: RepoType = "model", revision: str | None = None) -> list[RemoteFile]:
    """All files of a repository, by one listing; raises what ``fetch_snapshot`` does."""
    return sorted(_list_files(repo_id, repo_type, revision)[1], key=lambda file: file.path)


def fetch_file(repo_id: str, repo_type: RepoType, file: RemoteFile) -> Path:
    """A file that ``list_files`` told of, from the cache, else by one request of the Hub; it is not listed again.

    Raises what ``fetch_snapshot`` does.
    """
    from huggingface_hub import hf_hub_url

    storage = hub_cache_dir() / "--".join([f"{repo_type}s", *repo_id.split("/")])
    path = storage / "snapshots" / file.commit / check_relative_name(file.path)
    if path.exists():
        return path
    blob, pulse = storage / "blobs" / file.digest, Pulse(PAUSE)
    if not blob.exists():
        if is_offline():
            raise HubUnreachableError(f"{repo_id}/{file.path} is not in the cache and HF_HUB_OFFLINE is set; unset it")
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repo_id, file.path, repo_type=repo_type, revision=file.commit, endpoint=hub_endpoint())
        with _plain_errors(repo_id, repo_type, file.commit):
            _together([lambda: _fetch(file, url, storage, pulse)], pulse, f"hardly anything came for {PAUSE:g} s")
    _link(blob, path)
    return path


def _list_files(repo_id: str, repo_type: RepoType, revision: str | None) -> tuple[str, list[RemoteFile]]:
    """The commit of a revision and its files: each name stays in its folder, each hash is fit to be a file's name.

    Raises:
        HubUnreachableError, RepositoryMissingError, ValueError: as in ``fetch_snapshot``.
    """
    if is_offline():
        raise HubUnreachableError(
            f"{repo_id} is not in the cache at {hub_cache_dir()} and HF_HUB_OFFLINE is set; unset it, or run "
            f"`vniah download {repo_id}` where there is a network"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.hf_api import RepoFile

    api, endpoint = HfApi(endpoint=hub_endpoint(), headers=_PLAIN), hub_endpoint()
    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_TIMEOUT)
    kind: dict[str, Any] = {"repo_type": repo_type}
    try:
        with _plain_errors(repo_id, repo_type, revision):
            info = _ask(3 * timeout, lambda: api.repo_info(repo_id, revision=revision, timeout=timeout, **kind))
            commit = str(info.sha)
            tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, **kind)
            entries = _ask(LISTING_TIMEOUT, lambda: list(itertools.islice(tree, _MAX_FILES + 1)))
        files = [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id, commit)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]
        if not re.fullmatch(r"[0-9a-f]{40}", commit) or len(entries) > _MAX_FILES:
            raise ValueError(f"{commit[:50]!r} as the commit, or more than {_MAX_FILES:,} files")
        for file in files:
            if file.size < 0 or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest):
                raise ValueError(f"{file.path!r} of {file.size} bytes with the hash {file.digest!r}")
    except HFValidationError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HubUnreachableError(
            f"{endpoint} lists {repo_id} in a form that is not the Hub's ({type(error).__name__}: "
            f"{str(error)[:100]}); check HF_ENDPOINT"
        ) from None
    try:
        for entry in entries:
            check_relative_name(entry.path)
    except ValueError as error:
        raise ValueError(f"{repo_id} on {endpoint}: {error}; nothing was downloaded") from None
    return commit, files


def _link(blob: Path, path: Path) -> None:
    """Give a blob its name in a snapshot, as the Hub library does."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of its own first: two processes may link at once.
    draft = path.with_name(f".{blob.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        draft.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, draft)
    os.replace(draft, path)


def _fetch(file: RemoteFile, url: str, storage: Path, pulse: Pulse) -> None:
    """Bring a file to ``storage/blobs``: go on where this or another process left it, check its hash, name it.

    Raises:
        OSError: it arrived damaged.
        The HTTP library's HTTPError: no more bytes arrive.
    """
    blob = storage / "blobs" / file.digest
    partial = blob.with_name(f"{blob.name}.resume")
    locks = storage.parent / ".locks" / storage.name
    locks.mkdir(parents=True, exist_ok=True)
    while (held := lock(locks / f"{partial.name}.lock")) is None:
        time.sleep(1)
        pulse.at_work()
    with held:
        if blob.exists():
            return
        partial.touch()
        if partial.stat().st_size > file.size:
            partial.write_bytes(b"")
        size, fruitless = partial.stat().st_size, 0
        pulse.bytes_came(size)
        while size < file.size:
            reason: Exception = ConnectionError(f"{url} ended early")
            try:
                _append(url, partial, size, file.size, pulse)
            except _http_library().HTTPError as error:
                # A broken connection or a busy server may be gone the next time; any other answer stays what it is.
                response = getattr(error, "response", None)
                if response is not None and response.status_code not in (408, 429) and response.status_code < 500:
                    raise
                reason = error
                for _ in range(_asked_to_wait(response)):
                    time.sleep(1)
                    pulse.at_work()
            before, size = size, partial.stat().st_size
            # A connection that brought bytes was a good one: only fruitless attempts count.
            fruitless = 0 if size > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise reason
            time.sleep(0.1 * 4**fruitless if fruitless else 0)
        digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
        with partial.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                pulse.at_work()
        if digest.hexdigest() != file.digest:
            partial.unlink()
            raise OSError(f"{file.path} arrived damaged: its hash is {digest.hexdigest()}, expected {file.digest}")
        put_in_place(partial, blob)


def _asked_to_wait(response: Any) -> int:
    """Seconds that a Hub which counts requests asks for by Retry-After, within its window of five minutes; else 0."""
    asked = "" if response is None else response.headers.get("retry-after", "")
    return min(int(asked), 300) if asked.isascii() and asked.isdigit() else 0


def _append(url: str, partial: Path, size: int, whole: int, pulse: Pulse) -> None:
    """Ask for the bytes from ``size`` on and append what comes, until the end or a broken connection."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), **_PLAIN, **({"Range": f"bytes={size}-"} if size else {})}
    with (
        _bounded_answers(but_files=True),
        get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT) as response,
    ):
        hf_raise_for_status(response)
        # A server that ignores the range sends the file from its beginning.
        with partial.open("ab" if response.status_code == 206 else "wb") as out:
            # iter_raw hands bytes on as they come, so that none is lost in a buffer when the line breaks.
            for chunk in response.iter_raw():
                out.write(chunk)
                if out.tell() > whole:
                    raise OSError(f"{url} sent more than the {whole} bytes it announced")
                pulse.bytes_came(len(chunk))


class Pulse:
    """Whether work of unknown length goes on: it may pause for ``pause_s`` seconds, and a trickle is a pause.

    Bytes that ``came`` buy the time that they may take at ``least_rate`` bytes a second.
    """

    def __init__(self, pause_s: float, least_rate: float = 1024.0) -> None:
        self._pause_s, self._least_rate = pause_s, least_rate
        self.came = 0
        self._lock = threading.Lock()
        self._until = time.monotonic() + pause_s

    def bytes_came(self, count: int) -> None:
        with self._lock:
            self.came += count
            self._until = min(time.monotonic() + self._pause_s, self._until + count / self._least_rate)

    def at_work(self) -> None:
        """Say that there is work other than waiting for bytes: hashing, or another process that writes the file."""
        with self._lock:
            self._until = time.monotonic() + self._pause_s

    @property
    def left_s(self) -> float:
        """Seconds until it counts as dead; negative then."""
        return self._until - time.monotonic()


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """What ``call()`` gives, or what it raises, within a limit on the whole: a byte now and then outlives a read's.

    Raises:
        TimeoutError: it took longer; it is stopped (see ``_together``).
    """
    return _together([call], Pulse(seconds), f"no whole answer within {seconds:g} s")[0]


def _together(
    calls: Sequence[Callable[[], _T]], pulse: Pulse, dead: str, meanwhile: Callable[[], object] = int
) -> list[_T]:
    """What the calls give, in any order, each in a thread of its own; what one of them raises ends all.

    A thread that is not waited for is stopped at its next step, so that it does not go on behind the back of later
    calls, whose connections it would share. Where it waits, it is left to wait: it ends when its line does, or with
    the process, which does not wait for it.

    Raises:
        TimeoutError: ``pulse`` died; says ``dead``.
    """
    done: dict[int, _T] = {}
    failed: dict[int, BaseException] = {}

    def run(number: int) -> None:
        try:
            done[number] = calls[number]()
        except BaseException as error:
            failed[number] = error

    # Daemons, since an executor's threads are waited for when the process ends.
    threads = [
        threading.Thread(target=run, args=(number,), daemon=True, name="within a deadline")
        for number in range(len(calls))
    ]
    try:
        for thread in threads:
            thread.start()
        while len(done) < len(calls) and not failed:
            if pulse.left_s < 0:
                raise TimeoutError(dead)
            for thread in threads:
                thread.join(0.02)
            meanwhile()
    finally:
        for number, thread in enumerate(threads):
            if number not in done and number not in failed:
                # What Python has for this: the exception is raised in that thread when it next runs Python code. It is
                # one that no library which tries again catches, and that a thread may end with in silence.
                stop = ctypes.py_object(SystemExit)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)
    meanwhile()
    if failed:
        raise next(iter(failed.values()))
    return list(done.values())


def _ask(seconds: float, call: Callable[[], _T]) -> _T:
    """``within``, for a call of the Hub library's that reads no file: its answers are bounded too."""
    return within(seconds, _bounded_answers()(call))


@contextlib.contextmanager
def _bounded_answers(*, but_files: bool = False) -> Iterator[None]:
    """Refuse endless answers to this thread: the Hub library reads whole whatever is no file, and every error.

    Raises:
        HubUnreachableError: in the call that reads the answer.
    """
    from huggingface_hub import get_session

    asker, client, stream_type = threading.get_ident(), get_session(), _http_library().SyncByteStream

    def bound(response: Any) -> None:
        if threading.get_ident() != asker or (but_files and response.is_success):
            return
        sent, path = response.stream, response.request.url.path[:100]
        most = _MAX_PACKED if response.headers.get("content-encoding", "identity") != "identity" else _MAX_BYTES

        class Bounded(stream_type):  # type: ignore[misc, valid-type]
            def __iter__(self) -> Iterator[bytes]:
                came = 0
                for chunk in sent:
                    if (came := came + len(chunk)) > most:
                        raise HubUnreachableError(
                            f"{hub_endpoint()} answered with more than {most:,} bytes for {path}; check HF_ENDPOINT"
                        )
                    yield chunk

            def close(self) -> None:
                sent.close()

        response.stream = Bounded()

    # New lists: another thread may be going through the present one.
    with _HOOKS:
        client.event_hooks["response"] = [*client.event_hooks["response"], bound]
    try:
        yield
    finally:
        with _HOOKS:
            client.event_hooks["response"] = [hook for hook in client.event_hooks["response"] if hook is not bound]


@contextlib.contextmanager
def _plain_errors(repo_id: str, repo_type: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub library's many exceptions into ours, each saying what to do."""
    from huggingface_hub import errors

    hub, what = hub_endpoint(), f"{repo_type} {repo_id!r}"
    again = "check the network or HF_ENDPOINT and run it again: what has arrived is kept"
    try:
        yield
    except errors.GatedRepoError:
        raise RepositoryMissingError(
            f"{repo_id} is gated: accept its terms on {hub}/{repo_id}, then log in by `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NoRepositoryError(repo_type, repo_id) from None
    except errors.RevisionNotFoundError:
        raise RevisionMissingError(f"{what} has no revision {revision!r}") from None
    except errors.HfHubHTTPError as error:
        raise HubUnreachableError(f"{hub} answered {error.response.status_code} for {what}; {again}") from None
    except (RecursionError, OverflowError, UnicodeDecodeError, json.JSONDecodeError):
        raise HubUnreachableError(f"{hub} answered with no JSON that can be used for {what}; {again}") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        _http_library().HTTPError,
        TimeoutError,
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise HubUnreachableError(f"{hub} gave no answer for {what} ({reason}); {again}") from None


def _http_library() -> Any:
    """The HTTP library that this version of ``huggingface_hub`` is built on (httpx, or its successor)."""
    from huggingface_hub import get_session

    return importlib.import_module(type(get_session()).__module__.partition(".")[0])
