"""A small table as text for the terminal, Markdown, LaTeX (booktabs) or CSV. Knows nothing about runs.

Names come from results files that anyone may have written. No cell breaks its row, steers a terminal, starts a formula
in a spreadsheet, or is markup of its table's language.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vniah.notices import did_you_mean, printable

_LATEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\N{MINUS SIGN}": "$-$",
    }
)
# Links, code, emphasis; a low line inside a word is none of them.
_MARKDOWN = re.compile(r"[\\\[\]`*~]|(?<![^\W_])_|_(?![^\W_])")
_NUMBER = re.compile(r"^[+-]?[\d,]*\.?\d+$")


# What a column's name takes of a terminal's line before it goes on below.
_HEAD_WIDTH = 28


class TextTable:
    """Cells as strings, made printable. The first column holds labels; ``rows`` are as long as ``head``."""

    def __init__(
        self, *, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
    ) -> None:
        self.title = printable(title)
        self.head = tuple(map(printable, head))
        self.rows = tuple(tuple(map(printable, row)) for row in rows)
        self.notes = tuple(map(printable, notes))


def as_text(table: TextTable) -> str:
    """Aligned columns for a terminal, long names of columns over several lines."""
    broken = [textwrap.wrap(name, _HEAD_WIDTH, break_long_words=False, break_on_hyphens=False) for name in table.head]
    high = max(map(len, broken))
    head = list(zip(*([""] * (high - len(lines)) + lines for lines in broken), strict=True))
    widths = [max(map(len, column)) for column in zip(*head, *table.rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([f"{row[0]:<{widths[0]}}", *numbers]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, *map(line, head), rule, *map(line, table.rows), *table.notes])


def as_markdown(table: TextTable) -> str:
    """A GitHub table, numbers to the right."""

    def plain(text: str) -> str:
        return _MARKDOWN.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(plain(cell).replace("|", "\\|") or " " for cell in row) + " |"

    rule = "| --- |" + " ---: |" * (len(table.head) - 1)
    notes = [f"\n{plain(note)}" for note in table.notes]
    return "\n".join([f"**{plain(table.title)}**\n", line(table.head), rule, *map(line, table.rows), *notes])


def as_latex(table: TextTable) -> str:
    """A ``table`` with ``tabular`` and booktabs rules."""

    def cell(text: str) -> str:
        if _NUMBER.match(text):
            return f"${text.replace(',', '{,}')}$" if text[0] in "+-" else text
        return text.translate(_LATEX)

    def line(row: Sequence[str]) -> str:
        # Behind the line before, a bracket or star would be an argument of its "\\\\".
        guard = "{}" if row[0].startswith(("[", "*")) else ""
        return "    " + guard + " & ".join(map(cell, row)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}[t]  % needs \usepackage{booktabs}",
            r"  \centering",
            f"  \\caption{{{cell(' '.join([f'{table.title}.', *table.notes]))}}}",
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
    rows = ([cell.replace(",", "") if _NUMBER.match(cell) else cell for cell in row] for row in table.rows)
    return csv_text(table.head, rows).rstrip("\n")


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV of a head and rows, a line each: numbers as they are, fractions with six digits, any other cell as text.

    A spreadsheet takes a cell that begins with one of ``= + - @`` for a formula; text that does stands behind an
    apostrophe.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_csv_cell(cell) for cell in row] for row in (head, *rows))
    return out.getvalue()


def _csv_cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    text = printable(cell)
    try:
        float(text)
    except ValueError:
        formula = len(text) > 1 and text.lstrip().startswith(("=", "+", "-", "@"))
        return f"'{text}" if formula else text
    return text


FORMATS: dict[str, Callable[[TextTable], str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
# By the ending of a file that holds it.
_ALIASES = {"txt": "table", "text": "table", "md": "markdown", "tex": "latex"}


def format_of(name: str | None, output: Path | None) -> Callable[[TextTable], str]:
    """The writer of the named form, else of the one that the output's ending stands for, else of a terminal's table.

    Raises:
        ValueError: no such form, or a file whose ending stands for another; any form is text and may be in a .txt.
    """
    found = []
    for one in (name or (output.suffix if output else "table"), output.suffix if output else ".txt"):
        form = one.casefold().removeprefix(".")
        form = _ALIASES.get(form, form)
        if form not in FORMATS:
            raise ValueError(f"no format {form!r}; expected one of {', '.join(FORMATS)}{did_you_mean(form, FORMATS)}")
        found.append(FORMATS[form])
    chosen, written = found
    if output is not None and output.suffix.lower() != ".txt" and written is not chosen:
        raise ValueError(
            f"--format {name} and {output.name!r} contradict each other; leave --format out, or name another file"
        )
    return chosen
