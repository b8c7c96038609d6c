"""Where needle and distractors go, and the prompt that comes of it: as segments, or as plain text.

Everything is placed at sentence borders of the haystack, so no insertion is ever inside a sentence or
inside another insertion. Positions are token counts from the measured haystack and so exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vniah.contract.requests import Request, Segment, Target, Text, Tokens
from vniah.runs.grid import Cell
from vniah.text.measure import MeasuredHaystack
from vniah.text.puzzles import PREFIX, Insert, Puzzle


@dataclass(frozen=True, slots=True)
class Placed:
    """An insertion with its place.

    Attributes:
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
        source = self.source.fingerprint
        return tuple(
            Text(one) if isinstance(one, str) else Tokens(source, one.start, one.stop) for one in self._parts() if one
        )

    def request(self) -> Request:
        """The prompt with the answer to be scored."""
        return Request(self.segments(), Target(self.puzzle.answer))

    def text(self) -> str:
        """The same prompt as one string."""
        parts = self._parts()
        return "".join(one if isinstance(one, str) else self.source.text(one.start, one.stop) for one in parts)

    def _parts(self) -> Iterator[str | range]:
        """The texts of the prompt, and the spans of the haystack between them."""
        yield PREFIX
        before = 0
        for one in self.placed:
            yield range(before, one.at)
            yield one.insert.text
            before = one.at
        yield range(before, self.haystack_tokens)
        yield self.puzzle.question


def compose(source: MeasuredHaystack, cell: Cell, puzzle: Puzzle) -> ComposedText:
    """Place a puzzle in the haystack.

    The haystack is cut at the last sentence end within the nominal length. Every other insertion goes to
    the first sentence end at or after its drawn place. Then the needle goes to the first place between
    sentences and insertions at or after its depth, where depth 0 is before everything and 100 after it,
    and the length that depths are of includes the other insertions (reference section 4).

    Raises:
        ValueError: the length is shorter than the first sentence.
    """
    count = source.count
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

    placed, prefix, needle_tokens = [], count(PREFIX), 0
    inserted = 0  # tokens of the insertions so far, the needle left out
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
    inserted = floor = 0
    for rank, (at, one) in enumerate(others):
        place = source.border_after(max(target - inserted, floor))
        if place <= at:
            return rank, place
        inserted += source.count(one.text)
        floor = at
    return len(others), min(source.border_after(max(target - inserted, floor)), end)
