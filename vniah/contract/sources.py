"""What a model is handed to look at: frames by index, from anything that can produce them.

``FrameSource`` is the one face of haystacks, videos and lists of frames; ``Visual`` is a prompt's
visual part that describes itself as segments (see ``requests.py``) instead of pixels, so that a
spliced haystack of 3,000 frames is shared between prompts and never held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vniah.contract.requests import Segment

FramesNHWC = NDArray[np.uint8]
TokensT = NDArray[np.int64]


@runtime_checkable
class FrameSource(Protocol):
    """Frames by index."""

    @property
    def fingerprint(self) -> str:
        """A hash of the content and of how it is sampled."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame, in pixels."""
        ...

    @property
    def approximate(self) -> bool:
        """Whether pixels are a little off for speed's sake; what is done with them may be too."""
        ...

    def __len__(self) -> int: ...

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Frames ``start`` to ``stop`` (exclusive), uint8 of shape (N, H, W, 3), RGB."""
        ...

    def reader(self) -> FrameSource | None:
        """Another reader of the same frames, for a thread beside this one's; ``None`` where none is to be had."""
        ...


class HeldFrames:
    """A ``FrameSource`` of frames that are in memory, uint8 of shape (N, H, W, 3)."""

    approximate = False

    def __init__(self, frames_NHWC: FramesNHWC, fingerprint: str) -> None:
        self._frames, self.fingerprint = frames_NHWC, fingerprint
        self.size: tuple[int, int] = frames_NHWC.shape[1:3]

    def __len__(self) -> int:
        return len(self._frames)

    def frames(self, start: int, stop: int) -> FramesNHWC:
        return self._frames[start:stop]

    def reader(self) -> None:
        return None


@runtime_checkable
class TokenSource(Protocol):
    """Token ids by position. ``fingerprint`` is a hash of the text and of how it is tokenised."""

    @property
    def fingerprint(self) -> str: ...

    def token_ids(self, start: int, stop: int) -> TokensT:
        """Ids ``start`` to ``stop`` (exclusive), int64 of shape (T,)."""
        ...


@runtime_checkable
class Visual(Protocol):
    """The visual part of one prompt.

    ``preprocess`` is "pad" (V-NIAH: letterboxed to a square) or "crop" (the released model's video
    inference: centre crop); see reference sections 1 and 3.
    """

    @property
    def preprocess(self) -> str: ...

    def segments(self) -> tuple[Segment, ...]: ...

    def media(self) -> Mapping[str, FrameSource | TokenSource | Any]:
        """Maps each segment's ``source`` to its frames or tokens, or to a PIL image for ``Image``, or to a source of
        one frame."""
        ...
