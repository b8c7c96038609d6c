"""What users hand over as images and videos, opened: RGB images, and frames that are sampled evenly.

Knows nothing about tokens or tiles. A *source* is a PIL image, an array, or a file's path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from longva_model.pictures.preprocess import check_frames
from vniah.contract.sources import HeldFrames
from vniah.files import user_path
from vniah.haystack.opening import open_video
from vniah.haystack.pictures import open_image, to_rgb

DEFAULT_NUM_FRAMES = 32  # of a video file


class ArrayFrames(HeldFrames):
    """A user's array of frames, uint8 (N, H, W, 3), known by its content."""

    def __init__(self, frames_NHWC: NDArray[np.uint8]) -> None:
        check_frames(frames_NHWC)
        digest = hashlib.sha256(str(frames_NHWC.shape).encode())
        for frame in frames_NHWC:
            digest.update(np.ascontiguousarray(frame).data)
        super().__init__(frames_NHWC, "array:" + digest.hexdigest()[:32])

    @property
    def pixels_in_memory(self) -> int:
        return self._frames.size // 3


def sample_indices(total: int, count: int) -> list[int]:
    """``count`` frames evenly over ``total``, first and last included; each frame once when there are fewer.

    As in the released code (reference section 1): ``linspace``, rounded down.
    """
    return [int(index) for index in np.linspace(0, total - 1, min(count, total), dtype=int)]


def load_image(source: Any) -> Image.Image:
    """An image as 8-bit RGB, upright.

    Args:
        source: PIL image of any mode, uint8 array (H, W) or (H, W, 3 or 4), or a path or URL.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, or a corrupt one, or an array of another shape or type.
    """
    if isinstance(source, (str, Path)):
        text, path = str(source), user_path(source)
        if not text.startswith(("http://", "https://", "data:")) or path.is_file():
            return open_image(path)
        from transformers.image_utils import load_image as fetch

        try:
            return to_rgb(fetch(text))
        except UnidentifiedImageError as error:
            raise ValueError(f"{text[:200]} is no image that PIL can read") from error
    if isinstance(source, Image.Image):
        return to_rgb(source)
    array = _as_array(source)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"an image must be a PIL image, a uint8 array or a path, got {type(source).__name__}")
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or 0 in array.shape
        or array.shape[2:] not in ((), (3,), (4,))
    ):
        raise ValueError(
            f"an image array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} of shape "
            f"{array.shape}"
        )
    return to_rgb(Image.fromarray(array))


def load_frames(source: Any, num_frames: int | None = None) -> NDArray[np.uint8] | list[Image.Image]:
    """A video as frames.

    Args:
        source: uint8 (N, H, W, 3), a list of images, anything with ``frames(start, stop)`` and a length, or the
            path of a video file.
        num_frames: evenly many of them (``sample_indices``). Unless given, all of them, but 32 of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no frames, or frames of another shape or type.
    """
    is_file = isinstance(source, (str, Path))
    source = open_video(source, num_frames or DEFAULT_NUM_FRAMES) if is_file else _as_array(source)
    by_index = hasattr(source, "frames")
    if not by_index:
        if not isinstance(source, (np.ndarray, list, tuple)):
            given = type(source).__name__
            raise ValueError(f"a video must be uint8 (N, H, W, 3), a list of images or a path, got {given}")
        check_frames(source)
    indices = sample_indices(len(source), len(source) if num_frames is None else num_frames)
    if isinstance(source, (list, tuple)):
        return [load_image(source[index]) for index in indices]
    if len(indices) == len(source):
        return source.frames(0, len(source)) if by_index else source
    return np.concatenate([source.frames(i, i + 1) for i in indices]) if by_index else source[indices]


def _as_array(source: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return source.cpu().numpy() if hasattr(source, "numpy") and not isinstance(source, np.ndarray) else source
