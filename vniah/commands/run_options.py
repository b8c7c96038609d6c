"""What ``heatmap``, ``compare``, ``figure`` and ``report`` share: their options, turned into runs and a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from vniah.runs.run import Run

RUN_HELP = "lmms-eval output folder (the newest run in it), a results or samples file, or a journal.jsonl"
# Options of one meaning wherever they are taken.
Image = Annotated[
    Path | None, typer.Option("--output", "-o", help="Figure to write: .png, .pdf or .svg. An image is replaced.")
]
Pdf = Annotated[bool, typer.Option("--pdf", help="Also write a PDF beside the figure.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="What to call each RUN, in order.")]
Task = Annotated[str | None, typer.Option("--task", help="Which task, where a run scored several.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="What a column's mean must be at least to count into the effective length; by default VNIAH_THRESHOLD, "
        "else as a finished run had it, else 0.9."
    ),
]
TrainLength = Annotated[
    float | None,
    typer.Option(help="The backbone's training length (frames, or tokens for text NIAH), for the dotted line."),
]
TrainFrames = Annotated[float | None, typer.Option("--train-frames", hidden=True)]
Width = Annotated[float | None, typer.Option(help="Width of the figure in inches, 2 to 40.")]
Dpi = Annotated[int, typer.Option(help="Pixels an inch of a PNG, 30 to 1200.")]
Cmap = Annotated[str | None, typer.Option(help="A matplotlib colour map for the cells, such as viridis.")]
FigureTitle = Annotated[str, typer.Option("--title", help="A title above the figure.")]


def run_groups(
    paths: Sequence[str], *, names: Sequence[str] = (), task: str | None = None, partial: bool = False
) -> list[list[Run]]:
    """Every task of each path, needle grids or not. Raises as ``read_runs`` does, and a ValueError for no paths."""
    from vniah.runs.read import read_runs

    if not paths:
        raise ValueError("nothing to read: name a RUN (an lmms-eval output folder)")
    check_names(paths, names)
    return [
        _finished(read_runs(path, name, task=task), path, partial=partial) for path, name in zip_longest(paths, names)
    ]


def all_runs(
    paths: Sequence[str], *, names: Sequence[str] = (), task: str | None = None, partial: bool = False
) -> list[Run]:
    """``run_groups`` in one list, each path under a name of its own."""
    from vniah.plots.run_notes import distinct_names

    return [
        run for group in distinct_names(run_groups(paths, names=names, task=task, partial=partial)) for run in group
    ]


def grid_runs(
    paths: Sequence[str],
    published: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    task: str | None = None,
    train_length: float | None = None,
    partial: bool = False,
    unit: str | None = None,
) -> list[Run]:
    """The needle grids of ``paths``, then the published ones, named and with training lengths.

    A path with several grids (the three of text NIAH, say) gives them all, told apart by their tasks; or those
    over ``unit`` ("frames", "tokens"), if it has any. Raises as ``read_run`` and ``read_published`` do, and a
    ValueError for nothing asked for or a training length that is not positive.
    """
    from vniah.plots.published import read_published
    from vniah.plots.run_notes import distinct_grids, distinct_names
    from vniah.runs.read import read_run, read_runs

    if not paths and not published:
        raise ValueError("nothing to show: name a RUN (an lmms-eval output folder) or --published NAME")
    check_names(paths, names)
    if train_length is not None and not train_length > 0:
        raise ValueError(f"--train-length must be above 0, got {train_length:g}")
    groups = []
    for path, name in zip_longest(paths, names):
        # A path without any grid is read as one, which says what is wrong.
        grids = [run for run in read_runs(path, name, task=task) if run.is_grid] or [read_run(path, name, task=task)]
        grids = distinct_grids([run for run in grids if unit in (None, run.unit)] or grids)
        groups.append(_finished(grids, path, partial=partial, train_length=train_length))
    # A grid has every length: how many frames an ordinary video would get tells nothing about it.
    ours = [run for group in distinct_names(groups, by_frames=False) for run in group]
    return ours + [read_published(name) for name in published]


def _finished(runs: Sequence[Run], path: str, *, partial: bool, train_length: float | None = None) -> list[Run]:
    """The runs of a path, whole unless they may be ``partial``, with their training lengths."""
    for run in () if partial else runs:
        run.check_complete(path)
    return [with_training_length(run, train_length) for run in runs]


def check_names(paths: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError if there are more names than runs."""
    if len(names) > len(paths):
        raise ValueError(f"{len(names)} names (--name) for {len(paths)} runs; give one for each RUN, in order")


def with_training_length(run: Run, train_length: float | None = None) -> Run:
    """The run with the length its backbone was trained to: as told, else by a published model's name, else as is."""
    from vniah.plots.published import known_train_length

    return replace(run, train_frames=train_length or run.train_frames or known_train_length(run.model, run.unit))


def check_images(output: Path | None, pdf: bool) -> list[Path]:
    """The figures to write: ``output``, and with ``pdf`` one of that kind beside it. See ``style.check_image_path``."""
    from vniah.plots.style import check_image_path

    if output is None:
        if pdf:
            raise ValueError("--pdf goes with -o: it writes a PDF of the same name beside the figure")
        return []
    return list(dict.fromkeys(map(check_image_path, (output, output.with_suffix(".pdf")) if pdf else (output,))))


def check_text_output(path: Path | None, suffixes: Sequence[str], inputs: Sequence[str]) -> None:
    """Check where a derived text file is to go, before any work is done: a ValueError for another ending than
    ``suffixes`` or one of the inputs, and an OSError as ``style.check_output_path`` raises."""
    from vniah.plots.style import check_output_path

    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path.name!r}; expected a name ending in {', '.join(suffixes)}")
    if any(path.resolve() == Path(one).resolve() for one in inputs):
        raise ValueError(f"{path} is one of the inputs; give another name for the output")
    check_output_path(path)
