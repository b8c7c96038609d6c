"""Frames and images become the pixel values that CLIP's own image processor makes, to the bit."""

from __future__ import annotations

import io
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image, ImageFile

from longva_model.pictures.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    PAD_COLOUR,
    fit_frame,
    fit_frames,
    normalise,
    part_of,
    run_threaded,
    to_rgb,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(360, 640), (640, 360), (336, 336), (337, 335), (20, 31), (500, 336), (1080, 1920)])
def test_crop_is_clip_preprocessing(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frame = noise(*size)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = np.asarray(clip(Image.fromarray(frame), return_tensors="np")["pixel_values"])
    got = normalise(fit_frames(frame[None]))
    assert got.dtype == np.float32 and got.shape == (1, 3, 336, 336)
    np.testing.assert_allclose(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(36, 64), (64, 36), (50, 50), (51, 50)])
def test_pad_letterboxes_to_a_square_of_clip_grey(size: tuple[int, int]) -> None:
    frame = noise(*size)
    edge = max(size)
    square = np.empty((edge, edge, 3), np.uint8)
    square[:] = PAD_COLOUR
    top, left = (edge - size[0]) // 2, (edge - size[1]) // 2
    square[top : top + size[0], left : left + size[1]] = frame
    expected = np.asarray(Image.fromarray(square).resize((28, 28), Image.Resampling.BICUBIC))
    assert np.array_equal(fit_frames(frame[None], "pad", 28)[0], expected)


def test_normalise_is_the_formula() -> None:
    frames = noise(8, 8)[None]
    plain = (frames / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(normalise(frames), plain.transpose(0, 3, 1, 2), atol=2e-6, rtol=0)


def test_normalising_on_the_device_gives_the_same_values() -> None:
    import torch

    from longva_model.pictures.levels import levels_to_pixels
    from longva_model.pictures.preprocess import level_table

    frames = np.stack([noise(8, 8), noise(8, 8, 1)])
    on_device = levels_to_pixels(torch.from_numpy(frames), level_table())
    assert np.array_equal(on_device.numpy(), normalise(frames))


def test_many_frames_on_threads_equal_one_by_one() -> None:
    frames = np.stack([noise(40, 60, seed) for seed in range(9)])
    one_by_one = [np.asarray(fit_frame(Image.fromarray(frame), "crop", 28)) for frame in frames]
    assert np.array_equal(fit_frames(frames, "crop", 28, num_threads=4), np.stack(one_by_one))
    assert np.array_equal(fit_frames([Image.fromarray(f) for f in frames], "crop", 28), np.stack(one_by_one))


def test_frames_of_several_sizes_are_fitted_each() -> None:
    images = [Image.new("RGB", (60, 40), "red"), Image.new("L", (20, 90), 9)]
    assert fit_frames(images, "pad", 28).shape == (2, 28, 28, 3)


def test_frames_of_the_right_size_are_not_touched() -> None:
    frames = noise(28, 28)[None]
    assert fit_frames(frames, "crop", 28) is frames


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "empty video"),
        ([], "empty video"),
        (np.zeros((2, 4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.uint8), r"\(4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"\(2, 3, 4, 4\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"\(2, 0, 4, 3\)"),
    ],
)
def test_what_is_no_video_is_refused(frames: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_frames(frames)  # type: ignore[arg-type]


def test_an_unknown_mode_names_the_two() -> None:
    with pytest.raises(ValueError, match="crop, pad"):
        fit_frames(noise(4, 4)[None], "stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_every_mode_becomes_rgb_as_pil_converts_it(mode: str) -> None:
    image = Image.fromarray(noise(6, 9)).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_top_eight() -> None:
    levels = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 156, 255]
    assert np.asarray(to_rgb(Image.fromarray(np.array([[7, 200]], np.int32))))[0, :, 0].tolist() == [7, 200]


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(noise(10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise is needed
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    turned = to_rgb(Image.open(file))
    assert turned.size == (10, 20)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_cut_short_is_said_to_be(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval has it for the whole process
    file = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(file, form)
    cut = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    with pytest.raises(ValueError, match="corrupt or cut short"):
        to_rgb(cut)


def test_an_error_on_a_thread_reaches_the_caller() -> None:
    def fail(index: int) -> None:
        if index == 3:
            raise ValueError("frame 3")

    with pytest.raises(ValueError, match="frame 3"):
        run_threaded(fail, 8, 4)


# Letterboxed frames in a batch are resized in part only, and equal the whole square resized, to the bit.


def noise_of_size(width: int, height: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(width * 10_000 + height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def one_by_one(frames_NHWC: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(fit_frame(Image.fromarray(frame), "pad", size)) for frame in frames_NHWC])


@pytest.mark.parametrize(
    ("width", "height"), [(576, 1024), (1280, 720), (640, 360), (854, 480), (720, 480), (480, 270), (1920, 800)]
)
def test_frames_of_common_films_are_resized_in_part(width: int, height: int) -> None:
    assert part_of(width, height, 336) is not None
    frames = noise_of_size(width, height)
    assert np.array_equal(fit_frames(frames, "pad", 336), one_by_one(frames, 336))


@settings(max_examples=80, deadline=None)
@given(
    width=st.one_of(st.integers(1, 500), st.integers(1, 60).map(lambda n: 8 * n)),
    height=st.one_of(st.integers(1, 500), st.integers(1, 60).map(lambda n: 8 * n)),
    size=st.sampled_from([48, 224, 336]),
)
def test_frames_of_any_size(width: int, height: int, size: int) -> None:
    frames = noise_of_size(width, height)
    assert np.array_equal(fit_frames(frames, "pad", size), one_by_one(frames, size))


def test_frames_that_are_views() -> None:
    """A haystack may hand over frames that it has turned or cut."""
    frames = noise_of_size(320, 180)
    for view in (frames[:, ::-1], frames[:, :, ::-1], frames.swapaxes(1, 2), frames[:, 10:90, 7:]):
        assert np.array_equal(fit_frames(view, "pad", 336), one_by_one(np.ascontiguousarray(view), 336))


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1080, 1920), (1200, 1200), (640, 360), (300, 200)])
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_the_fast_modes_are_close(width: int, height: int, mode: Any) -> None:
    """On a picture with edges and some noise_of_size; small frames are not touched."""
    y, x = np.mgrid[:height, :width]
    picture = 90 + 60 * ((x // 97 + y // 61) % 2)[..., None] + np.random.default_rng(0).normal(0, 3, (height, width, 3))
    frames = picture.clip(0, 255).astype(np.uint8)[None]
    mode_fast: Any = f"{mode}-fast"
    exact, fast = (fit_frames(frames, name, 336).astype(int) for name in (mode, mode_fast))
    one = np.asarray(fit_frame(Image.fromarray(frames[0]), mode_fast, 336)).astype(int)
    assert np.abs(fast - exact).mean() < 0.6
    assert np.abs(fast - one).mean() < 0.6
    assert (fast == exact).all() == (max(width, height) < 3 * 336 and min(width, height) < 3 * 336)
