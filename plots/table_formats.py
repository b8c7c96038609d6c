"""A small table as text for the terminal, Markdown, LaTeX (booktabs) or CSV. Knows nothing about runs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vniah.nearest import did_you_mean

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_NUMBER = re.compile(r"^[+-]?[\d,]*\.?\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Cells as strings. The first column holds labels; ``rows`` are as long as ``head``."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())


def as_text(table: TextTable) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[at]) for row in (table.head, *table.rows)) for at in range(len(table.head))]

    def line(row: Sequence[str]) -> str:
        first, *rest = row
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, line(table.head), rule, *map(line, table.rows), *table.notes])


def as_markdown(table: TextTable) -> str:
    """A GitHub table, numbers to the right."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") or " " for cell in row) + " |"

    rule = "| " + " | ".join("---" if at == 0 else "---:" for at in range(len(table.head))) + " |"
    notes = [f"\n{note}" for note in table.notes]
    return "\n".join([f"**{table.title}**\n", line(table.head), rule, *map(line, table.rows), *notes])


def as_latex(table: TextTable) -> str:
    """A ``table`` with ``tabular`` and booktabs rules."""

    def cell(text: str) -> str:
        if _NUMBER.match(text):
            return f"${text.replace(',', '{,}')}$" if text[0] in "+-" else text
        return "".join(_LATEX.get(character, character) for character in text).replace("\N{MINUS SIGN}", "$-$")

    def line(row: Sequence[str]) -> str:
        return "    " + " & ".join(map(cell, row)) + r" \\"

    caption = " ".join([f"{table.title}.", *table.notes])
    return "\n".join(
        [
            r"\begin{table}[t]  % needs \usepackage{booktabs}",
            r"  \centering",
            f"  \\caption{{{cell(caption)}}}",
            f"  \\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"    \toprule",
            line(table.head),
            r"    \midrule",
            *map(line, table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def as_csv(table: TextTable) -> str:
    """Plain CSV: the head and the rows; title and notes stay out so that a program can read it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([cell.replace(",", "") if _NUMBER.match(cell) else cell for cell in row] for row in table.rows)
    return out.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[TextTable], str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
# By the ending of a file that holds it.
_ALIASES = {"txt": "table", "text": "table", "md": "markdown", "tex": "latex"}


def get_format(name: str) -> Callable[[TextTable], str]:
    """The writer of a form, by its name or the ending of its files.

    Raises:
        ValueError: no such form; names those there are.
    """
    name = name.casefold().removeprefix(".")
    name = _ALIASES.get(name, name)
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; expected one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]
