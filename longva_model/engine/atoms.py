"""A prompt as what the engine feeds, and the tree that prompts share prefixes in.

An *atom* is fed at once: a token of text, or a visual unit (a frame, a pair of frames, an image) with all its visual
tokens. Two atoms are the same only if their content is and their positions are. A unit's content is which frames it
shows and how they were fitted, never where in a clip it stands.

A prompt is one array of codes: a token's id, or below zero a unit of a ``Series``. Positions that merely run on from 0
follow from the atoms before and are not kept; others stand in one array, which the cells of a column share.
Pure index work: knows neither pixels nor tensors.

Shapes: A atoms, T tokens, P axes of positions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IntsA = NDArray[np.int64]
_CodesA = NDArray[np.integer[Any]]
# A unit's code is -1 - (series << _INDEX_BITS | index).
_INDEX_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Visual units that are made alike, told apart by their index.

    Attributes:
        name: the source's fingerprint; with ``fitted`` and the index, a unit's identity.
        fitted: how its pixels are fitted to the model, and whatever else decides its visual tokens.
        tokens: of one unit, here.
        offset, whole: where a unit's tokens stand in several places, the first one that stands here, and how many the
            unit has in all (0: ``tokens``).
        placeholder: the id that stands at a visual token; -1 where the model has none.
        source: what is encoded: a ``FrameSource`` whose items are the units, an image, or None for a vector that the
            model itself appends.
    """

    name: str
    fitted: str
    tokens: int
    placeholder: int = -1
    offset: int = 0
    whole: int = 0
    source: Any = field(compare=False, repr=False, default=None)


class AtomTable:
    """The series of a batch of prompts, each under a number."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._numbers: dict[Series, int] = {}
        self._columns: dict[str, _IntsA] = {}
        self._homes: dict[bytes, tuple[Any, int]] = {}

    def meet(self, sources: Iterable[Any]) -> None:
        """Settle where frames that several sources show are taken from: the longest, which has the most of them in a
        row. Frames are told to be the same by ``contents`` of their sources, where these have it."""
        known = {source.fingerprint: source for source in sources if getattr(source, "contents", None)}
        for source in sorted(known.values(), key=len, reverse=True):
            for index, content in enumerate(source.contents):
                self._homes.setdefault(content, (source, index))

    def homes(self, source: Any, start: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        """The frames ``start`` to ``stop`` of a source as runs of those sources that they are taken from."""
        contents = getattr(source, "contents", None)
        if contents is None:
            yield source, start, stop
            return
        run: tuple[Any, int, int] | None = None
        for index in range(start, stop):
            home, at = self._homes.setdefault(contents[index], (source, index))
            if run is not None and run[0] is home and run[2] == at:
                run = (home, run[1], at + 1)
                continue
            if run is not None:
                yield run
            run = (home, at, at + 1)
        if run is not None:
            yield run

    def codes(self, series: Series, start: int, stop: int) -> _IntsA:
        """Of the units ``start`` to ``stop``."""
        return self.codes_at(series, np.arange(start, stop, dtype=np.int64))

    def codes_at(self, series: Series, units_A: _IntsA) -> _IntsA:
        """Of the units with these indices."""
        number = self._numbers.get(series)
        if number is None:
            number = self._numbers[series] = len(self.series)
            self.series.append(series)
        return -1 - ((number << _INDEX_BITS) + units_A)

    def sizes(self, codes_A: _CodesA) -> _CodesA:
        """Tokens of each atom."""
        return self._looked_up(codes_A, "tokens", np.ones_like(codes_A))

    def ids(self, codes_A: _CodesA) -> _CodesA:
        """The id of each atom's tokens: a unit's is its placeholder."""
        return self._looked_up(codes_A, "placeholder", codes_A)

    def _looked_up(self, codes_A: _CodesA, attribute: str, of_text_A: _CodesA) -> _CodesA:
        found_A = of_text_A.copy()
        visual_A = codes_A < 0
        # Made anew when it is asked for, and not with each series: a prompt may bring thousands.
        if len(self._columns.get(attribute, ())) != len(self.series):
            self._columns[attribute] = np.array([getattr(one, attribute) for one in self.series], np.int64)
        if visual_A.any():
            found_A[visual_A] = self._columns[attribute][(-1 - codes_A[visual_A]) >> _INDEX_BITS]
        return found_A

    def runs(self, codes_A: _CodesA) -> Iterator[tuple[Series, int, int]]:
        """The units among atoms, in order: (series, start, stop) of each run of neighbours."""
        units = -1 - codes_A[codes_A < 0]
        cuts = np.flatnonzero(np.diff(units) != 1) + 1
        for run in np.split(units, cuts) if len(units) else ():
            number, start = divmod(int(run[0]), 1 << _INDEX_BITS)
            yield self.series[number], start, start + len(run)


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A prompt as atoms.

    Attributes:
        atoms_A: codes; of 32 bits where all are text, since a grid of long texts has hundreds of millions of them.
        ends_A: where each atom ends, in tokens; None where every atom is one token.
        positions_PT: absolute positions of its first tokens; behind the last one they run on, as those of text do.
            None where they run on from 0.
        step: by how much they run on.
    """

    atoms_A: _CodesA
    ends_A: _CodesA | None = None
    positions_PT: NDArray[np.integer[Any]] | None = None
    step: int = 1

    @classmethod
    def of(
        cls,
        codes: Sequence[_IntsA],
        table: AtomTable,
        positions_PT: NDArray[np.integer[Any]] | None = None,
        step: int = 1,
    ) -> Lowered:
        """The prompt of these pieces.

        Raises:
            ValueError: positions of no token, or of more than the prompt's and the one behind it.
        """
        pieces = [np.asarray(piece, np.int64) for piece in codes]
        atoms_A: _CodesA = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        ends_A = np.cumsum(table.sizes(atoms_A)) if (atoms_A < 0).any() else None
        if ends_A is None:
            atoms_A = atoms_A.astype(np.int32)
        lowered = cls(atoms_A, ends_A, positions_PT, step)
        if positions_PT is not None and not 1 <= positions_PT.shape[1] <= lowered.tokens + 1:
            raise ValueError(
                f"{positions_PT.shape[1]} positions for a prompt of {lowered.tokens} tokens; give them for its first "
                "tokens, and at most for the one behind it"
            )
        return lowered

    def __len__(self) -> int:
        return len(self.atoms_A)

    @property
    def tokens(self) -> int:
        return self.begin(len(self))

    def begin(self, atom: int) -> int:
        """Where an atom begins, in tokens."""
        return atom if self.ends_A is None or atom == 0 else int(self.ends_A[atom - 1])

    def positions(self, start: int, stop: int) -> NDArray[np.integer[Any]]:
        """Of the tokens from ``start`` to ``stop``, (P, n), where those behind the prompt are text."""
        given = 0 if self.positions_PT is None else self.positions_PT.shape[1]
        if self.positions_PT is not None and stop <= given:
            return self.positions_PT[:, start:stop]
        running_T = np.arange(start, stop, dtype=np.int64)
        if self.positions_PT is None:
            return running_T[None]
        behind_T = self.step * (running_T[max(given - start, 0) :] - (given - 1))
        return np.concatenate([self.positions_PT[:, start:stop], self.positions_PT[:, -1:] + behind_T], 1)


