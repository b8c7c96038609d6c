"""Where a video benchmark's annotations and videos come from: a local folder by environment, else the Hub.

A local folder is taken as it is and nothing is downloaded for it that it has. From the Hub, archives are
unpacked safely below the cache folder; what lmms-eval's own task has unpacked before is used first. What
cannot be had is reported and counted by the caller; only "nothing at all" is an error.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vniah.files import read_json, read_json_lines, user_path
from vniah.hub import HubUnreachableError, RepositoryMissingError, fetch_dataset
from vniah.notices import printable
from vniah.tasks.videos.archives import unpack_archives
from vniah.tasks.videos.files import VideoFolders, VideoInfo, VideoReport, Wanted, find_videos
from vniah.visual.settings import cache_dir

_log = logging.getLogger(__name__)
_FAILURE_KEPT_S = 30.0
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """One benchmark's places.

    Attributes:
        env: variable that names the local folder, such as VIDEOMME_VIDEOS.
        hub_id: data set on the Hub.
        annotations: patterns of the annotation files there.
        media: patterns of the archives and loose videos there.
        upstream: folder below HF_HOME into which lmms-eval's own task unpacks the same videos.
    """

    env: str
    hub_id: str
    annotations: tuple[str, ...] = ("*.parquet",)
    media: tuple[str, ...] = ("*.zip",)
    upstream: str = ""

    def key(self) -> tuple[str, ...]:
        """What the environment says of where things are: results may be remembered under it."""
        names = (self.env, "VNIAH_CACHE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
        return tuple(os.environ.get(name, "") for name in names)

    def local_folder(self) -> Path | None:
        """The folder that the environment names, if it names one.

        Raises:
            FileNotFoundError: it is not there.
        """
        named = os.environ.get(self.env, "").strip()
        if not named:
            return None
        folder = user_path(named)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{self.env} names {folder}, which is no folder; point it at the videos or unset it"
            )
        return folder

    def hub_annotations(self) -> list[Path]:
        """The annotation files of the Hub data set, from the cache if they are there.

        Raises:
            OSError: see ``vniah.hub.fetch_snapshot``; also when the data set has none.
        """
        snapshot = fetch_dataset(self.hub_id, allow_patterns=self.annotations, progress=False)
        files = matching(snapshot, self.annotations)
        if not files:
            raise FileNotFoundError(f"{self.hub_id} has no file like {' or '.join(self.annotations)}")
        return files

    def locate(self, wanted: Mapping[str, Wanted]) -> tuple[VideoReport, tuple[Path, ...]]:
        """Find the videos ``wanted`` (see ``find_videos``).

        Returns:
            The report, and the folders that were searched (subtitles lie there too).

        Raises:
            OSError: no local folder and the Hub gives nothing, or the disk is too small.
        """
        local = self.local_folder()
        if local is not None:
            return find_videos(VideoFolders([local]), wanted), (local,)
        home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
        roots = [home / self.upstream] if self.upstream and (home / self.upstream).is_dir() else []
        report = find_videos(VideoFolders(roots), wanted) if roots else None
        if report is not None and not report.missing:
            return report, tuple(roots)
        try:
            roots += self._from_hub()
        except (HubUnreachableError, RepositoryMissingError) as error:
            if report is None or not report.found:
                raise
            _log.warning("%s; going on with the videos in %s", printable(error), roots[0])
            return report, tuple(roots)
        return find_videos(VideoFolders(roots), wanted), tuple(roots)

    def _from_hub(self) -> list[Path]:
        """Fetch and unpack; the folders with the videos."""
        snapshot = fetch_dataset(self.hub_id, allow_patterns=self.media)
        archives = [path for path in matching(snapshot, self.media) if path.suffix in (".zip", ".tar", ".gz", ".tgz")]
        folders, problems = unpack_archives(archives, cache_dir() / "videos" / self.hub_id.replace("/", "--"))
        for problem in problems:
            _log.warning("%s: %s", self.hub_id, printable(problem))
        return [snapshot, *folders]


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below ``folder`` whose path ends as one of ``patterns`` says, pattern by pattern and sorted."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    found: list[Path] = []
    for pattern in patterns:
        found += [path for path in every if path.relative_to(folder).match(pattern) and path not in found]
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.parquet``, ``.jsonl`` or ``.json`` (a list of objects) file.

    Raises:
        ValueError: another kind of file, damaged, or not a list of objects.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows: Any = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            rows = [row for _, row in read_json_lines(path)]
        elif path.suffix == ".json":
            rows = read_json(path)
        else:
            raise ValueError("expected .parquet, .jsonl or .json")
    except ValueError as error:  # JSON, Unicode and Arrow errors are all of this kind
        raise ValueError(f"cannot read the annotations in {path}: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"the annotations in {path} are no list of objects")
    return rows


def first_of(row: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The first of several columns that a row has: data sets rename theirs between releases."""
    return next((row[name] for name in names if row.get(name) is not None), default)


def playable(
    questions: Sequence[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str], found: Mapping[str, VideoInfo]
) -> list[tuple[dict[str, Any], VideoInfo]]:
    """The questions whose video is ``found``, with their videos, grouped by video in the order of the first one.

    Grouped, because questions on one video share its prefix, which a model may compute once. Each row also
    carries the path (``video``) and how many videos and questions were left out (``missing_videos``,
    ``missing_questions``): lmms-eval hands an aggregation nothing but what the rows give.

    Args:
        label: the label of a question's video, as in the report.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, int] = {}
    for question in questions:
        if label(question) in found:
            groups.setdefault(label(question), []).append(dict(question))
        else:
            missing[label(question)] = missing.get(label(question), 0) + 1
    counts = {"missing_videos": len(missing), "missing_questions": sum(missing.values())}
    return [
        ({**row, "video": str(found[name].path.absolute()), **counts}, found[name])
        for name, rows in groups.items()
        for row in rows
    ]


def load_once(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Remember what ``function`` gives for its arguments; a failure is said once, plainly, and kept a while.

    lmms-eval calls what builds a task five times when it raises, and then shows an error that no longer
    says why. Opening hundreds of videos five times, or asking a dead Hub, would also take minutes.
    """
    results: dict[Any, _Result] = {}
    failures: dict[Any, tuple[float, Exception]] = {}

    @functools.wraps(function)
    def call(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        key = (args, tuple(sorted(kwargs.items())))
        if key in results:
            return results[key]
        if key in failures and time.monotonic() - failures[key][0] < _FAILURE_KEPT_S:
            raise failures[key][1]
        try:
            results[key] = function(*args, **kwargs)
        except (ValueError, OSError) as error:
            failures[key] = (time.monotonic(), error)
            _log.error("%s", printable(error))
            raise
        return results[key]

    return call
