"""Where needle and distractors go, and the prompt that comes of it: as segments, or as plain text.

Everything is placed at sentence borders of the haystack, so no insertion is ever inside a sentence or
inside another insertion. Positions are token counts from the measured haystack and so exact.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vniah.contract.cost import ESTIMATED_CHARS
from vniah.contract.requests import Request, Segment, Target, Text, Tokens
from vniah.contract.sources import TokenSource
from vniah.runs.grid import Cell
from vniah.text.haystack import TextHaystack, open_text_haystack
from vniah.text.measure import Encode, Measure, MeasuredHaystack
from vniah.text.puzzles import PREFIX, Insert, Puzzle, make_puzzle, question_text
from vniah.text.settings import TextSettings


@dataclass(frozen=True, slots=True)
class Placed:
    """An insertion with its place.

    Attributes:
        insert: the sentence.
        at: the haystack position it was put at, in tokens of the bare haystack.
        index: position of its first token in the prompt.
        fraction: its place in the context, the tokens before it over all but the needle's.
    """

    insert: Insert
    at: int
    index: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedText:
    """A cell's prompt.

    Attributes:
        source: the measured haystack.
        puzzle: what is asked.
        haystack_tokens: tokens of haystack in the prompt, up to one sentence below the nominal length.
        num_tokens: tokens of the whole prompt, without the answer.
        placed: every insertion in order of appearance.
    """

    source: MeasuredHaystack
    puzzle: Puzzle
    haystack_tokens: int
    num_tokens: int
    placed: tuple[Placed, ...]

    @property
    def needle(self) -> Placed | None:
        """The needle that is at the cell's depth; ``None`` for a control."""
        return next((one for one in self.placed if one.insert is self.puzzle.needle), None)

    def segments(self) -> tuple[Segment, ...]:
        """The complete raw prompt. With an estimate for a measure it can be planned, not run."""
        found: list[Segment] = [Text(PREFIX)]
        before = 0
        for one in self.placed:
            if one.at > before:
                found.append(Tokens(self.source.fingerprint, before, one.at))
            found.append(Text(one.insert.text))
            before = one.at
        if self.haystack_tokens > before:
            found.append(Tokens(self.source.fingerprint, before, self.haystack_tokens))
        return (*found, Text(self.puzzle.question))

    def request(self) -> Request:
        """The prompt with the answer to be scored."""
        return Request(self.segments(), Target(self.puzzle.answer))

    def text(self) -> str:
        """The same prompt as one string."""
        pieces = [PREFIX]
        before = 0
        for one in self.placed:
            pieces += [self.source.text(before, one.at), one.insert.text]
            before = one.at
        return "".join([*pieces, self.source.text(before, self.haystack_tokens), self.puzzle.question])


def compose(source: MeasuredHaystack, cell: Cell, puzzle: Puzzle) -> ComposedText:
    """Place a puzzle in the haystack.

    The haystack is cut at the last sentence end within the nominal length. Every other insertion goes to
    the first sentence end at or after its drawn place. Then the needle goes to the first place between
    sentences and insertions at or after its depth, where depth 0 is before everything and 100 after it,
    and the length that depths are of includes the other insertions (reference section 4).

    Raises:
        ValueError: the length is shorter than the first sentence.
    """
    count = source.measure.count
    end = source.border_before(cell.length)
    if end == 0:
        raise ValueError(
            f"a length of {cell.length} tokens does not hold the first sentence of {source.haystack.name} "
            f"({source.border_after(1)} tokens); ask for a longer one"
        )
    # Equal places keep the order of drawing.
    places = [(source.border_after(end * one.draw >> 64), one) for one in puzzle.others]
    others = sorted(places, key=lambda pair: pair[0])
    context = end + sum(count(one.text) for _, one in others)
    order: list[tuple[int, Insert]] = list(others)
    if puzzle.needle is not None:
        assert cell.depth_percent is not None, "a needle needs a depth"
        rank, at = _needle_place(source, others, end, context * cell.depth_percent // 100)
        order.insert(rank, (at, puzzle.needle))

    placed = []
    inserted = 0  # tokens of the insertions so far, the needle left out
    needle_tokens = 0
    prefix = count(PREFIX)
    for at, one in order:
        placed.append(Placed(one, at, prefix + at + inserted + needle_tokens, (at + inserted) / context))
        if one is puzzle.needle:
            needle_tokens = count(one.text)
        else:
            inserted += count(one.text)
    return ComposedText(
        source=source,
        puzzle=puzzle,
        haystack_tokens=end,
        num_tokens=prefix + context + needle_tokens + count(puzzle.question),
        placed=tuple(placed),
    )


def _needle_place(
    source: MeasuredHaystack, others: Sequence[tuple[int, Insert]], end: int, target: int
) -> tuple[int, int]:
    """(rank among the others, haystack position) of the first border at or after token ``target`` of the context.

    ``target`` counts haystack and other insertions; between two of them, context position is haystack
    position plus the tokens inserted so far.
    """
    inserted = 0
    floor = 0
    for rank, (at, one) in enumerate(others):
        place = source.border_after(max(target - inserted, floor))
        if place <= at:
            return rank, place
        inserted += source.measure.count(one.text)
        floor = at
    return len(others), min(source.border_after(max(target - inserted, floor)), end)


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
            longest = ESTIMATED_CHARS * self.settings.grid.longest
            found["haystack_repeats_estimated"] = round(max(1.0, longest / haystack.num_chars), 2)
        return {**found, "haystack_note": haystack.note} if haystack.note else found


class TextPrompt:
    """One cell's prompt as a model's adapter takes it: a ``Visual`` made of text.

    An adapter calls ``bind_tokenizer``, then ``segments`` and ``media``. The segments are the complete
    prompt: with ``template`` "none" no chat template and no further text belongs around them.
    """

    template = "none"
    preprocess = "pad"  # of no consequence: there are no frames

    def __init__(self, book: TextBook, cell: Cell) -> None:
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
