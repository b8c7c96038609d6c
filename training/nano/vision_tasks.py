"""Image data for the nano model: a few frames, some of them icons, and questions about the icons.

The frames never number more than 16 (64 visual tokens), and held-out combinations never occur: what the
model then does over thousands of tokens and with unseen combinations comes from its text training.

Shape legend: B sequences, F frames of each, S the tower's edge, T tokens. ``input_ids`` hold the config's
video placeholder, one for each visual token. Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vniah.prompts import NANO, question_text
from vniah.training.nano.pictures import IconPool, PicturesNHWC
from vniah.training.nano.tower import pixel_values, shifted

IGNORE = -100
FRAME_COUNTS = (1, 2, 4, 8, 16)


class VisionTasks:
    """Batches of frames, questions and answers by step.

    Args:
        tokenizer: the nano tokenizer.
        icons: pictures with labels, training combinations only.
        distractors_NHWC: frames without icons.
        placeholder: the config's ``video_token_index``.
        tokens_per_frame: visual tokens of one frame.
        batch_size: sequences a batch.
        max_frames: frames of a sequence at most.
        max_questions: questions of a sequence at most.
        seed: every batch is drawn from (seed, step).
    """

    def __init__(
        self,
        tokenizer: Any,
        icons: IconPool,
        distractors_NHWC: PicturesNHWC,
        *,
        placeholder: int,
        tokens_per_frame: int,
        batch_size: int,
        max_frames: int,
        max_questions: int,
        seed: int,
    ) -> None:
        from vniah.needles.icons import COLOURS, DIGITS, OBJECTS

        self._ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._pre, self._end, self._pad = self._ids(NANO.pre), tokenizer.eos_token_id, tokenizer.pad_token_id
        self._names = ([str(o) for o in OBJECTS], [str(c) for c in COLOURS], [str(d) for d in DIGITS])
        self._icons, self._distractors_NHWC = icons, distractors_NHWC
        self._placeholder, self._tokens = placeholder, tokens_per_frame
        self._batch_size, self._max_questions, self._seed = batch_size, max_questions, seed
        self._counts = [count for count in FRAME_COUNTS if count <= max_frames]

    def batch(self, step: int) -> dict[str, Any]:
        """``pixel_values_videos`` (B, F, 3, S, S), ``input_ids``, ``labels`` and ``attention_mask`` (B, T)."""
        rng = np.random.default_rng((self._seed, step, 5))
        num_frames = int(rng.choice(self._counts))
        rows, pictures = [], []
        for _ in range(self._batch_size):
            frames_FHWC, row, labels = self._sequence(rng, num_frames)
            pictures.append(frames_FHWC)
            rows.append((row, labels))
        longest = max(len(row) for row, _ in rows)
        ids_BT = np.full((len(rows), longest), self._pad, np.int64)
        labels_BT = np.full_like(ids_BT, IGNORE)
        mask_BT = np.zeros_like(ids_BT)
        for index, (row, labels) in enumerate(rows):
            ids_BT[index, : len(row)], labels_BT[index, : len(row)] = row, labels
            mask_BT[index, : len(row)] = 1
        pixels = pixel_values(np.concatenate(pictures))
        pixels_BFCHW = pixels.reshape(len(rows), num_frames, *pixels.shape[1:])
        return {
            "pixel_values_videos": pixels_BFCHW,
            "input_ids": ids_BT,
            "labels": labels_BT,
            "attention_mask": mask_BT,
        }

    def _sequence(self, rng: np.random.Generator, num_frames: int) -> tuple[Any, list[int], list[int]]:
        """Frames, token ids and labels of one sequence."""
        num_icons = int(rng.integers(1, min(num_frames, 6) + 1))
        chosen = self._draw_icons(rng, num_icons)
        places = rng.choice(num_frames, len(chosen), replace=False)
        frames_FHWC = self._distractors_NHWC[rng.integers(0, len(self._distractors_NHWC), num_frames)]
        frames_FHWC[places] = self._icons.pixels_NHWC[chosen]
        row = [*self._pre, *[self._placeholder] * (num_frames * self._tokens)]
        labels = [IGNORE] * len(row)
        for _ in range(int(rng.integers(1, self._max_questions + 1))):
            question, answer = self._question(rng, chosen[rng.integers(len(chosen))])
            ask, tell = self._ids(question_text(question)), [*self._ids(answer), self._end]
            row += [*ask, *tell]
            labels += [*[IGNORE] * len(ask), *tell]
        return shifted(frames_FHWC, rng, reach=1), row, labels

    def _draw_icons(self, rng: np.random.Generator, count: int) -> list[int]:
        """Icons of different objects, so that a question names one of them."""
        chosen: list[int] = []
        seen: set[int] = set()
        while len(chosen) < count:
            index = int(rng.integers(len(self._icons)))
            if int(self._icons.labels_N3[index, 0]) not in seen:
                seen.add(int(self._icons.labels_N3[index, 0]))
                chosen.append(index)
        return chosen

    def _question(self, rng: np.random.Generator, icon: int) -> tuple[str, str]:
        from vniah.needles.icons import icon_questions

        names = [kind[int(i)] for kind, i in zip(self._names, self._icons.labels_N3[icon], strict=True)]
        questions = list(icon_questions(*names))
        question, answer = questions[rng.integers(len(questions))]
        return question, answer
