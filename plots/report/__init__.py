"""One self-contained HTML page of runs: heatmaps whose cells open down to each needle and prediction.

The grids are markup, so that they are there without a script; then come style, script and data. Everything that a run
says is escaped, and a content security policy lets no other script, style or address in: the page holds one script and
one style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from vniah.needles import open_needles
from vniah.needles.sources import of_seed
from vniah.plots.grid_data import GridData, length_label, span
from vniah.plots.run_notes import control_name, distinct_grids, is_absent
from vniah.plots.style import ink_on, score_colour
from vniah.runs.run import NOT_SCORED, Run
from vniah.visual.settings import MOST_SEEDS

THUMBNAIL = 360  # the longer side in pixels; a needle must be recognised, not measured
# Pictures of one run that a page holds; what a results file names may be without end.
MOST_PICTURES = 300


def build_page(
    runs: Sequence[Run],
    *,
    pictures: Sequence[Mapping[str, Image.Image]] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    threshold: float | None = None,
) -> str:
    """The page as a string, under a ``title`` (the runs' names otherwise) and ``notes``.

    ``pictures`` are needle images by id, for each run; ``threshold`` is that of effective lengths. A ValueError for no
    runs.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    title = title or ", ".join(dict.fromkeys(run.name for run in runs))
    runs = distinct_grids(runs)
    style, script = _file("report.css") + "\n" + "\n".join(score_classes()), _file("report.js")
    # One task after the other, so that its runs stand side by side.
    tasks = list(dict.fromkeys((run.unit, run.task) for run in runs))
    grids = [(index, GridData(run, threshold)) for index, run in enumerate(runs) if run.is_grid]
    others: dict[str, list[Run]] = {}
    for run in runs:
        if not run.is_grid:
            others.setdefault(run.task, []).append(run)
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_text)
    return environment.from_string(_file("page.html")).render(
        title=title,
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json(payload(runs, pictures or [{}] * len(runs)))),
        notes=notes,
        runs=runs,
        grids=sorted(grids, key=lambda one: tasks.index((one[1].unit, one[1].run.task))),
        others=others,
        grid_rows=_grid_rows,
        length_label=length_label,
        metric_names=lambda these: dict.fromkeys(key for run in these for key in (*run.metrics, *run.unscored)),
        metric=_metric,
        settings=_settings,
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """A content security policy's name for an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: Any) -> Any:
    """What the template shows of a value; characters that are no text become "?"."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode()


def score_classes() -> list[str]:
    """One class a percent: the policy allows no style attributes."""
    return [f".s{one}{{background:{score_colour(one / 100)};color:{ink_on(one / 100)}}}" for one in range(101)]


def _grid_rows(data: GridData) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of a heatmap by their heading, the one without needles last where there is one."""
    trained = [length for length in data.frames if data.train_length is not None and length <= data.train_length]
    edge = trained[-1] if trained and len(trained) < len(data.frames) else None

    def cell(length: int, depth: str, score: float, told: str) -> dict[str, Any]:
        where = f"{length} {data.unit}, " + ("no needle" if depth == "control" else f"depth {depth} %")
        classes = " edge" if length == edge else ""
        if math.isnan(score):
            return {"score": None, "classes": f"hole{classes}", "label": f"{where}, not scored"}
        return {
            "score": _trimmed(score, 2),
            "classes": f"s{round(score * 100)}{classes}",
            "label": f"{where}, {told}",
            "place": f"{length}/{depth}",
        }

    ends = {} if data.uncertainty is None else data.uncertainty.cells

    def told(place: tuple[int, int], score: float, scored: float) -> str:
        if math.isnan(score):
            return ""
        sure = f", 95 % {span(ends[place], 2)}" if place in ends else ""
        return f"{round(score * scored)} of {scored:.0f} correct{sure}"

    for depth, scores, counts in zip(data.depths, data.scores.to_numpy(), data.counts.to_numpy(), strict=True):
        row = zip(data.frames, scores, counts, strict=True)
        yield (
            f"{depth} %",
            [cell(length, str(depth), score, told((length, depth), score, n)) for length, score, n in row],
        )
    if data.controls:
        # Where "not there" is offered, saying it without the needle is right, and a score here is no guess.
        right = "abstained" if is_absent(data.run) else "correct"
        means = {length: data.controls.get(length, math.nan) for length in data.frames}
        yield "no needle", [cell(length, "control", mean, f"{mean:.0%} {right}") for length, mean in means.items()]


def _trimmed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _metric(run: Run, key: str) -> str:
    """A metric's value: counts whole, means to four decimals."""
    if key in run.metrics:
        return _trimmed(run.metrics[key], 4)
    return NOT_SCORED if key in run.unscored else "-"


