"""How far a figure may be off by chance: intervals of means and of effective lengths, and the difference of two runs.

Cells are not independent: those of one needle share its picture and question. So whole needles are drawn anew, not
cells (a bootstrap by cluster); where every cell is a draw of its own, the draws of each place are. A proportion's
interval is Wilson's for as many independent answers as have the variance found so: unlike a bootstrap's own it does not
shrink to nothing where all are right, and it never leaves 0 to 1 (Wilson 1927; Miller 2024 on clusters in evaluations).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

Interval = tuple[float, float]
# Of a normal distribution: 95 % lie within so many deviations.
_Z = 1.959963984540054
DRAWS = 2000


def wilson(share: float, answers: float) -> Interval:
    """The 95 % interval of a share of right ones among so many independent answers.

    Raises:
        ValueError: no answers, or a share outside 0 to 1.
    """
    if answers <= 0 or not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1 of one answer or more, got {share} of {answers}")
    scale = 1 + _Z**2 / answers
    middle = (share + _Z**2 / (2 * answers)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / answers + _Z**2 / (4 * answers**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """95 % intervals of a run's figures.

    Attributes:
        mean: of the mean over the grid.
        columns: of each length's mean.
        effective: of the effective length.
        clusters, of: how many independent things were measured, and what they are: "needles" or "draws".
    """

    mean: Interval
    columns: dict[int, Interval]
    effective: tuple[int, int]
    clusters: int
    of: str


def uncertainty(cells: pandas.DataFrame, threshold: float, *, seed: int = 0) -> Uncertainty | None:
    """The intervals of scored cells; ``None`` where only means are known, or a single needle was asked for."""
    import numpy as np

    from vniah.runs.scoring import effective_of

    (placed,) = _numbered(cells)
    if not len(placed) or placed["aggregate"].any():
        return None
    of, clusters, shares = _resampled(placed, np.random.default_rng(seed))
    if clusters < 2:
        return None
    counts = placed.groupby("num_frames").size()
    lengths = np.array([length for length, _ in shares.columns])
    by_place = placed.groupby(["num_frames", "depth_percent"])["correct"].mean()
    columns, means = {}, {}
    for length in counts.index:
        means[int(length)] = shares.loc[:, lengths == length].mean(axis=1)
        share = float(by_place[length].mean())
        columns[int(length)] = _interval(share, means[int(length)], clusters, int(counts[length]))
    mean = _interval(float(by_place.mean()), shares.mean(axis=1), clusters, len(placed))
    drawings = zip(*(column.to_numpy() for column in means.values()), strict=True)
    reached = [effective_of(dict(zip(means, drawing, strict=True)), threshold) for drawing in drawings]
    low, high = np.quantile(reached, [0.025, 0.975], method="inverted_cdf")
    return Uncertainty(mean=mean, columns=columns, effective=(int(low), int(high)), clusters=clusters, of=of)


def _numbered(*runs: pandas.DataFrame) -> list[pandas.DataFrame]:
    """The cells with a needle, needles as numbers: a stranger's name may hold what pandas cannot sort or hash."""
    numbers: dict[str, int] = {}
    placed = [cells[~cells["control"]] for cells in runs]
    return [
        cells.assign(needle=[numbers.setdefault(name, len(numbers)) for name in cells["needle"]]) for cells in placed
    ]


def _resampled(placed: pandas.DataFrame, rng: Any) -> tuple[str, int, pandas.DataFrame]:
    """What is drawn anew, how many of it there are, and the share of right answers at each place in each drawing."""
    import numpy as np
    import pandas

    place = ["num_frames", "depth_percent"]
    if placed["sample"].notna().all():
        groups = {key: group["correct"].to_numpy(float) for key, group in placed.groupby(place)}
        found = {
            key: values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
            for key, values in groups.items()
        }
        return "draws", len(placed), pandas.DataFrame(found)
    table = placed.astype({"correct": float}).pivot_table("correct", "needle", place)
    scored, there = table.fillna(0).to_numpy(), table.notna().to_numpy(float)
    times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=DRAWS)
    with np.errstate(invalid="ignore"):  # a place whose needles were not drawn has no share
        shares = (times @ scored) / (times @ there)
    return "needles", len(table), pandas.DataFrame(shares, columns=table.columns)


def _interval(share: float, drawn: Any, clusters: int, answers: int) -> Interval:
    """Wilson's interval for as many independent answers as have the variance of the drawings."""
    variance = float(drawn.var())
    independent = share * (1 - share) / variance if variance > 0 else float(clusters)
    return wilson(share, min(max(independent, 1.0), answers))


def paired_difference(
    one: pandas.DataFrame, other: pandas.DataFrame, *, seed: int = 0
) -> tuple[float, Interval] | None:
    """How much higher ``other``'s mean is than ``one``'s over the cells that both scored, with its 95 % interval.

    The same needles are drawn for both, so what makes a needle hard for both cancels. ``None`` where they share no
    cell, or only means are known.
    """
    import numpy as np

    key = ["num_frames", "depth_percent", "needle", "sample"]
    sides = _numbered(one, other)
    if any(len(side) == 0 or side["aggregate"].any() for side in sides):
        return None
    joined = sides[0].merge(sides[1], on=key, suffixes=("", "_other"))
    if not len(joined):
        return None
    joined["correct"] = joined["correct_other"].astype(float) - joined["correct"].astype(float)
    _, clusters, shares = _resampled(joined, np.random.default_rng(seed))
    if clusters < 2:
        return None
    difference = float(joined.groupby(key[:2])["correct"].mean().mean())
    low, high = np.quantile(shares.mean(axis=1), [0.025, 0.975])
    return difference, (float(low), float(high))
