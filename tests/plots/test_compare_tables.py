"""Comparisons: which values stand where, differences, and the four forms of a table."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from run_files import metrics_run, small_run, without

from vniah.plots.compare import Comparison, compare, published_names
from vniah.plots.published import read_published, tables
from vniah.plots.table_formats import FORMATS, TextTable, as_csv, as_latex, as_markdown, as_text, csv_text


def rows_of(comparison: Comparison) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in comparison.table().rows}


def test_a_grid_like_the_published_is_compared_column_by_column() -> None:
    ours = dataclasses.replace(read_published("LLaVA-NeXT-Video-7B-32K-rope-1e8"), name="ours")
    (comparison,) = compare([ours], ["LongVA-7B"])
    table = comparison.table()
    assert table.head == ("", "ours", "LongVA (published)", "ours \N{MINUS SIGN} LongVA (published)")
    rows = rows_of(comparison)
    assert rows["mean"] == ["0.284", "0.909", "-0.624"]
    assert rows["effective frames (columns >= 0.9)"] == ["0", "2,200", "-2,200"]
    assert rows["2,000 frames"] == ["0.133", "0.900", "-0.767"]
    assert table.notes == (
        "LongVA (published): Long Context Transfer from Language to Vision (TMLR), Figure 4 (i); teacher forcing, five "
        "needles or draws a place.",
        "ours \N{MINUS SIGN} LongVA (published): no interval, since of the published grid only each place's mean is "
        "known.",
    )


def test_no_difference_is_taken_of_means_over_different_grids() -> None:
    (comparison,) = compare([small_run()], ["LongVA-7B"])
    rows = rows_of(comparison)
    assert rows["mean"] == ["0.778", "0.909", "-"]
    assert rows["effective frames (columns >= 0.9)"] == ["8", "2,200", "-"]
    assert rows["no-needle control"] == ["0.167", "-", "-"]
    assert rows["4 frames"] == ["1.000", "-", "-"]
    assert "grids differ" in comparison.notes[-1]


def test_partly_equal_grids_are_compared_over_the_shared_cells() -> None:
    short = without(small_run(name="short"), num_frames=4)
    rows = rows_of(compare([small_run(lambda *_: True, name="all"), short])[0])
    assert rows["mean of 6 shared cells"] == ["1.000", "0.667", "-0.333"]
    assert rows["16 frames"] == ["1.000", "0.333", "-0.667"]


def test_without_published_figures_the_first_run_is_the_measure() -> None:
    runs = [small_run(name="a"), small_run(lambda *_: True, name="b"), small_run(lambda *_: False, name="c")]
    (comparison,) = compare(runs)
    assert comparison.table().head[4:] == ("b \N{MINUS SIGN} a", "c \N{MINUS SIGN} a")
    assert rows_of(comparison)["mean"] == ["0.778", "1.000", "0.000", "+0.222", "-0.778"]
    assert rows_of(comparison)["chance-corrected accuracy"][:3] == ["0.733", "-", "0.000"], "guessing is always right"
    sure = [note for note in comparison.notes if "95 %" in note]
    assert [note.partition(":")[0] for note in sure] == ["a", "b", "c", "b \N{MINUS SIGN} a", "c \N{MINUS SIGN} a"]
    assert "c: 95 % intervals over 2 needles: mean 0.000 to 0.658, effective 0 frames, control" in sure[2]
    assert "-0.778 over 18 cells that both scored (2 needles), 95 % -0.979 to +0.090" in sure[4]
    assert sure[4].endswith("p = 0.500 (signs of whole needles).")


def test_a_difference_that_cannot_be_tested_says_why() -> None:
    run = small_run(name="a")
    one = dataclasses.replace(run, name="one", cells=run.cells[run.cells["needle"] == run.needles[0]])
    (comparison,) = compare([run, one])
    assert any("no interval, since a single needle says nothing of others" in note for note in comparison.notes)
    assert any(note.startswith("one: no interval: a single needle or draw") for note in comparison.notes)
    other = dataclasses.replace(run, name="b", cells=run.cells.assign(needle="another"))
    assert any("no cell is the same in both" in note for note in compare([run, other])[0].notes)


def test_video_mme_stands_beside_table_6_at_the_same_frames() -> None:
    metrics = {"videomme_overall": 52.65, "videomme_short": 61.6, "videomme_knowledge": 40.0}
    run = metrics_run("videomme_longva", metrics, frames=128)
    for name in ("LongVA", "LongVA@128"):
        (comparison,) = compare([run], [name])
        assert comparison.table().head[2] == "LongVA@128 (published)"
        rows = rows_of(comparison)
        assert rows["Overall"] == ["52.6", "53.1", "-0.5"]
        assert rows["Short"] == ["61.6", "61.6", "0.0"]
        assert rows["Long"] == ["-", "47.1", "-"]
        assert comparison.notes[0].endswith("Table 6.")


def test_a_bare_name_needs_the_runs_frames() -> None:
    run = metrics_run("videomme_longva", {"videomme_overall": 50.0})
    with pytest.raises(ValueError, match=r"several rows of LongVA; choose one of LongVA@8, LongVA@16"):
        compare([run], ["LongVA"])
    assert compare([run], ["LLaVA-NeXT-Qwen2"])[0].columns[1].name == "LLaVA-NeXT-Qwen2@32 (published)"


def test_one_table_is_filled_by_several_tasks_in_its_own_units() -> None:
    runs = [
        metrics_run("ai2d", {"exact_match": 0.707}),
        metrics_run("mmmu_val", {"mmmu_acc": 0.4}),
        metrics_run("mlvu_longva_dev_choice", {"mlvu_tr": 80.0, "mlvu_m_avg": 50.0}),
        metrics_run("mlvu_longva_dev_generation", {"mlvu_vs": 3.0}),
    ]
    images, mlvu = compare(runs, ["LongVA@256", "LongVA (UniRes)"])
    assert rows_of(images)["AI2D"] == ["70.7", "70.7", "0.0"]
    assert rows_of(images)["MMMU"] == ["40.0", "42.6", "-2.6"]
    assert rows_of(mlvu)["TR"] == ["80.0", "83.3", "-3.3"]
    assert rows_of(mlvu)["VS"] == ["3.00", "3.39", "-0.39"]


def test_runs_at_several_frames_stand_beside_their_own_rows() -> None:
    runs = [metrics_run("videomme_longva", {"videomme_overall": 50.0}, name=f"at {n}", frames=n) for n in (8, 128)]
    (comparison,) = compare(runs, ["LongVA"])
    minus = " \N{MINUS SIGN} "
    heads = comparison.table().head[5:]
    assert heads == (f"at 8{minus}LongVA@8 (published)", f"at 128{minus}LongVA@128 (published)")
    assert rows_of(comparison)["Overall"] == ["50.0", "50.0", "47.7", "53.1", "+2.3", "-3.1"]
    # Rows named one by one are everyone's measure.
    (comparison,) = compare(runs, ["LongVA@8", "LongVA@384"])
    assert len(comparison.pairs()) == 4


def test_the_three_grids_of_text_niah_keep_apart() -> None:
    grids = [read_published(f"Qwen2-7B-224K-distractors-{n}") for n in (0, 3, 5)]
    ours = [dataclasses.replace(grid, name="ours") for grid in grids]
    names = [f"ours, text_niah_{n}" for n in (0, 3, 5)]
    (comparison,) = compare(ours)
    assert comparison.table().head == ("", *names)
    (comparison,) = compare(ours, ["Qwen2-7B-224K-distractors-3", "Qwen2-7B-224K-distractors-5"])
    assert [(one.name, other.name) for one, other in comparison.pairs()] == [
        ("ours, text_niah_3", "Qwen2-7B-224K, 3 distractors (published)"),
        ("ours, text_niah_5", "Qwen2-7B-224K, 5 distractors (published)"),
    ]
    generated = dataclasses.replace(ours[1], task="text_niah_generate_3")
    assert len(compare([generated], ["Qwen2-7B-224K-distractors-3"])[0].pairs()) == 1
    (comparison,) = compare([*ours, *(dataclasses.replace(one, name="b") for one in ours)])
    assert comparison.table().head[7:] == tuple(f"b{n[4:]} \N{MINUS SIGN} {n}" for n in names)


def test_what_nobody_scored_says_so() -> None:
    run = metrics_run("mlvu_longva_dev_generation", {"mlvu_unscored": 2.0}, unscored=("mlvu_vs", "mlvu_g_avg"))
    rows = rows_of(compare([run], ["LongVA@256"])[0])
    assert rows["VS"] == ["not scored", "3.39", "-"] and rows["SSC"] == ["-", "5.26", "-"]
    assert rows_of(compare([run])[0]) == {"VS": ["not scored"], "G-Avg": ["not scored"]}
    other = metrics_run("other", {}, unscored=("grade",))
    assert rows_of(compare([other])[0]) == {"grade": ["not scored"]}


def test_notes_say_what_a_run_left_out() -> None:
    metrics = {"videomme_overall": 50.0, "videomme_missing_videos": 1.0, "videomme_missing_questions": 3.0}
    (comparison,) = compare([metrics_run("videomme_longva", metrics, frames=8, limit=2.0)], ["LongVA"])
    assert comparison.notes[1:] == (
        "ours: 3 questions of videomme_longva left out, their videos missing or broken.",
        "ours: --limit, the first 2 documents of each task.",
    )


def test_a_task_that_the_paper_lacks_shows_its_own_metrics() -> None:
    (comparison,) = compare([metrics_run("other", {"acc": 0.5}), metrics_run("other", {"acc": 0.75}, name="b")])
    assert rows_of(comparison) == {"acc": ["0.5000", "0.7500", "+0.2500"]}


def test_no_task_is_passed_over() -> None:
    runs = [small_run(), metrics_run("ai2d", {"exact_match": 0.7}), metrics_run("videomme_longva_subtitle", {"a": 1.0})]
    grid, table, other = compare(runs)
    assert (grid.title, table.title, other.title) == (
        "V-NIAH",
        "Image benchmarks (percent)",
        "videomme_longva_subtitle",
    )


def test_names_that_fit_nothing_are_errors() -> None:
    with pytest.raises(ValueError, match=r"no published figure 'LongVB'; expected a grid .*--list prints all"):
        compare([small_run()], ["LongVB"])
    with pytest.raises(ValueError, match=r"nothing to put beside the published LongVA@128: the runs' tasks are vniah"):
        compare([small_run()], ["LongVA@128"])
    with pytest.raises(ValueError, match=r"beside the published Qwen2-7B-224K-distractors-0"):
        compare([small_run()], ["Qwen2-7B-224K-distractors-0"])
    with pytest.raises(ValueError, match="neither needle cells nor metrics"):
        compare([metrics_run("other", {})])


def test_every_published_name_is_listed_and_taken() -> None:
    names = [line.split("  (")[0] for line in published_names().splitlines()]
    assert {"LongVA-7B", "LongVA@384", "GPT-4o@0.5 fps", "LongVA (AnyRes)"} <= set(names)
    assert "VideoRoPE-m-rope" in names
    grids, rows, head, others = 11, sum(len(table.rows) for table in tables()), 2, 3
    assert len(names) == grids + rows + head + others


TABLE = TextTable(
    title="A & B", head=("", "x_1", "50%"), rows=(("a|b", "1,234", "-0.5"), ("c", "-", "+1")), notes=("Note.",)
)


def test_the_terminal_form_lines_up() -> None:
    lines = as_text(TABLE).splitlines()
    assert lines == ["A & B", "       x_1   50%", "---  -----  ----", "a|b  1,234  -0.5", "c        -    +1", "Note."]


def test_markdown_escapes_bars() -> None:
    assert as_markdown(TABLE).splitlines()[2:5] == [
        "|   | x_1 | 50% |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1,234 | -0.5 |",
    ]


def test_latex_escapes_its_special_characters() -> None:
    text = as_latex(TABLE)
    assert r"\caption{A \& B. Note.}" in text
    assert r"x\_1 & 50\% \\" in text
    assert r"a|b & 1,234 & $-0.5$ \\" in text
    assert r"c & - & $+1$ \\" in text


def test_csv_has_plain_numbers() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows == [["", "x_1", "50%"], ["a|b", "1234", "-0.5"], ["c", "-", "+1"]]


NASTY = TextTable(
    title="\x1b[31mred\nname",
    head=("", "a\tb"),
    rows=(
        ("=cmd|' /C calc'!A0", "-0.5"),
        ("+1+cmd", "+3"),
        ("@SUM(A1)", "-1e-05"),
        (" =1", "1,234"),
        ("-", "nan"),
        ("line\none\r\u2028\x85", "\x1b]0;title\x07"),
        ("[x]", "<b>"),
        ("*", "\u202e\u009b31m"),
    ),
    notes=("a\x1b[2Jb\nc",),
)


@pytest.mark.parametrize("form", list(FORMATS))
def test_no_cell_steers_a_terminal_or_breaks_its_row(form: str) -> None:
    """A name may hold escape sequences, line ends of every kind, and text that runs backwards."""
    plain = TextTable(title="t", head=("", "a"), rows=tuple(("r", "1") for _ in NASTY.rows), notes=("n",))
    text = FORMATS[form](NASTY)
    assert len(text.splitlines()) == len(FORMATS[form](plain).splitlines())
    assert all(one.isprintable() or one == "\n" for one in text)


def test_csv_holds_no_formulas_and_numbers_stay_numbers() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(NASTY))))
    assert [row[0] for row in rows[1:6]] == ["'=cmd|' /C calc'!A0", "'+1+cmd", "'@SUM(A1)", "' =1", "-"]
    assert [row[1] for row in rows[1:6]] == ["-0.5", "+3", "-1e-05", "1234", "nan"]
    assert csv_text(["=a", "b"], [("-x", -0.25), ("x", 3)]) == "'=a,b\n'-x,-0.25\nx,3\n"


def test_latex_rows_do_not_begin_with_an_argument() -> None:
    lines = as_latex(NASTY).splitlines()
    assert any(line.strip().startswith("{}[x] & ") and r"\textless{}b\textgreater{}" in line for line in lines)
    assert any(line.strip().startswith("{}* & ") for line in lines)


def test_markdown_holds_no_markup_of_names() -> None:
    assert "<b>" not in as_markdown(NASTY) and "&lt;b>" in as_markdown(NASTY)


def test_every_form_is_offered() -> None:
    assert set(FORMATS) == {"table", "markdown", "latex", "csv"}


def test_a_name_is_no_link_and_no_markup_of_markdown() -> None:
    table = TextTable(title="t", head=("", "[l](javascript:1)", "`x` *b* _i_ v_niah"), rows=(("a_b_", "1", "2"),))
    written = as_markdown(table)
    assert r"\[l\](javascript:1)" in written and r"\`x\` \*b\* \_i\_ v_niah" in written and r"| a_b\_ |" in written


def test_a_long_name_of_a_column_goes_on_below() -> None:
    one, other = "model, frame_tokens=column", "model, frame_tokens=auto"
    head = ("", one, other, f"{one} \N{MINUS SIGN} {other}")
    lines = as_text(TextTable(title="t", head=head, rows=[("mean", "0.5", "0.25", "+0.25")])).splitlines()
    assert [len(line.rstrip()) for line in lines[1:]] == [len(lines[1])] * (len(lines) - 1)
    assert len(lines[1]) < 100 and lines[-1].split() == ["mean", "0.5", "0.25", "+0.25"]
    above = " ".join(line[-28:].strip() for line in lines[1:-2])
    assert above == head[-1], "all of it, in its order"
