"""``vniah figure``: the paper's figures beside the single heatmap, from runs, datasets or the published data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vniah.commands import run_options as options

if TYPE_CHECKING:
    from vniah.plots.style import Look

KINDS = {
    "4": "V-NIAH heatmaps: the paper's, or RUNs (with --published NAME beside them)",
    # No square brackets: the help takes them for a style.
    "5": "image sizes of datasets: folders, .parquet files or Hub datasets owner/name, with :config and @split behind",
    "7": "text NIAH heatmaps: the paper's, or RUNs",
    "frames": "accuracy against frames beside Table 6: RUNs of videomme_longva at several max_frames_num",
    "categories": "accuracy by category: RUNs of videomme_longva, mlvu_longva_dev_choice, ...",
    "cells": "an example cell of each of TASKS on film, as the environment sets them: vniah_d, vruler",
    "distractors": "accuracy against the number of distractors: RUNs of vruler_distractor or vniah_d at several",
    "perplexity": "perplexity against context length: CSV files with context_length and perplexity",
    "nano": "Figure 4 in miniature: output folders of `vniah train nano_figure4`, one a seed",
}
# What draws a figure, and its data as CSV.
_Made = tuple[Callable[[], Any], str]


def command(
    kind: Annotated[str, typer.Argument(help="; ".join(f"{key}: {text}" for key, text in KINDS.items()))],
    sources: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help="RUNs, datasets or files.")] = None,
    output: options.Image = None,
    pdf: options.Pdf = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the figure's data as CSV.")] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(help="4, 7: a published grid. frames: a model of Table 6 (LongVA unless told; 'none' for none)."),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call each SOURCE, in order.")] = None,
    task: options.Task = None,
    train_length: options.TrainLength = None,
    train_frames: options.TrainFrames = None,
    column: Annotated[str | None, typer.Option(help="5: the image column, where a table has several.")] = None,
    split: Annotated[str, typer.Option(help="5: the split of Hub datasets that name none.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="5: read so many images of each dataset.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Draw grids that are not complete.")] = False,
    threshold: options.Threshold = None,
    width: options.Width = None,
    dpi: options.Dpi = 200,
    cmap: options.Cmap = None,
    title: options.FigureTitle = "",
) -> None:
    """Draw one of the paper's figures, from our runs or from the published data."""
    from vniah.notices import did_you_mean
    from vniah.plots.style import Look, save_figure, save_text
    from vniah.runs.scoring import effective_at

    if kind not in KINDS:
        raise ValueError(f"no figure {kind!r}; expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if output is None and csv is None:
        raise ValueError("nowhere to draw to: give -o FIGURE.png (or --csv for the data alone)")
    images = options.check_images(output, pdf)
    if cmap is not None and kind in ("frames", "categories", "cells", "distractors", "perplexity"):
        raise ValueError(f"--cmap {cmap} has nothing to colour in figure {kind}; it is for the figures with cells")
    sources, names, published = sources or [], name or [], published or []
    options.check_names(sources, names)
    at = effective_at(threshold)
    options.check_text_output(csv, (".csv",), sources)
    look = Look(width=width, dpi=dpi, cmap=cmap, title=title)
    length = train_frames if train_length is None else train_length
    if kind in ("4", "7"):
        chosen = {"names": names, "task": task, "train_length": length, "partial": partial}
        made = _panels(kind, sources, published, at, look, **chosen)
    elif kind == "5":
        made = _sizes(sources, names, look, column=column, split=split, limit=limit)
    elif kind == "frames":
        made = _frames(sources, names, task, published or ["LongVA"], look)
    elif kind == "categories":
        made = _categories(sources, names, task, look)
    elif kind == "cells":
        made = _cells(sources, look)
    elif kind == "distractors":
        made = _distractors(sources, names, task, look)
    elif kind == "perplexity":
        made = _perplexity(sources, names, length, look)
    else:
        made = _nano(sources, at, look)
    draw, text = made
    for path in images:
        print(f"wrote {save_figure(draw(), path, title=title, dpi=dpi)}")
    if csv is not None:
        print(f"wrote {save_text(text, csv)}")


def _panels(
    kind: str, sources: Sequence[str], published: Sequence[str], threshold: float, look: Look, **chosen: Any
) -> _Made:
    from vniah.plots.grid_data import GridData, to_csv
    from vniah.plots.heatmap import FIGURE_4, FIGURE_7, panel_notes, panels_figure

    unit, papers = ("frames", FIGURE_4) if kind == "4" else ("tokens", FIGURE_7)
    runs = options.grid_runs(sources, published or ([] if sources else papers), unit=unit, **chosen)
    grids = [GridData(run, threshold) for run in runs if run.unit == unit]
    if not grids:
        raise ValueError(
            f"no grid over {unit} among {', '.join(run.name for run in runs)}; figure 4 takes V-NIAH, 7 text NIAH"
        )
    return lambda: panels_figure(grids, notes=panel_notes(grids), look=look), to_csv(grids)


def _sizes(sources: Sequence[str], names: Sequence[str], look: Look, **chosen: Any) -> _Made:
    from vniah.plots.image_sizes import read_sizes, sizes_csv, sizes_figure

    if not sources:
        raise ValueError("name at least one dataset: a folder of images, a .parquet file or a Hub dataset owner/name")
    read = []
    for source, name in zip_longest(sources, names):
        sizes = read_sizes(source, name=name, **chosen)
        note = f", {sizes.unreadable:,} unreadable" if sizes.unreadable else ""
        print(f"{sizes.name}: {len(sizes.sizes):,} images{note}")
        read.append(sizes)
    return lambda: sizes_figure(read, look), sizes_csv(read)


def _frames(
    sources: Sequence[str], names: Sequence[str], task: str | None, published: Sequence[str], look: Look
) -> _Made:
    from vniah.plots.curves import curves_csv, curves_figure, frames_panels
    from vniah.plots.published import read_table

    # Runs of one model at several frame counts share a name on purpose: they are one curve.
    groups = options.run_groups(sources, names=names, task=task) if sources else []
    models = [one for one in published if one != "none"]
    table = read_table("table6")
    # Of a folder with other tasks too, those that are of this figure.
    runs = [run for group in groups for run in [one for one in group if one.task in table.tasks] or group]
    panels = frames_panels(table, runs, models)
    labels = {"x_label": "frames", "y_label": "accuracy (%)"}
    return lambda: curves_figure(panels, **labels, look=look), curves_csv(panels, "frames", "accuracy")


def _categories(sources: Sequence[str], names: Sequence[str], task: str | None, look: Look) -> _Made:
    from vniah.plots.curves import bars_csv, bars_figure, category_bars, value_label

    runs = options.all_runs(sources, names=names, task=task)
    bars = category_bars(runs)
    label = value_label(next(run.task for run in runs if run.metrics and not run.is_grid))
    return lambda: bars_figure(bars, value_label=label, look=look), bars_csv(bars, label.partition(" ")[0])


def _cells(names: Sequence[str], look: Look) -> _Made:
    from vniah.commands.plan import film_tasks
    from vniah.plots.cells import cells_csv, cells_figure
    from vniah.plots.table_formats import csv_text

    if not names:
        raise ValueError("name at least one task on film, such as vruler")
    tasks = [task for name in names for task in film_tasks(name, {})]
    head = ["task", "num_frames", "depth_percent", "places", "question", "answer"]
    return lambda: cells_figure(tasks, look=look), csv_text(head, cells_csv(tasks))


def _distractors(sources: Sequence[str], names: Sequence[str], task: str | None, look: Look) -> _Made:
    from vniah.plots.curves import curves_csv, curves_figure, distractor_panels

    # Runs of one model are one curve, as of one figure.
    runs = [run for group in options.run_groups(sources, names=names, task=task) for run in group]
    panels = distractor_panels(runs)
    chances = {(run.settings.get("task") or {}).get("chance") for run in runs}
    (chance,) = chances if len(chances) == 1 else (None,)
    labels = {"x_label": "distractors", "y_label": "accuracy (%)"}
    text = curves_csv(panels, "distractors", "accuracy")
    return lambda: curves_figure(panels, **labels, mark_y=chance and 100 * chance, look=look), text


def _perplexity(sources: Sequence[str], names: Sequence[str], train_length: float | None, look: Look) -> _Made:
    from vniah.plots.curves import curves_csv, curves_figure, read_perplexity

    if not sources:
        raise ValueError("name at least one CSV file with columns context_length and perplexity")
    panels = {"": [curve for source, name in zip_longest(sources, names) for curve in read_perplexity(source, name)]}
    labels = {"x_label": "context length (tokens)", "y_label": "perplexity"}
    text = curves_csv(panels, "context_length", "perplexity")
    return lambda: curves_figure(panels, **labels, mark_x=train_length, look=look), text


def _nano(sources: Sequence[str], threshold: float, look: Look) -> _Made:
    from vniah.plots.grid_data import GridData, to_csv
    from vniah.plots.heatmap import panels_figure
    from vniah.training.nano.figure4 import as_runs, collect, table

    if not sources:
        raise ValueError("name at least one folder that `vniah train nano_figure4 seed=N output=FOLDER` wrote")
    folders = [Path(source) for source in sources]
    grids = [GridData(run, threshold) for run in as_runs(folders)]
    print(table(collect(folders)))
    return lambda: panels_figure(grids, look=look), to_csv(grids)
