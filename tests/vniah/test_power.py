"""The number of needles that a plan asks for has the power that it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from typer.testing import CliRunner

from vniah.cli import app
from vniah.runs.power import intra_needle_correlation, needles_for
from vniah.runs.run import cells_table
from vniah.runs.uncertainty import turned_signs


@pytest.mark.parametrize(("correlation", "mean"), [(0.1, 0.5), (0.3, 0.8), (1.0, 0.6)])
def test_the_promised_power_is_about_right(correlation: float, mean: float) -> None:
    """Two runs 0.2 apart, their needles as hard as beta distributions of that correlation say, each for itself."""
    rng, places, difference = np.random.default_rng(0), 12, 0.2
    needles = needles_for(difference, places, mean=mean, correlation=correlation)
    found, runs = 0, 300
    for _ in range(runs):
        scored = []
        for share in (mean - difference / 2, mean + difference / 2):
            if correlation == 1:
                hard = (rng.random(needles) < share) * 1.0
            else:
                spread = 1 / correlation - 1
                hard = rng.beta(share * spread, (1 - share) * spread, needles)
            scored.append(rng.binomial(places, hard) / places)
        apart = scored[1] - scored[0]
        # The test by turned signs, as many clusters by the normal distribution.
        z = apart.sum() / np.sqrt((apart**2).sum())
        found += abs(z) > 1.96
    assert 0.74 <= found / runs <= 0.9, (found / runs, needles)
    assert turned_signs(apart, rng) < 0.05 or abs(z) < 2.2


def test_the_correlation_of_a_run_is_that_of_its_needles() -> None:
    rng = np.random.default_rng(1)
    for likeness in (0.0, 0.3, 1.0):
        spread = 1 / likeness - 1 if 0 < likeness < 1 else 1.0
        hard = np.full(200, 0.6) if likeness == 0 else rng.beta(0.6 * spread, 0.4 * spread, 200)
        hard = (hard > 0.5) * 1.0 if likeness == 1 else hard
        rows = [
            {"num_frames": 4 * (1 + place % 3), "depth_percent": place // 3, "needle": str(one)}
            | {"correct": bool(rng.random() < chance)}
            for one, chance in enumerate(hard)
            for place in range(9)
        ]
        assert intra_needle_correlation(cells_table(rows)) == pytest.approx(likeness, abs=0.06)
    with pytest.raises(ValueError, match="takes a run of two needles or more"):
        intra_needle_correlation(cells_table(rows[:9]))


def test_independent_answers_need_what_the_textbooks_say() -> None:
    """388 a side for 0.5 against 0.6 (Fleiss, without the correction for continuity)."""
    assert needles_for(0.1, 1, mean=0.55, correlation=0.0) == pytest.approx(388, abs=3)
    assert needles_for(0.1, 90, correlation=1.0) == needles_for(0.1, 1, correlation=1.0)
    assert needles_for(0.9, 90, correlation=0.0) == 6, "fewer cannot be significant by turned signs"
    with pytest.raises(ValueError, match=r"--power is a difference of two runs' means, above 0 and below 1"):
        needles_for(0.0, 90, correlation=0.3)


def test_beside_all_right_the_difference_is_no_smaller() -> None:
    """Of a run that is always right another is 0.1 lower: 0.9 against 1, not 0.95."""
    variance = 0.9 * 0.1
    assert needles_for(0.1, 1, mean=1.0, correlation=0.0) == math.ceil((1.96 + 0.8416) ** 2 * variance / 0.01 + 1.92)
    assert needles_for(0.1, 1, mean=0.0, correlation=0.0) == needles_for(0.1, 1, mean=1.0, correlation=0.0)


def test_repetitions_and_draws_are_planned_as_they_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*more: str) -> str:
        shown = CliRunner().invoke(app, ["plan", "--power", "0.1", "--frames", "16,32", "--depths", "0,100", *more])
        assert shown.exit_code == 0, shown.output
        return shown.output

    assert "391 draws: VNIAH_SAMPLES=98 at 4 places (a mean of 0.5 is assumed)" in said("--task", "vruler_order")
    assert "391 draws: TEXT_NIAH_SAMPLES=98 at 4 places" in said("--text", "1K,2K")
    once = said()
    assert "correlation 0.0: 100 needles" in once
    monkeypatch.setenv("VNIAH_SEEDS", "2")
    assert "4 places in each of 2 repetitions" in said() and "correlation 0.0: 51 needles" in said()
    assert "VNIAH_SAMPLES=49 at 4 places in 2 repetitions" in said("--task", "vruler_when")


def test_plan_says_it() -> None:
    said = CliRunner().invoke(app, ["plan", "--power", "0.1", "--frames", "200-3000:200"])
    assert said.exit_code == 0, said.output
    assert "correlation 1.0: 391 needles" in said.output and "assumed" in said.output
