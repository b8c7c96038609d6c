"""Needle sets: folders, the built-in scenes, the icon family, and the specs that name them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter
from itertools import combinations as pairs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vniah.needles import Needle, NeedleSet, open_needles
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
from vniah.needles.needle import Picture
from vniah.prompts import question_text


def write_folder(folder: Path, rows: Any, *, images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(images):
        Image.new("RGB", (12, 8), (shade * 40, 10, 200)).save(folder / name)
    (folder / "needles.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return folder


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "one", "file": "a.png", "question": "\nWhat?\nA. x\nB. y\nLetter. ", "answer": "B", **changes}


def test_folder(tmp_path: Path) -> None:
    needles = open_needles(str(write_folder(tmp_path / "n", [row(), row(id=7, file="b.png", answer=";nt")])))
    assert needles.ids == ("one", "7") and len(needles) == 2
    assert [needle.id for needle in needles] == ["one", "7"]
    one, other = needles
    assert one.question == "\nWhat?\nA. x\nB. y\nLetter."
    assert question_text(one.question) == one.question
    assert (one.answer, one.kind) == ("B", "choice")
    assert (other.answer, other.kind) == (";nt", "word")
    assert one.image.mode == "RGB" and one.image.size == (12, 8)
    assert one.fingerprint != other.fingerprint and len(one.fingerprint) == 64
    with pytest.raises(ValueError, match=r"no needle 'two'.*one, 7"):
        needles.get("two")
    assert needles.get("7") is other


def test_parity_folder_is_taken_as_it_is(shared: Path) -> None:
    needles = open_needles(str(shared / "parity" / "niah" / "needles"))
    assert needles.ids == ("needle_0", "needle_1")
    assert [needle.answer for needle in needles] == ["nt", ";nt"]
    assert needles.get("needle_0").question.startswith("\nFind the frame of a teddy bear.")


def test_image_is_a_copy_and_upright(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [row()])
    needle = open_needles(str(folder)).get("one")
    needle.image.putpixel((0, 0), (1, 2, 3))
    assert needle.image.getpixel((0, 0)) == (0, 10, 200)

    turned = Image.new("RGB", (12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(folder / "a.png", exif=exif)
    assert open_needles(str(folder)).get("one").image.size == (8, 12)


def test_fingerprint_follows_texts_and_images(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_needles(str(tmp_path)).fingerprint

    write_folder(tmp_path, [row()])
    first = fingerprint()
    assert first == fingerprint()
    write_folder(tmp_path, [row(answer="A")])
    assert fingerprint() != first
    write_folder(tmp_path, [row()])
    Image.new("RGB", (12, 8), (9, 9, 9)).save(tmp_path / "a.png")
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "must be a list"),
        ("[1]", "must be a list"),
        ([], "is empty"),
        ([{"id": "x"}], "entry 0 lacks file, question, answer; it has id"),
        ([row(id="")], "the id of entry 0"),
        ([row(id=True)], "the id of entry 0"),
        ([row(question=" \n")], "the question of needle 'one'"),
        ([row(answer="")], "the answer of needle 'one'"),
        ([row(answer=200)], "the answer of needle 'one' must be a text"),
        ([row(), row(file="b.png")], "more than once: one"),
        ([row(file="../a.png")], "leaves its folder"),
        ([row(file="/etc/a.png")], "leaves its folder"),
        ([row(file=3)], "no text"),
    ],
)
def test_faulty_folder(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_needles(str(write_folder(tmp_path / "n", rows)))


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no needles\.json"):
        open_needles(str(tmp_path))
    folder = write_folder(tmp_path / "n", [row(file="none.png")])
    with pytest.raises(FileNotFoundError, match=r"needle 'one'.*is missing"):
        open_needles(str(folder))
    write_folder(folder, [row()])
    whole = (folder / "a.png").read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2]):
        (folder / "a.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"needle 'one'.*cannot be read"):
            open_needles(str(folder))
    (folder / "a.png").unlink()
    os.symlink(tmp_path.parent / "elsewhere.png", folder / "a.png")
    with pytest.raises(ValueError, match="link that leads out"):
        open_needles(str(folder))


def test_a_folders_needles_json_stands_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "nd"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    rows = [{"id": "1", "file": "a.png", "question": "q?", "answer": "a"}]
    (folder / "needles.json").write_text(json.dumps(rows))
    assert open_needles("nd/needles.json").fingerprint == open_needles("nd").fingerprint
    assert open_needles("nd/needles.json").name == "nd"
    with pytest.raises(ValueError, match=r"'nd/a\.png' are a file; give a folder that holds a needles\.json"):
        open_needles("nd/a.png")
    rows[0]["question"] = "q \ud800?"
    (folder / "needles.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"nd/needles\.json is not JSON that can be used: half a character"):
        open_needles("nd")


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no needle set 'nonsense'; expected 'builtin'"):
        open_needles("nonsense")
    with pytest.raises(ValueError, match="no needle set ''"):
        open_needles("")
    with pytest.raises(FileNotFoundError, match="no folder of needles"):
        open_needles(str(tmp_path / "none"))


def test_kind_needs_listed_options() -> None:
    picture = Picture(lambda: Image.new("RGB", (2, 2)), name="x")

    def kind(question: str, answer: str) -> str:
        return Needle(id="x", question=question, answer=answer, picture=picture).kind

    assert kind("Which?\nA. one\nB. two", "A") == "choice"
    assert kind("Which?\n(A) one\n(B) two", "B") == "choice"
    assert kind("Which?\nA. one\nB. two", "C") == "word"
    assert kind("Which?\nA. one\nB. two", "one") == "word"
    assert kind("Which letter is on the wall?", "A") == "word"


def test_builtin_scenes() -> None:
    needles = open_needles("builtin")
    assert needles.name == "builtin" and len(needles) >= 10
    assert needles.fingerprint == open_needles("builtin").fingerprint
    for needle in needles:
        assert needle.question.startswith("Find the frame of a")
        assert needle.image.size == (672, 672) and needle.image.mode == "RGB"
    assert len({needle.fingerprint for needle in needles}) == len(needles)
    # Results and caches know the set and each picture's pixels by these.
    assert needles.fingerprint == "a5b32ef823abbe6a5e82daeaa21b3b8b732fe29425bfc2ad248b21898459da7f"
    pixels = hashlib.sha256("".join(needle.fingerprint for needle in needles).encode()).hexdigest()
    assert pixels == "60f6e81b13f10d0d7715517581418d056b537952943a7f253e32b2922a6e91fa"
    needle = needles.get("clock")
    assert needle.picture.load().tobytes() == needle.picture.load().tobytes(), "a picture is the same each time"


def test_builtin_answers_are_balanced_and_not_told_by_the_question() -> None:
    letters: Counter[str] = Counter()
    for needle in open_needles("builtin"):
        if needle.kind == "choice":
            letters[needle.answer] += 1
            options = dict(line.split(". ", 1) for line in needle.question.splitlines()[1:-1])
            assert list(options) == list("ABCD") and len(set(options.values())) == 4
        else:
            assert needle.answer.casefold() not in needle.question.casefold()
    assert set(letters) == set("ABCD") and len(set(letters.values())) == 1


def test_needles_survive_pickling(tmp_path: Path) -> None:
    """Evaluation harnesses copy and pickle what they hold."""
    for spec in ("builtin", "icons:0:3", str(write_folder(tmp_path, [row()]))):
        needles = open_needles(spec)
        copy: NeedleSet = pickle.loads(pickle.dumps(needles))
        assert copy.fingerprint == needles.fingerprint
        first, second = next(iter(needles)), next(iter(copy))
        assert first.question == second.question
        assert np.array_equal(np.asarray(first.image), np.asarray(second.image))


# The icon family: combinations, the held-out share, and pictures that carry what they should.


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
        drawn = [n.picture.source.args[1] for n in needles]  # type: ignore[union-attr]
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
