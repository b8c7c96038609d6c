"""The page itself: markup by Python, so that the grids are there without a script; then style, script and data.

Everything that a run says is escaped, and a content security policy lets no other script, style or
address in: the page holds one script and one style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from PIL import Image

from vniah.plots.grid_data import EFFECTIVE_AT, GridData, grid_data, length_label
from vniah.plots.report.payload import payload, script_json
from vniah.plots.run_notes import distinct_grids
from vniah.plots.style import ink_on, score_colour
from vniah.runs.results import NOT_SCORED, Run


def build_page(
    runs: Sequence[Run],
    *,
    pictures: Sequence[Mapping[str, Image.Image]] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    threshold: float = EFFECTIVE_AT,
) -> str:
    """The page as a string.

    Args:
        runs: needle grids and other tasks, shown in this order.
        pictures: for each run, needle images by id.
        title: the page's; the runs' names otherwise.
        notes: said at the top.
        threshold: what a column's mean must be at least to be effective.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    title = title or ", ".join(dict.fromkeys(run.name for run in runs))
    runs = distinct_grids(runs)
    style = _file("report.css") + "\n" + "\n".join(_score_classes())
    script = _file("report.js")
    data = script_json(payload(runs, pictures if pictures is not None else [{} for _ in runs]))
    parts = {
        "TITLE": _text(title),
        "POLICY": (
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "STYLE": style,
        "NOTES": "".join(f'<p class="note">{_text(note)}</p>' for note in notes),
        "GRIDS": "\n".join(_grid_section(index, run, threshold) for index, run in _by_task(runs)),
        "METRICS": "\n".join(_metrics(runs)),
        "SETTINGS": "\n".join(_settings(index, run) for index, run in enumerate(runs)),
        "DATA": data,
        "SCRIPT": script,
    }
    # One pass over the template: what is put in is never searched for markers again.
    pieces = _file("page.html").split("@@")
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _hash(text: str) -> str:
    """A content security policy's name for an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: Any) -> str:
    """Escaped for element content and quoted attributes; characters that are no text become "?"."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def _score_classes() -> list[str]:
    """One class a percent: the policy allows no style attributes."""
    rules = []
    for percent in range(101):
        score = percent / 100
        rules.append(f".s{percent}{{background:{score_colour(score)};color:{ink_on(score)}}}")
    return rules


def _by_task(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """The runs with a grid and their places, one task after the other so that its runs stand side by side."""
    tasks = list(dict.fromkeys((run.unit, run.task) for run in runs))
    placed = [(index, run) for index, run in enumerate(runs) if run.placed]
    return sorted(placed, key=lambda one: tasks.index((one[1].unit, one[1].task)))


def _grid_section(index: int, run: Run, threshold: float) -> str:
    """One grid's section: heading, figures and the grid."""
    name = (
        f'<h2 id="run-{index}">{_text(run.name)}</h2><p class="task">{_text(run.task)} &middot; {_text(run.model)}</p>'
    )
    return (
        f'<section class="run" aria-labelledby="run-{index}">{name}{_grid(index, grid_data(run, threshold))}</section>'
    )


def _metrics(runs: Sequence[Run]) -> list[str]:
    """A section for each task without a grid: metrics down, runs side by side."""
    sections = []
    others = [run for run in runs if not run.placed]
    for number, task in enumerate(dict.fromkeys(run.task for run in others)):
        these = [run for run in others if run.task == task]
        heads = "".join(f"<th scope=col>{_text(run.name)}</th>" for run in these)
        rows = []
        for key in dict.fromkeys(key for run in these for key in (*run.metrics, *run.unscored)):
            cells = "".join(f"<td>{_value(run, key)}</td>" for run in these)
            rows.append(f"<tr><th scope=row>{_text(key)}</th>{cells}</tr>")
        sections.append(
            f'<section class="run" aria-labelledby="task-{number}"><h2 id="task-{number}">{_text(task)}</h2>'
            f'<div class="scroll"><table class="metrics" aria-labelledby="task-{number}">'
            f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
        )
    return sections


def _value(run: Run, key: str) -> str:
    if key in run.metrics:
        # Counts whole, means to four decimals.
        return f"{run.metrics[key]:.4f}".rstrip("0").rstrip(".")
    return NOT_SCORED if key in run.unscored else "-"


def _grid(index: int, data: GridData) -> str:
    """The heatmap as an ARIA grid: one tab stop, arrow keys within, each cell with a full label."""
    trained = [frames for frames in data.frames if data.train_length is not None and frames <= data.train_length]
    edge = trained[-1] if trained and len(trained) < len(data.frames) else None
    heads = "".join(
        f'<th scope="col" role="columnheader">{length_label(frames, data.unit)}</th>' for frames in data.frames
    )
    rows = []
    for depth, scores, counts in zip(data.depths, data.scores, data.counts, strict=True):
        cells = [
            _cell(index, frames, str(depth), score, count, data.unit, edge == frames)
            for frames, score, count in zip(data.frames, scores, counts, strict=True)
        ]
        rows.append(f'<tr role="row"><th scope="row" role="rowheader">{depth} %</th>{"".join(cells)}</tr>')
    if data.controls:
        # Where "not there" is offered, saying it without the needle is right, and a score here is no guess.
        right = "abstained" if data.control_name == "abstained" else "correct"
        cells = [
            _cell(index, frames, "control", data.controls.get(frames), None, data.unit, edge == frames, right)
            for frames in data.frames
        ]
        rows.append(
            f'<tr role="row" class="control"><th scope="row" role="rowheader">no needle</th>{"".join(cells)}</tr>'
        )
    caption = "".join(f"<p>{_text(note)}</p>" for note in data.notes)
    corner = f'<th scope="col" role="columnheader">depth \\ {_text(data.unit)}</th>'
    return (
        f'<p id="figures-{index}" class="figures">{_text(data.figures)}</p>'
        f'<div class="scroll"><table role="grid" class="grid" aria-labelledby="run-{index}" '
        f'aria-describedby="figures-{index} help" data-run="{index}">'
        f'<thead><tr role="row">{corner}{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{caption}"
    )


def _cell(
    index: int,
    frames: int,
    depth: str,
    score: float | None,
    count: int | None,
    unit: str,
    edge: bool,
    right: str = "correct",
) -> str:
    where = f"{frames} {unit}, " + ("no needle" if depth == "control" else f"depth {depth} %")
    classes = " edge" if edge else ""
    if score is None:
        return f'<td role="gridcell" class="hole{classes}" aria-label="{where}, not scored"></td>'
    told = f"{round(score * count)} of {count} {right}" if count else f"{score:.0%} {right}"
    return (
        f'<td role="gridcell" tabindex="-1" aria-selected="false" class="s{round(score * 100)}{classes}" '
        f'data-place="{frames}/{depth}" aria-label="{where}, {told}">{f"{score:.2f}".rstrip("0").rstrip(".")}</td>'
    )


def _settings(index: int, run: Run) -> str:
    """A run's settings, fingerprints, versions and timings, nested values on lines of their own."""
    groups = []
    for title, section in run.settings.items():
        values = section if isinstance(section, Mapping) else {title: section}
        rows = "".join(
            f"<tr><th scope=row>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in _flat(values)
        )
        groups.append(f"<table><caption>{_text(title)}</caption><tbody>{rows}</tbody></table>")
    if run.placed and run.metrics:
        rows = "".join(
            f"<tr><th scope=row>{_text(key)}</th><td>{value:.6g}</td></tr>" for key, value in run.metrics.items()
        )
        groups.append(f"<table><caption>metrics</caption><tbody>{rows}</tbody></table>")
    opened = " open" if index == 0 else ""
    return f"<details{opened}><summary>{_text(run.name)} ({_text(run.task)})</summary>{''.join(groups)}</details>"


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found
