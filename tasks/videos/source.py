"""A video benchmark's annotations and videos: where they come from, and which of its questions can be asked.

A local folder, named by the environment, is taken as it is and nothing is downloaded for it that it has. From the
Hub, archives are unpacked safely below the cache folder; what lmms-eval's own task has unpacked before is used first.

A video that is missing or broken is a line in a report and never an error: benchmarks of long videos lose files to
take-downs and broken downloads, and a run of hours must not end for one of them. Only "nothing at all" is an error.
Names come from data sets, so they are only ever looked up in the folders' own listing, never joined to a path.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, TypeAlias, TypeVar

from vniah.files import read_json, read_json_lines, user_path
from vniah.hub import HubUnreachableError, RepositoryMissingError, fetch_dataset
from vniah.notices import printable
from vniah.tasks.videos.archives import unpack_archives
from vniah.visual.settings import cache_dir

_log = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".ts")
# A name as an annotation gives it, and the names of parent folders to prefer.
Wanted: TypeAlias = tuple[str, Sequence[str]]
Question: TypeAlias = Mapping[str, Any]
_FAILURE_KEPT_S = 30.0
_Result = TypeVar("_Result")


class VideoInfo(NamedTuple):
    """A video that reads to its end: seconds from its first frame to the end of its last, and frames a second."""

    path: Path
    duration_s: float
    fps: float


class VideoReport(NamedTuple):
    """The outcome of looking for a benchmark's videos: each label is in one of the two."""

    found: Mapping[str, VideoInfo]
    missing: Mapping[str, str]

    def summary(self, limit: int = 10) -> str:
        """One line on what is missing and why; "" when nothing is."""
        if not self.missing:
            return ""
        shown = [f"{name} ({reason})" for name, reason in list(self.missing.items())[:limit]]
        if more := len(self.missing) - len(shown):
            shown.append(f"and {more} more")
        total = len(self.missing) + len(self.found)
        return printable(f"{len(self.missing)} of {total} videos missing or broken: {'; '.join(shown)}")


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
        """The folder that the environment names, if any; one that is not there is a FileNotFoundError."""
        named = os.environ.get(self.env, "").strip()
        if named and not user_path(named).is_dir():
            raise FileNotFoundError(
                f"{self.env} names {user_path(named)}, which is no folder; point it at the videos or unset it"
            )
        return user_path(named) if named else None

    def hub_annotations(self) -> list[Path]:
        """The annotation files of the Hub data set; an ``OSError`` as ``vniah.hub``'s where there are none."""
        files = matching(fetch_dataset(self.hub_id, allow_patterns=self.annotations, progress=False), self.annotations)
        if not files:
            raise FileNotFoundError(f"{self.hub_id} has no file like {' or '.join(self.annotations)}")
        return files

    def locate(self, wanted: Mapping[str, Wanted]) -> tuple[VideoReport, tuple[Path, ...]]:
        """What ``find_videos`` finds of ``wanted``, and the folders that were searched (subtitles lie there too).

        Raises:
            OSError: no local folder and the Hub gives nothing, or the disk is too small.
        """
        if local := self.local_folder():
            return find_videos(VideoFolders([local]), wanted), (local,)
        theirs = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / self.upstream
        roots = [theirs] if self.upstream and theirs.is_dir() else []
        report = find_videos(VideoFolders(roots), wanted)
        if roots and not report.missing:
            return report, tuple(roots)
        try:
            snapshot = fetch_dataset(self.hub_id, allow_patterns=self.media)
        except (HubUnreachableError, RepositoryMissingError) as error:
            if not report.found:
                raise
            _log.warning("%s; going on with the videos in %s", printable(error), roots[0])
            return report, tuple(roots)
        archives = [path for path in matching(snapshot, self.media) if path.suffix in (".zip", ".tar", ".gz", ".tgz")]
        folders, problems = unpack_archives(archives, cache_dir() / "videos" / self.hub_id.replace("/", "--"))
        for problem in problems:
            _log.warning("%s: %s", self.hub_id, printable(problem))
        roots += [snapshot, *folders]
        return find_videos(VideoFolders(roots), wanted), tuple(roots)

    def ask(
        self, part: str, questions: Sequence[Question], video_of: Callable[[Question], tuple[str, Wanted]]
    ) -> tuple[list[tuple[dict[str, Any], VideoInfo]], tuple[Path, ...]]:
        """The questions of ``part`` whose video is there, with their videos; and the folders that were searched.

        Grouped by video, because questions on one video share its prefix, which a model may compute once. Each row
        also carries the path (``video``) and how many videos and questions were left out (``missing_videos``,
        ``missing_questions``): lmms-eval hands an aggregation nothing but what the rows give.

        Args:
            video_of: the label of a question's video, and the video wanted (see ``find_videos``).

        Raises:
            ValueError: none is there.
            OSError: see ``locate``.
        """
        wanted = dict(map(video_of, questions))
        report, roots = self.locate(wanted)
        if report.missing:
            _log.warning("%s: %s", part, report.summary())
        if not report.found:
            raise ValueError(
                f"{part}: none of its {len(wanted)} videos is there; point {self.env} at a folder that has them"
            )
        groups: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            groups[video_of(question)[0]].append(question)
        lost = sum(len(group) for label, group in groups.items() if label in report.missing)
        counts = {"missing_videos": len(report.missing), "missing_questions": lost}
        rows = [
            ({**row, "video": str(info.path.absolute()), **counts}, info)
            for label, group in groups.items()
            if (info := report.found.get(label))
            for row in group
        ]
        return rows, roots


