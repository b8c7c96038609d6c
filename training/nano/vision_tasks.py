"""Image data for the nano model: pictures side by side in one image, some of them icons, and questions about those.

An image of 2 to 16 tiles goes through the model's own image path: under UniRes each tile makes the tokens of a
video frame, under AnyRes it does not. No video is seen, no more than 64 visual tokens, and held-out combinations
never occur: what the model then does over thousands of frames and with unseen combinations comes from its text.

Shape legend: B images, N tiles of all of them, S the tower's edge, T tokens. ``input_ids`` hold the config's image
placeholder, one for each visual token. Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from longva_model.pictures.preprocess import normalise
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, icon_questions
from vniah.prompts import NANO, question_text
from vniah.training.fit import StepDataset
from vniah.training.nano.pictures import IconPool, PicturesNHWC, draw_distractors, draw_icons, shifted
from vniah.training.nano.text_tasks import with_text
from vniah.training.stages import IGNORE, AlignStage

TILE_COUNTS = (2, 3, 4, 8, 16)


def icon_dataset(stage: AlignStage, config: Any, tokenizer: Any, seed: int) -> StepDataset:
    """A stage's generated pictures, and text between them, as a dataset of whole batches."""
    data, size = stage.data, config.layout.tile_size
    make = VisionTasks(
        tokenizer,
        draw_icons(data.pool_images, size, seed=seed + 10),
        draw_distractors(data.pool_images // 4, size, seed=seed + 10, film_share=data.film_share),
        layout=config.layout,
        placeholder=config.image_token_index,
        batch_size=stage.train.batch_size,
        max_tiles=data.max_tiles,
        max_questions=data.max_questions,
        seed=seed,
    ).batch
    if data.text_share:
        make = with_text(make, tokenizer, share=data.text_share, length=data.text_length, seed=seed)
    return StepDataset(make, stage.train.steps * stage.train.accumulation)


class VisionTasks:
    """Batches of ``batch_size`` images with icons among distractors, and questions about them, by step.

    ``layout`` is the model's ``VisualLayout``, ``placeholder`` its config's ``image_token_index``.
    """

    def __init__(
        self,
        tokenizer: Any,
        icons: IconPool,
        distractors_NHWC: PicturesNHWC,
        *,
        layout: Any,
        placeholder: int,
        batch_size: int,
        max_tiles: int,
        max_questions: int,
        seed: int,
    ) -> None:
        self._ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._pre, self._end, self._pad = self._ids(NANO.pre), tokenizer.eos_token_id, tokenizer.pad_token_id
        self._names = ([str(o) for o in OBJECTS], [str(c) for c in COLOURS], [str(d) for d in DIGITS])
        self._icons, self._distractors_NHWC = icons, distractors_NHWC
        self._layout, self._placeholder = layout, placeholder
        self._batch_size, self._max_questions, self._seed = batch_size, max_questions, seed
        self._shapes: dict[int, list[tuple[int, int]]] = {}  # (columns, rows) of canvases by their number of tiles
        for width, height in layout.pinpoints:
            columns, rows = width // layout.tile_size, height // layout.tile_size
            if columns * rows in TILE_COUNTS and columns * rows <= max_tiles:
                self._shapes.setdefault(columns * rows, []).append((columns, rows))
        if not self._shapes:
            raise ValueError(f"no canvas has 2 to {max_tiles} tiles; raise max_tiles")

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
        from PIL import Image

        count = columns * rows
        chosen = self._draw_icons(rng, int(rng.integers(1, min(count, 6) + 1)))
        places = rng.choice(count, len(chosen), replace=False)
        pictures_NHWC = self._distractors_NHWC[rng.integers(0, len(self._distractors_NHWC), count)]
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
