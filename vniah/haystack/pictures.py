"""Every image file is opened here, so that a haystack's frame, a needle, a prompt and a training sample look alike.

An image is 8-bit RGB, upright by its EXIF tag, its first picture where it is animated. Of 16 bits the upper 8 are
kept, CMYK and palettes are converted, and alpha is dropped and not blended, as in the original code: behind
transparent pixels stands the colour that the file stores there, which in most files is black. Profiles are not
applied. What has no scale (32-bit and floating-point grey) is refused.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vniah.notices import notice

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

# Picture formats, and none of those that PIL hands to a program (EPS) or takes for one (WMF).
_SUFFIXES_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
FORMATS = tuple(_SUFFIXES_OF)
# By which a file is known as a picture before it is opened, in lower case.
IMAGE_SUFFIXES = tuple(suffix for suffixes in _SUFFIXES_OF.values() for suffix in suffixes)
# Above it PIL warns of a bomb: 1 GiB / 4 / 3. Decoding so many takes about half a gigabyte.
MAX_PIXELS = 89_478_485

_EXIF_ORIENTATION = 0x0112
_lock = threading.Lock()
_within = 0
_told_before = False


class UnreadableImageError(ValueError):
    """A picture that cannot be shown; ``reason`` is the sentence without its subject."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} {reason}")
        self.reason = reason


@contextmanager
def whole_images() -> Iterator[None]:
    """Within it, PIL raises on a file that ends early.

    lmms-eval tells PIL, for the whole process, to fill what a truncated file lacks with grey: a needle could
    be half missing and nobody would know. Threads that overlap share one change, undone by the last to leave.
    """
    from PIL import ImageFile

    global _within, _told_before
    with _lock:
        if not _within:
            _told_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                ImageFile.LOAD_TRUNCATED_IMAGES = _told_before


def open_image(source: str | Path | bytes, what: str = "") -> Image.Image:
    """A picture as 8-bit RGB; see the module's docstring for each kind.

    Args:
        source: a file, or its content.
        what: what to call it in an error; the path unless given.

    Raises:
        FileNotFoundError: no such file.
        UnreadableImageError: not a picture of ``FORMATS``, more than ``MAX_PIXELS``, corrupt or cut short, or of a kind
            without a scale.
    """
    what = what or ("an image" if isinstance(source, bytes) else str(source))
    with _opened(source, what) as image:
        if _moves(image):
            notice(f"{what} is animated; its first picture is shown")
        return to_rgb(image, what)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as ``open_image`` shows it, read from its header alone.

    Raises:
        FileNotFoundError, UnreadableImageError: see ``open_image``.
    """
    with _opened(path, str(path)) as image:
        width, height = image.size
        if image.format == "TIFF":  # whose size some versions of PIL have turned already
            width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
        # Asking a PNG for EXIF data that its header has not would read the whole image.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def is_picture(path: str | Path, *, still: bool = False) -> bool:
    """Whether a file's header is that of a picture; with ``still``, of one that does not move."""
    try:
        with _opened(path, str(path)) as image:
            return not (still and _moves(image))
    except (OSError, ValueError):
        return False


def image_notes(path: Path) -> tuple[str, ...]:
    """What ``open_image`` leaves out or changes of a picture, one line each."""
    with _opened(path, str(path)) as image:
        alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        notes = {
            "animated: the first picture is shown": _moves(image),
            "alpha is dropped and not blended: behind it stands the stored colour, often black": alpha,
            "16-bit grey: the upper 8 bits are kept": image.mode.startswith("I"),
            "CMYK is converted to RGB without a colour profile": image.mode == "CMYK",
        }
        return tuple(note for note, holds in notes.items() if holds)


