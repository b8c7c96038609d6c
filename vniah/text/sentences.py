"""Cuts plain text into sentences, by the text alone and losing nothing: the pieces joined are the text.

A border stands where a needle may go. White space behind a sentence stays with it up to its last line
break, and a space before the next word goes with that word, which is where byte-level BPE tokenizers
cut by themselves: for them, tokenising sentence by sentence gives the tokens of the whole.
"""

from __future__ import annotations

import re

# What runs longer without a sentence end (code, tables, verse) is no sentence and is cut at white space into pieces
# of at most PIECE_CHARS, so that short lengths hold some and a depth is not missed by much.
MAX_CHARS = 1000
PIECE_CHARS = 250

_ABBREVIATIONS = (  # noqa: SIM905
    "mr mrs ms dr prof st sr jr vs etc cf eg ie e.g i.e al approx inc ltd co corp dept est fig no vol ed p pp"
).split()
_CLOSERS = "\"'”’)\\]"
_END = re.compile(
    rf"(?P<stop>[.!?…]+[{_CLOSERS}]*)(?=\s|\Z)"  # a stop before white space
    r"|[。！？]+[”’」』）]*"  # a full-width stop needs none
    rf"|(?<=[a-z]{{3}})[.!?][{_CLOSERS}]*(?=[A-Z])"  # paragraphs glued together, as in some text dumps
    r"|\n[^\S\n]*\n"  # a blank line
)
_SPACE = re.compile(r"\s*")
_LAST_WORD = re.compile(r"[\w.]*\Z")


def split_sentences(text: str) -> list[str]:
    """Cut ``text`` into sentences; ``"".join(split_sentences(text)) == text``.

    A sentence ends at ``.``, ``!``, ``?`` or an ellipsis, closing quotes and brackets included, before
    white space and not before a lower-case letter; at a full-width stop; and at a blank line. Common
    abbreviations and initials do not end one.
    """
    sentences: list[str] = []
    start = 0
    for found in _END.finditer(text):
        if found.start() < start or (found["stop"] is not None and not _ends_sentence(text, found)):
            continue
        border = found.start() if found[0].isspace() else found.end()
        # Behind the last line break of the white space there.
        border += _space(text, border).rfind("\n") + 1
        sentences.extend(_limit(text[start:border]))
        start = border
    if start < len(text):
        sentences.extend(_limit(text[start:]))
    return sentences


def _ends_sentence(text: str, found: re.Match[str]) -> bool:
    """Whether a stop before white space ends a sentence: not in an abbreviation, not before a lower-case letter."""
    space = _space(text, found.end())
    following = text[found.end() + len(space) : found.end() + len(space) + 1]
    if following.isalpha() and following.islower():
        return False
    if found[0] != "." or "\n\n" in space:
        return True
    word = _LAST_WORD.findall(text[max(0, found.start() - 20) : found.start()])[0]
    initial = len(word) == 1 and word.isupper() and word != "I"
    return not initial and word.lower() not in _ABBREVIATIONS


def _space(text: str, start: int) -> str:
    found = _SPACE.match(text, start)
    return found[0] if found else ""


def _limit(piece: str) -> list[str]:
    """A piece no longer than ``MAX_CHARS`` as it is; a longer one cut at white space (anywhere, if it has none)."""
    if len(piece) <= MAX_CHARS:
        return [piece] if piece else []
    pieces = []
    while len(piece) > PIECE_CHARS:
        # A line break stays with what is before it, a space goes with what is behind it, as at sentence ends.
        cut = piece.rfind("\n", 0, PIECE_CHARS) + 1 or max(0, piece.rfind(" ", 0, PIECE_CHARS)) or PIECE_CHARS
        pieces.append(piece[:cut])
        piece = piece[cut:]
    return [*pieces, piece] if piece else pieces
