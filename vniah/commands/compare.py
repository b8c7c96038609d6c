"""``vniah compare``: runs beside each other and beside the published figures, with differences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vniah.commands.run_options import RUN_HELP, Names, Threshold


def command(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help=RUN_HELP)] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(help="A published grid (LongVA-7B) or table row (LongVA@128; LongVA for the run's own frames)."),
    ] = None,
    list_published: Annotated[bool, typer.Option("--list", help="Print every published name and its source.")] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, markdown (md), latex (tex) or csv; by -o's ending, else a table."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write there, not to the terminal.")] = None,
    task: Annotated[str | None, typer.Option(help="Compare this task alone.")] = None,
    name: Names = None,
    partial: Annotated[bool, typer.Option("--partial", help="Accept grids that are not complete.")] = False,
    threshold: Threshold = None,
) -> None:
    """Put runs beside each other and beside the published figures.

    Differences are ours minus published; without --published, minus the first run.
    """
    from vniah.commands.run_options import all_runs, check_text_output
    from vniah.plots.compare import compare, published_names
    from vniah.plots.style import save_text
    from vniah.plots.table_formats import format_of
    from vniah.runs.scoring import effective_at

    if list_published:
        print(published_names())
        return
    effective_at(threshold)  # a bad one is told of before anything is read
    check_text_output(output, (".txt", ".md", ".tex", ".csv"), runs or [])
    write = format_of(form, output)
    read = all_runs(runs or [], names=name or [], task=task, partial=partial)
    text = "\n\n".join(write(one.table()) for one in compare(read, published or [], threshold=threshold))
    if output is None:
        print(text)
    else:
        print(f"wrote {save_text(text + chr(10), output)}")