@whole_images()
def to_rgb(image: Image.Image, what: str = "") -> Image.Image:
    """Any PIL image as 8-bit RGB; see the module's docstring.

    Of an image in memory, mode "I" counts as 16 bits where a value is above 255, and mode "F" as 8; a file says
    how many it has.

    Raises:
        UnreadableImageError: the file behind the image is truncated or corrupt, or its values have no scale.
    """
    from PIL import Image, ImageOps

    what = what or getattr(image, "filename", "") or "an image"
    kind = getattr(image, "format", None)
    if kind is not None and (image.mode == "F" or (image.mode == "I" and kind not in ("PNG", "PPM"))):
        values = "floating-point" if image.mode == "F" else "32-bit"
        reason = f"holds {values} values and does not say which is white; save it with 8 or 16 bits"
        raise UnreadableImageError(what, reason)
    # PIL turns a grey scale that begins with white round in 8 bits, and leaves it in 16.
    from_white = kind == "TIFF" and image.mode.startswith("I") and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    try:
        if kind == "PPM" and (levels := _deep_colours(image)) is not None:
            return Image.fromarray(levels)
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            levels = np.asarray(image)
            levels = 65535 - levels if from_white else levels
            if image.mode != "I" or kind is not None or levels.max(initial=0) > 255:
                image = Image.fromarray((levels.clip(0, 65535).astype(np.uint32) >> 8).astype(np.uint8))
        if isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # the same colours, without a warning of PIL's
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for some broken PNG files
        raise _corrupt(what, error) from error


def _deep_colours(image: Image.Image) -> NDArray[np.uint8] | None:
    """The upper 8 bits, (height, width, 3), of a PPM in colour with more than 8; None for any other.

    PIL rounds these to 8 bits, where it keeps the upper ones of every other format.
    """
    tile = image.tile[0] if getattr(image, "tile", None) else None  # type: ignore[attr-defined]
    if image.mode != "RGB" or tile is None or not isinstance(tile[3], tuple) or (most := tile[3][-1]) <= 255:
        return None
    file = image.fp  # type: ignore[attr-defined]
    file.seek(tile[2])
    count = image.width * image.height * 3
    if tile[0] == "ppm":
        levels = np.frombuffer(file.read(count * 2), ">u2")
    else:
        levels = np.array(re.sub(rb"#[^\r\n]*", b"", file.read()).split()[:count]).astype(np.int64)
    if len(levels) < count:
        raise ValueError("image file is truncated")
    if levels.min(initial=0) < 0 or levels.max(initial=0) > most:
        raise ValueError(f"a value beyond {most}")
    # What lies between is rounded, as PIL does with grey.
    whole = np.rint(levels.astype(np.float64) * 65535 / most).astype(np.uint32)
    upper: NDArray[np.uint8] = (whole >> 8).astype(np.uint8)
    return upper.reshape(image.height, image.width, 3)


@contextmanager
def _opened(source: str | Path | bytes, what: str) -> Iterator[Image.Image]:
    """A picture's header read and found to be within bounds."""
    from PIL import Image, UnidentifiedImageError

    formats = readable_formats()
    with whole_images():
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        except FileNotFoundError:
            raise FileNotFoundError(f"no image at {what}") from None
        except UnidentifiedImageError:
            raise UnreadableImageError(what, f"is no image that PIL can read as {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError as error:
            reason = f"cannot be opened ({error}); at most {MAX_PIXELS:,} pixels are read"
            raise UnreadableImageError(what, reason) from None
        except Exception as error:  # each format of PIL has errors of its own
            raise UnreadableImageError(what, f"is no image that PIL can read ({first_line(error)})") from None
        with image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise UnreadableImageError(what, f"has {size} pixels; at most {MAX_PIXELS:,} are read: scale it down")
            try:
                yield image
            except UnreadableImageError:
                raise
            except Exception as error:
                raise _corrupt(what, error) from error


def _corrupt(what: str, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(what, f"cannot be decoded ({first_line(error)}); it is corrupt or cut short")


def first_line(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _moves(image: Image.Image) -> bool:
    """Several pictures in one file. A telephone's photograph (MPO) has others beside it, but does not move."""
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


@functools.lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Those that this PIL has. They are imported one by one as they are needed."""
    from PIL import Image

    # PIL's warning of a large picture would stand beside the error that refuses it.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    without = () if importlib.util.find_spec("PIL.AvifImagePlugin") else ("AVIF",)
    return tuple(name for name in FORMATS if name not in without)
