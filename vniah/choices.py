"""Multiple choice: options with their letters, and the letter that a model's answer chose."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vniah.scoring import extract_letter

# A capital by itself anywhere in the answer. "A" before a small word is the article and not an option.
_LONE = re.compile(r"(?<![A-Za-z'])(?:(A)(?!\s+[a-z])|([B-Z]))(?![A-Za-z'])")


def letter_of(index: int) -> str:
    """0 -> "A"."""
    return chr(ord("A") + index)


def chosen_letter(text: str, num_options: int) -> str:
    """The letter of one of ``num_options`` options that an answer names; "" when it names none.

    The clear forms first ("B", "(B)", "B. Black.", "The answer is B"), then the first capital that stands
    alone ("**B**", "B, because ..."). A letter beyond the options is no answer.
    """
    allowed = {letter_of(index) for index in range(num_options)}
    clear = extract_letter(text)
    if clear in allowed:
        return str(clear)
    for found in _LONE.finditer(text):
        letter = found.group(1) or found.group(2)
        if letter in allowed:
            return letter
    return ""


def answer_letter(answer: str, options: Sequence[str]) -> str:
    """The letter of the right option, annotated as its text or as the letter itself; "" when it is neither."""
    plain = answer.strip()
    if plain in [option.strip() for option in options]:
        return letter_of([option.strip() for option in options].index(plain))
    bare = plain.strip("().").upper()
    return bare if bare in {letter_of(index) for index in range(len(options))} else ""
