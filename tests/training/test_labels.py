"""Conversations as ids and labels, and the samples that are refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from vniah.training.data.llava import IMAGE, check_conversation, encode, expand_images, pieces
from vniah.training.processes import BadSampleError
from vniah.training.stages import IGNORE, VisionData

Style = functools.partial(VisionData, json=("data.json",))


def turn(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


@pytest.mark.parametrize(
    ("conversations", "images", "reason"),
    [
        (None, 0, "no conversation"),
        ([], 0, "no conversation"),
        ("hello", 0, "no conversation"),
        ([turn("human", "a")], 0, "without an answer"),
        ([turn("gpt", "a")], 0, "without an answer"),
        ([turn("human", "a"), turn("gpt", "b"), turn("human", "c")], 0, "without an answer"),
        ([turn("human", "a"), turn("gpt", " ")], 0, "empty answer"),
        ([turn("human", "a"), turn("human", "b"), turn("gpt", "c")], 0, "alternate"),
        ([turn("robot", "a"), turn("gpt", "c")], 0, "'robot'"),
        ([turn("human", 3), turn("gpt", "c")], 0, "text value"),
        ([turn("human", "<image>\n<image>\na"), turn("gpt", "b")], 1, "2 <image> placeholders for 1 images"),
        ([turn("human", "a"), turn("gpt", "b")], 1, "0 <image> placeholders for 1 images"),
    ],
)
def test_bad_samples(conversations: Any, images: int, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        check_conversation(conversations, images)


def ordinals(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_plain_learns_the_caption_alone() -> None:
    turns = check_conversation([turn("human", "Describe.\n<image>"), turn("gpt", "a cat")], 1)
    ids, labels = encode(pieces(turns, Style(template="plain")), ordinals)
    assert ids == [IMAGE, *ordinals("a cat\n")]
    assert labels == [IGNORE, *ordinals("a cat\n")]


def test_several_images_and_text_before_them() -> None:
    turns = check_conversation([turn("human", "Left <image>\nright <image>\nWhich?"), turn("gpt", "left")], 2)
    ids, labels = encode(pieces(turns, Style()), ordinals)
    text = "".join(chr(i) if i != IMAGE else "@" for i in ids)
    assert "user\nLeft @\nright @\nWhich?<|im_end|>\n" in text
    assert len(ids) == len(labels) and all(label == IGNORE for i, label in zip(ids, labels, strict=True) if i == IMAGE)


@pytest.mark.parametrize("value", ["<image>\nWhat?", "What?\n<image>", "What? <image>"])
def test_the_one_image_of_a_turn_comes_first(value: str) -> None:
    """As in the original's training and at inference, wherever the data has it."""
    turns = check_conversation([turn("human", value), turn("gpt", "b")], 1)
    ids, _ = encode(pieces(turns, Style()), ordinals)
    assert "user\n@\nWhat?<|im_end|>" in "".join(chr(i) if i != IMAGE else "@" for i in ids)


def test_the_one_image_of_a_turn_may_stay_where_it_is() -> None:
    turns = check_conversation([turn("human", "Left <image> of"), turn("gpt", "b")], 1)
    ids, _ = encode(pieces(turns, Style(single_image_first=False)), ordinals)
    assert "user\nLeft @\n of<|im_end|>" in "".join(chr(i) if i != IMAGE else "@" for i in ids)


def test_text_only() -> None:
    turns = check_conversation([turn("human", "Hi"), turn("gpt", "Hello")], 0)
    ids, _ = encode(pieces(turns, Style()), ordinals)
    assert IMAGE not in ids


def test_images_are_expanded_in_order() -> None:
    ids, labels = expand_images([1, IMAGE, 2, IMAGE, 3], [1, IGNORE, 2, IGNORE, 3], [2, 3], 99)
    assert ids == [1, 99, 99, 2, 99, 99, 99, 3]
    assert labels == [1, IGNORE, IGNORE, 2, IGNORE, IGNORE, IGNORE, 3]


def test_an_unknown_template() -> None:
    with pytest.raises(ValueError, match="cannot train with the template 'alpaca'"):
        pieces([("user", "a"), ("assistant", "b")], Style(template="alpaca"))
