"""Letterboxed frames in a batch are resized in part only, and equal the whole square resized, to the bit."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from longva_model.pictures.preprocess import fit_frame, fit_frames, part_of


def noise(width: int, height: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(width * 10_000 + height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def one_by_one(frames_NHWC: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(fit_frame(Image.fromarray(frame), "pad", size)) for frame in frames_NHWC])


@pytest.mark.parametrize(
    ("width", "height"), [(576, 1024), (1280, 720), (640, 360), (854, 480), (720, 480), (480, 270), (1920, 800)]
)
def test_frames_of_common_films_are_resized_in_part(width: int, height: int) -> None:
    assert part_of(width, height, 336) is not None
    frames = noise(width, height)
    assert np.array_equal(fit_frames(frames, "pad", 336), one_by_one(frames, 336))


@settings(max_examples=80, deadline=None)
@given(
    width=st.one_of(st.integers(1, 500), st.integers(1, 60).map(lambda n: 8 * n)),
    height=st.one_of(st.integers(1, 500), st.integers(1, 60).map(lambda n: 8 * n)),
    size=st.sampled_from([48, 224, 336]),
)
def test_frames_of_any_size(width: int, height: int, size: int) -> None:
    frames = noise(width, height)
    assert np.array_equal(fit_frames(frames, "pad", size), one_by_one(frames, size))


def test_frames_that_are_views() -> None:
    """A haystack may hand over frames that it has turned or cut."""
    frames = noise(320, 180)
    for view in (frames[:, ::-1], frames[:, :, ::-1], frames.swapaxes(1, 2), frames[:, 10:90, 7:]):
        assert np.array_equal(fit_frames(view, "pad", 336), one_by_one(np.ascontiguousarray(view), 336))


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1080, 1920), (1200, 1200), (640, 360), (300, 200)])
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_the_fast_modes_are_close(width: int, height: int, mode: Any) -> None:
    """On a picture with edges and some noise; small frames are not touched."""
    y, x = np.mgrid[:height, :width]
    picture = 90 + 60 * ((x // 97 + y // 61) % 2)[..., None] + np.random.default_rng(0).normal(0, 3, (height, width, 3))
    frames = picture.clip(0, 255).astype(np.uint8)[None]
    mode_fast: Any = f"{mode}-fast"
    exact, fast = (fit_frames(frames, name, 336).astype(int) for name in (mode, mode_fast))
    one = np.asarray(fit_frame(Image.fromarray(frames[0]), mode_fast, 336)).astype(int)
    assert np.abs(fast - exact).mean() < 0.6
    assert np.abs(fast - one).mean() < 0.6
    assert (fast == exact).all() == (max(width, height) < 3 * 336 and min(width, height) < 3 * 336)
