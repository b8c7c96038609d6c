"""Synthetic text for the nano model: random words with facts in them, and questions about the facts.

Three kinds of sequence, all with loss only where the answer is in the context:

* repeats: a random segment said again; the loss is on what is said again. It teaches copying,
  from which retrieval grows without anything being built into the weights.
* facts: ``colour oslo red .`` or ``7 oslo red .`` in filler words, then ``What colour is the oslo? red``;
  the loss is on the answers. Questions are drawn independently, so that nothing follows by elimination;
* numbers: numbers of several digits in the wording of text NIAH (``number_tasks``).

Shape legend: B sequences, T tokens. ``ids_BT`` int64; ``labels_BT`` int64, -100 where there is no loss.
Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.prompts import question_text
from vniah.training.nano.number_tasks import SHORTEST_ROW, NumberFacts, letters
from vniah.training.nano.vocabulary import SPECIAL_TOKENS, word_list

IGNORE = -100
# A row of twice as many tokens holds twice as many facts and questions, up to six times as many: a long row costs
# more and should teach more, and many facts at once ask for a sharp memory of which is which.
ROOMY, MOST = 128, 6
IdsBT = NDArray[np.int64]
ATTRIBUTES = ("colour", "number")
FACT_FORMS = ("{attribute} {key} {value} .", "{key} {attribute} {value} .", "the {attribute} of {key} is {value} .")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPhase:
    """From step ``start`` on, sequences of ``length`` tokens, ``batch`` of them a step."""

    start: int
    length: int
    batch: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 32 or self.batch < 1:
            raise ValueError(f"a length phase needs start >= 0, length >= 32, batch >= 1; got {self}")


def phase_at(phases: Sequence[LengthPhase], step: int) -> LengthPhase:
    """The phase that holds at ``step``. Phases rise by start; the first starts at 0."""
    return [phase for phase in phases if phase.start <= step][-1]


class TextTasks:
    """Batches of repeats and facts by step.

    Args:
        tokenizer: the nano tokenizer.
        phases: the length curriculum.
        seed: every batch is drawn from (seed, step).
        repeat_share: share of repeat sequences in a batch.
        number_share: share of number sequences, where a row has room for them.
        description_share: share of facts that tell colour and number at once, in any order, other words between.
        max_facts: facts a sequence of 128 tokens has at most (2 at least), up to six times as many in a longer one.
        max_queries: questions at its end at most, likewise.
    """

    def __init__(
        self,
        tokenizer: Any,
        phases: Sequence[LengthPhase],
        *,
        seed: int,
        repeat_share: float = 0.5,
        number_share: float = 0.0,
        description_share: float = 0.7,
        max_facts: int = 8,
        max_queries: int = 8,
    ) -> None:
        from vniah.needles.icons import COLOURS, DIGITS, OBJECTS

        if not phases or phases[0].start != 0 or [p.start for p in phases] != sorted({p.start for p in phases}):
            raise ValueError(f"length phases must start at step 0 and rise, got {list(phases)}")
        if repeat_share < 0 or number_share < 0 or repeat_share + number_share > 1:
            raise ValueError(
                f"shares must not be negative nor above 1 together, got repeat {repeat_share}, number {number_share}"
            )
        self.phases, self.seed = tuple(phases), seed
        self.repeat_share, self.number_share, self.description_share = repeat_share, number_share, description_share
        self.max_facts, self.max_queries = max_facts, max_queries
        self._ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._bos, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._free = np.array([i for i in range(len(tokenizer)) if i >= len(SPECIAL_TOKENS)])
        self._loose = word_list("filler")
        self._filler = np.array([self._ids(word)[0] for word in self._loose])
        self._keys = [*OBJECTS, *word_list("cities"), *word_list("animals")]
        self._values = (tuple(COLOURS), DIGITS)
        self._numbers = NumberFacts(
            self._ids,
            bos=self._bos,
            end=self._end,
            keys=self._keys,
            filler=[*self._filler.tolist(), *letters(self._ids)],
        )

    def batch(self, step: int) -> dict[str, IdsBT]:
        """The batch of ``step``: ``input_ids`` and ``labels``, both (B, T)."""
        phase = phase_at(self.phases, step)
        rng = np.random.default_rng((self.seed, step))
        ids_BT = np.zeros((phase.batch, phase.length), np.int64)
        labels_BT = np.full_like(ids_BT, IGNORE)
        for row in range(phase.batch):
            kind = rng.random()
            make = self._facts
            if kind < self.repeat_share:
                make = self._repeat
            elif kind < self.repeat_share + self.number_share and phase.length >= SHORTEST_ROW:
                make = self._numbers.fill
            make(rng, ids_BT[row], labels_BT[row])
        return {"input_ids": ids_BT, "labels": labels_BT}

    def _repeat(self, rng: np.random.Generator, ids_T: IdsBT, labels_T: IdsBT) -> None:
        """Fill a row with a segment said over and over, or said once early and again at the end."""
        length = len(ids_T)
        shortest, longest = max(4, min(length // 8, 24)), max(6, min(length // 2, 96))
        segment = rng.choice(self._free, rng.integers(shortest, longest + 1))
        if length <= 4 * len(segment):
            ids_T[:] = np.tile(segment, length // len(segment) + 1)[:length]
            labels_T[len(segment) :] = ids_T[len(segment) :]
            return
        ids_T[:] = rng.choice(self._filler, length)
        start = rng.integers(0, length - 2 * len(segment) + 1)
        ids_T[start : start + len(segment)] = segment
        ids_T[-len(segment) :] = segment
        # The first two tokens of the second saying are the cue; they cannot be known.
        labels_T[-len(segment) + 2 :] = segment[2:]

    def _facts(self, rng: np.random.Generator, ids_T: IdsBT, labels_T: IdsBT) -> None:
        """Fill a row with filler, facts at random places in it, and questions after it."""
        length = len(ids_T)
        facts, queries = self._draw(rng, length)
        room = length - 1 - sum(map(len, facts)) - sum(len(ask) + len(answer) for ask, answer in queries)
        places = np.sort(rng.integers(0, room + 1, len(facts)))
        row: list[int] = [self._bos]
        done = 0
        for place, fact in zip(places, facts, strict=True):
            row += [*rng.choice(self._filler, place - done), *fact]
            done = place
        row += list(rng.choice(self._filler, room - done))
        for ask, answer in queries:
            row += ask
            labels_T[len(row) : len(row) + len(answer)] = answer
            row += answer
        ids_T[:] = row

    def _fact(self, rng: np.random.Generator, key: str) -> tuple[str, list[tuple[str, int, str]]]:
        """A fact's text, and the (key, attribute, value) it tells: one attribute, or both in any order."""
        values = [str(rng.choice(self._values[kind])) for kind in (0, 1)]
        if rng.random() < self.description_share:
            between = rng.choice(self._loose, int(rng.integers(0, 3)))
            words = rng.permutation([key, *values, *between])
            return " ".join(words) + " .", [(key, 0, values[0]), (key, 1, values[1])]
        kind = int(rng.integers(2))
        form = FACT_FORMS[rng.integers(len(FACT_FORMS))]
        return form.format(attribute=ATTRIBUTES[kind], key=key, value=values[kind]), [(key, kind, values[kind])]

    def _draw(self, rng: np.random.Generator, length: int) -> tuple[list[list[int]], list[tuple[list[int], list[int]]]]:
        """Draw facts and questions that fit into the row; token ids."""
        many = min(max(length // ROOMY, 1), MOST)
        num_facts = rng.integers(2, min(many * self.max_facts, len(self._keys)) + 1)
        known: list[tuple[str, int, str]] = []
        facts: list[list[int]] = []
        room = length // 3
        for key in rng.choice(self._keys, num_facts, replace=False):
            text, told = self._fact(rng, str(key))
            fact = self._ids(text)
            if facts and len(fact) > room:
                break
            room -= len(fact)
            facts.append(fact)
            known += told
        # Questions leave a long row half of its tokens, so that facts are far away.
        room = min(length - 1 - sum(map(len, facts)), length if many == 1 else length // 2)
        queries: list[tuple[list[int], list[int]]] = []
        for _ in range(rng.integers(1, many * self.max_queries + 1)):
            key, kind, value = known[rng.integers(len(known))]
            ask = self._ids(question_text(ask_about(key, kind, full=rng.random() < 0.5)))
            if len(ask) + 2 > room:
                ask = self._ids(question_text(ask_about(key, kind, full=False)))
            if queries and len(ask) + 2 > room:
                break
            room -= len(ask) + 2
            queries.append((ask, [*self._ids(value), self._end]))
        return facts, queries


def ask_about(key: str, kind: int, *, full: bool) -> str:
    """The question about a key's colour (0) or number (1): as the icons needles put it, or its one clause."""
    from vniah.needles.icons import icon_questions

    if full:
        return icon_questions(key, "", "")[kind][0]
    return f"What {ATTRIBUTES[kind]} is {('the', 'beside the')[kind]} {key}?"
