"""A folder of images as a haystack: one frame an image, in natural order of file names."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vniah.haystack.base import FrameHWC, Haystack, content_hash, file_hash
from vniah.haystack.pictures import FORMATS, IMAGE_SUFFIXES, UnreadableImageError, image_notes, image_size, open_image
from vniah.notices import notice

# What people keep beside pictures; any other file might have been meant as one.
_BESIDE_PICTURES = (".txt", ".json", ".md")
_NAMES_TOLD = 5


class FolderHaystack(Haystack):
    """Images directly in a folder, known by ``pictures.IMAGE_SUFFIXES``; hidden files and subfolders are not.

    All must have one size, since a film has; they are opened as ``pictures`` says. A file that is passed over
    and is no text beside them is said.

    Raises:
        ValueError: no images in it, one that cannot be read, a link to none, or two of different sizes (both are
            named).
    """

    kind, rule, fps = "images", "image", 1.0

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.paths = image_files(folder)
        self._length = len(self.paths)
        if not self.paths:
            raise ValueError(f"no images in {folder}; a haystack folder holds one image a frame ({', '.join(FORMATS)})")
        known = (*IMAGE_SUFFIXES, *_BESIDE_PICTURES)
        others = sorted((path.name for path in _files(folder) if path.suffix.casefold() not in known), key=_natural_key)
        if others:
            more = f" and {len(others) - _NAMES_TOLD:,} more" if len(others) > _NAMES_TOLD else ""
            told = ", ".join(others[:_NAMES_TOLD]) + more
            warning = f"files that are no pictures by their endings are passed over, {len(others):,} of them: {told}"
            self.warnings = (warning,)
            notice(f"{folder}: {warning}")
        self.size = _image_size(self.paths[0])
        for path in self.paths[1:]:
            if (size := _image_size(path)) != self.size:
                raise ValueError(
                    f"images of different sizes in {folder}: {self.paths[0].name} is {_wxh(self.size)} and "
                    f"{path.name} is {_wxh(size)}; resize them to one size"
                )

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        counts = Counter(note for path in self.paths for note in image_notes(path))
        return tuple(f"{count} of {len(self)} images: {note}" for note, count in counts.items())

    def _identify(self) -> str:
        """Hash of the files' bytes in frame order; their names matter only by that order."""
        return "images-" + content_hash([file_hash(path) for path in self.paths])

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for path in self.paths[start:stop]:
            try:
                frame_HWC = np.asarray(open_image(path))
            except (OSError, UnreadableImageError) as error:
                raise _unreadable(path, error) from None
            if frame_HWC.shape[:2] != self.size:
                raise _unreadable(path, f"it is {_wxh(frame_HWC.shape[:2])} and not {_wxh(self.size)} any more")
            yield frame_HWC


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order; also links that lead nowhere, which opening names."""
    found = (path for path in _files(folder) if path.suffix.casefold() in IMAGE_SUFFIXES)
    return sorted(found, key=lambda path: _natural_key(path.name))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())


def _natural_key(name: str) -> tuple[object, ...]:
    """Sort key by which ``frame_10`` follows ``frame_9``; the plain name decides between equals."""
    pieces = re.split(r"(\d+)", name.casefold())
    return (tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces), name)


def _image_size(path: Path) -> tuple[int, int]:
    if not path.is_file():
        link = path.is_symlink()
        raise _unreadable(path, f"it is a link to {path.readlink()}, where no file is" if link else "it is no file")
    try:
        return image_size(path)
    except (OSError, UnreadableImageError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception | str) -> ValueError:
    reason = f"it {error.reason}" if isinstance(error, UnreadableImageError) else error
    return ValueError(f"unreadable image {path}: {reason}; replace it or take it out of the folder")


def _wxh(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
