"""Whole random numbers that are the same on every machine and with every numpy.

``numpy.random.Generator`` may change its methods between releases; the raw 64-bit output of the PCG64 bit
generator and the seeding by ``SeedSequence`` are promised to stay, so only those are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Dice:
    """A stream of random whole numbers that belongs to ``key``."""

    def __init__(self, *key: int) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1."""
        return int(self._raw.random_raw()) % limit

    def between(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def sign(self) -> int:
        """-1 or 1."""
        return self.below(2) * 2 - 1

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` numbers from 0 to 255. Little-endian by decree, not by machine."""
        words = np.asarray(self._raw.random_raw((count + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:count]

    def colour(self, low: int = 20, high: int = 235) -> NDArray[np.int32]:
        """An RGB triple with each channel from ``low`` to ``high``."""
        return np.array([self.between(low, high) for _ in range(3)], np.int32)
