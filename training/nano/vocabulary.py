"""The nano model's tokenizer: a word list with single characters to fall back on, built by code and not learnt.

A word of the list is one token, digits are tokens of their own, and any other ASCII word falls apart
into characters (``##`` marks a continuation), so ordinary English never becomes ``<unk>``. Lower case only.
"""

from __future__ import annotations

import functools
import re
import string
from pathlib import Path
from typing import Any

from vniah.needles.icons import COLOURS, OBJECTS, icon_questions

SPECIAL_TOKENS = ("<unk>", "<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

WORDS = Path(__file__).with_name("words.txt")
# One question after its frames, as ``vniah.prompts.NANO`` has it.
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for item in message.content %}{% if item.type == 'text' %}{{ '\n' + item.text.lstrip('\n') }}"
    "{% else %}<{{ item.type }}>{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)
SPLIT = r"\n|[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]"


@functools.cache
def word_list(kind: str) -> tuple[str, ...]:
    """The words of one kind in words.txt: cities, animals, filler or questions."""
    rows = [line.split() for line in WORDS.read_text(encoding="utf-8").splitlines()]
    return tuple(word for row in rows if row[0] == kind for word in row[1:])


def words() -> tuple[str, ...]:
    """The whole vocabulary in id order: special tokens, newline, digits, words, punctuation, characters."""
    names = [*OBJECTS, *COLOURS]
    asked = [question for name in OBJECTS for question, _ in icon_questions(name, "", "")]
    needle_words = re.findall(r"[a-z]+", " ".join([*names, *asked]).lower())
    lists = (word for kind in ("questions", "cities", "animals", "filler") for word in word_list(kind))
    characters = (*string.punctuation, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase))
    return tuple(dict.fromkeys([*SPECIAL_TOKENS, "\n", *string.digits, *needle_words, *lists, *characters]))


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
