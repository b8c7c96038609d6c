"""``vniah figure``: the paper's figures beside the single heatmap, from runs, datasets or the published data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vniah.commands.run_options import Cmap, Dpi, FigureTitle, Threshold, TrainFrames, TrainLength, Width

if TYPE_CHECKING:
    from vniah.plots.style import Look

KINDS = {
    "4": "V-NIAH heatmaps: the paper's, or RUNs (with --published NAME beside them)",
    # No square brackets: the help takes them for a style.
    "5": "image sizes of datasets: folders, .parquet files or Hub datasets owner/name, with :config and @split behind",
    "7": "text NIAH heatmaps: the paper's, or RUNs",
    "frames": "accuracy against frames beside Table 6: RUNs of videomme_longva at several max_frames_num",
    "categories": "accuracy by category: RUNs of videomme_longva, mlvu_longva_dev_choice, ...",
    "perplexity": "perplexity against context length: CSV files with context_length and perplexity",
    "nano": "Figure 4 in miniature: output folders of `vniah train nano_figure4`, one a seed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The options, checked where they enter."""

    sources: list[str]
    names: list[str]
    published: list[str]
    task: str | None
    train_length: float | None
    column: str | None
    split: str
    limit: int | None
    partial: bool
    threshold: float
    look: Look

    def name(self, index: int) -> str | None:
        return self.names[index] if index < len(self.names) else None


