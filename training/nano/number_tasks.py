"""Number facts for the nano model: the wording of text NIAH, in text that is not its haystack.

A row is random words and letters with ``The special magic oslo number is: 4711.`` here and there, one fact for each
key, and questions at its end; the loss is on the answers. It teaches to keep a number of several digits apart from
others that are told in the same words.

Shape legend: T tokens. ``ids_T`` int64; ``labels_T`` int64, -100 where there is no loss.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vniah.text.puzzles import needle_text

IdsT = NDArray[np.int64]
DIGITS = 7
# Below this a fact and its question do not fit into a row.
SHORTEST_ROW = 64
_SPELLED_SHARE = 0.15
# From so many tokens on a row holds twice the facts and questions.
_ROOMY = 1024


class NumberFacts:
    """Fills rows with number facts and questions about them.

    Args:
        ids: text -> token ids, without special tokens.
        bos: token id that a row begins with.
        end: token id that ends an answer.
        keys: what a number may belong to.
        filler: token ids to fill a row with.
        max_facts: facts of a row at most; of a long one twice as many.
        max_queries: questions of a row at most, likewise.
    """

    def __init__(
        self,
        ids: Callable[[str], list[int]],
        *,
        bos: int,
        end: int,
        keys: Sequence[str],
        filler: Sequence[int],
        max_facts: int = 6,
        max_queries: int = 4,
    ) -> None:
        self._ids, self._bos, self._end = ids, bos, end
        self._keys, self._filler = list(keys), np.array(filler)
        self._max_facts, self._max_queries = max_facts, max_queries

    def fill(self, rng: np.random.Generator, ids_T: IdsT, labels_T: IdsT) -> None:
        """Fill one row of at least ``SHORTEST_ROW`` tokens."""
        many = 2 if len(ids_T) >= _ROOMY else 1
        numbers = self._draw(rng, int(rng.integers(1, many * self._max_facts + 1)))
        room = len(ids_T) - 1
        queries: list[tuple[list[int], list[int]]] = []
        facts: list[list[int]] = []
        for key, number in numbers.items():
            fact, query = self._ids(needle_text(key, number)), self._query(rng, key, number, room)
            # The first fact is asked about; further ones come while half of the row is left to filler.
            needed = len(fact) + (0 if facts else len(query[0]) + len(query[1]))
            if facts and room - needed < len(ids_T) // 2:
                break
            facts.append(fact)
            if not queries:
                queries.append(query)
            room -= needed
        told = list(numbers.items())[: len(facts)]
        for _ in range(int(rng.integers(0, many * self._max_queries))):
            key, number = told[rng.integers(len(told))]
            query = self._query(rng, key, number, room)
            if room - sum(map(len, query)) < len(ids_T) // 3:
                break
            queries.append(query)
            room -= sum(map(len, query))
        self._write(rng, ids_T, labels_T, facts, [queries[i] for i in rng.permutation(len(queries))], room)

    def _write(
        self,
        rng: np.random.Generator,
        ids_T: IdsT,
        labels_T: IdsT,
        facts: list[list[int]],
        queries: list[tuple[list[int], list[int]]],
        room: int,
    ) -> None:
        places = np.sort(rng.integers(0, room + 1, len(facts)))
        row: list[int] = [self._bos]
        done = 0
        for place, which in zip(places, rng.permutation(len(facts)), strict=True):
            row += [*rng.choice(self._filler, place - done), *facts[which]]
            done = place
        row += list(rng.choice(self._filler, room - done))
        for ask, answer in queries:
            row += ask
            labels_T[len(row) : len(row) + len(answer)] = answer
            row += answer
        ids_T[:] = row

    def _draw(self, rng: np.random.Generator, count: int) -> dict[str, str]:
        """``count`` keys with a number each; some keys are spelled letter by letter."""
        digits = DIGITS if rng.random() < 0.6 else int(rng.integers(1, DIGITS + 1))
        numbers: dict[str, str] = {}
        for key in rng.choice(self._keys, count, replace=False):
            if rng.random() < _SPELLED_SHARE:
                key = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(3, 6)))
            numbers[str(key)] = "".join(str(d) for d in rng.integers(0, 10, digits))
        return numbers

    def _query(self, rng: np.random.Generator, key: str, number: str, room: int) -> tuple[list[int], list[int]]:
        ask = f"The special magic {key} number is: "
        if room >= 2 * SHORTEST_ROW and rng.random() < 0.7:
            ask = f"Question: What is the special magic {key} number? Answer: {ask}"
        return self._ids(ask), [*self._ids(number), self._end]


def letters(ids: Callable[[str], list[int]]) -> list[int]:
    """Token ids of letters, at the start of a word and within one."""
    return list(dict.fromkeys(token for letter in string.ascii_lowercase for token in ids(f"{letter}q{letter}")))