def _settings(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """A run's settings, fingerprints, versions and timings by section, nested values and the entries of a list on
    lines of their own."""

    def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{before}{key}.")
            elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
                yield from ((f"{before}{key}.{place}", _entry(one)) for place, one in enumerate(value, 1))
            else:
                yield f"{before}{key}", value

    for title, section in run.settings.items():
        yield title, dict(flat(section if isinstance(section, Mapping) else {title: section}))
    if run.is_grid and run.metrics:
        yield "metrics", {key: f"{value:.6g}" for key, value in run.metrics.items()}


def _entry(value: Any) -> str:
    """ "columns 16; fitted 208x288; tokens_a_unit 234", of an entry of a list."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_entry(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def payload(runs: Sequence[Run], pictures: Sequence[Mapping[str, Image.Image]]) -> dict[str, Any]:
    """What the page's script is given: every scored cell of every run, by place, as plain JSON values."""
    images: list[str] = []
    known: dict[bytes, int] = {}

    def place(image: Image.Image) -> int:
        # Runs over one needle set share its pictures.
        key = image.tobytes() + repr(image.size).encode()
        if key not in known:
            known[key] = len(images)
            images.append(thumbnail(image))
        return known[key]

    told = [
        {
            "name": run.name,
            "unit": run.unit,
            "control": control_name(run).capitalize(),
            "aggregate": bool(run.cells["aggregate"].any()),
            "pictures": {needle: place(image) for needle, image in mine.items() if needle in needles},
            "cells": _by_place(run),
        }
        for run, mine, needles in zip(runs, pictures, (set(_named(run)) for run in runs), strict=True)
    ]
    return {"images": images, "runs": told}


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of the image as a ``data:`` URI."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _named(run: Run) -> list[str]:
    """What each cell's needle is called: where a grid was repeated, by its repetition too."""
    cells = run.cells
    if not cells["seed"].astype(bool).any():
        return list(cells["needle"])
    return [f"{needle}, seed {seed}" for needle, seed in zip(cells["needle"], cells["seed"], strict=True)]


def _by_place(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Cells by "frames/depth", with "control" for a depth of none; what a cell does not say is left out."""
    import pandas

    found: dict[str, list[dict[str, Any]]] = {}
    for cell, needle in zip(run.cells.itertuples(), _named(run), strict=True):
        told = {
            "needle": needle,
            "correct": cell.correct,
            "predicted": cell.predicted,
            "answer": cell.answer,
            "question": cell.question.strip(),
            "predictedIds": list(cell.predicted_ids),
            "answerIds": list(cell.answer_ids),
            "logprobs": [one if math.isfinite(one) else None for one in cell.answer_logprobs],
            "index": None if pandas.isna(cell.needle_index) else int(cell.needle_index),
        }
        depth = "control" if cell.control else cell.depth_percent
        plain = {key: value for key, value in told.items() if value not in ("", [], None)}
        found.setdefault(f"{cell.num_frames}/{depth}", []).append(plain)
    return found


def script_json(value: Any) -> str:
    """JSON that may stand inside ``<script>``: no character of it can end the element or start another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _repeated_pictures(run: Run, spec: str, seeds: int) -> tuple[dict[str, Image.Image], str]:
    """The needle images of a grid that was repeated, by id and repetition, where its sets are drawn."""
    if not spec.startswith("icons"):
        return {}, f"{run.name}: frames are not shown, since its grid was repeated with needles that are not drawn"
    wanted = set(_named(run))
    sets = ((seed, open_needles(of_seed(spec, seed))) for seed in range(seeds))
    found = ((f"{needle.id}, seed {seed}", needle) for seed, needles in sets for needle in needles)
    shown = [(name, needle) for name, needle in found if name in wanted]
    note = "" if len(shown) <= MOST_PICTURES else f"{run.name}: the frames of {MOST_PICTURES} of its needles are shown"
    return {name: needle.image for name, needle in shown[:MOST_PICTURES]}, note


def needle_pictures(run: Run, spec: str | None = None) -> tuple[dict[str, Image.Image], str]:
    """The needle images of a run by id, found again by what the run says it was given, and a note where something is
    not as it was in the run ("" otherwise).

    Args:
        run: whose settings name its needle set and fingerprint.
        spec: a needle set (see ``open_needles``). Without one, the run's own is used if it is drawn or is
            a folder that is still there; a Hub dataset is only opened when it is named.

    Raises:
        ValueError: ``spec`` has none of the run's needles; and what ``open_needles`` raises for it.
    """
    task: Mapping[str, Any] = run.settings.get("task", {})
    if not run.is_grid or run.unit != "frames":
        return {}, ""
    if isinstance(seeds := task.get("seeds"), int) and seeds > 1:
        return _repeated_pictures(run, spec or str(task.get("needles") or ""), min(seeds, MOST_SEEDS))
    own = str(task.get("needles_name") or task.get("needles") or "")
    if spec is None and not (own.split(":")[0] in ("builtin", "icons") or (own and Path(own).is_dir())):
        return {}, f"{run.name}: frames are not shown; name its needle set with --needles" if own else ""
    found = open_needles(spec or own)
    wanted = set(run.needles)
    shown = [needle for needle in found if needle.id in wanted]
    pictures = {needle.id: needle.image for needle in shown[:MOST_PICTURES]}
    if spec is not None and not pictures:
        raise ValueError(
            f"the needle set {spec!r} has none of the needles of {run.name!r} ({', '.join(sorted(wanted)[:5])})"
        )
    if not pictures:
        return {}, f"{run.name}: frames are not shown, since the needle set {own!r} has other needles"
    if task.get("needles_fingerprint") not in (None, found.fingerprint):
        if spec is None:
            return {}, f"{run.name}: frames are not shown, since the needle set {own!r} has changed since the run"
        return pictures, f"{run.name}: the needle set {spec!r} is not the one of the run; its frames may differ"
    if len(shown) > MOST_PICTURES:
        return pictures, f"{run.name}: the frames of {MOST_PICTURES} of its {len(shown):,} needles are shown"
    return pictures, ""
