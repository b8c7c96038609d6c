"""Pictures for the nano model: icons with labels, and frames without any, at the size of its tower.

Every picture goes the way V-NIAH's frames go: drawn larger, letterboxed to a square, resized
(``longva_model.pictures.preprocess``). Distractors are of two kinds: abstract ones drawn here, and frames of the
synthetic film with seeds that no evaluation uses.

Shape legend: N pictures, S the tower's edge. uint8 (N, S, S, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from longva_model.pictures.preprocess import fit_frames
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, draw_icon, is_heldout

PicturesNHWC = NDArray[np.uint8]
# Evaluation reads films of small seeds ("synthetic:0"); training starts far above.
FILM_SEED = 1_000_000
FILM_FRAMES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class IconPool:
    """Icons and what is on them. ``labels_N3``: indices into OBJECTS, COLOURS and DIGITS."""

    pixels_NHWC: PicturesNHWC  # noqa: N815 - shape suffix
    labels_N3: NDArray[np.int64]  # noqa: N815


def draw_icons(count: int, size: int, *, seed: int, heldout: bool = False) -> IconPool:
    """Draw ``count`` icons at ``size``, of held-out combinations only (for evaluation) or of none (for training)."""
    rng = np.random.default_rng((seed, int(heldout)))
    names = (list(OBJECTS), list(COLOURS), list(DIGITS))
    combinations = [
        labels
        for labels in np.ndindex(*map(len, names))
        if is_heldout(*(kind[i] for kind, i in zip(names, labels, strict=True))) == heldout
    ]
    labels_N3 = np.array(combinations, np.int64)[rng.integers(0, len(combinations), count)]
    images = []
    for o, c, d in labels_N3:
        edge = int(rng.integers(64, 193))
        images.append(draw_icon(rng, names[0][o], names[1][c], names[2][d], edge))
    return IconPool(pixels_NHWC=fit_frames(images, "pad", size, num_threads=1), labels_N3=labels_N3)


def draw_distractors(count: int, size: int, *, seed: int, film_share: float) -> PicturesNHWC:
    """Frames without icons: abstract pictures, and ``film_share`` of them from the synthetic film."""
    from_film = round(count * film_share)
    parts: list[PicturesNHWC] = []
    rng = np.random.default_rng((seed, 2))
    if count > from_film:
        drawn = [draw_abstract(rng) for _ in range(count - from_film)]
        parts.append(fit_frames(drawn, "pad", size, num_threads=1))
    if from_film:
        parts.append(_film_frames(from_film, size, rng))
    pixels_NHWC = np.concatenate(parts)
    return pixels_NHWC[rng.permutation(count)]


def _film_frames(count: int, size: int, rng: np.random.Generator) -> PicturesNHWC:
    """Short pieces of many films of the synthetic haystack."""
    from vniah.haystack import open_haystack

    pieces = []
    for index in range(-(-count // FILM_FRAMES)):
        film = open_haystack(f"synthetic:{FILM_SEED + int(rng.integers(0, 1 << 20)) + index}")
        start = int(rng.integers(0, min(len(film), 4096) - FILM_FRAMES))
        frames_NHWC = film.frames(start, start + FILM_FRAMES)
        pieces.append(fit_frames(frames_NHWC, "pad", size, num_threads=1))
    return np.concatenate(pieces)[:count]


def draw_abstract(rng: np.random.Generator) -> Image.Image:
    """One abstract picture of random size and aspect."""
    long_edge = int(rng.integers(64, 193))
    short_edge = int(long_edge * rng.choice([1.0, 0.75, 0.5625]))
    width, height = (long_edge, short_edge) if rng.random() < 0.6 else (short_edge, long_edge)
    makers = (_gradient, _stripes, _noise, _mosaic)
    image = makers[rng.integers(len(makers))](rng, width, height)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 9))):
        _scatter_shape(rng, draw, width, height)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, long_edge / 24))))
    return image


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
    return red, green, blue


def _grid(width: int, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float64)
    return x_HW / width, y_HW / height


def _blend(first: Sequence[int], second: Sequence[int], weight_HW: NDArray[np.float64]) -> Image.Image:
    mixed = np.asarray(first) * (1 - weight_HW[..., None]) + np.asarray(second) * weight_HW[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    x_HW, y_HW = _grid(width, height)
    angle = rng.uniform(0, 2 * np.pi)
    along_HW = np.cos(angle) * (x_HW - 0.5) + np.sin(angle) * (y_HW - 0.5)
    return _blend(_colour(rng), _colour(rng), (0.5 + along_HW).clip(0, 1))


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    x_HW, y_HW = _grid(width, height)
    angle, rate = rng.uniform(0, np.pi), rng.uniform(2, 14)
    wave_HW = np.sin(2 * np.pi * rate * (np.cos(angle) * x_HW + np.sin(angle) * y_HW))
    return _blend(_colour(rng), _colour(rng), (wave_HW > rng.uniform(-0.8, 0.8)).astype(np.float64))


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    cell = int(rng.integers(1, 9))
    coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3)).astype(np.uint8)
    smooth = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.NEAREST
    image = Image.fromarray(coarse).resize((width, height), smooth)
    return Image.blend(image, Image.new("RGB", image.size, _colour(rng)), float(rng.uniform(0, 0.8)))


def _mosaic(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    columns, rows = (int(v) for v in rng.integers(2, 9, 2))
    palette = rng.integers(0, 256, (int(rng.integers(2, 6)), 3))
    coarse = palette[rng.integers(0, len(palette), (rows, columns))].astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def _scatter_shape(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """A blob, a rotated box or a line, anywhere."""
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    half_w, half_h = rng.uniform(0.03, 0.35) * width, rng.uniform(0.03, 0.35) * height
    kind, fill = rng.integers(3), _colour(rng)
    if kind == 0:
        draw.ellipse((x - half_w, y - half_h, x + half_w, y + half_h), fill=fill)
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        corners = [(-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h)]
        draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners], fill=fill)
    else:
        end = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        draw.line((x, y, *end), fill=fill, width=int(rng.integers(1, 8)))


def shifted(pixels_NHWC: PicturesNHWC, rng: np.random.Generator, *, reach: int) -> PicturesNHWC:
    """Move each picture by up to ``reach`` pixels; its edge is repeated."""
    size = pixels_NHWC.shape[1]
    padded_NHWC = np.pad(pixels_NHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    places_N2 = rng.integers(0, 2 * reach + 1, (len(pixels_NHWC), 2))
    moved = [padded_NHWC[index, y : y + size, x : x + size] for index, (y, x) in enumerate(places_N2)]
    return np.stack(moved)
