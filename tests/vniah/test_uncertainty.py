"""Intervals: they hold what they say, by needle and by draw, and do not shrink to nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vniah.runs.run import cells_table
from vniah.runs.uncertainty import paired_difference, turned_signs, uncertainty, wilson

FRAMES, DEPTHS = (4, 8, 16), (0, 50, 100)


def cells(found: np.ndarray, *, drawn: bool = False):
    """A table of scores, an array of frames by depths by needles or draws."""
    rows = [
        {"num_frames": frames, "depth_percent": depth, "needle": "thing" if drawn else f"needle {one}"}
        | {"correct": bool(found[x, y, one])}
        | ({"sample": one} if drawn else {})
        for x, frames in enumerate(FRAMES)
        for y, depth in enumerate(DEPTHS)
        for one in range(found.shape[2])
    ]
    return cells_table(rows)


def test_wilson_is_the_published_interval() -> None:
    """Of 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    for share, answers in ((0.5, 0), (1.2, 5)):
        with pytest.raises(ValueError, match="expected a share from 0 to 1 of one answer or more"):
            wilson(share, answers)


LIKENESS = pytest.mark.parametrize("likeness", [0.0, 0.3, 1.0])


@pytest.mark.slow
@LIKENESS
def test_intervals_hold_the_truth_nineteen_times_in_twenty(likeness: float) -> None:
    assert (held(likeness, 40) >= 0.9 * 40).all()


@LIKENESS
def test_intervals_hold_the_truth_in_a_few_runs(likeness: float) -> None:
    """Those of three runs, of which at least two hold it."""
    assert (held(likeness, 3) >= 2).all()


def held(likeness: float, runs: int) -> np.ndarray:
    """How many of so many runs' intervals hold the truth: mean, effective length and a difference that is none.

    Cells are draws, or as alike as their needle makes them: its chance is drawn from a beta distribution.
    """
    rng, truth, held = np.random.default_rng(3), 0.7, np.zeros(3)
    for _ in range(runs):
        hard = rng.beta(truth * 7 / 3, 0.3 * 7 / 3, 6) if 0 < likeness < 1 else (rng.random(6) < truth) * 1.0
        one, other = rng.random((2, 3, 3, 6)) < (hard if likeness else truth)
        told = uncertainty(cells(one, drawn=not likeness), 0.7)
        apart = paired_difference(cells(one, drawn=not likeness), cells(other, drawn=not likeness))
        assert told is not None and apart is not None and apart.interval is not None
        assert told.of == apart.of == ("needles" if likeness else "draws")
        held += (
            told.mean[0] <= truth <= told.mean[1],
            told.effective[1] == 16,
            apart.interval[0] <= 0 <= apart.interval[1],
        )
    return held


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_rotations_of_a_draw_count_once(draws: int) -> None:
    """Every choice asked under four rotations and answered alike: the interval is that of so many draws."""
    right = np.random.default_rng(0).random((3, 3, draws)) < 0.6
    turned = cells(np.repeat(right, 4, axis=2), drawn=True)
    turned["cluster"] = [f"{row.num_frames}/{row.depth_percent}/{row.sample // 4}" for row in turned.itertuples()]
    told = uncertainty(turned, 0.9)
    assert told is not None and told.clusters == right.size
    alone = wilson(right.mean(), right.size)
    assert 0.9 < (told.mean[1] - told.mean[0]) / (alone[1] - alone[0]) < 1.03


def test_needles_that_share_their_fate_count_once() -> None:
    found = np.broadcast_to(np.arange(6) < 3, (3, 3, 6))
    by_needle, by_draw = uncertainty(cells(found), 0.9), uncertainty(cells(found, drawn=True), 0.9)
    assert by_needle is not None and by_draw is not None
    assert by_needle.mean == pytest.approx(wilson(0.5, 6), abs=0.02)
    assert by_needle.mean[0] < by_draw.mean[0] and by_needle.mean[1] > by_draw.mean[1]


