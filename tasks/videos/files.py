"""Videos of a benchmark on disk: find each by the name its annotation gives, and see that it opens.

A video that is missing or broken is a row in a report and never an error: benchmarks of long videos
lose files to take-downs and broken downloads, and a run of hours must not end for one of them. Names
come from data sets, so they are only ever looked up in the folders' own listing, never joined to a path.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from vniah.notices import printable

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".ts")
# A name as an annotation gives it, and the names of parent folders to prefer.
Wanted: TypeAlias = tuple[str, Sequence[str]]
# Probing waits on the disk more than on a core.
_PROBES_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """A video that reads to its end: seconds from its first frame to the end of its last, and frames a second."""

    path: Path
    duration_s: float
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReport:
    """The outcome of looking for a benchmark's videos: each label is in one of the two."""

    found: Mapping[str, VideoInfo] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def summary(self, limit: int = 10) -> str:
        """One line on what is missing and why; "" when nothing is."""
        if not self.missing:
            return ""
        shown = [f"{name} ({reason})" for name, reason in list(self.missing.items())[:limit]]
        more = len(self.missing) - len(shown)
        total = len(self.missing) + len(self.found)
        told = "; ".join(shown + ([f"and {more} more"] if more > 0 else []))
        return printable(f"{len(self.missing)} of {total} videos missing or broken: {told}")


class VideoFolders:
    """A listing of the videos below some folders, earlier folders first.

    Raises:
        FileNotFoundError: a folder that is not there; names it.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = tuple(roots)
        self._paths: dict[str, Path] = {}  # by the name itself, with and without what tells the kind of container
        self._folded: dict[str, dict[Path, None]] = defaultdict(dict)  # by path, letter case and kind put aside
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for root in self.roots:
            if not root.is_dir():
                raise FileNotFoundError(f"no folder of videos at {root}; name one that exists")
            for path in _video_files(root):
                below = path.relative_to(root)
                for name in (below, below.with_suffix("")):
                    self._paths.setdefault(name.as_posix(), path)
                self._folded[below.with_suffix("").as_posix().casefold()].setdefault(path)
                self._by_stem[path.stem.casefold()].append(path)

    def __len__(self) -> int:
        return len(self._folded)

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
        exact = self._paths.get(pure.as_posix()) or self._paths.get(stem.as_posix())
        if exact is not None:
            return exact
        candidates = list(self._folded.get(stem.as_posix().casefold(), ()))
        if not candidates:
            candidates = self._by_stem.get(stem.name.casefold(), [])
            candidates = [path for path in candidates if path.stem == stem.name] or candidates
        if len(candidates) > 1:
            wanted = {folder.casefold() for folder in (*folders, *pure.parent.parts)}
            near = [path for path in candidates if path.parent.name.casefold() in wanted]
            candidates = near or candidates
        # The same file reached through two roots is one file.
        distinct = {path.resolve(): path for path in reversed(candidates)}
        if not distinct:
            raise ValueError("not found")
        if len(distinct) > 1:
            raise ValueError(f"{len(distinct)} files bear that name, such as {candidates[0]} and {candidates[1]}")
        return next(iter(distinct.values()))


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

    This catches a download that broke off: its header may be whole and promise frames that are not there, which
    would fail hours later in the middle of a run. A hole in the middle is none of its business: a prompt's video is
    shown as far as it decodes.

    Raises:
        ValueError: it does not open, has no pictures, or ends before its header says.
    """
    from vniah.haystack.timeline import TruncatedVideoError, read_timeline
    from vniah.haystack.video import PromptVideo

    try:
        timeline = read_timeline(path)
        PromptVideo(path, 1)  # decodes a frame
    except TruncatedVideoError as error:
        raise ValueError(
            f"it ends before its header says: {error}" if error.frames else f"it does not open: {error}"
        ) from None
    except (ValueError, OSError) as error:
        raise ValueError(f"it does not open: {getattr(error, 'strerror', None) or error}") from None
    return VideoInfo(path=path, duration_s=timeline.seconds, fps=float(timeline.rate))


def find_videos(folders: VideoFolders, wanted: Mapping[str, Wanted]) -> VideoReport:
    """Find and probe videos.

    Args:
        folders: where to look.
        wanted: by whatever label the caller gives, the name and the parent folders to prefer (see
            ``VideoFolders.find``). Labels and not names, since a benchmark may use one name twice.

    Returns:
        A report by label, in the order of ``wanted``.
    """
    places: dict[str, Path] = {}
    outcomes: dict[str, VideoInfo | str] = {}
    for label, item in wanted.items():
        try:
            places[label] = folders.find(*item)
        except ValueError as error:
            outcomes[label] = str(error)
    # Names may differ by letter case alone: the file of one of them is not another's.
    owned = {path for label, path in places.items() if _bears(path, wanted[label][0])}
    for label in [label for label, path in places.items() if path in owned and not _bears(path, wanted[label][0])]:
        outcomes[label] = f"not found ({places.pop(label).name} is another's)"

    def look(path: Path) -> VideoInfo | str:
        try:
            return probe(path)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        outcomes |= dict(zip(places, pool.map(look, places.values()), strict=True))
    outcomes = {label: outcomes[label] for label in wanted}
    return VideoReport(
        found={label: outcome for label, outcome in outcomes.items() if isinstance(outcome, VideoInfo)},
        missing={label: outcome for label, outcome in outcomes.items() if isinstance(outcome, str)},
    )


def _bears(path: Path, name: str) -> bool:
    """Whether the file is called so to the letter, but for the kind of container."""
    called = PurePosixPath(name.replace("\\", "/")).name
    return called in (path.name, path.stem) or PurePosixPath(called).stem == path.stem
