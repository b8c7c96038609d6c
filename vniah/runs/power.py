"""How many needles a difference between two runs needs: what a comparison is planned with, before it is run.

A needle's cells are alike by its intra-needle correlation, so that ``m`` of them are worth ``m / (1 + (m - 1) ICC)``
independent ones (Kish's design effect). Nothing is taken for known of how alike two models find a needle: where the
same needles are easy for both, which pairing makes use of, fewer do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vniah.runs.uncertainty import Z

if TYPE_CHECKING:
    import pandas

# Of a normal distribution: 80 % lie below so many deviations. The power that is planned for.
_Z_POWER = 0.8416212335729143
# What is assumed where no run tells: the mean at which a share varies most; correlations from none to one fate.
ASSUMED_MEAN, ASSUMED = 0.5, (0.0, 0.1, 0.3, 1.0)


def check_difference(value: float) -> float:
    """The difference between two runs' means, above 0 and below 1; a ValueError for any other."""
    if not 0 < value < 1:
        raise ValueError(f"--power is a difference of two runs' means, above 0 and below 1, such as 0.1, got {value:g}")
    return value


def needles_for(difference: float, places: int, *, mean: float = ASSUMED_MEAN, correlation: float) -> int:
    """Needles, each asked at ``places`` places by both runs, that show ``difference`` with 80 % power at 5 %.

    Raises:
        ValueError: a difference that is none, or a mean or correlation outside 0 to 1.
    """
    check_difference(difference)
    if places < 1 or not 0 <= mean <= 1 or not 0 <= correlation <= 1:
        raise ValueError(f"expected a place or more, and shares from 0 to 1, got {places}, {mean} and {correlation}")
    # Two runs around ``mean``, as far apart as is asked for, also where that is beside 0 or 1.
    low = min(max(0.0, mean - difference / 2), 1 - difference)
    ends = low, low + difference
    variance = sum(end * (1 - end) for end in ends) * (1 + (places - 1) * correlation) / places
    needed = (Z + _Z_POWER) ** 2 * variance / difference**2
    # The variance is estimated from the needles too (Snedecor and Cochran: half the squared quantile more).
    return max(6, math.ceil(needed + Z**2 / 2))


def intra_needle_correlation(cells: pandas.DataFrame) -> float:
    """How alike the cells of a needle are: ICC(1) of scored cells by analysis of variance, 0 to 1.

    Raises:
        ValueError: fewer than two needles, none asked twice, or only means are known.
    """
    import numpy as np

    placed = cells[~cells["control"]]
    names: dict[str, int] = {}
    needle = np.array([names.setdefault(one, len(names)) for one in placed["cluster"]], int)
    if len(names) < 2 or len(placed) <= len(names) or placed["aggregate"].any():
        raise ValueError(
            "an intra-needle correlation takes a run of two needles or more, each asked at several places and logged"
        )
    # What lengths and depths make of it is no likeness of needles.
    right = placed["correct"].to_numpy(float)
    place = placed.groupby(["num_frames", "depth_percent"]).ngroup().to_numpy()
    right = right - (np.bincount(place, right) / np.bincount(place))[place]
    sizes = np.bincount(needle)
    means = np.bincount(needle, right) / sizes
    between = float((sizes * means**2).sum()) / (len(sizes) - 1)
    within = float(((right - means[needle]) ** 2).sum()) / (len(right) - len(sizes))
    typical = (len(right) - float((sizes**2).sum()) / len(right)) / (len(sizes) - 1)
    total = between + (typical - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0
