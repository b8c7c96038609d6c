"""The icon family: combinations, the held-out share, and pictures that carry what they should."""

from __future__ import annotations

from collections import Counter
from itertools import combinations as pairs

import numpy as np
import pytest
from PIL import Image

from vniah.needles import open_needles
from vniah.needles.icons import (
    COLOURS,
    DIGITS,
    OBJECTS,
    SHADES,
    combinations,
    digit_mask,
    draw_icon,
    icon_questions,
    is_heldout,
    object_mask,
)


def test_held_out_share() -> None:
    heldout, train = combinations("heldout"), combinations("train")
    assert (len(OBJECTS), len(COLOURS), len(DIGITS)) == (16, 8, 10)
    assert len(heldout) == 1280 // 8 and len(train) == 1280 - 160
    assert not set(heldout) & set(train)
    assert all(is_heldout(*c) for c in heldout) and not any(is_heldout(*c) for c in train)
    # Only the triple is new: every pair of attributes is seen in training.
    for first, second in pairs(range(3), 2):
        assert {(c[first], c[second]) for c in heldout} <= {(c[first], c[second]) for c in train}
    # No attribute value is over-represented by more than the rounding of 16 and 10 to 8.
    for part in range(3):
        counts = Counter(c[part] for c in heldout).values()
        assert max(counts) - min(counts) <= 4, "the held-out share is spread over all values"


def test_questions_ask_what_the_picture_shows() -> None:
    (colour_question, colour), (digit_question, digit) = icon_questions("star", "red", "7")
    assert (colour, digit) == ("red", "7")
    for question in (colour_question, digit_question):
        assert question.startswith("Find the frame of a star. ")
        assert "red" not in question and "7" not in question
    assert not any(o[0] in "aeiou" for o in OBJECTS), "every object takes the article 'a'"


@pytest.mark.parametrize("size", [32, 96])
def test_picture_holds_the_colour_and_the_digit(size: int) -> None:
    """The object's shade covers about as many pixels as its outline, and light pixels are there for the digit."""
    rng = np.random.default_rng(0)
    for number, (obj, colour) in enumerate((o, c) for o in OBJECTS for c in COLOURS):
        digit = DIGITS[number % 10]
        pixels = np.asarray(draw_icon(rng, obj, colour, digit, size)).astype(int)
        assert pixels.shape == (size, size, 3)
        light = (np.abs(pixels - 235).sum(-1) < 40).sum()
        inside = (np.asarray(digit_mask(digit)) > 0).mean() * 0.6 * 0.33**2 * size**2
        assert light > 0.4 * inside, (obj, colour, digit)
        shade = np.abs(pixels - np.array(SHADES[colour]) * 0.96).sum(-1) < 45
        outline = (np.asarray(object_mask(obj)) > 127).mean() * 0.49**2 * size**2
        assert shade.sum() > 0.35 * outline, (obj, colour, digit)


def test_outlines_differ_at_fifteen_pixels() -> None:
    """The smallest size at which an object is drawn in a frame of 32 pixels."""
    small = {o: np.asarray(object_mask(o).resize((14, 14), Image.Resampling.BOX), float) / 255 for o in OBJECTS}
    closest = min((np.abs(small[a] - small[b]).mean(), a, b) for a, b in pairs(OBJECTS, 2))
    assert closest[0] > 0.12, closest
    digits = {d: np.asarray(digit_mask(d).resize((6, 10), Image.Resampling.BOX), float) / 255 for d in DIGITS}
    assert min(np.abs(digits[a] - digits[b]).mean() for a, b in pairs(DIGITS, 2)) > 0.06


def test_ground_is_dim() -> None:
    """What is neither object nor digit stays darker than both."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        pixels = np.asarray(draw_icon(rng, "key", "white", "1", 32))
        assert np.median(pixels) < 90


def test_one_random_state_gives_one_scene_at_any_size() -> None:
    """So that a model trained on small frames meets the same pictures when large ones are shrunk to its size."""
    for seed in range(20):
        obj, colour, digit = OBJECTS[seed % 16], COLOURS[seed % 8], DIGITS[seed % 10]
        small = draw_icon(np.random.default_rng(seed), obj, colour, digit, 32)
        large = draw_icon(np.random.default_rng(seed), obj, colour, digit, 320)
        shrunk = large.resize((32, 32), Image.Resampling.BOX)
        off = np.abs(np.asarray(small, float) - np.asarray(shrunk, float)).mean()
        assert off < 12, f"seed {seed}: mean difference {off:.1f} of 255"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no object 'cat'"):
        draw_icon(np.random.default_rng(0), "cat", "red", "1")
    with pytest.raises(ValueError, match="no digit '12'"):
        draw_icon(np.random.default_rng(0), "star", "red", "12")


def test_sets_are_repeatable_and_seeds_differ() -> None:
    first, again, other = open_needles("icons:1:6"), open_needles("icons:1:6"), open_needles("icons:2:6")
    assert first.ids == again.ids and first.fingerprint == again.fingerprint
    assert [n.fingerprint for n in first] == [n.fingerprint for n in again]
    assert first.fingerprint != other.fingerprint and first.ids != other.ids
    assert first.name == "icons:1:6:heldout"
    # A longer set begins with the shorter one.
    assert open_needles("icons:1:9").ids[:6] == first.ids
    assert open_needles("icons").name == "icons:0:10:heldout"


def test_sets_keep_to_their_split_and_spread_their_answers() -> None:
    for split in ("heldout", "train"):
        needles = open_needles(f"icons:0:80:{split}")
        answers = Counter(n.answer for n in needles)
        assert set(answers) == {*COLOURS, *DIGITS}
        assert {answers[c] for c in COLOURS} == {5} and {answers[d] for d in DIGITS} == {4}
        drawn = [n.picture.source.args[2] for n in needles]  # type: ignore[union-attr]
        assert all(is_heldout(*c) == (split == "heldout") for c in drawn)
        assert len(set(drawn)) == 80, "combinations repeat only when all have been used"


def test_more_needles_than_combinations() -> None:
    needles = open_needles("icons:0:200")
    assert len(needles) == 200 and len(set(needles.ids)) == 200
    one, two = (n for n in needles if n.id in (needles.ids[0], needles.ids[160]))
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    "spec",
    ["icons:x", "icons:0:1000000000", "icons:0:0", "icons:-1", "icons:0:5:all", "icons:0:5:train:9", "icons:0:x"],
)
def test_unreadable_options(spec: str) -> None:
    with pytest.raises(ValueError, match="expected icons"):
        open_needles(spec)
