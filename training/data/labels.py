"""A conversation as token ids with labels: where the images go, and what is learnt.

The ``qwen_1_5`` form repeats the reference's supervised fine-tuning to the token (reference section 5): answers
are learnt, and so are the role markers and line ends of every turn. Each piece is tokenised alone. Knows
nothing about pixels: an image is one ``IMAGE`` here and is expanded later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vniah.prompts import DEFAULT_SYSTEM
from vniah.training.stages import IGNORE, VisionData

IMAGE = -200
PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised alone, or an image (``None``); learnt or not."""

    text: str | None
    learn: bool = False


class BadSampleError(ValueError):
    """A sample that cannot be learnt from, for a reason to report."""


def check_conversation(conversations: Any, num_images: int) -> list[tuple[str, str]]:
    """The (role, text) turns of a sample in LLaVA's format, if they can be learnt from (BadSampleError)."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str) or not conversations:
        raise BadSampleError("no conversation")
    turns: list[tuple[str, str]] = []
    for turn in conversations:
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(text, str):
            raise BadSampleError(f"a turn from {role!r}; expected human and gpt with a text value")
        turns.append((ROLES[role], text))
    if turns[0][0] == "assistant":
        # As the reference does: a conversation that opens with an answer loses it.
        turns = turns[1:]
    for index, (role, text) in enumerate(turns):
        if role != ("user", "assistant")[index % 2]:
            raise BadSampleError(f"turn {index + 1} is the {role}'s; turns must alternate")
        if role == "assistant" and not text.strip():
            raise BadSampleError("an empty answer")
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise BadSampleError("a conversation without an answer at its end")
    asked = sum(text.count(PLACEHOLDER) for _, text in turns)
    if asked != num_images:
        raise BadSampleError(f"{asked} {PLACEHOLDER} placeholders for {num_images} images")
    return turns


def pieces(turns: Sequence[tuple[str, str]], style: VisionData) -> list[Piece]:
    """The pieces of a conversation in the given style."""
    if style.template == "plain":
        return _plain(turns)
    if style.template != "qwen_1_5":
        raise ValueError(f"cannot train with the template {style.template!r}; expected qwen_1_5 or plain")
    marks = style.reference_labels
    out = [
        Piece("<|im_start|>", marks),
        *(Piece("system"), Piece("\n"), Piece(DEFAULT_SYSTEM)),
        *(Piece("<|im_end|>", marks), Piece("\n", marks)),
    ]
    for role, text in turns:
        answer = role == "assistant"
        out += [Piece("<|im_start|>", marks), Piece(role), Piece("\n")]
        out += [Piece(text, True)] if answer else _with_images(text, style)
        out += [Piece("<|im_end|>", answer or marks), Piece("\n", answer or marks)]
    return out


def _with_images(text: str, style: VisionData) -> list[Piece]:
    """A user's turn: a line end after each image, and one more where the text brings its own (reference)."""
    if style.single_image_first and text.count(PLACEHOLDER) == 1 and not text.startswith(PLACEHOLDER):
        # As the original trains, and as everybody asks.
        text = f"{PLACEHOLDER}\n{text.replace(PLACEHOLDER, '').strip()}"
    first, *rest = text.split(PLACEHOLDER)
    out = [Piece(first)] if first else []
    for part in rest:
        if style.newline_after_image == "once":
            part = part.removeprefix("\n")
        out += [Piece(None), Piece("\n"), *([Piece(part)] if part else [])]
    return out


def _plain(turns: Sequence[tuple[str, str]]) -> list[Piece]:
    """Images, then captions, each with a line end: what stage 1 learns from."""
    images = sum(text.count(PLACEHOLDER) for _, text in turns)
    captions = [Piece(text.rstrip("\n") + "\n", True) for role, text in turns if role == "assistant"]
    return [Piece(None)] * images + captions


def encode(parts: Sequence[Piece], tokenise: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """Ids and labels; an image is one ``IMAGE`` with no label."""
    ids: list[int] = []
    labels: list[int] = []
    for piece in parts:
        new = [IMAGE] if piece.text is None else tokenise(piece.text)
        ids += new
        labels += new if piece.learn else [IGNORE] * len(new)
    return ids, labels


def expand_images(
    ids: Sequence[int], labels: Sequence[int], tokens_per_image: Sequence[int], placeholder: int
) -> tuple[list[int], list[int]]:
    """Put ``tokens_per_image[i]`` placeholder ids in the place of the i-th image."""
    counts = iter(tokens_per_image)
    repeats = [next(counts) if token == IMAGE else 1 for token in ids]
    assert next(counts, None) is None, "an image without a place"
    out_ids = [
        placeholder if token == IMAGE else token for token, n in zip(ids, repeats, strict=True) for _ in range(n)
    ]
    return out_ids, [label for label, n in zip(labels, repeats, strict=True) for _ in range(n)]


def sample_id(sample: Any, number: int) -> str:
    """What to call a sample in reports: its id where it has one, else its number."""
    given = sample.get("id") if isinstance(sample, dict) else None
    return f"#{number}" if given is None else re.sub(r"\s+", " ", str(given))
