"""What the page's script is given: every scored cell of every run, by place, as plain JSON values."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from vniah.plots.run_notes import control_name
from vniah.runs.results import Run, ScoredCell

THUMBNAIL = 360  # the longer side in pixels; a needle must be recognised, not measured


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of the image as a ``data:`` URI."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def payload(runs: Sequence[Run], pictures: Sequence[Mapping[str, Image.Image]]) -> dict[str, Any]:
    """The page's data.

    Args:
        runs: as they are shown.
        pictures: for each run, needle images by id; may be empty.
    """
    images: list[str] = []
    known: dict[bytes, int] = {}

    def place(image: Image.Image) -> int:
        # Runs over one needle set share its pictures.
        key = image.tobytes() + repr(image.size).encode()
        if key not in known:
            known[key] = len(images)
            images.append(thumbnail(image))
        return known[key]

    return {
        "images": images,
        "runs": [
            {
                "name": run.name,
                "unit": run.unit,
                "control": control_name(run).capitalize(),
                "aggregate": any(cell.extra.get("aggregate") for cell in run.scored),
                "pictures": {needle: place(image) for needle, image in mine.items() if needle in set(run.needles)},
                "cells": _by_place(run.scored),
            }
            for run, mine in zip(runs, pictures, strict=True)
        ],
    }


def _by_place(cells: Iterable[ScoredCell]) -> dict[str, list[dict[str, Any]]]:
    """Cells by "frames/depth", with "control" for a depth of none."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        depth = "control" if cell.control else str(cell.depth_percent)
        found.setdefault(f"{cell.num_frames}/{depth}", []).append(_plain(cell))
    return found


def _plain(cell: ScoredCell) -> dict[str, Any]:
    logprobs = [one if math.isfinite(one) else None for one in cell.answer_logprobs]
    plain: dict[str, Any] = {
        "needle": cell.needle,
        "correct": cell.correct,
        "predicted": cell.predicted,
        "answer": cell.answer,
        "question": str(cell.extra.get("question", "")).strip(),
        "predictedIds": list(cell.predicted_ids),
        "answerIds": list(cell.answer_ids),
        "logprobs": logprobs,
        "index": cell.needle_index,
    }
    return {key: value for key, value in plain.items() if value not in ("", [], None)}


def script_json(value: Any) -> str:
    """JSON that may stand inside ``<script>``: no character of it can end the element or start another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
