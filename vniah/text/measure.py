"""How a haystack is counted: in tokens of a tokenizer, or by an estimate where there is none.

A haystack is tokenised once, sentence by sentence and only as far as is needed; every cell is then cut
from it by position. Positions count tokens from the haystack's beginning and run on past its end, where
it is read again.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vniah.contract.cost import ESTIMATED_CHARS, estimate_tokens
from vniah.contract.sources import TokensT
from vniah.text.haystack import TextHaystack
from vniah.text.puzzles import PREFIX, question_text

# A text to its token ids, tokenised alone and without special tokens.
Encode = Callable[[str], Sequence[int]]

_BLOCK = 1024


class MeasuredHaystack:
    """A haystack with a token position for every sentence border; a ``TokenSource`` when it has a tokenizer.

    Args:
        haystack: what is measured.
        encode: the tokenizer; ``None`` estimates one token for ``ESTIMATED_CHARS`` characters.
        name: what to call the tokenizer in results.

    Attributes:
        unit: what is counted, in words.
        fingerprint: of the text's and of the ids of its first sentences: another tokenizer, another fingerprint.
    """

    def __init__(self, haystack: TextHaystack, encode: Encode | None = None, name: str = "") -> None:
        self.haystack = haystack
        self.is_estimate = encode is None
        self.unit = f"tokens of {name or 'the model'}" if encode else f"estimated tokens ({ESTIMATED_CHARS} characters)"
        self._encode = encode
        self._counts: dict[str, int] = {}
        self._by_model: tuple[tuple[tuple[list[int], ...], str], MeasuredHaystack] | None = None
        self._stream = haystack.sentences()
        self._sentences: list[str] = []
        self._borders: NDArray[np.int64] = np.zeros(1, np.int64)
        self._ids: TokensT = np.zeros(0, np.int64)
        self._whole = False
        self._lock = threading.Lock()
        self._extend()
        key = hashlib.sha256(haystack.fingerprint.encode())
        key.update(self.unit.encode() if self.is_estimate else self._ids.tobytes())
        self.fingerprint = key.hexdigest()

    def counted_by(self, encode: Encode, name: str = "") -> MeasuredHaystack:
        """The same haystack in tokens of a model, by what the model is fed for a ``Text`` segment.

        A tokenizer is known by what it makes of the template, so that whoever asks again for the same model shares one
        object, and the haystack is tokenised once.
        """
        probe = tuple(list(encode(text)) for text in (PREFIX, question_text(), " 0123456789"))
        # By its name too: that is what results say the length was counted in.
        known = (probe, name)
        with self._lock:
            if self._by_model is None or self._by_model[0] != known:
                self._by_model = (known, MeasuredHaystack(self.haystack, encode, name))
            return self._by_model[1]

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text; ValueError where lengths are estimates, which have no ids."""
        if self._encode is None:
            raise ValueError("no tokenizer is known, so there are only estimated counts and no token ids")
        return self._encode(text)

    def count(self, text: str) -> int:
        """Tokens of a short text; remembered."""
        if text not in self._counts:
            self._counts[text] = len(self._encode(text)) if self._encode else estimate_tokens(text)
        return self._counts[text]

    @property
    def num_tokens(self) -> int | None:
        """Tokens of one reading; ``None`` while its end has not been reached."""
        return int(self._borders[-1]) if self._whole else None

    def repeats(self, length: int) -> float:
        """How many times over the haystack is read for ``length`` tokens; 1.0 when none of it is read again."""
        self._reach(length)
        return max(1.0, length / int(self._borders[-1])) if self._whole else 1.0

    def border_before(self, position: int) -> int:
        """The last sentence border at or before ``position``."""
        start, offset = self._fold(position)
        return start + int(self._borders[np.searchsorted(self._borders, offset, side="right") - 1])

    def border_after(self, position: int) -> int:
        """The first sentence border at or after ``position``."""
        start, offset = self._fold(position)
        return start + int(self._borders[np.searchsorted(self._borders, offset, side="left")])

    def token_ids(self, start: int, stop: int) -> TokensT:
        """Ids at ``start`` to ``stop`` (exclusive), int64 of shape (T,); ValueError without a tokenizer."""
        if self.is_estimate:
            self.encode("")
        self._reach(stop)
        first, offset = self._fold(start)
        if stop <= first + len(self._ids):
            return self._ids[offset : stop - first]
        return self._ids[np.arange(start, stop) % len(self._ids)]

    def text(self, start: int, stop: int) -> str:
        """The text between two sentence borders."""
        self._reach(stop)
        pieces = []
        while start < stop:
            base, offset = self._fold(start)
            end = min(stop - base, int(self._borders[-1]))
            first, last = (int(np.searchsorted(self._borders, at)) for at in (offset, end))
            assert self._borders[first] == offset and self._borders[last] == end, "start and stop are borders"
            if end == self._borders[-1]:
                last = len(self._sentences)  # sentences without tokens may follow the last one with some
            pieces.append("".join(self._sentences[first:last]))
            start = base + end
        return "".join(pieces)

    def _fold(self, position: int) -> tuple[int, int]:
        """(where the reading that holds ``position`` begins, the position in it); measured that far."""
        self._reach(position)
        total = int(self._borders[-1])
        start = position // total * total if self._whole else 0
        return start, position - start

    def _reach(self, position: int) -> None:
        """Measure on until ``position`` is inside, or the haystack ends."""
        if self._whole or position < self._borders[-1]:
            return
        with self._lock:
            while not self._whole and position >= self._borders[-1]:
                self._extend()

    def _extend(self) -> None:
        """Measure the next block of sentences. A text without a single token would never end."""
        block = list(itertools.islice(self._stream, _BLOCK))
        if self._encode is None:
            counts = list(map(estimate_tokens, block))
        else:
            rows = list(map(self._encode, block))
            counts = list(map(len, rows))
            self._ids = np.concatenate([self._ids, np.fromiter(itertools.chain.from_iterable(rows), np.int64)])
        ends = np.cumsum(np.array(counts, np.int64)) + self._borders[-1]
        self._sentences.extend(block)
        self._borders = np.concatenate([self._borders, ends])
        self._whole = len(block) < _BLOCK
        if self._borders[-1] == 0:
            raise ValueError(f"the tokenizer makes no tokens of the text haystack {self.haystack.name}")
