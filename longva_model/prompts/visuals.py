"""What callers hand over to be looked at (paths, PIL images, arrays, composed haystacks) as segments and media.

A video is the same to the model however it comes: a path, an array of frames or a list of PIL frames
gives the same segments, sampled the same way (reference section 1: ``linspace`` over all frames).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from vniah.contract.requests import Frames, Image, Segment
from vniah.contract.sources import FrameSource, Visual
from vniah.files import user_path
from vniah.haystack import open_video
from vniah.haystack.pictures import IMAGE_SUFFIXES, is_picture, open_image, to_rgb

VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_PATH_KEYS = ("url", "path", "video_path", "video", "image")
_CLIP_KEYS = ("video_start", "video_end", "start_time", "end_time")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualPart:
    """One visual of a prompt: its segments, the media they name, and how its frames are fitted."""

    segments: tuple[Segment, ...]
    media: Mapping[str, Any]
    preprocess: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    is_visual_prompt: bool = False
    is_video: bool = False


class ArrayFrames:
    """Frames that are already in memory, uint8 (N, H, W, 3)."""

    def __init__(self, frames_NHWC: NDArray[np.uint8]) -> None:
        if frames_NHWC.ndim != 4 or frames_NHWC.shape[-1] != 3 or frames_NHWC.dtype != np.uint8:
            raise ValueError(
                "a video must be uint8 of shape (frames, height, width, 3), "
                f"got {frames_NHWC.dtype} {frames_NHWC.shape}"
            )
        if not len(frames_NHWC):
            raise ValueError("a video has no frames")
        self._frames = frames_NHWC
        digest = hashlib.sha256(str(frames_NHWC.shape).encode())
        for frame in frames_NHWC:
            digest.update(np.ascontiguousarray(frame).data)
        self.fingerprint = "array:" + digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def pixels_in_memory(self) -> int:
        return self._frames.size // 3

    def frames(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._frames[start:stop]


def sample_indices(total: int, count: int) -> list[int]:
    """``count`` frames evenly over ``total``, first and last included; each frame once when there are fewer."""
    if total <= count:
        return list(range(total))
    return [int(index) for index in np.linspace(0, total - 1, count, dtype=int)]


def visual_part(visual: Any, max_frames: int) -> VisualPart:
    """Describe one visual as segments.

    Args:
        visual: a ``Visual`` of the contract, a path of a video or image, a PIL image, an array of frames or of one
            image, a list of PIL frames (a video), or a dict that holds one of these under "url" or "path".
        max_frames: sample at most so many frames of a video.

    Raises:
        ValueError: something else, an empty video, a corrupt image, or a file that is neither a video nor an image.
        FileNotFoundError: no such file.
    """
    if isinstance(visual, Visual):
        media = dict(visual.media())
        return VisualPart(
            segments=visual.segments(),
            media=media,
            preprocess=dict.fromkeys(media, visual.preprocess),
            template=getattr(visual, "template", None),
            is_visual_prompt=True,
        )
    if isinstance(visual, Mapping):
        return visual_part(_unwrapped(visual), max_frames)
    if isinstance(visual, PILImage.Image):
        return _image_part(visual)
    if isinstance(visual, (str, os.PathLike)):
        path = os.fspath(visual)
        if _is_image_file(path):
            return _image_part(open_image(user_path(path)))
        return _video_part(open_video(path, max_frames))
    if isinstance(visual, np.ndarray):
        if visual.dtype == np.uint8 and visual.ndim in (2, 3) and 0 not in visual.shape:
            return _image_part(PILImage.fromarray(visual))
        return _video_part(_sampled(visual, max_frames))
    if isinstance(visual, (list, tuple)) and visual and all(isinstance(item, PILImage.Image) for item in visual):
        return _video_part(_sampled(_stack(visual), max_frames))
    raise ValueError(
        f"cannot show a {type(visual).__name__} to the model; expected a path, a PIL image, frames as a uint8 "
        "array (N, H, W, 3), or a list of PIL frames"
    )


def _unwrapped(described: Mapping[str, Any]) -> Any:
    """What a dict such as ``{"type": "video", "url": path}`` holds."""
    clip = {key: described[key] for key in _CLIP_KEYS if described.get(key) is not None}
    if clip:
        asked = ", ".join(f"{key}={value}" for key, value in clip.items())
        raise ValueError(f"a part of a video is asked for ({asked}); a video is shown whole, so cut it to a file")
    for key in _PATH_KEYS:
        if described.get(key) is not None:
            return described[key]
    raise ValueError(f'a visual with the keys {", ".join(map(str, described))} names no file; expected "url" or "path"')


def _is_image_file(path: str) -> bool:
    """By its name, else by its content: a picture under an unusual name is no video of one frame."""
    lower = path.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return True
    return not lower.endswith(VIDEO_SUFFIXES) and is_picture(user_path(path), still=True)


def _stack(images: Sequence[PILImage.Image]) -> NDArray[np.uint8]:
    upright = [to_rgb(image) for image in images]
    sizes = {image.size for image in upright}
    if len(sizes) > 1:
        raise ValueError(f"the frames of a video must be of one size, got {sorted(sizes)}")
    return np.stack([np.asarray(image) for image in upright])


def _image_part(image: PILImage.Image) -> VisualPart:
    """An image as PIL's users expect it: 8-bit RGB of whatever mode it was, turned upright by its EXIF tag."""
    upright = to_rgb(image)
    key = hashlib.sha256(repr(upright.size).encode())
    key.update(upright.tobytes())
    source = "image:" + key.hexdigest()[:32]
    return VisualPart(segments=(Image(source, as_frame=False),), media={source: upright})


def _sampled(frames_NHWC: NDArray[np.uint8], max_frames: int) -> ArrayFrames:
    if frames_NHWC.ndim == 4 and len(frames_NHWC) > max_frames:
        frames_NHWC = frames_NHWC[sample_indices(len(frames_NHWC), max_frames)]
    return ArrayFrames(frames_NHWC)


def _video_part(source: FrameSource) -> VisualPart:
    return VisualPart(
        segments=(Frames(source.fingerprint, 0, len(source)),),
        media={source.fingerprint: source},
        preprocess={source.fingerprint: "crop"},
        is_video=True,
    )
