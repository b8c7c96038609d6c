"""Synthetic text for the nano model: random words with facts in them, and questions about the facts.

Three kinds of sequence, all with loss only where the answer is in the context:

* repeats: a random segment said again; the loss is on what is said again. It teaches copying, from which retrieval
  grows without anything being built into the weights.
* facts: ``colour oslo red .`` or ``7 oslo red .`` in filler words, then ``What colour is the oslo? red``; the loss is
  on the answers. Questions are drawn independently, so that nothing follows by elimination.
* numbers: ``The special magic oslo number is: 4711.`` in filler words and letters, the wording of text NIAH in text
  that is not its haystack. They teach to keep a number of several digits apart from others told in the same words.

Shape legend: B sequences, T tokens. ``ids_BT`` int64; ``labels_BT`` int64, -100 where there is no loss.
Every batch is a pure function of (seed, step).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vniah.prompts import question_text
from vniah.text.puzzles import needle_text
from vniah.training.nano.vocabulary import SPECIAL_TOKENS, word_list
from vniah.training.stages import IGNORE, LengthPhase

ATTRIBUTES = ("colour", "number")
FACT_FORMS = ("{attribute} {key} {value} .", "{key} {attribute} {value} .", "the {attribute} of {key} is {value} .")
# Share of facts that tell colour and number at once, in any order, other words between.
DESCRIPTION_SHARE = 0.7
# Facts of a row of 128 tokens at most (2 at least), and questions at its end. A row of twice as many tokens holds twice
# as many, up to six times as many: a long row costs more and should teach more, and many facts at once ask for a sharp
# memory of which is which.
MAX_FACTS, MAX_QUERIES, ROOMY, MOST = 8, 8, 128, 6
# The same of numbers, where a row holds twice as many from 1,024 tokens on. Below the shortest row none fits.
MAX_NUMBERS, MAX_NUMBER_QUERIES, ROOMY_NUMBERS, SHORTEST_ROW = 6, 4, 1024, 64
NUMBER_DIGITS = 7
SPELLED_SHARE = 0.15
# Text between pictures: tokens of a batch, about; the shortest rows; the most rows.
REPLAY_TOKENS, REPLAY_SHORTEST, REPLAY_ROWS = 4096, 128, 24
IdsBT = NDArray[np.int64]
Query: TypeAlias = tuple[list[int], list[int]]  # what is asked, and the answer


def phase_at(phases: Sequence[LengthPhase], step: int) -> LengthPhase:
    """The phase that holds at ``step``. Phases rise by start; the first starts at 0."""
    return [phase for phase in phases if phase.start <= step][-1]


class TextTasks:
    """Batches of repeats, facts and numbers by step, of the lengths that ``phases`` say.

    ``repeat_share`` of the rows repeat, ``number_share`` hold numbers where there is room for them, the others facts.
    """

    def __init__(
        self,
        tokenizer: Any,
        phases: Sequence[LengthPhase],
        *,
        seed: int,
        repeat_share: float = 0.5,
        number_share: float = 0.0,
    ) -> None:
        from vniah.needles.icons import COLOURS, DIGITS, OBJECTS

        if not phases or phases[0].start != 0 or [p.start for p in phases] != sorted({p.start for p in phases}):
            raise ValueError(f"length phases must start at step 0 and rise, got {list(phases)}")
        if repeat_share < 0 or number_share < 0 or repeat_share + number_share > 1:
            raise ValueError(
                f"shares must not be negative nor above 1 together, got repeat {repeat_share}, number {number_share}"
            )
        self.phases, self.seed = tuple(phases), seed
        self.repeat_share, self.number_share = repeat_share, number_share
        self._ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._bos, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._free = np.arange(len(SPECIAL_TOKENS), len(tokenizer))
        self._loose = word_list("filler")
        self._filler = np.array([self._ids(word)[0] for word in self._loose])
        # Letters at the start of a word and within one.
        letters = dict.fromkeys(token for a in string.ascii_lowercase for token in self._ids(f"{a}q{a}"))
        self._filler_and_letters = np.array([*self._filler, *letters])
        self._keys = [*OBJECTS, *word_list("cities"), *word_list("animals")]
        self._values = (tuple(COLOURS), DIGITS)

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
                make = self._numbers
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
        """Fill a row with facts in filler, and questions after it."""
        length = len(ids_T)
        many = min(max(length // ROOMY, 1), MOST)
        num_facts = rng.integers(2, min(many * MAX_FACTS, len(self._keys)) + 1)
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
        queries: list[Query] = []
        for _ in range(rng.integers(1, many * MAX_QUERIES + 1)):
            key, kind, value = known[rng.integers(len(known))]
            ask = self._ids(question_text(ask_about(key, kind, full=rng.random() < 0.5)))
            if len(ask) + 2 > room:
                ask = self._ids(question_text(ask_about(key, kind, full=False)))
            if queries and len(ask) + 2 > room:
                break
            room -= len(ask) + 2
            queries.append((ask, [*self._ids(value), self._end]))
        self._write(rng, ids_T, labels_T, facts, queries, self._filler)

    def _fact(self, rng: np.random.Generator, key: str) -> tuple[str, list[tuple[str, int, str]]]:
        """A fact's text, and the (key, attribute, value) it tells: one attribute, or both in any order."""
        values = [str(rng.choice(self._values[kind])) for kind in (0, 1)]
        if rng.random() < DESCRIPTION_SHARE:
            between = rng.choice(self._loose, int(rng.integers(0, 3)))
            words = rng.permutation([key, *values, *between])
            return " ".join(words) + " .", [(key, 0, values[0]), (key, 1, values[1])]
        kind = int(rng.integers(2))
        form = FACT_FORMS[rng.integers(len(FACT_FORMS))]
        return form.format(attribute=ATTRIBUTES[kind], key=key, value=values[kind]), [(key, kind, values[kind])]

    def _numbers(self, rng: np.random.Generator, ids_T: IdsBT, labels_T: IdsBT) -> None:
        """Fill a row of at least ``SHORTEST_ROW`` tokens with numbers in filler, and questions after it."""
        many = 2 if len(ids_T) >= ROOMY_NUMBERS else 1
        numbers = self._draw_numbers(rng, int(rng.integers(1, many * MAX_NUMBERS + 1)))
        room = len(ids_T) - 1
        queries: list[Query] = []
        facts: list[list[int]] = []
        for key, number in numbers.items():
            fact, query = self._ids(needle_text(key, number)), self._number_query(rng, key, number, room)
            # The first fact is asked about; further ones come while half of the row is left to filler.
            needed = len(fact) + (0 if facts else len(query[0]) + len(query[1]))
            if facts and room - needed < len(ids_T) // 2:
                break
            facts.append(fact)
            if not queries:
                queries.append(query)
            room -= needed
        told = list(numbers.items())[: len(facts)]
        for _ in range(int(rng.integers(0, many * MAX_NUMBER_QUERIES))):
            key, number = told[rng.integers(len(told))]
            query = self._number_query(rng, key, number, room)
            if room - sum(map(len, query)) < len(ids_T) // 3:
                break
            queries.append(query)
            room -= sum(map(len, query))
        queries = [queries[i] for i in rng.permutation(len(queries))]
        self._write(rng, ids_T, labels_T, facts, queries, self._filler_and_letters, shuffle=True)

    def _draw_numbers(self, rng: np.random.Generator, count: int) -> dict[str, str]:
        """``count`` keys with a number each; some keys are spelled letter by letter."""
        digits = NUMBER_DIGITS if rng.random() < 0.6 else int(rng.integers(1, NUMBER_DIGITS + 1))
        numbers: dict[str, str] = {}
        for key in rng.choice(self._keys, count, replace=False):
            if rng.random() < SPELLED_SHARE:
                key = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(3, 6)))
            numbers[str(key)] = "".join(str(d) for d in rng.integers(0, 10, digits))
        return numbers

    def _number_query(self, rng: np.random.Generator, key: str, number: str, room: int) -> Query:
        ask = f"The special magic {key} number is: "
        if room >= 2 * SHORTEST_ROW and rng.random() < 0.7:
            ask = f"Question: What is the special magic {key} number? Answer: {ask}"
        return self._ids(ask), [*self._ids(number), self._end]

    def _write(
        self,
        rng: np.random.Generator,
        ids_T: IdsBT,
        labels_T: IdsBT,
        facts: list[list[int]],
        queries: list[Query],
        filler: IdsBT,
        *,
        shuffle: bool = False,
    ) -> None:
        """Fill a row with filler, facts at random places in it (in random order too), and questions after it."""
        room = len(ids_T) - 1 - sum(map(len, facts)) - sum(len(ask) + len(answer) for ask, answer in queries)
        places = np.sort(rng.integers(0, room + 1, len(facts)))
        if shuffle:
            facts = [facts[i] for i in rng.permutation(len(facts))]
        row: list[int] = [self._bos]
        done = 0
        for place, fact in zip(places, facts, strict=True):
            row += [*rng.choice(filler, place - done), *fact]
            done = place
        row += list(rng.choice(filler, room - done))
        for ask, answer in queries:
            row += ask
            labels_T[len(row) : len(row) + len(answer)] = answer
            row += answer
        ids_T[:] = row