class PrefixTree:
    """Prompts merged by equal prefixes of atoms.

    Example: two cells of one film share its frames before the earlier needle. A node's children begin with different
    atoms, so that a walk never computes the same prefix twice.
    """

    def __init__(self, prompts: Sequence[Lowered]) -> None:
        self.prompts = list(prompts)
        self.root = Node(0, 0, 0)
        self._alike: dict[tuple[int, int], int] = {}
        for number, prompt in enumerate(self.prompts):
            self._insert(number, prompt)

    def _insert(self, number: int, prompt: Lowered) -> None:
        # Iterative, since a film's trunk has a node per splice.
        node, at = self.root, 0
        while at < len(prompt):
            first = prompt.atoms_A[at]
            for child in node.children:
                if self.prompts[child.prompt].atoms_A[at] != first:
                    continue
                stop = self.common(self.prompts[child.prompt], prompt, at, child.stop)
                if stop > at:
                    break
            else:
                child, stop = Node(number, at, len(prompt)), len(prompt)
                node.children.append(child)
            if stop < child.stop:  # cut in two: the tail becomes its only child, with all it led to
                tail = Node(child.prompt, stop, child.stop, child.children, child.leaves)
                child.stop, child.children, child.leaves = stop, [tail], []
            node, at = child, stop
        node.leaves.append(number)

    def common(self, one: Lowered, other: Lowered, at: int, limit: int) -> int:
        """The first atom from ``at`` on, up to ``limit``, at which two prompts that are alike before it differ."""
        stop = min(len(one), len(other), limit)
        differ_A = one.atoms_A[at:stop] != other.atoms_A[at:stop]
        stop = at + int(differ_A.argmax()) if differ_A.any() else stop
        if one.positions_PT is other.positions_PT:
            return stop
        # Atoms are alike up to here, so both have the same borders.
        tokens = self._alike_positions(one, other)
        return stop if one.begin(stop) <= tokens else max(at, _atoms_within(one, tokens))

    def _alike_positions(self, one: Lowered, other: Lowered) -> int:
        """Tokens from the start whose positions are the same in both; all there may be where they never differ."""
        key = (id(one.positions_PT), id(other.positions_PT))
        if key not in self._alike:
            # Behind the last one that is given, positions run on in both.
            given = [0 if each.positions_PT is None else each.positions_PT.shape[1] for each in (one, other)]
            self._alike[key] = sys.maxsize
            for start, stop in ((0, min(given)), (min(given), max(given))):
                differ_T = (one.positions(start, stop) != other.positions(start, stop)).any(0)
                if differ_T.any():
                    self._alike[key] = start + int(differ_T.argmax())
                    break
        return self._alike[key]

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Yield (depth in nodes, node) depth-first, each parent before its children; the root is left out."""
        stack = [(0, child) for child in reversed(self.root.children)]
        while stack:
            depth, node = stack.pop()
            yield depth, node
            stack.extend((depth + 1, child) for child in reversed(node.children))


@dataclass(slots=True, eq=False)
class Node:
    """Atoms ``start`` to ``stop`` of a prompt; ``leaves`` are the prompts that end with it."""

    prompt: int
    start: int
    stop: int
    children: list[Node] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)


def _atoms_within(prompt: Lowered, tokens: int) -> int:
    """Atoms that end within the first ``tokens`` tokens."""
    return tokens if prompt.ends_A is None else int(np.searchsorted(prompt.ends_A, tokens, "right"))
