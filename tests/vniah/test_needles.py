"""Needle sets: folders, the built-in scenes, and the specs that name them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vniah.needles import Needle, NeedleSet, open_needles
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
