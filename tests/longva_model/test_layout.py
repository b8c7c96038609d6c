"""Canvases, tiles and token order, against short plain forms of the rules in reference section 1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longva_model.pictures.layout import (
    NEWLINE,
    VisualLayout,
    anyres_order,
    anyres_pinpoints,
    cut_tiles,
    parse_pinpoints,
    plan_tiles,
    select_canvas,
    unires_pinpoints,
    unires_sources,
)

SIDES = st.integers(1, 4000)


def test_the_paper_list_has_200_canvases_and_not_the_single_tile() -> None:
    canvases = unires_pinpoints()
    assert len(canvases) == 200 and list(canvases) == sorted(canvases)
    assert all(2 <= (w // 336) * (h // 336) <= 49 for w, h in canvases)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((336, 336), (1, 2)),
        ((500, 400), (2, 2)),
        ((640, 360), (2, 2)),
        ((1200, 300), (4, 1)),
        ((1024, 768), (4, 3)),
        ((1920, 1080), (6, 4)),
        ((2500, 1700), (8, 6)),
        ((3000, 3000), (7, 7)),
        ((10000, 500), (24, 2)),
        ((20000, 100), (49, 1)),
    ],
)
def test_canvas_examples(size: tuple[int, int], tiles: tuple[int, int]) -> None:
    grid = plan_tiles(size, unires_pinpoints())
    assert (grid.cols, grid.rows) == tiles


def test_canvases_of_the_parity_table(shared: Path) -> None:
    table = json.loads((shared / "parity/expected_extra.json").read_text())["grid_table"]
    for row in table:
        assert list(select_canvas(tuple(row["size"]), unires_pinpoints())) == row["unires"], row
        assert list(select_canvas(tuple(row["size"]), anyres_pinpoints())) == row["anyres"], row


@given(SIDES, SIDES)
@settings(max_examples=60, deadline=None)
def test_canvas_is_the_smallest_that_loses_nothing_else_the_one_that_keeps_most(width: int, height: int) -> None:
    def kept(canvas: tuple[int, int]) -> int:
        scale = min(canvas[0] / width, canvas[1] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    pinpoints = unires_pinpoints()
    chosen = select_canvas((width, height), pinpoints)
    most = max(map(kept, pinpoints))
    assert kept(chosen) == most
    best_area = min(w * h for w, h in pinpoints if kept((w, h)) == most)
    assert chosen == next((w, h) for w, h in pinpoints if kept((w, h)) == most and w * h == best_area)


@given(SIDES, SIDES)
@settings(max_examples=60, deadline=None)
def test_image_lies_inside_the_canvas_with_its_aspect(width: int, height: int) -> None:
    grid = plan_tiles((width, height), unires_pinpoints())
    (w, h), (left, top), (canvas_w, canvas_h) = grid.resized_wh, grid.offset_xy, grid.canvas_wh
    assert 1 <= w <= canvas_w and 1 <= h <= canvas_h and (w == canvas_w or h == canvas_h)
    assert left == (canvas_w - w) // 2 and top == (canvas_h - h) // 2
    scale = min(canvas_w / width, canvas_h / height)
    assert abs(w - width * scale) < 1.01 and abs(h - height * scale) < 1.01


@pytest.mark.parametrize(("size", "tokens"), [((500, 400), 2438), ((1200, 300), 1890), ((2500, 1700), 2144)])
def test_anyres_token_counts(size: tuple[int, int], tokens: int) -> None:
    assert len(anyres_order(plan_tiles(size, anyres_pinpoints()), 24)) == tokens


# Of 12 tokens along the longer side, odd rests of 3 and even ones of 2 go: half of them, rounded down, at each end.
@pytest.mark.parametrize(
    ("image_wh", "kept"),
    [((300, 100), 12), ((240, 100), 10), ((250, 100), 10), ((100, 300), 12), ((100, 240), 10), ((100, 250), 10)],
)
def test_anyres_order_is_the_unpadded_map_row_by_row(image_wh: tuple[int, int], kept: int) -> None:
    side, grid = 4, plan_tiles(image_wh, ((84, 28), (28, 84)), 28)
    # Plain form: number the tokens of each tile, join the tiles, cut the ends off, put a newline after each row.
    tiles = np.arange(4 * side * side).reshape(4, side, side)
    along = int(image_wh[0] > image_wh[1])
    joined = np.concatenate(list(tiles[1:]), axis=along)
    pad = (12 - kept) // 2
    rows = joined.take(range(pad, pad + kept), axis=along)
    newlines = [[*row, NEWLINE] for row in rows]
    assert anyres_order(grid, side).tolist() == [*tiles[0].reshape(-1), *(token for row in newlines for token in row)]


def test_anyres_keeps_the_base_tile_of_an_image_too_thin_for_the_map() -> None:
    order = anyres_order(plan_tiles((20_000, 100), anyres_pinpoints()), 24)
    assert order[:576].tolist() == list(range(576)) and (order[576:] != NEWLINE).sum() % (24 * 3) == 0


def test_tiles_put_together_are_the_centred_image_on_black() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(1, 256, (50, 90, 3), dtype=np.uint8))
    grid = plan_tiles(image.size, ((56, 28), (84, 56)), 28)
    tiles = cut_tiles(image, grid)
    assert (grid.cols, grid.rows) == (3, 2) and tiles.shape == (7, 28, 28, 3)
    canvas = np.concatenate([np.concatenate(list(tiles[1 + 3 * r : 4 + 3 * r]), axis=1) for r in range(2)], axis=0)
    expected = Image.new("RGB", grid.canvas_wh)
    expected.paste(image.resize(grid.resized_wh, Image.Resampling.BICUBIC), grid.offset_xy)
    assert np.array_equal(canvas, np.asarray(expected))
    assert np.array_equal(tiles[0], np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("image_wh", [(100, 20), (20, 100)])  # 5 x 5 tiles, the image in the middle row or column
def test_black_tiles_share_one_source_and_the_whole_image_is_never_asked_for(image_wh: tuple[int, int]) -> None:
    grid = plan_tiles(image_wh, ((140, 140),), 28)
    tiles = cut_tiles(Image.new("RGB", image_wh, "white"), grid)
    black = [i for i in range(25) if not tiles[1 + i].any()]
    assert black == list(grid.black_tiles) and len(black) == 20
    sources = unires_sources(grid)
    assert set(sources[black]) == {1 + black[0]} and len(np.unique(sources)) == 6 and sources.min() == 1


@given(SIDES, SIDES, st.sampled_from(["unires", "spatial_unpad", "flat"]))
@settings(max_examples=60, deadline=None)
def test_layout_counts_agree_with_what_it_lays_out(width: int, height: int, merge: str) -> None:
    layout = VisualLayout(merge_type=merge)
    grid = layout.grid((width, height))
    assert grid is not None
    tokens = {
        "unires": 144 * grid.num_tiles,
        "flat": 576 * (1 + grid.num_tiles),
        "spatial_unpad": len(anyres_order(grid, 24)),
    }[merge]
    assert layout.num_image_tokens((width, height)) == tokens
    assert layout.num_tiles((width, height)) == 1 + grid.num_tiles
    assert len(layout.tile_sources((width, height))) == grid.num_tiles + (merge != "unires")
    assert layout.num_video_tokens(8) == 8 * 144 + (merge == "spatial_unpad")


def test_one_tile_layouts_do_not_pool() -> None:
    assert VisualLayout(aspect_ratio="pad").num_image_tokens((500, 400)) == 576
    assert VisualLayout(merge_type="spatial_unpad", aspect_ratio=None).num_image_tokens((500, 400)) == 577
    assert VisualLayout(aspect_ratio="square").tiles(Image.new("RGB", (500, 400))).shape == (1, 336, 336, 3)


def test_pinpoints_are_read_as_configs_hold_them() -> None:
    assert parse_pinpoints("[(336, 672), (672, 336)]") == ((336, 672), (672, 336))
    assert parse_pinpoints([[336, 672]]) == ((336, 672),) and parse_pinpoints([[1, 1]]) == ((1, 1),)
    for bad in ("(1x1)", [], [[336]], [[0, 336]], [[336, 0]], "__import__('os')", None):
        with pytest.raises(ValueError, match="image_grid_pinpoints"):
            parse_pinpoints(bad)


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="336-pixel tiles"):
        plan_tiles((10, 10), ((300, 336),))
    with pytest.raises(ValueError, match="0x5"):
        plan_tiles((0, 5), unires_pinpoints())
    with pytest.raises(ValueError, match="multiples of the tower's 336"):
        VisualLayout(pinpoints=((336, 500),))
    with pytest.raises(ValueError, match="mm_patch_merge_type must be one of"):
        VisualLayout(merge_type="spatial")
    with pytest.raises(ValueError, match=r"mm_spatial_pool_mode.*average"):
        _ = VisualLayout(pool_mode=None).tokens_per_frame


def test_extreme_images_make_at_most_49_tiles() -> None:
    for size in ((1, 1), (1, 100_000), (20_000, 100), (65_500, 65_500)):
        grid = plan_tiles(size, unires_pinpoints())
        assert 2 <= grid.num_tiles <= 49 and math.prod(grid.resized_wh) > 0
