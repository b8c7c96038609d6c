"""Pictures for the nano model at the size of its tower: icons, frames without any, and images made of both.

Every picture goes the way V-NIAH's frames go: drawn larger, letterboxed to a square, resized
(``longva_model.pictures.preprocess``). Distractors are of three kinds: abstract pictures; pictures with the statistics
of natural ones, which real film looks like to so small a tower (1/f noise: Field, JOSA A 1987; dead leaves: Lee,
Mumford and Huang, IJCV 2001); and frames of the synthetic film with seeds that no evaluation uses.

An image of 2 to 16 tiles, with questions about its icons, goes through the model's own image path: under UniRes each
tile makes the tokens of a video frame, under AnyRes it does not. No video is seen, no more than 64 visual tokens, and
held-out combinations never occur: what the model then does over thousands of frames and with unseen combinations comes
from its text. Every batch is a pure function of (seed, step).

Shape legend: N pictures, or tiles of all images of a batch; B images; S the tower's edge, uint8 (N, S, S, 3); T tokens.
``input_ids`` hold the config's image placeholder, one for each visual token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from longva_model.pictures.preprocess import fit_frames, normalise
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, draw_icon, icon_questions, is_heldout
from vniah.prompts import NANO, question_text
from vniah.training.fit import StepDataset
from vniah.training.nano.text_tasks import with_text
from vniah.training.stages import IGNORE, AlignStage

PicturesNHWC = NDArray[np.uint8]
# Evaluation reads films of small seeds ("synthetic:0"); training starts far above.
FILM_SEED = 1_000_000
FILM_FRAMES = 48
TILE_COUNTS = (2, 3, 4, 8, 16)
# Of the pictures without an icon that are drawn here, those as if natural; of such, shapes that occlude each other.
NATURAL_SHARE, LEAVES = 0.6, (20, 200)


@dataclass(frozen=True, slots=True, kw_only=True)
class IconPool:
    """Icons and what is on them. ``labels_N3``: indices into OBJECTS, COLOURS and DIGITS."""

    pixels_NHWC: PicturesNHWC
    labels_N3: NDArray[np.int64]


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
    """Frames without icons: ``film_share`` of them short pieces of many synthetic films, the others drawn here."""
    from vniah.haystack import open_haystack

    rng, from_film = np.random.default_rng((seed, 2)), round(count * film_share)
    shown: list[Any] = [[draw_without_icon(rng) for _ in range(count - from_film)]]
    for index in range(-(-from_film // FILM_FRAMES)):
        film = open_haystack(f"synthetic:{FILM_SEED + int(rng.integers(0, 1 << 20)) + index}")
        start = int(rng.integers(0, min(len(film), 4096) - FILM_FRAMES))
        shown.append(film.frames(start, start + FILM_FRAMES))
    pixels_NHWC = np.concatenate([fit_frames(frames, "pad", size, num_threads=1) for frames in shown if len(frames)])
    return pixels_NHWC[:count][rng.permutation(count)]


def draw_without_icon(rng: np.random.Generator) -> Image.Image:
    """One picture of random size and aspect, abstract or as if natural, with or without shapes strewn over it."""
    long_edge = int(rng.integers(64, 193))
    short_edge = int(long_edge * rng.choice([1.0, 0.75, 0.5625]))
    width, height = (long_edge, short_edge) if rng.random() < 0.6 else (short_edge, long_edge)
    natural = rng.random() < NATURAL_SHARE
    makers = (_clouds, _dead_leaves) if natural else (_gradient, _stripes, _noise, _mosaic)
    image = makers[rng.integers(len(makers))](rng, width, height)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 9)) if rng.random() < 0.5 or not natural else 0):
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


def _clouds(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with spatial frequency; its channels mostly agree, as those of photographs do."""
    y_HW = np.fft.fftfreq(height)[:, None] * height
    x_HW = np.fft.rfftfreq(width)[None] * width
    amplitude_HW = np.maximum(np.hypot(y_HW, x_HW), 1.0) ** -rng.uniform(0.8, 2.0)
    amplitude_HW[0, 0] = 0.0
    planes_4HW = np.fft.irfft2(amplitude_HW * np.fft.rfft2(rng.standard_normal((4, height, width))), (height, width))
    planes_4HW /= planes_4HW.std(axis=(1, 2), keepdims=True)
    colour_HW3 = planes_4HW[0][..., None] + rng.uniform(0.0, 0.8) * planes_4HW[1:].transpose(1, 2, 0)
    return Image.fromarray((rng.uniform(20, 80) * colour_HW3 + _tint(rng)).clip(0, 255).astype(np.uint8))


