"""A text NIAH run's cells over one haystack, and each cell's prompt as a model is handed it.

The haystack is tokenised once for the model under test: its adapter brings the tokenizer when it asks a
prompt for its segments. Until then, and for models that bring none, lengths are those of the measure that
the book was opened with, an estimate or a named tokenizer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from vniah.contract.cost import ESTIMATED_CHARS
from vniah.contract.requests import Request, Segment
from vniah.contract.sources import TokenSource
from vniah.text.compose import ComposedText, compose
from vniah.text.haystack import TextHaystack, open_text_haystack
from vniah.text.measure import Encode, Measure, MeasuredHaystack
from vniah.text.puzzles import PREFIX, Puzzle, TextCell, make_puzzle, question_text
from vniah.text.settings import TextSettings


class TextSource:
    """A haystack and whatever counts it now.

    Args:
        haystack: the text.
        measure: how lengths are counted before a model brings its tokenizer; estimated when not given.
    """

    def __init__(self, haystack: TextHaystack, measure: Measure | None = None) -> None:
        self.haystack = haystack
        self.measure = measure or Measure()
        self._measured: MeasuredHaystack | None = None
        self._bound: tuple[tuple[int, ...], ...] | None = None
        self._lock = threading.Lock()

    @property
    def measured(self) -> MeasuredHaystack:
        with self._lock:
            if self._measured is None:
                self._measured = MeasuredHaystack(self.haystack, self.measure)
            return self._measured

    def bind_tokenizer(self, encode: Encode, name: str = "") -> None:
        """Count in tokens of the model under test from here on.

        Cheap when the same tokenizer is bound again: it is recognised by what it makes of the template,
        so that the haystack is tokenised once a model.

        Args:
            encode: a text to its token ids, tokenised alone, without special tokens: what the model is fed
                for a ``Text`` segment.
            name: what to call it in results.
        """
        probe = tuple(tuple(encode(text)) for text in (PREFIX, question_text(), " 0123456789"))
        with self._lock:
            if self._bound != probe:
                self.measure, self._measured, self._bound = Measure(encode, name), None, probe


class TextBook:
    """The cells of ``settings`` over ``source``.

    Args:
        settings: what to measure.
        source: where to hide it, may be shared by several books; opened by ``settings`` when not given.

    Raises:
        ValueError, OSError: bad settings, or a haystack that cannot be opened.
    """

    def __init__(self, settings: TextSettings, source: TextSource | None = None) -> None:
        self.settings = settings
        self.cells = tuple(settings.cells())
        self.source = source or TextSource(open_text_haystack(settings.haystack))

    def puzzle(self, cell: TextCell) -> Puzzle:
        settings = self.settings
        return make_puzzle(
            cell,
            seed=settings.seed,
            num_distractors=settings.num_distractors,
            variant=settings.variant,
            num_needles=settings.num_needles,
            shared_distractors=settings.shared_distractors,
        )

    def compose(self, cell: TextCell) -> ComposedText:
        """A cell's prompt.

        Raises:
            ValueError: the length does not hold one sentence.
        """
        return compose(self.source.measured, cell, self.puzzle(cell))

    def requests(self) -> list[Request]:
        """Every cell as segments with its answer, in order: for planning, and for runs without lmms-eval."""
        return [self.compose(cell).request() for cell in self.cells]

    def provenance(self) -> dict[str, Any]:
        """What is measured on, for results: settings, haystack and its hash."""
        haystack, measure = self.source.haystack, self.source.measure
        found = {
            **self.settings.as_dict(),
            "haystack": haystack.name,
            "haystack_sha256": haystack.fingerprint,
            "haystack_chars": "endless" if haystack.num_chars is None else haystack.num_chars,
            "length_unit": f"tokens of the model under test where it brings its tokenizer, else {measure.unit}",
        }
        if haystack.num_chars is not None:
            # Of the model's tokens nothing is known yet; samples carry the exact figure.
            longest = ESTIMATED_CHARS * self.settings.grid.max_frames
            found["haystack_repeats_estimated"] = round(max(1.0, longest / haystack.num_chars), 2)
        return {**found, "haystack_note": haystack.note} if haystack.note else found


class TextPrompt:
    """One cell's prompt as a model's adapter takes it: a ``Visual`` made of text.

    An adapter calls ``bind_tokenizer``, then ``segments`` and ``media``. The segments are the complete
    prompt: with ``template`` "none" no chat template and no further text belongs around them.
    """

    template = "none"
    preprocess = "pad"  # of no consequence: there are no frames

    def __init__(self, book: TextBook, cell: TextCell) -> None:
        self._book = book
        self._cell = cell

    def bind_tokenizer(self, encode: Encode, name: str = "") -> None:
        """See ``TextSource.bind_tokenizer``; every prompt over one haystack shares the binding."""
        self._book.source.bind_tokenizer(encode, name)

    def segments(self) -> tuple[Segment, ...]:
        """Text, spans of haystack tokens, needles, question.

        Raises:
            ValueError: the length does not hold one sentence.
        """
        return self._book.compose(self._cell).segments()

    def media(self) -> Mapping[str, TokenSource]:
        source = self._book.source.measured
        return {source.fingerprint: source}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a text NIAH prompt has no {name!r}: text_niah_0, _3 and _5 are scored by teacher forcing and are for "
            "--model longva_ring; give any other model text_niah_generate"
        )
