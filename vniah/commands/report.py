"""``vniah report``: runs as one self-contained HTML page, down to each needle and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import RUN_HELP, Names, Threshold


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help=RUN_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, .html; a page of that name is replaced.")],
    needles: Annotated[
        list[str] | None,
        typer.Option(help="Needle set whose frames are shown: one for all RUNs, or one for each, in order."),
    ] = None,
    published: Annotated[list[str] | None, typer.Option(help="Add a published grid, such as LongVA-7B.")] = None,
    task: Annotated[str | None, typer.Option(help="Show this task alone.")] = None,
    name: Names = None,
    title: Annotated[str, typer.Option(help="The page's title; the runs' names otherwise.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Show grids that are not complete.")] = False,
    threshold: Threshold = None,
) -> None:
    """Write one self-contained HTML page of runs.

    Choose a cell of a heatmap, by mouse or keyboard, to see its needles, predictions and controls.
    """
    from vniah.commands.run_options import check_text_output, run_groups
    from vniah.plots.published import read_published
    from vniah.plots.report import build_page, needle_pictures
    from vniah.plots.run_notes import differences, distinct_names, left_out, warned
    from vniah.plots.style import save_text
    from vniah.runs.scoring import effective_at

    check_text_output(output, (".html", ".htm"), runs)
    effective_at(threshold)  # a bad one is told of before anything is read
    specs: list[str | None] = [*(needles or [])]
    if len(specs) not in (0, 1, len(runs)):
        raise ValueError(
            f"{len(specs)} needle sets (--needles) for {len(runs)} runs; give one for all, or one for each"
        )
    groups = distinct_names(run_groups(runs, names=name or [], task=task, partial=partial))
    sets = specs if len(specs) == len(runs) else (specs or [None]) * len(runs)
    shown = [(run, *needle_pictures(run, spec)) for group, spec in zip(groups, sets, strict=True) for run in group]
    shown += [(read_published(one), {}, "") for one in published or []]
    read = [run for run, _, _ in shown]
    notes = [note for _, _, note in shown if note]
    notes = list(dict.fromkeys([*notes, *differences(read), *warned(read), *left_out(read)]))
    pictures = [images for _, images, _ in shown]
    below = set(warned([run for run in read if run.is_grid]))  # in the small print of its grid
    above = [note for note in notes if note not in below]
    page = build_page(read, pictures=pictures, title=title, notes=above, threshold=threshold)
    for note in notes:
        print(note)
    print(f"wrote {save_text(page, output)}")
