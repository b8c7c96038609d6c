"""The nano model's tokenizer: a word list with single characters to fall back on, built by code and not learnt.

A word of the list is one token, digits are tokens of their own, and any other ASCII word falls apart
into characters (``##`` marks a continuation), so ordinary English never becomes ``<unk>``. Lower case only.
"""

from __future__ import annotations

import functools
import string
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<unk>", "<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

WORDS = Path(__file__).with_name("words.txt")
PUNCTUATION = tuple(string.punctuation)

SPLIT = r"\n|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"


@functools.cache
def word_list(kind: str) -> tuple[str, ...]:
    """The words of one kind in words.txt: cities, animals, filler or questions."""
    rows = [line.split() for line in WORDS.read_text(encoding="utf-8").splitlines()]
    return tuple(word for row in rows if row[0] == kind for word in row[1:])


def needle_words() -> list[str]:
    """Every word of the ``icons`` needles: objects, colours, and the wording of their questions."""
    import re

    from vniah.needles.icons import COLOURS, OBJECTS, icon_questions

    names = [*OBJECTS, *COLOURS]
    for name in OBJECTS:
        names += [question for question, _ in icon_questions(name, "", "")]
    return [word for name in names for word in re.findall(r"[a-z]+", name.lower())]


def words() -> tuple[str, ...]:
    """The whole vocabulary in id order: special tokens, newline, digits, words, punctuation, characters."""
    ordered = [*SPECIAL_TOKENS, "\n", *string.digits]
    ordered += [
        *needle_words(),
        *(word for kind in ("questions", "cities", "animals", "filler") for word in word_list(kind)),
    ]
    ordered += [*PUNCTUATION, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    return tuple(dict.fromkeys(ordered))


def build_tokenizer() -> Any:
    """Build the tokenizer (a ``PreTrainedTokenizerFast``); ``save_pretrained`` writes tokenizer.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: index for index, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def save_tokenizer(folder: Path) -> Any:
    """Build the tokenizer, write it to ``folder`` and return it."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer
