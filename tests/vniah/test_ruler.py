"""V-RULER and V-NIAH-D: what is shown where, and that the tests measure what they say: seen, guessed, misled."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sign_reader import GREY, blind, reader

import vniah
from vniah.lmms_plugin import tasks_dir
from vniah.needles import open_needles
from vniah.ruler.kinds import KINDS
from vniah.ruler.pictures import DIRECTIONS, Salience, Sign, draw_sign, in_motion
from vniah.runs.grid import Cell, Grid, needle_index
from vniah.runs.open import _included, open_tasks, parse_task
from vniah.visual.scenes import LookAlikes

TASKS = tuple(KINDS)


@pytest.fixture
def grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film of one grey, 160x96, shown as images."""
    folder = tmp_path / "grey"
    folder.mkdir()
    Image.new("RGB", (160, 96), GREY).save(folder / "0.png")
    for name, value in {"HAYSTACK": f"{folder}?loop=70", "PRESENTATION": "images", "CACHE": tmp_path}.items():
        monkeypatch.setenv(f"VNIAH_{name}", str(value))
    return folder


def opened(task: str, frames: str = "16,64", depths: str = "0,50,100", **given: Any) -> Any:
    return open_tasks([task], {"frames": frames, "depths": depths, **given})[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "setting", [{}, {"CIRCULAR": "1"}, {"DISTRACTORS": "0"}, {"NUM_NEEDLES": "4", "LIKENESS": "1"}]
)
def test_who_sees_everything_is_always_right(
    task: str, setting: dict[str, str], grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SAMPLES": "1" if setting else "2", **setting}.items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    run = vniah.evaluate(reader, f"{task}_generate", frames="17", depths="0,40,100")
    wrong = run.placed[~run.placed["correct"]]
    assert not len(wrong), wrong.iloc[0].to_dict()


@pytest.mark.parametrize("task", TASKS)
def test_who_sees_nothing_is_right_by_chance(task: str, grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_SAMPLES", "100")
    rng = random.Random(0)
    asked = opened(task, "16", "0,50,100")
    chance = asked.describe()["chance"]
    guesser = blind(rng.choice)
    right = [asked.is_right(row, guesser(None, asked.question(row))) for row in asked.rows]
    # Four deviations of guesses that are independent.
    assert abs(np.mean(right) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(right))


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize("task", ["vruler_order", "vruler_keys", "vruler_when", "vruler_clip"])
def test_no_letter_is_right_more_often(task: str, letter: str, grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And under every rotation of the options a letter is right once in four, so never under all."""
    monkeypatch.setenv("VNIAH_SAMPLES", "20")
    monkeypatch.setenv("VNIAH_CIRCULAR", "1")
    asked = opened(task, "24", "0,50,100")
    right = [row["answer"] == letter for row in asked.rows]
    assert np.mean(right) == 1 / 4
    turns = np.array(right).reshape(-1, 4)
    assert (turns.sum(axis=1) == 1).all()
    said = [
        [row["num_frames"], row["depth_percent"], row["sample"] // 4, hit]
        for row, hit in zip(asked.rows, right, strict=True)
    ]
    assert asked.more_metrics["vniah_circular"][0](said) == 0.0


def test_who_takes_the_first_or_the_last_is_caught(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers by a single picture of several."""
    monkeypatch.setenv("VNIAH_SAMPLES", "6")

    def by_one(which: int) -> Any:
        def answer(frames: Any, question: str) -> str:
            signs = [frame for frame in frames if np.abs(np.asarray(frame).astype(int) - GREY).mean() > 3]
            return reader([signs[which]], question) if signs else "A"

        return answer

    for task in ("vruler_order_generate", "vruler_keys_generate"):
        for which in (0, -1):
            run = vniah.evaluate(by_one(which), task, frames="18", depths="0,50,100")
            assert run.placed["correct"].mean() <= 0.35, (task, which)


def test_depth_places_what_is_asked_for(grey: Path) -> None:
    for task in TASKS:
        asked = opened(task, "60", "0,50,100")
        places = {
            depth: [
                row["needle_indices"] for row in asked.rows if row["depth_percent"] == depth and row["needle_indices"]
            ]
            for depth in (0, 50, 100)
        }
        means = [np.mean([one[0] for one in places[depth]]) for depth in (0, 50, 100)]
        assert means[0] < 15 < means[1] < 45 < means[2] + 1, (task, means)
        assert all(not row["needle_indices"] for row in asked.rows if row["control"])


def test_pictures_stand_where_the_row_says(grey: Path) -> None:
    for task in (*TASKS, "vruler_when_generate"):
        asked = opened(task, "13", "0,30,100")
        for row in asked.rows:
            video = asked.video(row)
            frames_NHWC = video.frames(0, len(video)).astype(int)
            signs = [at for at, frame in enumerate(frames_NHWC) if np.abs(frame - GREY).mean() > 3]
            told = {*row["needle_indices"], *row["distractor_indices"]}
            assert told <= set(signs) and (len(told) == len(signs) or task == "vruler_chain")
            if "num_video_frames" in row:
                assert len(video) == row["num_video_frames"] and len(video) % 2 == 0


def test_blended_needles_take_frames_places(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_SALIENCE", "blend:0.6:0.5")
    for task in TASKS:
        asked = opened(task, "20", "0,50,100")
        for row in asked.rows[::3]:
            video = asked.video(row)
            assert len(video) == 20
            for index in row["needle_indices"]:
                changed = np.abs(video.frames(index, index + 1)[0].astype(int) - GREY).sum(axis=2) > 0
                assert 0.2 < changed.mean() <= 0.37


def test_motion_is_in_no_single_frame() -> None:
    """Over starts that are drawn evenly, a frame of one direction is a frame of every other."""
    sign = Sign(obj="star", colour="red")
    for frame in range(4):
        for way in DIRECTIONS:
            places = [in_motion(sign, way, (start / 50, 0.5), 5)[frame].at for start in range(50)]
            xs = np.array([x % 1 for x, _ in places])  # type: ignore[misc]
            assert np.allclose(np.diff(np.sort(xs)), 0.02)


def test_a_scene_is_its_cells_alone() -> None:
    one, other = opened("vruler_keys", "16,64"), opened("vruler_keys", "64", "50")
    rows = {(row["num_frames"], row["depth_percent"], row["sample"]): row for row in one.rows}
    for row in other.rows:
        assert rows[row["num_frames"], row["depth_percent"], row["sample"]] == row
    first, second = (
        draw_sign(3, Sign(obj="boat", colour="blue", digit="4", ground="sea"), (h, w))
        for h, w in ((90, 160), (180, 320))
    )
    near = np.asarray(Image.fromarray(second).resize((160, 90), Image.Resampling.BOX)).astype(int)
    assert np.abs(near - first).mean() < 12


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        (
            "vruler_distractor",
            {"DISTRACTORS": "16"},
            "shows 17 pictures and needs films of 17 frames at least, got num_frames 16; "
            "give more frames or a smaller VNIAH_DISTRACTORS",
        ),
        ("vruler_distractor", {"DISTRACTORS": "17"}, "VNIAH_DISTRACTORS must lie from 0 to 16, got 17"),
        ("vruler_distractor", {"LIKENESS": "3"}, "VNIAH_LIKENESS must lie from 0 to 2, got 3"),
        ("vruler_order", {"NUM_NEEDLES": "6"}, "VNIAH_NUM_NEEDLES of vruler_order lies from 2 to 5, got 6"),
        ("vruler_clip", {"CLIP_SECONDS": "4"}, "VNIAH_CLIP_SECONDS must lie from 5 to 10, got 4"),
        ("vruler_count", {"SALIENCE": "loud"}, "cannot read salience 'loud'"),
        ("vruler_count", {"SALIENCE": "blend:0.1"}, "covers 0.2 to 1 of the frame's sides, got 0.1"),
        ("vruler_count", {"SAMPLES": "0"}, "VNIAH_SAMPLES must lie from 1 to 1000, got 0"),
    ],
)
def test_what_cannot_be_is_refused(
    task: str, setting: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        opened(task)


def test_a_ruler_takes_no_needles() -> None:
    with pytest.raises(ValueError, match="vruler_count draws what it shows and takes no needles"):
        opened("vruler_count", needles="builtin")


def test_lookalikes_stand_as_released() -> None:
    needles = open_needles("icons:0:3")
    kind = LookAlikes(needles)
    sides = Counter()
    for cell in Grid.parse("100-2900:200", "0-100:20").cells(needles.ids):
        scene = kind.scene(cell, cell.length)
        if cell.depth_percent is None:
            assert not scene.inserted
            continue
        place, frames = needle_index(cell.length, cell.depth_percent), cell.length
        assert scene.inserted[scene.asked[0]].place == place
        others = [scene.inserted[number].place for number in scene.distractors]
        if place <= 200 and place + 200 >= frames:
            assert not others
        elif place < 200:
            assert others == [place + 200]
        elif place + 200 >= frames:
            assert others == [place - 200]
        else:
            sides[others[0] - place] += 1
    assert set(sides) == {-200, 200} and min(sides.values()) > 0.35 * sides.total()
    far = LookAlikes(needles, distance=50, count=3).scene(Cell(1000, 50, needles.ids[0]), 1000)
    steps = [far.inserted[number].place - 500 for number in far.distractors]
    assert sorted(map(abs, steps)) == [50, 100, 150] and len({step > 0 for step in steps}) == 1


def test_who_follows_lookalikes_is_never_right() -> None:
    """The question tells the needle from its look-alikes, whose answers are others."""
    for needle in open_needles("icons:1:40"):
        assert len(needle.distractors) == 16
        assert needle.answer not in {one.answer for one in needle.distractors}
        assert needle.among != needle.question
        assert len({one.picture.fingerprint for one in needle.distractors[:4]}) == 4


def test_needles_without_lookalikes_are_refused() -> None:
    with pytest.raises(ValueError, match="'builtin' has no look-alike and 1 are to be shown; name them in needles"):
        LookAlikes(open_needles("builtin"))


@pytest.mark.parametrize(("given", "name"), [({"distance": 0}, "DISTANCE"), ({"count": 0}, "DISTRACTORS")])
def test_lookalikes_are_somewhere(given: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"VNIAH_{name} of look-alikes must be at least 1, got 0"):
        LookAlikes(open_needles("icons:0:2"), **given)


def test_a_lookalike_of_the_needles_own_answer_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    needle = {"id": "cup", "file": "a.png", "question": "Which colour?", "answer": "Red"}
    for answer in ("red ", "blue"):
        lookalike = {"file": "b.png", "answer": answer}
        (tmp_path / "needles.json").write_text(json.dumps([{**needle, "distractors": [lookalike]}]))
        if answer == "blue":
            assert LookAlikes(open_needles(str(tmp_path))).count == 1
        else:
            with pytest.raises(ValueError, match=r"needle 'cup' of .* has a look-alike of its own answer 'red"):
                LookAlikes(open_needles(str(tmp_path)))


def test_salience() -> None:
    assert Salience.parse("full") == Salience() and Salience.parse("blend:0.3") == Salience(size=0.3, contrast=0.8)


@pytest.mark.parametrize("task", TASKS)
def test_lmms_eval_is_told_of_every_metric(task: str, grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a YAML does not list, lmms-eval leaves out without a word."""
    monkeypatch.setenv("VNIAH_CIRCULAR", "1")
    asked = opened(f"{task}_generate", "16", "50")
    folder = tasks_dir() / "vruler"
    config = _included(parse_task((folder / f"{task}_generate.yaml").read_text(), task), folder)
    listed = {one["metric"]: (one["aggregation"], one["higher_is_better"]) for one in config["metric_list"]}
    assert set(asked.metrics) <= set(listed)
    for name, (aggregation, higher) in asked.more_metrics.items():
        assert listed[name] == (f"{aggregation.__module__}.{aggregation.__name__}", higher)


def test_neither_the_first_nor_the_last_time_is_right_more_often(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends of the film too, where the truth would be the least or the greatest of times drawn over all of it."""
    monkeypatch.setenv("VNIAH_SAMPLES", "100")
    asked = opened("vruler_when", "16,64", "0,50,100")
    ranks: dict[int, Counter[int]] = {depth: Counter() for depth in (0, 50, 100)}
    for row in asked.rows:
        if not row["control"]:
            times = [int(line.split()[-1]) for line in row["question"].splitlines()[1:5]]
            truth = times["ABCD".index(row["answer"])]
            assert truth == row["needle_indices"][0]
            ranks[row["depth_percent"]][sorted(times).index(truth)] += 1
    for told in ranks.values():
        # Four deviations of 200 draws of one in four.
        assert all(abs(told[rank] - 50) < 4 * 6.2 for rank in range(4)), ranks


def test_a_film_that_repeats_is_told_of(grey: Path, tmp_path: Path) -> None:
    from vniah.haystack import open_haystack
    from vniah.notices import forget, recorded

    forget()
    assert (
        opened("vruler_clip", "64", "0", haystack="synthetic:0:70:64x48").describe().get("haystack_repeats_from")
        is None
    )
    assert not any("again" in one for one in recorded())
    assert opened("vruler_clip", "64", "0").describe()["haystack_repeats_from"] == 1
    assert any("shows its 1 frames again in columns of more than that" in one for one in recorded())
    assert open_haystack(f"{grey}+{grey}").repeats_from == 1 and open_haystack(str(grey)).repeats_from is None
    assert open_haystack(f"{grey}?loop=1").repeats_from is None


def test_results_say_what_a_test_goes_by(grey: Path) -> None:
    """Not a number of look-alikes where none is shown."""
    axes = {"distractors", "likeness", "num_needles", "clip_seconds"}
    told = {task: axes & set(opened(task).describe()) for task in TASKS}
    assert told["vruler_order"] == {"num_needles"} and told["vruler_distractor"] == {"distractors", "likeness"}
    assert told["vruler_when"] == set() and told["vruler_clip"] == {"clip_seconds"}


def test_how_many_draws_and_which_may_be_given() -> None:
    one, other = (opened("vruler_order", "16", samples=2, seed=seed, haystack="synthetic") for seed in (1, 2))
    assert one.per_place == 2 and [row["question"] for row in one.rows] != [row["question"] for row in other.rows]
    with pytest.raises(ValueError, match="vniah_d: no samples is taken"):
        opened("vniah_d", "16", samples=2)


def test_lookalikes_that_have_no_room_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.notices import forget, recorded

    needles = {"needles": "icons:0:2", "haystack": "synthetic"}
    with pytest.raises(ValueError, match="no cell of 150 frames or fewer has room for a look-alike 200 frames"):
        opened("vniah_d", "100,150", **needles)
    forget()
    opened("vniah_d", "100,300", **needles)
    [told] = [one for one in recorded() if "have no room for 1 look-alike 200 frames apart" in one]
    assert "places (100 frames at 0 %" in told and "300 frames at 50 %" in told and "300 frames at 0 %" not in told
    monkeypatch.setenv("VNIAH_DISTRACTORS", "17")
    with pytest.raises(ValueError, match="has 16 look-alikes and 17 are to be shown"):
        opened("vniah_d", "300", **needles)
