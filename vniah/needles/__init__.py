"""Needles: the images that are hidden in a haystack, each with a question and its answer.

``open_needles`` reads a set from the Hub, from a folder, or draws one of ours; see ``vniah/needles/sources.py``.
"""

from vniah.needles.needle import Needle, NeedleSet
from vniah.needles.sources import open_needles

__all__ = ["Needle", "NeedleSet", "open_needles"]
