"""The text NIAH task: the cells of a grid over one long text, each cell's prompt, and its scores.

A haystack is opened and tokenised once a process for all tasks and models that read it (``open_source``,
``MeasuredHaystack.counted_by``). A model's adapter brings its tokenizer when it asks a prompt for its segments; until
then, and for models that bring none, lengths are estimates or those of a named tokenizer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vniah.contract.cost import ESTIMATED_CHARS
from vniah.contract.requests import Request, Segment
from vniah.contract.sources import TokenSource
from vniah.runs.grid import Cell, check_columns
from vniah.runs.scoring import DISTRACTOR, OTHER
from vniah.runs.task import Answer, NeedleTask, Row, Scoring, mean
from vniah.text.compose import ComposedText, Placed, compose
from vniah.text.haystack import open_text_haystack
from vniah.text.measure import Encode, MeasuredHaystack
from vniah.text.puzzles import (
    Puzzle,
    classify_generated,
    classify_teacher_forced,
    generated_correct,
    make_puzzle,
    recalled,
)
from vniah.text.settings import TextSettings


class TextTask(NeedleTask):
    """Opens the haystack of ``settings`` and lists the cells to score; prompts are composed when asked for.

    Args:
        source: the haystack, where it is open already.

    Attributes:
        counted: the haystack in tokens of the model that was asked last, which are those of its scores.

    Raises:
        ValueError, OSError: bad settings, a grid of too many cells, or a haystack or tokenizer that cannot be had.
    """

    family = "text_niah"
    unit = "tokens"
    length_key = "context_length"
    effective = "text_niah_effective_length"

    def __init__(
        self, name: str, scoring: Scoring, settings: TextSettings, source: MeasuredHaystack | None = None
    ) -> None:
        super().__init__(name, scoring)
        self.settings, self.per_place, grid = settings, settings.samples, settings.grid
        check_columns(settings.lengths, grid.lengths, "lengths")
        columns = len(grid.lengths) * (len(grid.depths) * settings.samples + 1)
        self.check_size(columns, f"lengths {settings.lengths!r}, depths {settings.depths!r}")
        self.cells = tuple(grid.cells(samples=settings.samples))
        if settings.variant == "absent":
            # Without the needle "not there" is right where it is offered; elsewhere a right answer is a guess.
            self.control, self.control_is_right = "text_niah_abstained", True
        else:
            self.chance = "control"
        if settings.num_distractors:
            self.more_metrics = {"text_niah_distracted": (mean, False)}
        if settings.variant == "multi":
            self.more_metrics = {**self.more_metrics, "text_niah_recalled": (mean, True)}
        self._source = self.counted = source or open_source(settings.haystack, settings.tokenizer)

    def count_by(self, encode: Encode, name: str = "") -> None:
        """Count in tokens of a model from here on: prompts, and what is logged of them."""
        self.counted = self._source.counted_by(encode, name)

    def puzzle(self, cell: Cell) -> Puzzle:
        settings = self.settings
        return make_puzzle(
            cell,
            seed=settings.seed,
            num_distractors=settings.num_distractors,
            variant=settings.variant,
            num_needles=settings.num_needles,
            shared_distractors=settings.shared_distractors,
        )

    def compose(self, cell: Cell) -> ComposedText:
        """A cell's prompt; ValueError where the length does not hold one sentence."""
        return compose(self.counted, cell, self.puzzle(cell))

    def requests(self) -> list[Request]:
        """Every cell as segments with its answer, for planning."""
        return [self.compose(cell).request() for cell in self.cells]

    def _columns(self, cell: Cell) -> dict[str, Any]:
        puzzle = self.puzzle(cell)
        told = {"question": puzzle.question, "answer": puzzle.answer}
        return {"sample": cell.sample, "needle": puzzle.number, **told}

    def question(self, row: Row) -> str:
        """Of a free answer the whole prompt, megabytes at the paper's lengths; else a line that tells cells apart."""
        if self.scoring == "generated":
            return self.compose(self.cell(row)).text()
        settings, haystack = self.settings, self._source.haystack
        place = "no needle" if row["control"] else f"depth {row['depth_percent']} %"
        shared = "shared " if settings.shared_distractors else ""
        return (
            f"text NIAH: {row['context_length']} tokens of {haystack.name} ({haystack.fingerprint[:12]}), {place}, "
            f"sample {row['sample']}, {settings.num_distractors} {shared}distractors, {settings.variant}, seed "
            f"{settings.seed}{row['question'].removeprefix('</book>.')}"
        )

    def segments(self, row: Row) -> tuple[Segment, ...]:
        return self.compose(self.cell(row)).segments()

    def prompt(self, row: Row) -> str:
        return self.compose(self.cell(row)).text()

    def visuals(self, row: Row) -> list[Any]:
        return [] if self.scoring == "generated" else [TextPrompt(self, self.cell(row))]

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """A chat model reads the whole prompt as its user's words."""
        text = self.compose(self.cell(row)).text()
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]

    def is_right(self, row: Row, text: str) -> bool:
        return generated_correct(text, self.puzzle(self.cell(row)), self.settings.variant)

    def _logged(self, row: Row, correct: bool, answer: Answer) -> dict[str, Any]:
        composed = self.compose(self.cell(row))
        needle, source = composed.needle, composed.source
        mistake, city = self._mistake(composed, correct, answer)
        # A model may put a mark before every prompt (a BOS token), which moves all that follows.
        shift = 0 if answer.prompt_tokens is None else answer.prompt_tokens - composed.num_tokens
        return {
            "num_tokens": composed.num_tokens + shift,
            "haystack_tokens": composed.haystack_tokens,
            "haystack_repeats": round(source.repeats(composed.haystack_tokens), 3),
            "length_unit": source.unit,
            "needle_index": needle.index + shift if needle else None,
            "needle_fraction": needle.fraction if needle else None,
            "needles": [_place(one, shift) for one in composed.placed if one.insert.is_needle],
            "distractors": [_place(one, shift) for one in composed.placed if not one.insert.is_needle],
            "mistake": mistake,
            "mistake_city": city,
        }

    def _mistake(self, composed: ComposedText, correct: bool, answer: Answer) -> tuple[str, str]:
        """(kind, city) of a wrong answer, from token ids where there are some, else from the text."""
        puzzle, source = composed.puzzle, composed.source
        forced = answer.is_greedy is not None and answer.predicted_ids and not source.is_estimate
        if correct or not forced or self.settings.variant not in ("single", "absent"):
            return classify_generated(answer.text, puzzle, correct=correct)
        ids = {one.city: source.encode(one.number) for one in puzzle.distractors}
        kind, city = classify_teacher_forced(answer.predicted_ids, answer.answer_ids, ids)
        return kind or OTHER, city

    def _more(self, row: Row, logged: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        found = {
            "text_niah_distracted": float(logged["mistake"] == DISTRACTOR),
            "text_niah_recalled": recalled(answer.text, self.puzzle(self.cell(row))),
        }
        return {name: found[name] for name in self.more_metrics}

    def describe(self) -> dict[str, Any]:
        haystack = self._source.haystack
        found = {
            **asdict(self.settings),
            "haystack": haystack.name,
            "haystack_sha256": haystack.fingerprint,
            "haystack_chars": "endless" if haystack.num_chars is None else haystack.num_chars,
            "length_unit": f"tokens of the model under test where it brings its tokenizer, else {self._source.unit}",
        }
        if haystack.num_chars is not None:
            # Of the model's tokens nothing is known yet; samples carry the exact figure.
            longest = ESTIMATED_CHARS * self.settings.grid.longest
            found["haystack_repeats_estimated"] = round(max(1.0, longest / haystack.num_chars), 2)
        return {**found, "haystack_note": haystack.note} if haystack.note else found


def _place(placed: Placed, shift: int) -> dict[str, Any]:
    insert = placed.insert
    place = {"index": placed.index + shift, "fraction": placed.fraction}
    return {"city": insert.city, "number": insert.number, **place}


class TextPrompt:
    """One cell's prompt as a model's adapter takes it: a ``Visual`` made of text.

    An adapter calls ``bind_tokenizer``, then ``segments`` and ``media``. The segments are the complete
    prompt: with ``template`` "none" no chat template and no further text belongs around them.
    """

    template = "none"
    preprocess = "pad"  # of no consequence: there are no frames

    def __init__(self, task: TextTask, cell: Cell) -> None:
        self._task, self._cell = task, cell

    def bind_tokenizer(self, encode: Encode, name: str = "") -> None:
        """See ``MeasuredHaystack.counted_by``; the task's scores are in this model's tokens then."""
        self._task.count_by(encode, name)

    def segments(self) -> tuple[Segment, ...]:
        """Text, spans of haystack tokens, needles, question."""
        return self._task.compose(self._cell).segments()

    def text(self) -> str:
        """The same prompt as one string, for a model that is sent text."""
        return self._task.compose(self._cell).text()

    def media(self) -> Mapping[str, TokenSource]:
        source = self._task.counted
        return {source.fingerprint: source}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a text NIAH prompt has no {name!r}: text_niah_0, _3 and _5 are scored by teacher forcing and are for "
            "--model longva_ring or hf_tree; give any other model text_niah_generate"
        )


@functools.lru_cache(maxsize=4)
def open_source(haystack: str, tokenizer: str) -> MeasuredHaystack:
    """A haystack, opened once a process, so that the tasks of a group tokenise one text once."""
    encode = named_tokenizer(tokenizer) if tokenizer else None
    return MeasuredHaystack(open_text_haystack(haystack), encode, tokenizer)


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

    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
