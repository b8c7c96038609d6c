"""Opens the cells of a text NIAH task, sharing haystacks between tasks, and turns cells into rows and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from vniah.text import Encode, Measure, TextBook, TextCell, TextSettings, TextSource, open_text_haystack


@functools.lru_cache(maxsize=4)
def open_source(haystack: str, tokenizer: str, as_text: bool) -> TextSource:
    """A haystack, opened once a process, so that the three tasks of the group tokenise one text once.

    Prompts of plain text are written before any model is known, so a tokenizer that a model brings to the
    segments of another task must not change how theirs were counted: those have a source of their own.
    """
    measure = Measure(named_tokenizer(tokenizer), tokenizer) if tokenizer else Measure()
    return TextSource(open_text_haystack(haystack), measure)


@functools.lru_cache(maxsize=16)
def open_book(settings: TextSettings, *, as_text: bool = False) -> TextBook:
    """The book of ``settings``, opened once a process; ``as_text`` for prompts that are plain text."""
    return TextBook(settings, open_source(settings.haystack, settings.tokenizer, as_text))


def named_tokenizer(name: str) -> Encode:
    """The tokenizer of a folder or Hub model: local files first, then the Hub.

    Raises:
        ValueError: naming what was asked for, and where it was looked for.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"TEXT_NIAH_TOKENIZER={name} is neither a folder with a tokenizer nor one that the Hub gives "
                f"({str(error).strip().splitlines()[0]})"
            ) from None

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode


def rows(book: TextBook) -> list[dict[str, Any]]:
    """One dict a cell (``depth_percent`` is -1 for a control)."""
    return [_row(book, cell) for cell in book.cells]


def _row(book: TextBook, cell: TextCell) -> dict[str, Any]:
    puzzle = book.puzzle(cell)
    return {
        "context_length": cell.length,
        "depth_percent": -1 if cell.depth_percent is None else cell.depth_percent,
        "sample": cell.sample,
        "needle": puzzle.number,
        "control": cell.is_control,
        "question": puzzle.question,
        "answer": puzzle.answer,
    }


def cell_of(row: Mapping[str, Any]) -> TextCell:
    """The cell of a row, or of a logged sample."""
    return TextCell(
        int(row["context_length"]), None if row["control"] else int(row["depth_percent"]), int(row["sample"])
    )


def recipe(book: TextBook, row: Mapping[str, Any]) -> str:
    """What makes this prompt this prompt, in a line: stands in logs and caches for a text of megabytes."""
    settings, haystack = book.settings, book.source.haystack
    place = "no needle" if row["control"] else f"depth {row['depth_percent']} %"
    shared = "shared " if settings.shared_distractors else ""
    return (
        f"text NIAH: {row['context_length']} tokens of {haystack.name} ({haystack.fingerprint[:12]}), {place}, sample "
        f"{row['sample']}, {settings.num_distractors} {shared}distractors, {settings.variant}, seed {settings.seed}"
        f"{row['question'].removeprefix('</book>.')}"
    )


def provenance(book: TextBook) -> dict[str, Any]:
    """What was measured on, for results.json."""
    return {**book.provenance(), "vniah_version": version("vniah")}