class VideoFolders:
    """A listing of the videos below some folders, earlier folders first. One that is not there is an error."""

    def __init__(self, roots: Iterable[Path]) -> None:
        # By path as it is, with and without what tells the kind of container; by path without kind and letter case;
        # by name alone; by name without letter case.
        self._places: list[dict[str, list[Path]]] = [defaultdict(list) for _ in range(4)]
        for root in roots:
            if not root.is_dir():
                raise FileNotFoundError(f"no folder of videos at {root}; name one that exists")
            for path in _video_files(root):
                below = path.relative_to(root)
                self._places[0][below.as_posix()].append(path)
                for places, key in zip(self._places, _keys(below.with_suffix("")), strict=True):
                    places[key].append(path)

    def __len__(self) -> int:
        return len(self._places[1])

    def find(self, name: str, folders: Sequence[str] = ()) -> Path:
        """The file that an annotation calls ``name``, with or without a folder and an extension.

        Args:
            name: as in "zoo/abc.mp4" or "abc". A file of this very name comes first; without one, letter case and
                the kind of container do not matter.
            folders: names of parent folders to prefer where several files bear the name.

        Raises:
            ValueError: no such file, several, or a name that points out of the folders; says which.
        """
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise ValueError("its name would leave the folder of videos")
        stem = pure.with_suffix("") if pure.suffix.casefold() in VIDEO_SUFFIXES else pure
        exact = self._places[0].get(pure.as_posix()) or self._places[0].get(stem.as_posix())
        if exact:
            return exact[0]
        found = (places.get(key) for places, key in zip(self._places, _keys(stem), strict=True))
        candidates = next(filter(None, found), [])
        if len(candidates) > 1:
            wanted = {folder.casefold() for folder in (*folders, *pure.parent.parts)}
            candidates = [path for path in candidates if path.parent.name.casefold() in wanted] or candidates
        # The same file reached through two roots is one file.
        distinct = {path.resolve(): path for path in reversed(candidates)}
        if not distinct:
            raise ValueError("not found")
        if len(distinct) > 1:
            raise ValueError(f"{len(distinct)} files bear that name, such as {candidates[0]} and {candidates[1]}")
        return next(iter(distinct.values()))


def _keys(stem: PurePath) -> tuple[str, str, str, str]:
    return stem.as_posix(), stem.as_posix().casefold(), stem.name, stem.name.casefold()


