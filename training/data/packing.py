"""Documents end to end in sequences of one length: which piece of which document goes where.

A separator follows every document. A sequence is ``length + 1`` tokens, so that it gives ``length`` next-token
predictions and no two sequences share a token. Pure index arithmetic; knows no files.

Shape legend: S selected documents, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``start`` to ``stop`` of the ``entry``-th selected document; its separator counts as one more token."""

    entry: int
    start: int
    stop: int


class Packing:
    """The stream of all selected documents, cut into sequences.

    Args:
        take_S: tokens taken of each selected document.
        length: predictions a sequence; it holds one token more.
    """

    def __init__(self, take_S: Ints, length: int) -> None:
        if length < 1:
            raise ValueError(f"the sequence length must be positive, got {length}")
        self.length = length
        self.ends_S = np.cumsum(take_S + 1)
        total = int(self.ends_S[-1]) if len(take_S) else 0
        self.num_sequences, self.tail_tokens = divmod(total, length + 1)

    def pieces(self, sequence: int) -> Iterator[Piece]:
        """The pieces that make up a sequence, in order."""
        if not 0 <= sequence < self.num_sequences:
            raise IndexError(f"sequence {sequence} of {self.num_sequences}")
        position, stop = sequence * (self.length + 1), (sequence + 1) * (self.length + 1)
        entry = int(np.searchsorted(self.ends_S, position, side="right"))
        while position < stop:
            begin = int(self.ends_S[entry - 1]) if entry else 0
            end = int(self.ends_S[entry])
            yield Piece(entry, position - begin, min(stop, end) - begin)
            position = min(stop, end)
            entry += 1

    def tokens(self, sequence: int, document: Callable[[int], Ints], separator: int) -> NDArray[np.int32]:
        """The ids of a sequence.

        Args:
            sequence: which one.
            document: the taken ids of the n-th selected document, without separator.
            separator: id between documents.
        """
        parts = []
        for piece in self.pieces(sequence):
            ids = np.append(document(piece.entry), separator)
            parts.append(ids[piece.start : piece.stop])
        return np.concatenate(parts).astype(np.int32)