def command(
    kind: Annotated[str, typer.Argument(help="; ".join(f"{key}: {text}" for key, text in KINDS.items()))],
    sources: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help="RUNs, datasets or files.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Figure to write: .png, .pdf or .svg. An image is replaced.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write a PDF beside the figure.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the figure's data as CSV.")] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(help="4, 7: a published grid. frames: a model of Table 6 (LongVA unless told; 'none' for none)."),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call each SOURCE, in order.")] = None,
    task: Annotated[str | None, typer.Option(help="Which task, where a run scored several.")] = None,
    train_length: TrainLength = None,
    train_frames: TrainFrames = None,
    column: Annotated[str | None, typer.Option(help="5: the image column, where a table has several.")] = None,
    split: Annotated[str, typer.Option(help="5: the split of Hub datasets that name none.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="5: read so many images of each dataset.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Draw grids that are not complete.")] = False,
    threshold: Threshold = 0.9,
    width: Width = None,
    dpi: Dpi = 200,
    cmap: Cmap = None,
    title: FigureTitle = "",
) -> None:
    """Draw one of the paper's figures, from our runs or from the published data."""
    from vniah.commands.run_options import check_names, check_text_output
    from vniah.notices import did_you_mean
    from vniah.plots.grid_data import check_threshold
    from vniah.plots.style import Look, check_image_path, save_figure, save_text

    if kind not in KINDS:
        raise ValueError(f"no figure {kind!r}; expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if output is None and csv is None:
        raise ValueError("nowhere to draw to: give -o FIGURE.png (or --csv for the data alone)")
    if pdf and output is None:
        raise ValueError("--pdf goes with -o: it writes a PDF of the same name beside the figure")
    if cmap is not None and kind in ("frames", "categories", "perplexity"):
        raise ValueError(f"--cmap {cmap} has nothing to colour in figure {kind}; it is for the figures with cells")
    check_names(sources or [], name or [])
    check_threshold(threshold)
    images = [] if output is None else [check_image_path(output)]
    if output is not None and pdf:
        images.append(check_image_path(output.with_suffix(".pdf")))
    check_text_output(csv, (".csv",), sources or [])
    asked = _Asked(
        sources=sources or [],
        names=name or [],
        published=published or [],
        task=task,
        train_length=train_frames if train_length is None else train_length,
        column=column,
        split=split,
        limit=limit,
        partial=partial,
        threshold=threshold,
        look=Look(width=width, dpi=dpi, cmap=cmap, title=title),
    )
    draw, text = _BUILD[kind](asked)
    for path in dict.fromkeys(images):
        print(f"wrote {save_figure(draw(), path, title=title, dpi=dpi)}")
    if csv is not None:
        print(f"wrote {save_text(text, csv)}")


# What a figure is made by, and its data as CSV.
_Made = tuple[Callable[[], Any], str]


def _panels(asked: _Asked, default: tuple[str, ...], unit: str) -> _Made:
    from vniah.commands.run_options import grid_runs
    from vniah.plots.grid_data import GridData, to_csv
    from vniah.plots.heatmap import panel_notes, panels_figure

    published = asked.published or ([] if asked.sources else list(default))
    runs = grid_runs(
        asked.sources,
        published,
        names=asked.names,
        task=asked.task,
        train_length=asked.train_length,
        partial=asked.partial,
        unit=unit,
    )
    grids = [GridData(run, asked.threshold) for run in runs if run.unit == unit]
    if not grids:
        raise ValueError(
            f"no grid over {unit} among {', '.join(run.name for run in runs)}; figure 4 takes V-NIAH, 7 text NIAH"
        )
    notes = panel_notes(grids)
    return lambda: panels_figure(grids, notes=notes, look=asked.look), to_csv(grids)


def _figure_4(asked: _Asked) -> _Made:
    from vniah.plots.heatmap import FIGURE_4

    return _panels(asked, FIGURE_4, "frames")


def _figure_7(asked: _Asked) -> _Made:
    from vniah.plots.heatmap import FIGURE_7

    return _panels(asked, FIGURE_7, "tokens")


def _sizes(asked: _Asked) -> _Made:
    from vniah.plots.histogram import sizes_csv, sizes_figure
    from vniah.plots.image_sizes import read_sizes

    if not asked.sources:
        raise ValueError("name at least one dataset: a folder of images, a .parquet file or a Hub dataset owner/name")
    read = []
    for index, source in enumerate(asked.sources):
        sizes = read_sizes(source, name=asked.name(index), column=asked.column, split=asked.split, limit=asked.limit)
        note = f", {sizes.unreadable:,} unreadable" if sizes.unreadable else ""
        print(f"{sizes.name}: {len(sizes.sizes):,} images{note}")
        read.append(sizes)
    return lambda: sizes_figure(read, asked.look), sizes_csv(read)


def _frames(asked: _Asked) -> _Made:
    from vniah.commands.run_options import all_runs
    from vniah.plots.curves import curves_csv, curves_figure
    from vniah.plots.published import read_table
    from vniah.plots.run_curves import frames_panels

    # Runs of one model at several frame counts share a name on purpose: they are one curve.
    runs = all_runs(asked.sources, names=asked.names, task=asked.task, distinct=False) if asked.sources else []
    models = [one for one in (asked.published or ["LongVA"]) if one != "none"]
    panels = frames_panels(read_table("table6"), runs, models)
    return lambda: curves_figure(panels, x_label="frames", y_label="accuracy (%)", look=asked.look), curves_csv(
        panels, "frames", "accuracy"
    )


def _categories(asked: _Asked) -> _Made:
    from vniah.commands.run_options import all_runs
    from vniah.plots.curves import bars_csv, bars_figure
    from vniah.plots.run_curves import category_bars, value_label

    runs = all_runs(asked.sources, names=asked.names, task=asked.task)
    bars = category_bars(runs)
    label = value_label(next(run.task for run in runs if run.metrics and not run.is_grid))
    return lambda: bars_figure(bars, value_label=label, look=asked.look), bars_csv(bars, label.partition(" ")[0])


def _perplexity(asked: _Asked) -> _Made:
    from vniah.plots.curves import curves_csv, curves_figure
    from vniah.plots.run_curves import read_perplexity

    if not asked.sources:
        raise ValueError("name at least one CSV file with columns context_length and perplexity")
    read = [read_perplexity(source, asked.name(index)) for index, source in enumerate(asked.sources)]
    panels = {"": [curve for curves in read for curve in curves]}
    return lambda: curves_figure(
        panels,
        x_label="context length (tokens)",
        y_label="perplexity",
        mark_x=asked.train_length,
        look=asked.look,
    ), curves_csv(panels, "context_length", "perplexity")


def _nano(asked: _Asked) -> _Made:
    from vniah.plots.grid_data import GridData, to_csv
    from vniah.plots.heatmap import panels_figure
    from vniah.training.nano.figure4 import as_runs, collect, table

    if not asked.sources:
        raise ValueError("name at least one folder that `vniah train nano_figure4 seed=N output=FOLDER` wrote")
    folders = [Path(source) for source in asked.sources]
    grids = [GridData(run, asked.threshold) for run in as_runs(folders)]
    print(table(collect(folders)))
    return lambda: panels_figure(grids, look=asked.look), to_csv(grids)


_BUILD: dict[str, Callable[[_Asked], _Made]] = {
    "4": _figure_4,
    "5": _sizes,
    "7": _figure_7,
    "frames": _frames,
    "categories": _categories,
    "perplexity": _perplexity,
    "nano": _nano,
}
