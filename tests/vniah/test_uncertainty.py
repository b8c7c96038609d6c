"""Intervals: they hold what they say, by needle and by draw, and do not shrink to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from vniah.runs.run import cells_table
from vniah.runs.uncertainty import paired_difference, uncertainty, wilson

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


@pytest.mark.parametrize("drawn", [True, False])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(drawn: bool) -> None:
    """Draws are independent; needles are hard or easy everywhere, as much as anything depends on them."""
    rng, held, runs = np.random.default_rng(0), 0, 200
    for _ in range(runs):
        shape = (3, 3, 12)
        found = rng.random(shape) < 0.7 if drawn else np.broadcast_to(rng.random((1, 1, 12)) < 0.7, shape)
        told = uncertainty(cells(found, drawn=drawn), 0.9)
        assert told is not None and told.of == ("draws" if drawn else "needles")
        held += told.mean[0] <= 0.7 <= told.mean[1]
    assert held >= 0.9 * runs


def test_needles_that_share_their_fate_count_once() -> None:
    found = np.broadcast_to(np.arange(6) < 3, (3, 3, 6))
    by_needle, by_draw = uncertainty(cells(found), 0.9), uncertainty(cells(found, drawn=True), 0.9)
    assert by_needle is not None and by_draw is not None
    assert by_needle.mean == pytest.approx(wilson(0.5, 6), abs=0.02)
    assert by_needle.mean[0] < by_draw.mean[0] and by_needle.mean[1] > by_draw.mean[1]


def test_where_all_are_right_the_interval_is_that_of_so_many_needles() -> None:
    told = uncertainty(cells(np.ones((3, 3, 5), bool)), 0.9)
    assert told is not None and told.mean == wilson(1.0, 5) and told.effective == (16, 16) and told.clusters == 5
    assert told.columns == dict.fromkeys(FRAMES, wilson(1.0, 5))


def test_what_nobody_can_say_is_not_said() -> None:
    assert uncertainty(cells(np.ones((3, 3, 1), bool)), 0.9) is None
    table = cells(np.ones((3, 3, 2), bool))
    table["aggregate"] = True
    assert uncertainty(table, 0.9) is None and paired_difference(table, table) is None


def test_a_difference_is_paired_by_needle() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random((1, 1, 30)) < 0.5
    one = np.broadcast_to(hard, (3, 3, 30))
    other = one | (rng.random((3, 3, 30)) < 0.3)
    told = paired_difference(cells(one), cells(other))
    assert told is not None
    difference, (low, high) = told
    assert difference == pytest.approx(other.mean() - one.mean()) and low > 0 and low < difference < high
    alone = uncertainty(cells(one), 0.9)
    assert alone is not None and high - low < alone.mean[1] - alone.mean[0]
    same = paired_difference(cells(one), cells(one))
    assert same == (0.0, (0.0, 0.0))