def _video_files(root: Path) -> list[Path]:
    """Video files below ``root`` in a fixed order. Follows links (video folders often are), but in no circle."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found.extend(Path(folder, name) for name in sorted(files) if name.casefold().endswith(VIDEO_SUFFIXES))
    return found


def probe(path: Path) -> VideoInfo:
    """See that a video reads from its first frame to its last, by the timeline that a haystack is made of.

    A download that broke off may have a whole header, which promises frames that are not there, and would fail hours
    later. A hole in the middle is none of its business: a prompt's video is shown as far as it decodes.

    Raises:
        ValueError: it does not open, has no pictures, or ends before its header says.
    """
    from vniah.haystack.timeline import TruncatedVideoError, read_timeline
    from vniah.haystack.video import PromptVideo

    try:
        timeline = read_timeline(path)
        PromptVideo(path, 1)  # decodes a frame
    except TruncatedVideoError as error:
        told = "it ends before its header says" if error.frames else "it does not open"
        raise ValueError(f"{told}: {error}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"it does not open: {getattr(error, 'strerror', None) or error}") from None
    return VideoInfo(path=path, duration_s=timeline.seconds, fps=float(timeline.rate))


def find_videos(folders: VideoFolders, wanted: Mapping[str, Wanted]) -> VideoReport:
    """Find and probe videos: a report by label, in the order of ``wanted``.

    Args:
        wanted: by whatever label the caller gives, the name and the parent folders to prefer (see
            ``VideoFolders.find``). Labels and not names, since a benchmark may use one name twice.
    """

    def outcome_of(function: Callable[..., _Result], *args: Any) -> _Result | str:
        try:
            return function(*args)
        except ValueError as error:
            return str(error)

    looked = {label: outcome_of(folders.find, *item) for label, item in wanted.items()}
    places = {label: path for label, path in looked.items() if isinstance(path, Path)}
    missing = {label: reason for label, reason in looked.items() if isinstance(reason, str)}
    # Names may differ by letter case alone: the file of one of them is not another's.
    owned = {path for label, path in places.items() if _bears(path, wanted[label][0])}
    for label, path in list(places.items()):
        if path in owned and not _bears(path, wanted[label][0]):
            missing[label] = f"not found ({places.pop(label).name} is another's)"
    # Probing waits on the disk more than on a core.
    with ThreadPoolExecutor(4) as pool:
        probed = dict(zip(places, pool.map(lambda path: outcome_of(probe, path), places.values()), strict=True))
    missing |= {label: reason for label, reason in probed.items() if isinstance(reason, str)}
    return VideoReport(
        found={label: info for label, info in probed.items() if isinstance(info, VideoInfo)},
        missing={label: missing[label] for label in wanted if label in missing},
    )


def _bears(path: Path, name: str) -> bool:
    """Whether the file is called so to the letter, but for the kind of container."""
    called = PurePosixPath(name.replace("\\", "/"))
    return called.name in (path.name, path.stem) or called.stem == path.stem


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files below ``folder`` whose path ends as one of ``patterns`` says, pattern by pattern and sorted."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    found = (path for pattern in patterns for path in every if path.relative_to(folder).match(pattern))
    return list(dict.fromkeys(found))


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


def doc_to_visual(doc: Question) -> list[str]:
    return [str(doc["video"])]


def count(items: Iterable[int]) -> int:
    """A count that every question carries."""
    return max(items)


def load_once(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Remember what ``function`` gives for its arguments; a failure is said once, plainly, and kept a while.

    lmms-eval calls what builds a task five times when it raises, and then shows an error that no longer
    says why. Opening hundreds of videos five times, or asking a dead Hub, would also take minutes.
    """
    once = functools.cache(function)
    failures: dict[Any, tuple[float, Exception]] = {}

    @functools.wraps(function)
    def call(*args: Hashable) -> _Result:
        if (failed := failures.get(args)) and time.monotonic() - failed[0] < _FAILURE_KEPT_S:
            raise failed[1]
        try:
            return once(*args)
        except (ValueError, OSError) as error:
            failures[args] = (time.monotonic(), error)
            _log.error("%s", printable(error))
            raise

    return call
