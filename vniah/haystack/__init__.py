"""Haystacks: long runs of frames at one frame a second, from a video, a folder of images or a procedural film.

``open_haystack(spec)`` is the one door. Importing this room brings in neither PyAV nor decord.
"""

from __future__ import annotations

from vniah.haystack.base import Haystack, require_frames
from vniah.haystack.opening import DECODERS, open_haystack, open_video
from vniah.haystack.synthetic import SyntheticHaystack

__all__ = ["DECODERS", "Haystack", "SyntheticHaystack", "open_haystack", "open_video", "require_frames"]
