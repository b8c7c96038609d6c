"""``vniah heatmap``: the depth-by-frames heatmap of runs, or the paper's, as figure, table and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import RUN_HELP


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
    train_frames: Annotated[
        float | None,
        typer.Option(help="The backbone's training length (frames, or tokens for text NIAH), for the dotted line."),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call each RUN, in order.")] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Panels in a row when there are several runs.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Draw a grid that is not complete.")] = False,
) -> None:
    """Draw the depth-by-frames heatmap of a run, or the paper's.

    Several runs become panels of one figure. The table is always printed; without -o, only the table.
    """
    from vniah.commands.run_options import check_text_output, grid_runs
    from vniah.plots.grid_data import grid_data, to_csv, to_text
    from vniah.plots.published import grid_names
    from vniah.plots.style import check_image_path, save_text

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
    read = grid_runs(inputs, published or [], names=name or [], task=task, train_frames=train_frames, partial=partial)
    grids = [grid_data(run) for run in read]
    print("\n\n".join(to_text(data) for data in grids))
    if images:
        from vniah.plots.heatmap import save_heatmap
        from vniah.plots.panels import save_panels

        for path in dict.fromkeys(images):
            if len(grids) == 1:
                save_heatmap(grids[0], path)
            else:
                save_panels(grids, path, columns=columns)
            print(f"wrote {path}")
    if csv is not None:
        print(f"wrote {save_text(to_csv(grids), csv)}")
