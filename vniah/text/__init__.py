"""Text NIAH: a 7-digit number hidden in a long text, with distractors (paper section 9, reference section 4).

Haystacks, puzzles, placement and scores. Knows nothing about models; a model's tokenizer is handed in.
"""

from vniah.text.book import TextBook, TextPrompt, TextSource
from vniah.text.compose import ComposedText, Placed, compose
from vniah.text.haystack import ESSAYS, TextHaystack, from_texts, open_text_haystack
from vniah.text.measure import Encode, Measure, MeasuredHaystack
from vniah.text.puzzles import PREFIX, Insert, Puzzle, TextCell, make_puzzle, needle_text, parse_lengths, question_text
from vniah.text.settings import TextSettings

__all__ = [
    "ESSAYS",
    "PREFIX",
    "ComposedText",
    "Encode",
    "Insert",
    "Measure",
    "MeasuredHaystack",
    "Placed",
    "Puzzle",
    "TextBook",
    "TextCell",
    "TextHaystack",
    "TextPrompt",
    "TextSettings",
    "TextSource",
    "compose",
    "from_texts",
    "make_puzzle",
    "needle_text",
    "open_text_haystack",
    "parse_lengths",
    "question_text",
]