def test_where_all_are_right_the_interval_is_that_of_so_many_needles() -> None:
    told = uncertainty(cells(np.ones((3, 3, 5), bool)), 0.9)
    assert told is not None and told.mean == wilson(1.0, 5) and told.clusters == 5
    assert told.columns == dict.fromkeys(FRAMES, wilson(1.0, 5)) and told.cells[4, 50] == wilson(1.0, 5)
    assert told.effective == (0, 16), "five of five needles do not show that nine in ten are found"
    many = uncertainty(cells(np.ones((3, 3, 40), bool)), 0.9)
    assert many is not None and many.effective == (16, 16)
    none = uncertainty(cells(np.zeros((3, 3, 5), bool)), 0.9)
    assert none is not None and none.mean == wilson(0.0, 5) and none.effective == (0, 0)
    assert none.above_chance(0.25) == pytest.approx((-1 / 3, (wilson(0.0, 5)[1] - 0.25) / 0.75))


def test_what_nobody_can_say_is_not_said() -> None:
    assert uncertainty(cells(np.ones((3, 3, 1), bool)), 0.9) is None
    alone = paired_difference(cells(np.ones((3, 3, 1), bool)), cells(np.zeros((3, 3, 1), bool)))
    assert alone is not None and (alone.mean, alone.interval, alone.p, alone.clusters) == (-1.0, None, None, 1)
    table = cells(np.ones((3, 3, 2), bool))
    table["aggregate"] = True
    assert uncertainty(table, 0.9) is None and paired_difference(table, table) is None


def test_a_difference_is_paired_by_needle() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random((1, 1, 30)) < 0.5
    one = np.broadcast_to(hard, (3, 3, 30))
    other = one | (rng.random((3, 3, 30)) < 0.3)
    told = paired_difference(cells(one), cells(other))
    assert told is not None and told.interval is not None and told.p is not None
    assert told.mean == pytest.approx(other.mean() - one.mean()) and told.interval[0] > 0 and told.p < 0.001
    assert told.interval[0] < told.mean < told.interval[1] and (told.cells, told.clusters) == (270, 30)
    alone = uncertainty(cells(one), 0.9)
    assert alone is not None and told.interval[1] - told.interval[0] < alone.mean[1] - alone.mean[0]
    back = paired_difference(cells(other), cells(one))
    assert back is not None and back.interval is not None
    assert (back.mean, back.p, *back.interval) == pytest.approx(
        (-told.mean, told.p, *(-x for x in told.interval[::-1]))
    )
    same = paired_difference(cells(one), cells(one))
    assert same is not None and (same.mean, same.p) == (0.0, 1.0)


def test_few_needles_cannot_show_much() -> None:
    """All of five needles differ, which happens by chance once in sixteen; the interval is not a point."""
    told = paired_difference(cells(np.zeros((3, 3, 5), bool)), cells(np.ones((3, 3, 5), bool)))
    assert told is not None and told.p == 2 / 32 and told.mean == 1.0
    assert told.interval is not None and told.interval == pytest.approx((1 - 0.6143, 1.0), abs=1e-3)


def test_runs_of_other_draws_are_not_taken_for_pairs() -> None:
    """The same names and places, and other questions: drawn with another seed."""
    table = cells(np.ones((3, 3, 4), bool))
    assert paired_difference(table, table.assign(question="which digit?")) is None
    part = table[table["num_frames"] < 16]
    told = paired_difference(table, part)
    assert told is not None and told.cells == 24


def test_signs_are_turned_in_every_way_by_chance_or_by_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    assert turned_signs(np.zeros(4), rng) == 1.0
    assert turned_signs([1.0, 1.0, 1.0, 0.0], rng) == 2 / 8, "what does not differ says nothing"
    values = rng.normal(0.15, 1, 1001)
    normal = math.erfc(abs(values.sum()) / math.sqrt(2 * (values**2).sum()))
    assert turned_signs(values, rng) == normal
    assert turned_signs(values[:900], rng) == pytest.approx(
        math.erfc(abs(values[:900].sum()) / math.sqrt(2 * (values[:900] ** 2).sum())), abs=0.01
    )
