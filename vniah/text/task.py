"""The text NIAH task: the cells of a grid over one long text, each cell's prompt, and its scores."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vniah.runs.grid import Cell, check_columns
from vniah.runs.task import Answer, Metrics, NeedleTask, Row, Scoring
from vniah.text import metrics
from vniah.text.compose import TextBook, TextPrompt, TextSource
from vniah.text.haystack import open_text_haystack
from vniah.text.measure import Encode, Measure
from vniah.text.score import generated_correct
from vniah.text.settings import TextSettings


class TextTask(NeedleTask):
    """Opens the haystack of ``settings`` and lists the cells to score; prompts are composed when asked for.

    Raises:
        ValueError, OSError: bad settings, a grid of too many cells, or a haystack or tokenizer that cannot be had.
    """

    family = "text_niah"
    unit = "tokens"

    def __init__(self, name: str, scoring: Scoring, settings: TextSettings) -> None:
        super().__init__(name, scoring)
        self.settings = settings
        grid = settings.grid
        columns = len(grid.lengths) * (len(grid.depths) * settings.samples + 1)
        check_columns(settings.lengths, grid.lengths, "lengths")
        self.check_size(columns, f"lengths {settings.lengths!r}, depths {settings.depths!r}")
        # A free answer's prompt is plain text, written before any model is known: a tokenizer that a model brings
        # to the segments of another task must not change how it is counted.
        as_text = scoring == "generated"
        self.book = TextBook(settings, open_source(settings.haystack, settings.tokenizer, as_text))

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(self._row(cell) for cell in self.book.cells)

    def _row(self, cell: Cell) -> Row:
        puzzle = self.book.puzzle(cell)
        return {
            "context_length": cell.length,
            "depth_percent": -1 if cell.depth_percent is None else cell.depth_percent,
            "sample": cell.sample,
            "needle": puzzle.number,
            "control": cell.is_control,
            "question": puzzle.question,
            "answer": puzzle.answer,
        }

    @property
    def per_place(self) -> int:
        return self.settings.samples

    def question(self, row: Row) -> str:
        """Of a free answer the whole prompt, megabytes at the paper's lengths; else a line that tells cells apart."""
        return self.book.compose(cell_of(row)).text() if self.scoring == "generated" else self.recipe(row)

    def recipe(self, row: Mapping[str, Any]) -> str:
        """A cell's prompt in a line: stands in logs and caches for the text itself."""
        settings, haystack = self.settings, self.book.source.haystack
        place = "no needle" if row["control"] else f"depth {row['depth_percent']} %"
        shared = "shared " if settings.shared_distractors else ""
        return (
            f"text NIAH: {row['context_length']} tokens of {haystack.name} ({haystack.fingerprint[:12]}), {place}, "
            f"sample {row['sample']}, {settings.num_distractors} {shared}distractors, {settings.variant}, seed "
            f"{settings.seed}{row['question'].removeprefix('</book>.')}"
        )

    def visuals(self, row: Row) -> list[Any]:
        return [] if self.scoring == "generated" else [TextPrompt(self.book, cell_of(row))]

    def _scores(self, row: Row, answer: Answer) -> dict[str, Any]:
        if answer.is_greedy is None:
            correct = generated_correct(answer.text, self.book.puzzle(cell_of(row)), self.settings.variant)
        else:
            correct = answer.is_greedy
        return metrics.cell_metrics(self.book.compose(cell_of(row)), self.settings, row, correct, answer)

    @property
    def _metrics(self) -> Metrics:
        return metrics.metrics_of(self.settings)

    def describe(self) -> dict[str, Any]:
        return self.book.provenance()


@functools.lru_cache(maxsize=4)
def open_source(haystack: str, tokenizer: str, as_text: bool) -> TextSource:
    """A haystack, opened once a process, so that the tasks of a group tokenise one text once.

    Args:
        as_text: for prompts of plain text, whose source is their own.
    """
    measure = Measure(named_tokenizer(tokenizer), tokenizer) if tokenizer else Measure()
    return TextSource(open_text_haystack(haystack), measure)


@functools.lru_cache(maxsize=16)
def open_text(name: str, scoring: Scoring, settings: TextSettings) -> TextTask:
    """The task, opened once a process (lmms-eval loads a task's functions several times)."""
    return TextTask(name, scoring, settings)


def named_tokenizer(name: str) -> Encode:
    """The tokenizer of a folder or Hub model: local files first, then the Hub.

    Raises:
        ValueError: naming what was asked for, and where it was looked for.
    """
    from transformers import AutoTokenizer

    from vniah.hub import MODEL_FILES, fetch_snapshot

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RecursionError):
        try:
            files = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
            folder = fetch_snapshot(name, allow_patterns=files, progress=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"TEXT_NIAH_TOKENIZER={name} is neither a folder with a tokenizer nor one that the Hub gives "
                f"({str(error).strip().splitlines()[0]})"
            ) from None

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell of a row, or of a logged sample."""
    depth = None if row["control"] else int(row["depth_percent"])
    return Cell(int(row["context_length"]), depth, sample=int(row["sample"]))