def ask_about(key: str, kind: int, *, full: bool) -> str:
    """The question about a key's colour (0) or number (1): as the icons needles put it, or its one clause."""
    from vniah.needles.icons import icon_questions

    if full:
        return icon_questions(key, "", "")[kind][0]
    return f"What {ATTRIBUTES[kind]} is {('the', 'beside the')[kind]} {key}?"


def with_text(
    make: Callable[[int], dict[str, Any]], tokenizer: Any, *, share: float, length: int, seed: int
) -> Callable[[int], dict[str, Any]]:
    """Batches by step: text alone in ``share`` of the steps, else pictures, ``make(step)``.

    Alignment on pictures alone bends text retrieval, at nano scale from 0.98 to 0.2-0.4 within some 1,400 steps. The
    original's instruction data has its text-only conversations too. No more tokens than the text stages had.

    Rows are ``length`` tokens or one of its halves down to 128. A batch of text has ``input_ids``, ``labels`` and
    ``attention_mask`` (B, T), and no pixels.
    """
    lengths = [length]
    while lengths[-1] // 2 >= REPLAY_SHORTEST:
        lengths.append(lengths[-1] // 2)
    tasks = []
    for one in lengths:
        phase = LengthPhase(start=0, length=one, batch=min(REPLAY_ROWS, max(1, REPLAY_TOKENS // one)))
        tasks.append(TextTasks(tokenizer, [phase], seed=seed + 20, repeat_share=0.2, number_share=0.3))

    def batch(step: int) -> dict[str, Any]:
        rng = np.random.default_rng((seed, step, 7))
        if rng.random() >= share:
            return make(step)
        found: dict[str, Any] = dict(tasks[rng.integers(len(tasks))].batch(step))
        return {**found, "attention_mask": np.ones_like(found["input_ids"])}

    return batch
