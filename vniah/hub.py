"""Downloads from the Hugging Face Hub: the local cache first, then the Hub; the caller decides what comes third.

Files land in the ordinary Hub cache, where ``transformers`` and ``datasets`` find them too. Endpoint and cache
folder are read from the environment at each call. Knows nothing about needles, models or tasks.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vniah.deadline import within
from vniah.files import check_relative_name
from vniah.hub_errors import HubUnreachableError, RepositoryMissingError, hub_endpoint, plain_errors

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

__all__ = [
    "MODEL_FILES",
    "HubUnreachableError",
    "RepositoryMissingError",
    "cached_snapshot",
    "fetch_dataset",
    "fetch_model",
    "fetch_snapshot",
    "hub_cache_dir",
    "hub_endpoint",
    "is_offline",
]

RepoType = Literal["model", "dataset"]

# What a checkpoint needs. Pickle files (.bin, .pt, .ckpt) run code when loaded and are never fetched.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Seconds to wait for the Hub's first answer; the Hub library alone may wait without end.
ANSWER_TIMEOUT = 10.0
# Seconds for a whole listing, and the most files of one.
LISTING_TIMEOUT = 60.0
_MAX_FILES = 1_000_000
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. ``sha256`` is set where the Hub stores it as a large file, else ``git_oid`` counts."""

    name: str
    size: int
    git_oid: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """The name of the file's blob in the Hub cache."""
        return self.sha256 or self.git_oid


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit; every name has been checked to stay inside its folder."""

    commit: str
    files: tuple[RemoteFile, ...]

    def matching(self, allow_patterns: Sequence[str] | None) -> tuple[RemoteFile, ...]:
        return tuple(file for file in self.files if _matches(file.name, allow_patterns))


def hub_cache_dir() -> Path:
    """The Hub cache as the environment names it: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        named = str(Path(home) / "hub")
    return Path(os.path.expandvars(named)).expanduser()


def is_offline() -> bool:
    """Whether the user forbids network calls by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


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

    cache = cache_dir or hub_cache_dir()
    try:
        found = snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(allow_patterns) if allow_patterns else None,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    try:
        # The call above has compared the snapshot with this listing, if there is one.
        get_cached_repo_tree(repo_id, repo_type=repo_type, revision=folder.name, cache_dir=cache)
    except CachedRepoTreeNotFoundError:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return folder if not known_whole and any(_matches(name, allow_patterns) for name in names) else None
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
        repo_id: ``owner/name``.
        revision: branch, tag or commit; the default branch if None.
        allow_patterns: file name patterns to fetch; all files if None.
        refresh: ask the Hub for a newer revision even if the cache has one.
        progress: show progress bars.

    Raises:
        HubUnreachableError: no answer and not in the cache.
        RepositoryMissingError: no such repository or revision, or none that this user may read.
        ValueError: a malformed ``repo_id``, or a file name in the repository that would leave its folder.
        OSError: the disk is too small, or a file arrived damaged.
    """
    cache = cache_dir or hub_cache_dir()
    if not refresh:
        found = cached_snapshot(repo_id, repo_type, revision, allow_patterns=allow_patterns, cache_dir=cache)
        if found is not None:
            return found
    try:
        listing = list_files(repo_id, repo_type, revision)
    except HubUnreachableError:
        found = cached_snapshot(
            repo_id, repo_type, revision, allow_patterns=allow_patterns, cache_dir=cache, known_whole=False
        )
        if found is None or refresh:
            raise
        return found
    wanted = listing.matching(allow_patterns)
    storage = _storage(cache, repo_type, repo_id)
    missing = [file for file in wanted if not (storage / "blobs" / file.etag).exists()]
    _check_room(cache, repo_id, sum(file.size for file in missing))

    from huggingface_hub import snapshot_download

    from vniah.hub_resume import fetch_blobs, link_snapshot

    def complete() -> str:
        # All files are there: the library asks the Hub for its listing once more and notes that this is whole.
        return snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(allow_patterns) if allow_patterns else None,
            endpoint=hub_endpoint(),
        )

    with plain_errors(repo_id, repo_type, revision):
        # The Hub library starts a broken file anew, which costs gigabytes for a checkpoint, and checks no hash. So the
        # files are fetched first, to where that library looks before it downloads.
        fetch_blobs(repo_id, repo_type, listing.commit, missing, storage, hub_endpoint(), progress=progress)
        link_snapshot(storage, listing.commit, wanted)
        with _progress_bars(progress):
            snapshot = within(LISTING_TIMEOUT, complete)
    if Path(snapshot).name != listing.commit:
        raise HubUnreachableError(f"{repo_id} changed on {hub_endpoint()} while it was fetched; run it again")
    return Path(snapshot)


