"""``vniah report``: runs as one self-contained HTML page, down to each needle and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import RUN_HELP, Threshold


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help=RUN_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, .html; a page of that name is replaced.")],
    needles: Annotated[
        list[str] | None,
        typer.Option(help="Needle set whose frames are shown: one for all RUNs, or one for each, in order."),
    ] = None,
    published: Annotated[list[str] | None, typer.Option(help="Add a published grid, such as LongVA-7B.")] = None,
    task: Annotated[str | None, typer.Option(help="Show this task alone.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call each RUN, in order.")] = None,
    title: Annotated[str, typer.Option(help="The page's title; the runs' names otherwise.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Show grids that are not complete.")] = False,
    threshold: Threshold = 0.9,
) -> None:
    """Write one self-contained HTML page of runs.

    Choose a cell of a heatmap, by mouse or keyboard, to see its needles, predictions and controls.
    """
    from vniah.commands.run_options import check_text_output, run_groups
    from vniah.plots.grid_data import check_threshold
    from vniah.plots.published import read_published
    from vniah.plots.report import build_page, needle_pictures
    from vniah.plots.run_notes import differences, left_out, limits, warned
    from vniah.plots.style import save_text

    check_text_output(output, (".html", ".htm"), runs)
    check_threshold(threshold)
    specs = needles or []
    if len(specs) not in (0, 1, len(runs)):
        raise ValueError(
            f"{len(specs)} needle sets (--needles) for {len(runs)} runs; give one for all, or one for each"
        )
    shown, pictures, notes = [], [], []
    for index, group in enumerate(run_groups(runs, names=name or [], task=task, partial=partial)):
        spec = None if not specs else specs[index if len(specs) > 1 else 0]
        for run in group:
            images, note = needle_pictures(run, spec)
            shown.append(run)
            pictures.append(images)
            notes += [note] if note else []
    for one in published or []:
        shown.append(read_published(one))
        pictures.append({})
    notes = list(dict.fromkeys([*notes, *differences(shown), *warned(shown), *left_out(shown), *limits(shown)]))
    page = build_page(shown, pictures=pictures, title=title, notes=notes, threshold=threshold)
    for note in notes:
        print(note)
    print(f"wrote {save_text(page, output)}")
