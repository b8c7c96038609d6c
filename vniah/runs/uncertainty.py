"""How far a figure may be off by chance: intervals of all figures of a run, and the difference of two runs.

Cells are not independent: those of one needle share its picture and question, whatever film they are shown in. So whole
needles are drawn anew, not cells (a bootstrap by cluster); where every cell is a draw of its own, the draws of each
place are. A proportion's interval is Wilson's for as many independent answers as have the variance found so, and for no
fewer than there are clusters: unlike a bootstrap's own it does not shrink to nothing where all are right, and it never
leaves 0 to 1 (Wilson 1927; Korn and Graubard 1998 on clusters; Miller 2024 on evaluations).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vniah.runs.scoring import above_chance, effective_of

if TYPE_CHECKING:
    import pandas

Interval = tuple[float, float]
# Of a normal distribution: 95 % lie within so many deviations.
Z = 1.959963984540054
DRAWS = 2000
# A cell of two runs is the same where all of this is.
_SAME = ["num_frames", "depth_percent", "needle", "sample", "seed", "question", "answer"]
# Signs of so many clusters are turned in every way; of more, in so many ways by chance; of very many the sum of their
# differences is as good as normal.
_EVERY_WAY, _WAYS, _NORMAL = 12, 10_000, 1_000


def wilson(share: float, answers: float) -> Interval:
    """The 95 % interval of a share of right ones among so many independent answers.

    Raises:
        ValueError: no answers, or a share outside 0 to 1.
    """
    if answers <= 0 or not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1 of one answer or more, got {share} of {answers}")
    scale = 1 + Z**2 / answers
    middle = (share + Z**2 / (2 * answers)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / answers + Z**2 / (4 * answers**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """95 % intervals of a run's figures.

    Attributes:
        mean: of the mean over the grid.
        columns: of each length's mean.
        cells: of the mean at each (length, depth) that two or more clusters were asked at.
        control: of the no-needle control's mean; ``None`` where it was not scored, or of one cluster.
        effective: the effective lengths of the lower and of the upper ends of the columns' intervals.
        clusters, of: how many independent things were measured, and what they are: "needles" or "draws".
    """

    mean: Interval
    columns: dict[int, Interval]
    cells: dict[tuple[int, int], Interval]
    control: Interval | None
    effective: tuple[int, int]
    clusters: int
    of: str

    def above_chance(self, chance: float | None) -> Interval | None:
        """Of chance-corrected accuracy: by a chance that is known, else by what the controls leave open of it."""
        low, high = (chance, chance) if chance is not None else self.control or (1.0, 1.0)
        ends = above_chance(self.mean[0], high), above_chance(self.mean[1], low)
        return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])

    def told(self) -> dict[str, Any]:
        """As a results file has it: lengths and depths as texts, the intervals of cells by both."""
        cells: dict[str, dict[str, Interval]] = {}
        for (length, depth), interval in self.cells.items():
            cells.setdefault(str(length), {})[str(depth)] = interval
        columns = {str(length): interval for length, interval in self.columns.items()}
        figures = {**asdict(self), "columns": columns, "cells": cells}
        return {"level": 0.95, **{key: one for key, one in figures.items() if one is not None}}


def uncertainty(cells: pandas.DataFrame, threshold: float, *, seed: int = 0) -> Uncertainty | None:
    """The intervals of scored cells; ``None`` where only means are known, or of a single needle, which says nothing of
    others."""
    import numpy as np

    placed, controls = (_Answers(cells[cells["control"] == control]) for control in (False, True))
    if not placed.answers or placed.clusters < 2 or cells["aggregate"].any():
        return None
    drawn_DP = placed.drawn(seed)
    columns: dict[int, Interval] = {}
    for length in dict.fromkeys(length for length, _ in placed.places):
        at = [place for place, (its, _) in enumerate(placed.places) if its == length]
        columns[length] = placed.interval(at, drawn_DP)
    several = {
        place: wilson(float(one.right.mean()), one.answers) if one.answers == one.clusters else one.interval([0], at_D1)
        for place, one, at_D1 in zip(
            placed.places, placed.apart(), np.split(drawn_DP, drawn_DP.shape[1], 1), strict=True
        )
        if one.clusters > 1
    }
    ends = [effective_of({length: one[end] for length, one in columns.items()}, threshold) for end in (0, 1)]
    return Uncertainty(
        mean=placed.interval(range(len(placed.places)), drawn_DP),
        columns=columns,
        cells=several,
        control=controls.interval(range(len(controls.places)), controls.drawn(seed)) if controls.clusters > 1 else None,
        effective=(ends[0], ends[1]),
        clusters=placed.clusters,
        of=placed.of,
    )


class _Answers:
    """Right and wrong ones by place and cluster. Shapes: D drawings, P places, N answers.

    Attributes:
        places: (length, depth) of each, -1 for a control's.
        of: what its clusters are, "needles" or "draws".
    """

    def __init__(self, cells: pandas.DataFrame) -> None:
        import numpy as np

        self.of = "draws" if len(cells) and cells["sample"].notna().all() else "needles"
        where = list(zip(cells["num_frames"], cells["depth_percent"].fillna(-1).astype(int), strict=True))
        self.places = [(int(length), int(depth)) for length, depth in sorted(set(where))]
        numbers = {place: number for number, place in enumerate(self.places)}
        # Numbers: a stranger's name may hold what nothing can sort or hash alike.
        names: dict[str, int] = {}
        self.place_N = np.array([numbers[place] for place in where], int)
        self.cluster_N = np.array([names.setdefault(one, len(names)) for one in cells["cluster"]], int)
        self.right = cells["correct"].to_numpy(float)
        self.answers, self.clusters = len(cells), len(names)

    def share(self, at: Sequence[int]) -> float:
        """The mean over places of the share of right ones at each."""
        return float(sum(self.right[self.place_N == place].mean() for place in at)) / len(at)

    def apart(self) -> Iterator[_Answers]:
        """The answers of each place alone."""
        for place in range(len(self.places)):
            one = copy.copy(self)
            chosen = self.place_N == place
            one.right, one.cluster_N, one.place_N = self.right[chosen], self.cluster_N[chosen], self.place_N[chosen] * 0
            one.answers, one.clusters = len(one.right), len(set(one.cluster_N.tolist()))
            yield one

    def drawn(self, seed: int) -> Any:
        """The share of right answers at each place in each drawing of the clusters (D, P).

        Draws of a place are drawn among themselves, each with all that was asked of it; needles for all places at once.
        """
        import numpy as np

        rng = np.random.default_rng(seed)
        times_DC = _times(rng, self.clusters) if self.of == "needles" else None
        shares_DP = np.empty((DRAWS, len(self.places)))
        for place in range(len(self.places)):
            chosen = self.place_N == place
            right, clusters = self.right[chosen], self.cluster_N[chosen]
            if times_DC is None:
                clusters = np.unique(clusters, return_inverse=True)[1]
                times_DN = _times(rng, int(clusters.max()) + 1)[:, clusters]
            else:
                times_DN = times_DC[:, clusters]
            with np.errstate(invalid="ignore"):  # a place whose needles were not drawn has no share
                shares_DP[:, place] = (times_DN @ right) / times_DN.sum(axis=1)
            if times_DC is None and (draws := int(clusters.max()) + 1) > 1:
                # Of few draws a bootstrap has that share of the variance less (Rao and Wu 1988).
                middle, wider = right.mean(), math.sqrt(draws / (draws - 1))
                shares_DP[:, place] = middle + (shares_DP[:, place] - middle) * wider
        return shares_DP

    def interval(self, at: Sequence[int], drawn_DP: Any) -> Interval:
        """Wilson's interval of the mean over places ``at``, of as many independent answers as have the variance of the
        drawings, for which t takes the place of z where there are few clusters."""
        import numpy as np

        asked = np.isin(self.place_N, at)
        answers, clusters, share = int(asked.sum()), len(np.unique(self.cluster_N[asked])), self.share(at)
        variance, free = float(np.var(_means(drawn_DP[:, at]))), clusters - len(at)
        if self.of == "needles":
            free = clusters - 1
            variance *= clusters / max(1, free)
        if variance < 1e-12 or free < 1:
            return wilson(share, clusters)
        independent = share * (1 - share) / variance * (Z / _t(free)) ** 2
        return wilson(share, min(max(independent, clusters), answers))


def _means(drawn_DP: Any) -> Any:
    """The mean over places in each drawing, of those that have any share."""
    import numpy as np

    known_DP = ~np.isnan(drawn_DP)
    some_D = known_DP.any(axis=1)
    return np.where(known_DP, drawn_DP, 0)[some_D].sum(axis=1) / known_DP[some_D].sum(axis=1)


def _times(rng: Any, clusters: int) -> Any:
    """How often each cluster is in each drawing of as many."""
    import numpy as np

    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=DRAWS)


def _t(freedom: int) -> float:
    """The 97.5 % point of Student's t (Abramowitz and Stegun 26.7.5; within 3 % from 2 degrees of freedom)."""
    z, v = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much higher one run's mean is than another's over the cells that both scored.

    Attributes:
        mean: the difference.
        interval: 95 %; ``None`` of a single cluster.
        p: two-sided, of no difference: how often it is as large where whole clusters' signs are turned by chance.
        cells, clusters, of: that both scored; see ``Uncertainty``.
    """

    mean: float
    interval: Interval | None
    p: float | None
    cells: int
    clusters: int
    of: str


def paired_difference(one: pandas.DataFrame, other: pandas.DataFrame, *, seed: int = 0) -> Difference | None:
    """How much higher ``other``'s mean is than ``one``'s; ``None`` where they share no cell, or only means are known.

    A cell is shared where place, needle or draw, repetition, question and answer are the same. The same clusters are
    drawn for both, so that what makes a needle hard for both cancels; the interval is Newcombe's of two paired
    proportions (1998, method 10), which is none of nothing where both are always right.
    """
    import numpy as np

    sides = [cells[~cells["control"]] for cells in (one, other)]
    if any(len(side) == 0 or side["aggregate"].any() for side in sides):
        return None
    # Not joined as tables: a stranger's name may hold what pandas cannot hash.
    known = [dict(zip(_keys(side), side["correct"], strict=True)) for side in sides]
    joined = sides[0][[key in known[1] for key in _keys(sides[0])]]
    if not len(joined):
        return None
    rights = [[its[key] for key in _keys(joined)] for its in known]
    first, second = (_Answers(joined.assign(correct=right)) for right in rights)
    every = range(len(first.places))
    low, high = first.share(every), second.share(every)
    told: dict[str, Any] = {"mean": high - low, "cells": len(joined), "clusters": first.clusters, "of": first.of}
    if first.clusters < 2:
        return Difference(**told, interval=None, p=None)
    drawn = [side.drawn(seed) for side in (first, second)]
    (low_down, low_up), (high_down, high_up) = (
        side.interval(every, its_DP) for side, its_DP in zip((first, second), drawn, strict=True)
    )
    means = [_means(its_DP) for its_DP in drawn]
    correlation = float(np.corrcoef(*means)[0, 1]) if all(one.std() > 1e-9 for one in means) else 0.0
    interval = (
        max(-1.0, high - low - _paired(high - high_down, low_up - low, correlation)),
        min(1.0, high - low + _paired(high_up - high, low - low_down, correlation)),
    )
    apart = (second.right - first.right) / np.bincount(first.place_N)[first.place_N]
    p = turned_signs(np.bincount(first.cluster_N, apart), np.random.default_rng(seed))
    return Difference(**told, interval=interval, p=p)


def _keys(cells: pandas.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(map(str, cells[name]) for name in _SAME), strict=True))


def _paired(one: float, other: float, correlation: float) -> float:
    """How far a difference may be off where one side may by ``one``, the other by ``other``."""
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))


def turned_signs(differences: Any, rng: Any) -> float:
    """How often the sum of clusters' differences is at least as far from 0 when each one's sign is turned by chance:
    the two-sided p of no difference between the two sides."""
    import numpy as np

    moved = np.asarray(differences, float)
    if not np.abs(moved).max(initial=0) > 1e-12:
        return 1.0
    moved = moved[np.abs(moved) > 1e-12]
    found = abs(moved.sum()) - 1e-12
    if len(moved) > _NORMAL:
        return math.erfc(abs(moved.sum()) / math.sqrt(2 * float((moved**2).sum())))
    if len(moved) <= _EVERY_WAY:
        signs = np.array(list(itertools.product((1, -1), repeat=len(moved))), float).reshape(-1, len(moved))
        return float((np.abs(signs @ moved) >= found).mean())
    signs = rng.choice((-1.0, 1.0), size=(_WAYS, len(moved)))
    return float((1 + (np.abs(signs @ moved) >= found).sum()) / (1 + _WAYS))
