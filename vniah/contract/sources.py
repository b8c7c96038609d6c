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
    """Frames by index. ``fingerprint`` is a hash of the content and of how it is sampled."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Frames ``start`` to ``stop`` (exclusive), uint8 of shape (N, H, W, 3), RGB."""
        ...


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
        """Maps each segment's ``source`` to its frames or tokens, or to a PIL image for ``Image``."""
        ...
