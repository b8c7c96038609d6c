"""The built-in haystack: plausible prose of any length from a small grammar, the same on every machine.

Free of digits and of place names, so that nothing in it can pass for a needle. A longer text starts
with the shorter one. For use offline and in tests; the paper's haystack is Paul Graham's essays.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

# Part of the haystack's fingerprint: raise it when a word or a rule below changes.
VERSION = 1

_WORDS = {
    "name": "Martha Edwin Agnes Tobias Clara Rufus Hester Simon Judith Oswald Miriam Caleb Ingrid Felix Dora Amos",
    "role": "miller teacher baker carpenter gardener printer weaver doctor sailor clerk widow shepherd painter porter",
    "adj": "old narrow quiet heavy bright crooked patient cold honest careful empty hidden pale stubborn gentle broken "
    "ordinary curious distant faded generous hollow idle jealous loose modest plain restless silent tired unfinished",
    "thing": "lantern ladder ledger window barrel kettle clock bridge basket letter mirror curtain hammer saddle wheel "
    "blanket chimney fence engine drawer violin candle anchor map kite bell coat stove bench rope",
    "things": "apples letters boots tools chairs stories seeds shadows promises ropes books birds stones coins songs "
    "plates questions mistakes habits bells",
    "place": "orchard mill harbour kitchen valley workshop churchyard library meadow cellar station market quarry "
    "attic schoolhouse courtyard bakery hillside ferry garden",
    "idea": "patience kindness silence memory weather music work hunger grief habit luck trust pride curiosity order "
    "fear doubt hope practice time",
    "did": "carried mended painted borrowed counted forgot watched cleaned hid measured sold described polished "
    "repaired moved admired dropped kept sketched traded",
    "went": "walked hurried wandered drifted returned limped rode climbed travelled slipped",
    "felt": "relieved ashamed certain puzzled grateful uneasy proud weary amused hopeful",
    "said": "said thought supposed insisted admitted remembered believed whispered explained noticed",
    "how": "slowly carefully often rarely quietly gladly gradually badly plainly always hardly proudly patiently",
    "season": "spring summer autumn winter",
    "when": "morning evening afternoon night harvest dawn noon",
    "weather": "rain snow fog wind frost thunder heat drizzle",
    "kin": "brother sister uncle cousin neighbour grandmother friend daughter father apprentice",
    "body": "hands shoulders eyes knees fingers",
    "few": "several two three four many few countless",
    "made": "wood brass leather clay wool iron straw glass paper stone",
    "verb": "mend carry count remember sell hide paint share forget measure",
}
_OPENERS = (
    "In the {season},",
    "By {when},",
    "Every {when},",
    "Before the {weather} came,",
    "After the {weather},",
    "For a long while",
    "Near the {place},",
    "As usual,",
    "To nobody's surprise,",
    "Without a word,",
    "Somewhere behind the {place},",
    "On most days",
)
_CLAUSES = (
    "{who} {did} the {adj} {thing} and {went} to the {place}",
    "the {thing} of {made} stood beside the {place}, {adj} and {adj}",
    "{who} {how} spoke of {idea}, and {how} of anything else",
    "nobody in the {place} knew why {who} had {did} the {thing}",
    "{who} {said} that {idea} was a kind of {idea}",
    "the {role} and the {role} {went} together through the {weather}",
    "{who} felt {felt}, though the {things} were still {adj}",
    "it took {few} {role}s to move the {adj} {thing} out of the {place}",
    "{who} wanted to {verb} the {things} that the {role} {did}",
    "the {adj} {place} smelled of {made} and {weather}",
    "{adj} {things} are easier to {verb} than {adj} ones",
    "{who} kept {few} {things} under the {thing}",
    "the {kin} of the {role} {did} the {things} in the {place}",
    "there was {idea} in the way {who} {did} the {thing}",
    "people who {verb} their {things} {how} learn about {idea}",
    "the {body} of the {role} were {adj} from the {weather}",
    "{who} had never seen so many {things} in one {place}",
    "what the {role} called {idea} looked to {who} like {idea}",
)
_TAILS = (
    "because the {thing} was {adj}",
    "although the {role} had asked for {idea}",
    "while the {weather} went on outside",
    "and that was the end of it",
    "which the {kin} of {who} found {adj}",
    "until the {things} were all gone",
    "as if {idea} could be kept in the {thing}",
    "so the {place} stayed {adj}",
    "but the {things} did not change",
    "long after the {role} had {went} home",
    "for reasons that {who} never gave",
    "and the {kin} {said} nothing",
)
_SPEECH = (
    "“{clause},” {said_by} {who}.",
    "“Is it true,” asked {who}, “that {clause}?”",
    "“We {verb} what we can,” {said_by} the {role}, “and {verb} the rest.”",
)

_SLOT = re.compile(r"\{(\w+)\}")
_VOCABULARY = {slot: tuple(words.split()) for slot, words in _WORDS.items()} | {
    "said_by": ("said", "whispered", "admitted", "explained")
}


def _parse(template: str) -> tuple[str, ...]:
    """Literals at even places, slot names at odd ones."""
    return tuple(_SLOT.split(template))


_PARSED = {
    kind: tuple(_parse(template) for template in templates)
    for kind, templates in (("opener", _OPENERS), ("clause", _CLAUSES), ("tail", _TAILS), ("speech", _SPEECH))
}


class _Writer:
    """Fills templates from one random stream. Only ``Random.random`` is used: its stream is kept by Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._people: tuple[str, ...] = ()

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self._random() * len(choices))]

    def _fill(self, kind: str) -> str:
        templates = _PARSED[kind]
        parts = list(templates[int(self._random() * len(templates))])
        for place in range(1, len(parts), 2):
            slot = parts[place]
            if slot == "who":
                parts[place] = self._pick(self._people)
            elif slot == "clause":
                parts[place] = self._fill("clause")
            else:
                parts[place] = self._pick(_VOCABULARY[slot])
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
            self._pick(_VOCABULARY["name"]) if self._random() < 0.7 else f"the {self._pick(_VOCABULARY['role'])}"
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
