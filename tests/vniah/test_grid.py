"""The grid: integer depths, specs, and errors that name the piece."""

from __future__ import annotations

import pytest

from vniah.runs.grid import Cell, Grid, needle_index, parse_range
from vniah.visual.settings import Settings


def test_the_papers_grid_has_450_cells_and_a_control_for_each_needle_and_length() -> None:
    grid = Grid.parse("200-3000:200", "0-100:20")
    cells = list(grid.cells("abcde"))
    assert len([cell for cell in cells if not cell.is_control]) == 450
    assert len([cell for cell in cells if cell.is_control]) == 15 * 5
    assert grid.longest == 3000
    assert cells[0] == Cell(200, 0, "a")


@pytest.mark.parametrize(
    ("num_frames", "depth", "index"), [(4, 0, 0), (4, 50, 2), (4, 100, 4), (7, 30, 2), (3, 33, 0), (1000, 29, 290)]
)
def test_the_needle_index_is_integer_arithmetic(num_frames: int, depth: int, index: int) -> None:
    assert needle_index(num_frames, depth) == index
    assert Cell(num_frames, depth, "n").needle_index == index


def test_a_control_has_no_needle_index() -> None:
    assert Cell(4, None, "n").needle_index is None


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("4,8,12", (4, 8, 12)),
        ("0-100:25", (0, 25, 50, 75, 100)),
        ("3-5", (3, 4, 5)),
        ("8, 4, 4", (4, 8)),
        ("1-6:4", (1, 5)),
    ],
)
def test_specs(spec: str, values: tuple[int, ...]) -> None:
    assert parse_range(spec, "frames") == values


@pytest.mark.parametrize("spec", ["", "a", "4,x", "8-4:1", "1-9:0", "4:2", "1.5", "1-2-3"])
def test_a_bad_spec_names_the_piece(spec: str) -> None:
    with pytest.raises(ValueError, match="frames"):
        parse_range(spec, "frames")


def test_a_range_that_no_one_means_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"'0-100000000000' in depths .* is 100,000,000,001 values"):
        parse_range("0-100000000000", "depths")


@pytest.mark.parametrize(
    ("frames", "depths", "said"), [("0,4", "0", "positive, got 0"), ("4", "0,101", "got 101"), ("4", "-5", "got -5")]
)
def test_values_out_of_range(frames: str, depths: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Grid.parse(frames, depths)


@pytest.mark.parametrize(("gigabytes", "size"), [("20", 20_000_000_000), ("0.003", 3_000_000)])
def test_the_bound_of_the_cache_in_bytes(gigabytes: str, size: int) -> None:
    assert Settings.read({}, {"VNIAH_CACHE_GB": gigabytes}).cache_bytes == size


@pytest.mark.parametrize("gigabytes", ["inf", "1e308"])
def test_a_cache_without_end_is_larger_than_any_disk(gigabytes: str) -> None:
    assert Settings.read({}, {"VNIAH_CACHE_GB": gigabytes}).cache_bytes >= 10**18
