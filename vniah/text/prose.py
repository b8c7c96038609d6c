"""The built-in haystack: plausible prose of any length from a small grammar, the same on every machine.

Its words and rules are in prose.yaml. Free of digits and of place names, so that nothing in it can pass for a needle. A
longer text starts with the shorter one. For use offline and in tests; the paper's haystack is Paul Graham's essays.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path

# Part of the haystack's fingerprint: raise it when a word or a rule changes.
VERSION = 1


@functools.cache
def _grammar() -> tuple[dict[str, tuple[str, ...]], dict[str, list[list[str]]]]:
    """Words by slot, and templates by kind: each literals at even places, slot names at odd ones."""
    import yaml

    read = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    words = {slot: tuple(text.split()) for slot, text in read["words"].items()}
    return words, {kind: [re.split(r"\{(\w+)\}", one) for one in rules] for kind, rules in read["templates"].items()}


class _Writer:
    """Fills templates from one random stream. Only ``Random.random`` is used: its stream is kept by Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._people: tuple[str, ...] = ()
        self._words, self._templates = _grammar()

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self._random() * len(choices))]

    def _fill(self, kind: str) -> str:
        templates = self._templates[kind]
        parts = list(templates[int(self._random() * len(templates))])
        for place in range(1, len(parts), 2):
            slot = parts[place]
            if slot == "clause":
                parts[place] = self._fill("clause")
            else:
                parts[place] = self._pick(self._people if slot == "who" else self._words[slot])
        return "".join(parts)

    def sentence(self) -> str:
        chance = self._random()
        if chance < 0.06:
            text = self._fill("speech")
        else:
            opener = self._fill("opener") + " " if chance < 0.4 else ""
            join = ", " if chance < 0.7 else " "
            tail = join + self._fill("tail") if chance < 0.8 else ""
            text = f"{opener}{self._fill('clause')}{tail}."
        first = 1 if text[0] == "“" else 0
        return text[:first] + text[first].upper() + text[first + 1 :]

    def paragraph(self) -> list[str]:
        """Three to nine sentences about two or three people; the last ends with a blank line."""
        self._people = tuple(
            self._pick(self._words["name"]) if self._random() < 0.7 else f"the {self._pick(self._words['role'])}"
            for _ in range(2 + int(self._random() * 2))
        )
        sentences = [self.sentence() for _ in range(3 + int(self._random() * 7))]
        return [sentences[0], *(" " + one for one in sentences[1:-1]), f" {sentences[-1]}\n\n"]


def sentences(seed: int = 0) -> Iterator[str]:
    """Endless sentences; joined, they are paragraphs of prose.

    Args:
        seed: another seed is another text.
    """
    writer = _Writer(seed)
    while True:
        yield from writer.paragraph()
