"""What users hand over as images and videos, sorted out: which visual goes to which prompt, as RGB frames.

Knows nothing about tokens or tiles. A *source* is a PIL image, an array, or a file's path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from longva_model.pictures.preprocess import check_frames
from vniah.files import user_path
from vniah.haystack.pictures import open_image, to_rgb

DEFAULT_NUM_FRAMES = 32  # of a video file
PLACEHOLDER = re.compile(r"<image>|<video>")


def load_image(source: Any) -> Image.Image:
    """An image as 8-bit RGB, upright.

    Args:
        source: PIL image of any mode, uint8 array (H, W) or (H, W, 3 or 4), or a path or URL.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, or a corrupt one, or an array of another shape or type.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        path = user_path(text)
        if text.startswith(("http://", "https://", "data:")) and not path.is_file():
            from transformers.image_utils import load_image as fetch

            try:
                return to_rgb(fetch(text))
            except UnidentifiedImageError as error:
                raise ValueError(f"{text[:200]} is no image that PIL can read") from error
        return open_image(path)
    if isinstance(source, np.ndarray) or hasattr(source, "numpy"):
        array = source if isinstance(source, np.ndarray) else source.cpu().numpy()
        colours_ok = array.shape[2:] in ((), (3,), (4,))
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape or not colours_ok:
            raise ValueError(
                f"an image array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} of shape "
                f"{array.shape}"
            )
        return to_rgb(Image.fromarray(array))
    if isinstance(source, Image.Image):
        return to_rgb(source)
    raise ValueError(f"an image must be a PIL image, a uint8 array or a path, got {type(source).__name__}")


def load_frames(source: Any, num_frames: int | None = None) -> NDArray[np.uint8] | list[Image.Image]:
    """A video as frames.

    Args:
        source: uint8 (N, H, W, 3), a list of images, anything with ``frames(start, stop)`` and a length, or the
            path of a video file.
        num_frames: evenly many of them, ``linspace(0, n - 1, num_frames)`` rounded down as the released code
            does. Unless given, all of them, but 32 of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no frames, or frames of another shape or type.
    """
    if isinstance(source, (str, Path)):
        from vniah.haystack.opening import open_video

        source = open_video(source, num_frames or DEFAULT_NUM_FRAMES)
    elif hasattr(source, "numpy") and not isinstance(source, np.ndarray):
        source = source.cpu().numpy()
    indices = None
    if num_frames is not None and len(source) > num_frames:
        indices = np.linspace(0, len(source) - 1, num_frames, dtype=int)
    if hasattr(source, "frames"):
        if indices is None:
            return source.frames(0, len(source))
        return np.concatenate([source.frames(int(i), int(i) + 1) for i in indices])
    if isinstance(source, np.ndarray):
        check_frames(source)
        return source if indices is None else source[indices]
    if not isinstance(source, (list, tuple)):
        raise ValueError(f"a video must be uint8 (N, H, W, 3), a list of images or a path, got {type(source).__name__}")
    check_frames(source)
    return [load_image(frame) for frame in (source if indices is None else [source[int(i)] for i in indices])]


def distribute(
    texts: Sequence[str], images: Sequence[Any] | None, videos: Sequence[Any] | None
) -> list[tuple[list[Any], list[Any], list[str]]]:
    """Give each prompt its visuals, in order.

    ``<video>`` stands for a video. ``<image>`` stands for an image, or for a video where there are no images,
    as in the released code.

    Args:
        texts: the prompts.
        images: one list for all prompts, or one list a prompt; None is none.
        videos: the same.

    Returns:
        For each prompt its images, its videos, and the kind ("image" or "video") of each placeholder.

    Raises:
        ValueError: placeholders and visuals that do not match in number, or a video without frames.
    """
    if len(texts) == 1 and any(isinstance(video, (list, tuple)) and not video for video in videos or ()):
        raise ValueError("an empty video: a list without frames was given")
    image_lists, video_lists = _per_prompt(images, len(texts), "images"), _per_prompt(videos, len(texts), "videos")
    found = [PLACEHOLDER.findall(text) for text in texts]
    if image_lists is None or video_lists is None:  # one list for several prompts: dealt out by placeholders
        flat_images, flat_videos = list(images or ()), list(videos or ())
        kinds = [_kinds(marks, bool(flat_images)) for marks in found]
        _check_counts([kind for sample in kinds for kind in sample], len(flat_images), len(flat_videos), len(texts))
        out = []
        for sample in kinds:
            counts = sample.count("image"), sample.count("video")
            out.append((flat_images[: counts[0]], flat_videos[: counts[1]], sample))
            del flat_images[: counts[0]], flat_videos[: counts[1]]
        return out
    out = []
    for marks, own_images, own_videos in zip(found, image_lists, video_lists, strict=True):
        sample = _kinds(marks, bool(own_images))
        _check_counts(sample, len(own_images), len(own_videos), 1)
        out.append((own_images, own_videos, sample))
    return out


def as_list_of_videos(videos: Any) -> list[Any] | None:
    """A single video (array, path, list of images) as a list of one; lists of videos as they are."""
    if videos is None:
        return None
    if not isinstance(videos, (list, tuple)):
        return list(videos) if getattr(videos, "ndim", 4) == 5 else [videos]
    first = videos[0] if videos else None
    is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 0) == 3
    return [videos] if is_frame else list(videos)


def _per_prompt(visuals: Sequence[Any] | None, num_texts: int, what: str) -> list[list[Any]] | None:
    """One list a prompt, or None where one list is to be dealt out to several."""
    if not visuals:
        return [[] for _ in range(num_texts)]
    # A list of frames is one video, so only a list of videos (or of nothing) is a prompt's own.
    nested = all(isinstance(item, (list, tuple)) and not _is_video(item, what) for item in visuals)
    if nested:
        if len(visuals) != num_texts:
            raise ValueError(f"{what} are given for {len(visuals)} prompts, but there are {num_texts}")
        return [list(item) for item in visuals]
    return [list(visuals)] if num_texts == 1 else None


def _is_video(item: Sequence[Any], what: str) -> bool:
    first = item[0] if item else None
    return what == "videos" and (isinstance(first, Image.Image) or getattr(first, "ndim", 0) == 3)


def _kinds(marks: list[str], has_images: bool) -> list[str]:
    return ["image" if mark == "<image>" and has_images else "video" for mark in marks]


def _check_counts(kinds: list[str], num_images: int, num_videos: int, num_texts: int) -> None:
    if (kinds.count("image"), kinds.count("video")) == (num_images, num_videos):
        return
    if not num_images and not num_videos:
        wanted = f"{len(kinds)} <image> or <video>"
    else:
        wanted = f"{kinds.count('image')} <image> and {kinds.count('video')} <video>"
    where = "the prompt has" if num_texts == 1 else f"{num_texts} prompts have"
    raise ValueError(
        f"{where} {wanted} placeholders, but {num_images} images and {num_videos} videos were given. Each visual "
        "needs one placeholder: <image> for an image, <video> for a video (or <image>, where there are no images)"
    )
