"""``vniah heatmap``: the depth-by-frames heatmap of runs, or the paper's, as figure, table and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import (
    RUN_HELP,
    Cmap,
    Dpi,
    FigureTitle,
    Image,
    Names,
    Pdf,
    Task,
    Threshold,
    TrainFrames,
    TrainLength,
    Width,
)


def command(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help=RUN_HELP)] = None,
    output: Image = None,
    pdf: Pdf = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the scores as CSV.")] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Add a published grid, such as LongVA-7B; 'list' prints their names.")
    ] = None,
    task: Task = None,
    train_length: TrainLength = None,
    train_frames: TrainFrames = None,
    name: Names = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Panels in a row when there are several runs.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Draw a grid that is not complete.")] = False,
    threshold: Threshold = 0.9,
    width: Width = None,
    dpi: Dpi = 200,
    cmap: Cmap = None,
    title: FigureTitle = "",
) -> None:
    """Draw the depth-by-frames heatmap of a run, or the paper's.

    Several runs become panels of one figure. The table is always printed; without -o, only the table.
    """
    from vniah.commands.run_options import check_images, check_text_output, grid_runs
    from vniah.plots.grid_data import GridData, check_threshold, to_csv, to_text
    from vniah.plots.published import grid_names
    from vniah.plots.run_notes import differences
    from vniah.plots.style import Look, save_text

    if published and "list" in published:
        print("\n".join(grid_names()))
        return
    images = check_images(output, pdf)
    check_text_output(csv, (".csv",), runs or [])
    check_threshold(threshold)
    look = Look(width=width, dpi=dpi, cmap=cmap, title=title)
    length = train_frames if train_length is None else train_length
    read = grid_runs(runs or [], published or [], names=name or [], task=task, train_length=length, partial=partial)
    grids = [GridData(run, threshold) for run in read]
    print("\n\n".join(filter(None, [*map(to_text, grids), "\n".join(differences(read))])))
    if images:
        from vniah.plots.heatmap import save_heatmap

        for path in images:
            print(f"wrote {save_heatmap(grids, path, columns=columns, look=look)}")
    if csv is not None:
        print(f"wrote {save_text(to_csv(grids), csv)}")
