"""What is said of a run beside its figures: what it was measured on, where runs differ in it, and what is unknown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from run_files import DEPTHS, FRAMES, small_run, without

from vniah.plots.compare import compare
from vniah.plots.grid_data import GridData, to_text
from vniah.plots.heatmap import heatmap_figure, panel_notes, panels_figure
from vniah.plots.published import read_published
from vniah.plots.report import build_page
from vniah.plots.run_notes import differences, distinct_names, measured_line, short, shown_line, spans, warned
from vniah.plots.style import _inches, wrapped
from vniah.runs.run import IntendedGrid, Run

FILM, OTHER_FILM = "video-pyav-" + "1a2b3c4d" * 4, "video-pyav-" + "99887766" * 4
SYNTHETIC = {
    "haystack_name": "synthetic:0",
    "haystack_fingerprint": "synthetic-v1-0-320x180",
    "needles_name": "icons:0:3",
    "needles_fingerprint": "83d55fa8" * 8,
    "scoring": "teacher-forced",
    "decoder": "pyav",
}


def told(run: Run, **task: Any) -> Run:
    """The run with what it says of its inputs; ``model_args`` and ``date`` go where lmms-eval has them."""
    model, date = task.pop("model_args", None), task.pop("date", None)
    settings: dict[str, Any] = {"task": task}
    settings |= {"model": {"model_args": model}} if model else {}
    settings |= {"timing": {"date": date}} if date else {}
    return dataclasses.replace(run, settings=settings)


def text_run(task: str = "text_niah_0", **told_of: Any) -> Run:
    return told(dataclasses.replace(small_run(), task=task, unit="tokens"), **told_of)


def figure_text(figure: Any) -> str:
    small = figure._supxlabel
    return " ".join([small.get_text() if small else "", *(axes.get_title(loc="left") for axes in figure.axes)])


def shown_as(name: str, **model: Any) -> Run:
    run = told(small_run(), **SYNTHETIC, warnings=model.pop("warnings", []))
    return dataclasses.replace(run, name=name, settings={**run.settings, "model": model})


def test_how_frames_were_shown_is_said_where_nobody_would_expect_it() -> None:
    def column(columns: str, fitted: str, tokens: int) -> dict[str, Any]:
        return {"columns": columns, "fitted": [fitted], "tokens_a_unit": [tokens], "frames_a_unit": [2]}

    alike = [column("2, 3, 9, 10", "640x352", 220)]
    shrunk = [column("32, 64", "640x352", 299), column("256", "416x224", 91), column("3000", "96x64", 18)]
    auto = {"presentation": "video", "frame_tokens": "auto"}
    plain, free = shown_as("plain", **auto, frames_shown=alike), shown_as("free", **auto, frames_shown=shrunk)
    assert shown_line(plain) == ""
    line = "Frames shrink with their number: 299 tokens a pair to 64 frames, ... 18 tokens a pair at 3000"
    assert shown_line(free) == line and f"{line}." in GridData(free).notes
    warning = "the processor shrinks frames with their number: ..."
    assert shown_line(shown_as("warned", **auto, frames_shown=shrunk, warnings=[warning])) == ""
    rule = {"presentation": "images", "frame_tokens": "column", "frames_held_at": {"640x360": "96x64"}}
    held = shown_as("held", **rule, frames_shown=[column("64, 3000", "96x64", 18)])
    line = "Frames shown as images, not as a video; frames held at 18 tokens a pair, frame_tokens=column"
    assert shown_line(held) == line and line in to_text(GridData(held))
    assert differences([plain, free]) == []
    (said,) = differences([plain, held])
    assert "presentation (plain: video, held: images) and frame_tokens (plain: auto, held: column)" in said
    for strange in (7, ["?"], [{"tokens_a_unit": 3}]):
        assert "None" not in shown_line(shown_as("strange", **rule, frames_shown=strange))
    # Held at what the processor chooses itself is no difference.
    idle = {"presentation": "video", "frame_tokens": "column", "frames_held_at": "auto"}
    assert differences([plain, shown_as("idle", **idle, frames_shown=alike)]) == []
    assert any("frames shrink with their number" in note for note in compare([plain, free])[0].notes)


def test_a_grid_says_what_it_was_measured_on_wherever_it_is_shown() -> None:
    run = told(small_run(), **SYNTHETIC, warnings=["the built-in needles stand in for the paper's"])
    line = "Haystack synthetic:0 (synthetic-v1-0-320x180), needles icons:0:3 (83d55fa8), teacher-forced"
    assert measured_line(run) == line
    warning = "The built-in needles stand in for the paper's"
    data = GridData(run)
    assert data.notes[3:] == (f"{line}.", f"{warning}.")
    printed = to_text(data).splitlines()
    assert printed[-2:] == [line, "warning: the built-in needles stand in for the paper's"]
    drawn = figure_text(panels_figure([data, data])).replace("\n", " ")
    assert line in drawn and warning in drawn
    page = build_page([run])
    assert line in page and "The built-in needles stand in for the paper&#39;s." in page
    (comparison,) = compare([run, dataclasses.replace(run, name="b")])
    assert comparison.notes[:2] == (
        f"tiny and b: {line[:1].lower()}{line[1:]}.",
        "tiny and b: warning: the built-in needles stand in for the paper's",
    )


def test_positions_that_are_not_the_models_own_stand_in_the_small_print() -> None:
    run = told(small_run(), **SYNTHETIC)
    model = {"positions": "videorope", "positions_fingerprint": "6a31cb1d" * 4}
    under_another = dataclasses.replace(run, settings={**run.settings, "model": model})
    said = "teacher-forced, positions: videorope (6a31cb1d)"
    assert measured_line(under_another) == measured_line(run).replace("teacher-forced", said)
    assert said in figure_text(panels_figure([GridData(under_another)])).replace("\n", " ")
    its_own = dataclasses.replace(run, settings={**run.settings, "model": {"positions": "model"}})
    assert measured_line(its_own) == measured_line(run)
    (said,) = differences([dataclasses.replace(its_own, name="a"), dataclasses.replace(under_another, name="b")])
    assert said == "The runs differ in positions (a: model, b: videorope): differences are not of the model alone."


def test_keys_and_values_in_8_bits_stand_in_the_small_print() -> None:
    run = told(small_run(), **SYNTHETIC)

    def kept(**how: str) -> Run:
        return dataclasses.replace(run, settings={**run.settings, "model": {"fingerprint": "0" * 16, **how}})

    in_8_bits, on_host = kept(kv="fp8"), kept(kv="host")
    said = "teacher-forced, keys and values in 8 bits (kv=fp8)"
    assert measured_line(in_8_bits) == measured_line(run).replace("teacher-forced", said)
    assert said in figure_text(panels_figure([GridData(in_8_bits)])).replace("\n", " ")
    # The host's memory changes no result.
    assert measured_line(on_host) == measured_line(kept()) == measured_line(run)
    assert not differences([dataclasses.replace(kept(), name="a"), dataclasses.replace(on_host, name="b")])
    (said,) = differences([dataclasses.replace(kept(), name="a"), dataclasses.replace(in_8_bits, name="b")])
    assert said == "The runs differ in kv (a: not rounded, b: fp8): differences are not of the model alone."


def test_a_setting_at_the_head_of_a_note_stays_as_it_is_written() -> None:
    warned = ["kv=fp8 is an approximation", "device_map=auto: 5 of 7 parts wait on the disk", "the film is short"]
    notes = GridData(told(small_run(), **SYNTHETIC, warnings=warned)).notes
    assert notes[-3:] == (
        "kv=fp8 is an approximation.",
        "device_map=auto: 5 of 7 parts wait on the disk.",
        "The film is short.",
    )


def test_an_old_run_that_says_nothing_is_drawn_all_the_same() -> None:
    assert measured_line(small_run()) == ""
    assert measured_line(told(small_run(), haystack_fingerprint=FILM)) == "Haystack 1a2b3c4d"
    assert short("synthetic-v1-0-320x180") == "synthetic-v1-0-320x180"


def test_published_grids_say_where_they_are_from() -> None:
    assert GridData(read_published("LongVA-7B")).notes[-1] == (
        "Published: Long Context Transfer from Language to Vision (TMLR), Figure 4 (i)."
    )


def test_runs_on_other_films_or_needles_are_said_to_differ() -> None:
    a = told(small_run(name="out"), **SYNTHETIC)
    b = told(
        small_run(name="out5"),
        **{**SYNTHETIC, "haystack_name": "synthetic:3", "haystack_fingerprint": "synthetic-v1-3-320x180"},
    )
    assert differences([a, b]) == [
        "The runs differ in haystack (out: synthetic:0, out5: synthetic:3): differences are not of the model alone."
    ]
    c = told(small_run(name="c"), **{**SYNTHETIC, "needles_name": "icons:5:3", "needles_fingerprint": "8c" * 32})
    (line,) = differences([a, b, c])
    assert "haystack (out and c: synthetic:0, out5: synthetic:3) and needles (out and out5: icons:0:3, c: " in line
    assert differences([a, dataclasses.replace(a, name="again")]) == []
    (comparison,) = compare([a, b])
    assert differences([a, b])[0] in comparison.notes
    drawn = panels_figure([GridData(a), GridData(b)], notes=panel_notes([GridData(a), GridData(b)]))
    assert "The runs differ in haystack (i: synthetic:0, ii: synthetic:3)" in figure_text(drawn).replace("\n", " ")


def test_films_are_told_apart_by_their_fingerprints_and_not_by_their_names() -> None:
    film = {**SYNTHETIC, "haystack_name": "film.mp4", "haystack_fingerprint": FILM}
    a, b = told(small_run(name="a"), **film), told(small_run(name="b"), **{**film, "haystack_fingerprint": OTHER_FILM})
    assert "haystack (a: film.mp4 (1a2b3c4d), b: film.mp4 (99887766))" in differences([a, b])[0]
    moved = told(small_run(name="b"), **{**film, "haystack_name": "/other/place.mp4"})
    assert differences([a, moved]) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("scoring", "generated", "scoring (a: teacher-forced, b: generated)"),
        ("decoder", "pyav-fast", "decoder (a: pyav, b: pyav-fast)"),
        ("presentation", "images", "presentation (a: video, b: images)"),
    ],
)
def test_other_ways_of_measuring_differ_too(key: str, value: str, said: str) -> None:
    film = {**SYNTHETIC, "haystack_name": "film.mp4", "haystack_fingerprint": FILM, "presentation": "video"}
    a, b = told(small_run(name="a"), **film), told(small_run(name="b"), **{**film, key: value})
    assert said in differences([a, b])[0]


def test_the_decoder_of_a_film_that_is_drawn_makes_no_difference() -> None:
    a, b = told(small_run(name="a"), **SYNTHETIC), told(small_run(name="b"), **{**SYNTHETIC, "decoder": "decord"})
    assert differences([a, b]) == []


def test_grids_differ_by_lengths_and_depths() -> None:
    a = told(small_run(name="a"), **SYNTHETIC)
    b = dataclasses.replace(without(a, num_frames=4), name="b")
    assert "grid (a: 4,8,16 frames x 0-100:50 %; b: 8,16 frames x 0-100:50 %)" in differences([a, b])[0].replace(
        ", b:", "; b:"
    )
    assert spans((200, 400, 600)) == "200-600:200" and spans((16, 32)) == "16,32"


def test_text_grids_differ_by_text_seed_and_samples() -> None:
    known = {"haystack": "builtin", "haystack_sha256": "61" * 32, "seed": 1, "samples": 5}
    a = text_run(**known)
    b = dataclasses.replace(text_run(**{**known, "seed": 2, "samples": 3}), name="b")
    (line,) = differences([a, b])
    assert "samples (tiny: 5, b: 3)" in line and "seed (tiny: 1, b: 2)" in line and "haystack" not in line


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    known, silent = told(small_run(name="new"), **SYNTHETIC), small_run(name="old")
    assert differences([known, silent]) == [
        "Unknown: the haystack and needles of old; whether the runs were measured on the same is not known."
    ]
    assert differences([silent]) == [], "alone it is compared with nothing"
    (line,) = differences([silent, read_published("LongVA-7B")])
    assert "(old: haystack and needles unknown; published grids have films" in line


def test_beside_the_papers_grids_ours_says_on_what_it_was_measured() -> None:
    ours = told(small_run(name="ours"), **SYNTHETIC)
    (comparison,) = compare([ours], ["LongVA-7B"])
    assert (
        "Not measured on what the paper's were (ours: haystack synthetic:0, needles icons:0:3; published grids have "
        "films of their own, and the paper's needles are those of lmms-lab/v_niah_needles): differences are not of the "
        "model alone."
    ) in comparison.notes
    essays = text_run(haystack="baber/paul_graham_essays")
    assert differences([essays, read_published("Qwen2-7B-224K-distractors-0")]) == [], "the paper's own text"
    prose = text_run(haystack="builtin")
    (line,) = differences([prose, read_published("Qwen2-7B-224K-distractors-0")])
    assert "tiny: haystack builtin; the paper's text is Paul Graham's essays" in line


def names(*runs: Run) -> list[str]:
    return [run.name for group in distinct_names([[run] for run in runs], by_frames=False) for run in group]


def test_runs_of_one_name_are_named_by_what_differs() -> None:
    run = told(small_run(name="nano"), **SYNTHETIC, model_args="pretrained=nano,journal=/a/1.jsonl", date="1")
    film = {**SYNTHETIC, "haystack_name": "synthetic:3", "haystack_fingerprint": "synthetic-v1-3-320x180"}
    needles = {**SYNTHETIC, "needles_name": "icons:5:3", "needles_fingerprint": "8c" * 32}
    assert names(run, told(run, **film)) == ["nano, haystack synthetic:0", "nano, haystack synthetic:3"]
    assert names(run, told(run, **needles)) == ["nano, needles icons:0:3", "nano, needles icons:5:3"]
    assert names(run, told(run, **film), told(run, **needles)) == [
        "nano, haystack synthetic:0, needles icons:0:3",
        "nano, haystack synthetic:3",
        "nano, haystack synthetic:0, needles icons:5:3",
    ]
    scaled = told(run, **SYNTHETIC, model_args="pretrained=nano,rope_theta=1e7,journal=/a/2.jsonl")
    assert names(run, scaled) == ["nano, no rope_theta", "nano, rope_theta=1e7"]
    used = {"positions": "model", "model_args": "pretrained=nano"}
    as_it_is = dataclasses.replace(run, settings={**run.settings, "model": used})
    used = {"positions": "vanilla", "model_args": "pretrained=nano,positions=vanilla"}
    vanilla = dataclasses.replace(run, settings={**run.settings, "model": used})
    assert names(as_it_is, vanilla) == ["nano, positions=model", "nano, positions=vanilla"]
    free = dataclasses.replace(run, task="vniah_generate")
    assert names(run, free) == ["nano, task vniah", "nano, task vniah_generate"]
    later = told(run, **SYNTHETIC, model_args="pretrained=nano,journal=/a/1.jsonl", date="2")
    assert names(run, later) == ["nano, of 1", "nano, of 2"]
    assert names(run, later, told(later, **film)) == [
        "nano, haystack synthetic:0, of 1",
        "nano, haystack synthetic:0, of 2",
        "nano, haystack synthetic:3",
    ]
    assert names(run, run) == ["nano (1)", "nano (2)"], "nothing differs"
    assert names(run, dataclasses.replace(run, name="other")) == ["nano", "other"]
    twins = {**SYNTHETIC, "haystack_name": "film.mp4"}
    one, two = (told(run, **{**twins, "haystack_fingerprint": proof}) for proof in (FILM, OTHER_FILM))
    assert names(one, two) == ["nano, haystack film.mp4 (1a2b3c4d)", "nano, haystack film.mp4 (99887766)"]


@pytest.mark.parametrize("task", ["text_niah_absent", "text_niah_generate_absent"])
def test_abstention_is_never_called_a_control(task: str) -> None:
    run = text_run(task)
    data = GridData(run)
    assert data.caption.startswith("abstained (right to say 'not there') 0.167")
    page = build_page([run])
    (comparison,) = compare([run])
    assert "abstained (right to say 'not there')" in comparison.rows
    for shown in (to_text(data), page.partition('id="report-data"')[0], comparison.table().title, str(comparison.rows)):
        assert "control 0" not in shown and "no-needle control" not in shown.lower()
    assert "abstained 0.50 0.00 0.00" in " ".join(to_text(data).split()).replace("frames", "")
    assert '"control":"Abstained"' in page and "no needle, 50% abstained" in page
    assert '"control":"No-needle control"' in build_page([small_run()])


def test_a_partial_grid_says_how_many_cells_it_has_and_reaches_no_further_than_its_whole_columns() -> None:
    holed = without(small_run(lambda *_: True), num_frames=8, depth_percent=50)
    data = GridData(holed)
    assert "partial: 16 of 18 cells" in data.caption and data.effective == 4
    (comparison,) = compare([holed])
    assert "tiny: partial, 16 of 18 cells." in comparison.notes


def test_columns_that_were_never_scored_are_drawn_as_holes() -> None:
    run = without(without(small_run(lambda *_: True), num_frames=8), num_frames=16)
    data = GridData(dataclasses.replace(run, intended=IntendedGrid(frames=FRAMES, depths=DEPTHS, per_place=2)))
    assert data.frames == (4, 8, 16) and data.scores.fillna(-1).to_numpy().tolist() == [[1, -1, -1]] * 3
    assert "partial: 6 of 18 cells" in data.caption and data.effective == 4
    assert to_text(data).splitlines()[5].split() == ["mean", "1.00", "-", "-"]


def test_a_place_that_is_scored_in_part_is_drawn_as_such() -> None:
    """One needle of two found at one place: "1" there is no finding like the others."""
    from matplotlib.patches import Rectangle

    run = small_run(lambda *_: True)
    data = GridData(without(run, num_frames=8, depth_percent=50, needle="dog"))
    assert data.in_part == {(8, 50)} and "hatched: not all needles" in data.caption
    striped = [one for one in heatmap_figure(data).axes[0].patches if isinstance(one, Rectangle) and one.get_hatch()]
    assert [one.get_xy() for one in striped] == [(1, 1)]
    assert not GridData(run).in_part and "hatched" not in GridData(run).caption


def test_the_threshold_of_effective_lengths_is_shown_and_chosen() -> None:
    run = small_run()
    assert GridData(run, 0.3).figures == "mean 0.778, effective 16 frames (columns >= 0.3)"
    (comparison,) = compare([run], threshold=0.3)
    assert dict(comparison.columns[0].values)["effective frames (columns >= 0.3)"] == 16
    assert "effective 16 frames (columns &gt;= 0.3)" in build_page([run], threshold=0.3)


@pytest.mark.parametrize("value", [7, float("nan"), True, {"a": 1}, [7, None, ["x"]], "one"])
def test_warnings_of_any_type_are_shown(value: Any) -> None:
    run = told(small_run(), **SYNTHETIC, warnings=value)
    count = len(value) if isinstance(value, list) else 1
    assert len(warned([run])) == count and all(line.startswith("tiny: warning: ") for line in warned([run]))
    assert build_page([run], pictures=[{}], notes=warned([run]))
    assert len(GridData(run).notes) > count


@pytest.mark.parametrize("key", ["haystack_name", "needles_name", "scoring"])
def test_what_is_written_at_length_is_shown_in_short_and_stays_distinct(key: str) -> None:
    bare = {"scoring": "teacher-forced"}
    runs = [told(small_run(name=end), **{**bare, key: "9" * 5000 + end}) for end in "ab"]
    (line,) = (line for line in differences(runs) if "differ" in line)
    assert len(line) < 1000 and key.removesuffix("_name") in line
    data = GridData(runs[0])
    assert all(len(note) < 1000 for note in data.notes)
    heatmap_figure(data)


def test_a_word_without_end_is_broken_into_lines() -> None:
    for text in ("9" * 5000, "W" * 700, "i" * 700, "a b " * 50):
        lines = wrapped(text, 3.0, 8).splitlines()
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(_inches(line, 8, False) <= 3.0 for line in lines)
        assert all(_inches(line + text[0], 8, False) > 3.0 for line in lines[:-1] if " " not in text)
