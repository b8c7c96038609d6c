"""``vniah heatmap``: the depth-by-frames heatmap of runs, or the paper's, as figure, table and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import RUN_HELP, Cmap, Dpi, FigureTitle, Threshold, TrainFrames, TrainLength, Width


def command(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help=RUN_HELP)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Figure to write: .png, .pdf or .svg. An image is replaced.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write a PDF beside the figure.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the scores as CSV.")] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Add a published grid, such as LongVA-7B; 'list' prints their names.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Which task, where a run scored several.")] = None,
    train_length: TrainLength = None,
    train_frames: TrainFrames = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call each RUN, in order.")] = None,
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
    from vniah.commands.run_options import check_text_output, grid_runs
    from vniah.plots.grid_data import GridData, check_threshold, to_csv, to_text
    from vniah.plots.published import grid_names
    from vniah.plots.run_notes import differences
    from vniah.plots.style import Look, check_image_path, save_text

    if published and "list" in published:
        print("\n".join(grid_names()))
        return
    inputs = runs or []
    if pdf and output is None:
        raise ValueError("--pdf goes with -o: it writes a PDF of the same name beside the figure")
    images = [] if output is None else [check_image_path(output)]
    if output is not None and pdf:
        images.append(check_image_path(output.with_suffix(".pdf")))
    check_text_output(csv, (".csv",), inputs)
    check_threshold(threshold)
    look = Look(width=width, dpi=dpi, cmap=cmap, title=title)
    if train_length is None:
        train_length = train_frames
    read = grid_runs(inputs, published or [], names=name or [], task=task, train_length=train_length, partial=partial)
    grids = [GridData(run, threshold) for run in read]
    notes = differences(read)
    print("\n\n".join([*(to_text(data) for data in grids), *(["\n".join(notes)] if notes else [])]))
    if images:
        from vniah.plots.heatmap import save_heatmap

        for path in dict.fromkeys(images):
            print(f"wrote {save_heatmap(grids, path, columns=columns, look=look)}")
    if csv is not None:
        print(f"wrote {save_text(to_csv(grids), csv)}")
