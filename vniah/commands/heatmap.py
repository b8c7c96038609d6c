"""``vniah heatmap``: the depth-by-frames heatmap of runs, or the paper's, as figure, table and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vniah.commands import run_options as options


def command(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help=options.RUN_HELP)] = None,
    output: options.Image = None,
    pdf: options.Pdf = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the scores as CSV.")] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Add a published grid, such as LongVA-7B; 'list' prints their names.")
    ] = None,
    task: options.Task = None,
    train_length: options.TrainLength = None,
    train_frames: options.TrainFrames = None,
    name: options.Names = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Panels in a row when there are several runs.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Draw a grid that is not complete.")] = False,
    threshold: options.Threshold = None,
    width: options.Width = None,
    dpi: options.Dpi = 200,
    cmap: options.Cmap = None,
    title: options.FigureTitle = "",
) -> None:
    """Draw the depth-by-frames heatmap of a run, or the paper's.

    Several runs become panels of one figure. The table is always printed; without -o, only the table.
    """
    from vniah.plots.grid_data import GridData, to_csv, to_text
    from vniah.plots.published import grid_names
    from vniah.plots.run_notes import differences
    from vniah.plots.style import Look, save_text
    from vniah.runs.scoring import effective_at

    if published and "list" in published:
        print("\n".join(grid_names()))
        return
    images = options.check_images(output, pdf)
    options.check_text_output(csv, (".csv",), runs or [])
    effective_at(threshold)  # a bad one is told of before anything is read
    look = Look(width=width, dpi=dpi, cmap=cmap, title=title)
    asked: dict[str, Any] = {"names": name or [], "task": task, "partial": partial}
    length = train_frames if train_length is None else train_length
    read = options.grid_runs(runs or [], published or [], train_length=length, **asked)
    grids = [GridData(run, threshold) for run in read]
    print("\n\n".join(filter(None, [*map(to_text, grids), "\n".join(differences(read))])))
    if images:
        from vniah.plots.heatmap import save_heatmap

        for path in images:
            print(f"wrote {save_heatmap(grids, path, columns=columns, look=look)}")
    if csv is not None:
        print(f"wrote {save_text(to_csv(grids), csv)}")