def _dead_leaves(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes that occlude each other, small ones the most, in the colours of a scene, with a little shade and grain."""
    image = Image.fromarray(np.tile(_tint(rng), (height, width, 1)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    scene, spread, smallest = _tint(rng), rng.uniform(15, 70), rng.uniform(0.02, 0.15)
    for _ in range(int(rng.integers(*LEAVES))):
        # Radii with a density of r**-3, up to half of the picture: no scale stands out.
        radius = max(width, height) * rng.uniform(0.5**-2, smallest**-2) ** -0.5
        x, y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
        corners = int(rng.choice([3, 4, 4, 5, 24]))
        angles = turn + np.sort(rng.uniform(0, 2 * np.pi, corners) if corners < 24 else np.linspace(0, 2 * np.pi, 24))
        stretch = rng.uniform(0.4, 1.0)
        points = [(float(x + radius * np.cos(a)), float(y + stretch * radius * np.sin(a))) for a in angles]
        colour = (scene + spread * (rng.standard_normal() + 0.5 * rng.standard_normal(3))).clip(0, 255)
        draw.polygon(points, fill=tuple(int(v) for v in colour))
    return Image.blend(image, _clouds(rng, width, height), float(rng.uniform(0.0, 0.4)))


def _tint(rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour (3,) as photographs have them: any brightness, little saturation."""
    return np.asarray(rng.uniform(20, 235) + rng.uniform(0, 40) * rng.standard_normal(3)).clip(0, 255)


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


def barred(pixels_NHWC: PicturesNHWC, rng: np.random.Generator, *, share: float) -> PicturesNHWC:
    """Lay black bars over two sides of ``share`` of the pictures, and over the other two of as many.

    Film that was made for another screen has them, and what they leave, a bright patch on black, is most like an icon.
    """
    size, barred_NHWC = pixels_NHWC.shape[1], pixels_NHWC.copy()
    for picture_HWC in barred_NHWC:
        for sides in (picture_HWC, picture_HWC.transpose(1, 0, 2)):
            if rng.random() < share:
                width = int(rng.integers(1, size * 3 // 8 + 1))
                sides[:width] = sides[-width:] = 0
    return barred_NHWC


def icon_dataset(stage: AlignStage, config: Any, tokenizer: Any, seed: int) -> StepDataset:
    """A stage's generated pictures, and text between them, as a dataset of whole batches."""
    data, size = stage.data, config.layout.tile_size
    icons = draw_icons(data.pool_images, size, seed=seed + 10)
    others_NHWC = draw_distractors(data.pool_images // 2, size, seed=seed + 10, film_share=data.film_share)
    make = VisionTasks(stage, config, tokenizer, icons, others_NHWC, seed).batch
    if data.text_share:
        make = with_text(make, tokenizer, share=data.text_share, length=data.text_length, seed=seed)
    return StepDataset(make, stage.train.steps * stage.train.accumulation)


class VisionTasks:
    """Batches of images with icons among distractors, and questions about them, by step."""

    def __init__(
        self, stage: AlignStage, config: Any, tokenizer: Any, icons: IconPool, others_NHWC: PicturesNHWC, seed: int
    ) -> None:
        self._ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._pre, self._end, self._pad = self._ids(NANO.pre), tokenizer.eos_token_id, tokenizer.pad_token_id
        self._names = ([str(o) for o in OBJECTS], [str(c) for c in COLOURS], [str(d) for d in DIGITS])
        self._icons, self._others_NHWC, self._seed = icons, others_NHWC, seed
        self._layout, self._placeholder = config.layout, config.image_token_index
        self._batch_size, self._max_questions = stage.train.batch_size, stage.data.max_questions
        self._shapes: dict[int, list[tuple[int, int]]] = {}  # (columns, rows) of canvases by their number of tiles
        for width, height in self._layout.pinpoints:
            columns, rows = width // self._layout.tile_size, height // self._layout.tile_size
            if columns * rows in TILE_COUNTS and columns * rows <= stage.data.max_tiles:
                self._shapes.setdefault(columns * rows, []).append((columns, rows))
        if not self._shapes:
            raise ValueError(f"no canvas has 2 to {stage.data.max_tiles} tiles; raise max_tiles")

    def batch(self, step: int) -> dict[str, Any]:
        """``pixel_values`` (N, 3, S, S), ``image_sizes`` (B, 2); ids, labels and mask (B, T)."""
        rng = np.random.default_rng((self._seed, step, 5))
        counts = sorted(self._shapes)
        shapes = self._shapes[counts[rng.integers(len(counts))]]
        samples = [self._sample(rng, *shapes[rng.integers(len(shapes))]) for _ in range(self._batch_size)]
        tiles, sizes, rows, labels = zip(*samples, strict=True)
        ids_BT = np.full((len(rows), max(map(len, rows))), self._pad, np.int64)
        labels_BT, mask_BT = np.full_like(ids_BT, IGNORE), np.zeros_like(ids_BT)
        for index, row in enumerate(rows):
            ids_BT[index, : len(row)] = row
            labels_BT[index, : len(row)] = labels[index]
            mask_BT[index, : len(row)] = 1
        batch = {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
        return {**batch, "pixel_values": normalise(np.concatenate(tiles)), "image_sizes": np.array(sizes)}

    def _sample(
        self, rng: np.random.Generator, columns: int, rows: int
    ) -> tuple[PicturesNHWC, tuple[int, int], list[int], list[int]]:
        """Tiles, (height, width), token ids and labels of one image."""
        count = columns * rows
        chosen = self._draw_icons(rng, int(rng.integers(1, min(count, 6) + 1)))
        places = rng.choice(count, len(chosen), replace=False)
        pictures_NHWC = self._others_NHWC[rng.integers(0, len(self._others_NHWC), count)]
        pictures_NHWC[places] = self._icons.pixels_NHWC[chosen]
        image = Image.fromarray(montage(shifted(pictures_NHWC, rng, reach=1), columns, rows))
        row = [*self._pre, *[self._placeholder] * self._layout.num_image_tokens(image.size)]
        labels = [IGNORE] * len(row)
        for _ in range(int(rng.integers(1, self._max_questions + 1))):
            icon = chosen[rng.integers(len(chosen))]
            names = [kind[int(i)] for kind, i in zip(self._names, self._icons.labels_N3[icon], strict=True)]
            questions = list(icon_questions(*names))
            question, answer = questions[rng.integers(len(questions))]
            ask, tell = self._ids(question_text(question)), [*self._ids(answer), self._end]
            row += [*ask, *tell]
            labels += [*[IGNORE] * len(ask), *tell]
        return self._layout.tiles(image), (image.height, image.width), row, labels

    def _draw_icons(self, rng: np.random.Generator, count: int) -> list[int]:
        """Icons of different objects, so that a question names one of them."""
        chosen: dict[int, int] = {}
        while len(chosen) < count:
            index = int(rng.integers(len(self._icons.labels_N3)))
            chosen.setdefault(int(self._icons.labels_N3[index, 0]), index)
        return list(chosen.values())


def montage(pictures_NHWC: PicturesNHWC, columns: int, rows: int) -> PicturesNHWC:
    """Pictures in rows, row-major: (rows * S, columns * S, 3)."""
    _, height, width, channels = pictures_NHWC.shape
    grid = pictures_NHWC.reshape(rows, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