def fetch_dataset(repo_id: str, revision: str | None = None, **options: object) -> Path:
    """``fetch_snapshot`` of a dataset repository."""
    return fetch_snapshot(repo_id, "dataset", revision, **options)  # type: ignore[arg-type]


def fetch_model(
    repo_id: str,
    revision: str | None = None,
    *,
    cache_dir: Path | None = None,
    refresh: bool = False,
    progress: bool = True,
) -> Path:
    """A checkpoint's safetensors, configuration and tokenizer files.

    Raises:
        ValueError: the repository has no safetensors weights (pickle files are refused).
    """
    folder = fetch_snapshot(
        repo_id, revision=revision, allow_patterns=MODEL_FILES, cache_dir=cache_dir, refresh=refresh, progress=progress
    )
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(
            f"{repo_id} has no *.safetensors weights; pickle weights ({', '.join(_PICKLES)}) can run code and are "
            "not read. Convert them first, or name another revision"
        )
    return folder


def list_files(repo_id: str, repo_type: RepoType = "model", revision: str | None = None) -> Listing:
    """The files of a repository, as the Hub lists them.

    Raises:
        HubUnreachableError, RepositoryMissingError: as in ``fetch_snapshot``.
        ValueError: a name that would leave its folder.
    """
    if is_offline():
        raise HubUnreachableError(
            f"{repo_id} is not in the cache at {hub_cache_dir()} and HF_HUB_OFFLINE is set; unset it, or run "
            f"`vniah download {repo_id}` where there is a network"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=hub_endpoint())
    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or ANSWER_TIMEOUT)
    try:
        with plain_errors(repo_id, repo_type, revision):
            info = within(
                3 * timeout, lambda: api.repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=timeout)
            )
            commit = str(info.sha)
            tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
            entries = within(LISTING_TIMEOUT, lambda: list(itertools.islice(tree, _MAX_FILES + 1)))
        files = [_remote_file(entry) for entry in entries if isinstance(entry, RepoFile)]
    except HFValidationError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HubUnreachableError(
            f"{hub_endpoint()} lists {repo_id} in a form that is not the Hub's ({type(error).__name__}: "
            f"{str(error)[:100]}); check HF_ENDPOINT"
        ) from None
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or len(entries) > _MAX_FILES:
        raise HubUnreachableError(
            f"{hub_endpoint()} names {commit[:50]!r} as the commit of {repo_id}, or more than {_MAX_FILES:,} files; "
            "check HF_ENDPOINT"
        )
    for entry in entries:
        try:
            check_relative_name(entry.path)
        except ValueError as error:
            raise ValueError(f"{repo_id} on {hub_endpoint()}: {error}; nothing was downloaded") from None
    return Listing(commit, tuple(files))


def _remote_file(entry: RepoFile) -> RemoteFile:
    """One file of a listing.

    Raises:
        TypeError: its size or hash is none.
    """
    file = RemoteFile(entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
    if not isinstance(file.size, int) or file.size < 0 or not isinstance(file.etag, str):
        raise TypeError(f"{file.name!r} has the size {file.size!r} and the hash {file.etag!r}")
    return file


def _matches(name: str, allow_patterns: Sequence[str] | None) -> bool:
    return allow_patterns is None or any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)


def _storage(cache: Path, repo_type: str, repo_id: str) -> Path:
    return cache / "--".join([f"{repo_type}s", *repo_id.split("/")])


def _check_room(cache: Path, repo_id: str, needed: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise OSError(
            f"{repo_id} needs {needed / 1e9:.1f} GB, but {cache} has {free / 1e9:.1f} GB free; "
            "make room or set HF_HOME to a larger disk"
        )


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
