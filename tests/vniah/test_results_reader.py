"""Runs read back: lmms-eval folders, samples files, journals, and every way in which they can be faulty."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from run_files import (
    DATE,
    DEPTHS,
    FRAMES,
    NEEDLES,
    found_near_the_end,
    results_of,
    sample_rows,
    write_evaluation,
    write_lines,
    write_metrics,
)

from vniah.runs import scoring
from vniah.runs.journal import Journal
from vniah.runs.read import read_run, read_runs
from vniah.runs.run import cells_from_scores, cells_table
from vniah.runs.scoring import column_means, control_mean, effective_frames, grid_mean, grid_scores


def test_an_output_folder_gives_every_cell_with_all_that_was_logged(tmp_path: Path) -> None:
    run = read_run(write_evaluation(tmp_path, sample_rows()))
    assert (run.name, run.model, run.task) == ("LongVA-7B", "lmms-lab/LongVA-7B", "vniah")
    assert (run.frames, run.depths, run.needles) == (FRAMES, DEPTHS, NEEDLES)
    assert len(run.cells) == len(FRAMES) * (len(DEPTHS) + 1) * len(NEEDLES)
    assert list(run.cells["control"]) == list(run.cells["depth_percent"].isna())
    for cell in run.cells.itertuples():
        assert cell.correct == found_near_the_end(
            cell.num_frames, None if cell.control else cell.depth_percent, cell.needle
        )
    (cell,) = (
        one for one in run.placed.itertuples() if (one.num_frames, one.depth_percent, one.needle) == (16, 50, "dog")
    )
    assert (cell.needle_index, cell.predicted, cell.answer) == (8, "no idea", "dog")
    assert (cell.predicted_ids, cell.answer_ids, cell.answer_logprobs) == ((7, 9), (7, 8), (-0.25, -4.0))
    assert cell.question == "Find the frame of a dog. What is it?"
    assert run.metrics["vniah_acc"] == pytest.approx(grid_mean(run.cells)) == pytest.approx(7 / 9)
    assert run.metrics["vniah_effective_frames"] == effective_frames(run.cells) == 8
    assert control_mean(run.cells) == pytest.approx(1 / 6)
    assert run.settings["task"]["haystack_fingerprint"] == "f00d"
    assert run.settings["versions"]["lmms_eval"] == "0.7.3"
    assert run.settings["timing"]["seconds"] == "12.5"
    assert run.model_args == {"pretrained": "lmms-lab/LongVA-7B"}


def test_files_written_by_lmms_eval_itself_read_the_same(tmp_path: Path) -> None:
    tracker = pytest.importorskip("lmms_eval.loggers.evaluation_tracker")
    rows = sample_rows()
    own = tracker.EvaluationTracker(output_path=str(tmp_path / "theirs"))
    own.general_config_tracker.log_experiment_args("longva_ring", "pretrained=lmms-lab/LongVA-7B", "", "", False)
    logged = [
        {**row, "doc": {}, "arguments": [row["input"]], "resps": [["r"]], "filtered_resps": [row["filtered_resps"]]}
        for row in rows
    ]
    results = results_of(rows, model="replaced by the tracker")
    own.save_results_aggregated(results=results, samples={"vniah": logged}, datetime_str=DATE)
    own.save_results_samples("vniah", logged)
    theirs, ours = read_run(tmp_path / "theirs"), read_run(write_evaluation(tmp_path / "ours", rows))
    assert theirs.cells.equals(ours.cells)
    assert (theirs.name, theirs.model, theirs.metrics) == (ours.name, ours.model, ours.metrics)


@pytest.mark.parametrize("which", ["folder", "model folder", "results", "samples"])
def test_a_run_is_named_by_its_folder_or_any_of_its_files(tmp_path: Path, which: str) -> None:
    write_evaluation(tmp_path, sample_rows())
    inner = tmp_path / "lmms-lab__LongVA-7B"
    paths = {
        "folder": tmp_path,
        "model folder": inner,
        "results": inner / f"{DATE}_results.json",
        "samples": inner / f"{DATE}_samples_vniah.jsonl",
    }
    run = read_run(paths[which], "my name")
    assert run.name == "my name"
    assert grid_mean(run.cells) == pytest.approx(7 / 9)


def test_the_newest_of_several_runs_is_read_whatever_the_files_ages(tmp_path: Path) -> None:
    write_evaluation(tmp_path, sample_rows(lambda *_: True), date="20250301_000000")
    write_evaluation(tmp_path, sample_rows(lambda *_: False), date="20240301_000000")
    for file in tmp_path.rglob("2024*"):
        os.utime(file, (4e9, 4e9))
    assert grid_mean(read_run(tmp_path).cells) == 1


def test_a_task_is_found_in_an_older_run_when_it_is_named(tmp_path: Path) -> None:
    write_evaluation(tmp_path, sample_rows(), date="20240301_000000")
    write_metrics(tmp_path, "ai2d", {"exact_match": 0.5})
    assert [run.task for run in read_runs(tmp_path)] == ["ai2d"]
    assert read_run(tmp_path, task="vniah").task == "vniah"
    with pytest.raises(ValueError, match=r"no task 'mmmu_val'; it has ai2d, vniah"):
        read_runs(tmp_path, task="mmmu_val")


def test_other_tasks_are_runs_with_scalar_metrics_alone(tmp_path: Path) -> None:
    values = {
        "videomme_overall": 52.0,
        "mlvu_g_avg": "not scored",
        "videomme_overall_stderr": 1.0,
        "by": {"short": 1, "deep": {}},
    }
    (run,) = read_runs(write_metrics(tmp_path, "videomme_longva", values))
    assert run.metrics == {"videomme_overall": 52.0, "by/short": 1.0}
    assert run.cells.empty and not run.is_grid
    with pytest.raises(ValueError, match=r"no scored needle cells \(tasks in it: videomme_longva\).*--log_samples"):
        read_run(tmp_path)


def test_groups_without_figures_are_no_runs_and_what_nobody_scored_is_known(tmp_path: Path) -> None:
    write_metrics(tmp_path, "mlvu", {"mlvu_vs": "not scored", "mlvu_unscored": 2})
    (file,) = tmp_path.rglob("*_results.json")
    whole = json.loads(file.read_text())
    whole["results"] |= {"paper": {" ": " ", "alias": "paper"}, "grids": {"acc,none": 0.5, "alias": "grids"}}
    whole["group_subtasks"] = {"paper": ["mlvu", "grids"], "grids": ["a", "b"]}
    file.write_text(json.dumps(whole))
    mlvu, grids = read_runs(tmp_path)
    assert (mlvu.task, mlvu.metrics, mlvu.unscored) == ("mlvu", {"mlvu_unscored": 2.0}, ("mlvu_vs",))
    assert (grids.task, grids.metrics, grids.unscored) == ("grids", {"acc": 0.5}, ())


def test_without_logged_samples_the_grid_metric_gives_unnamed_cells(tmp_path: Path) -> None:
    whole = read_run(write_evaluation(tmp_path / "logged", sample_rows()))
    bare = read_run(write_evaluation(tmp_path / "bare", sample_rows(), log_samples=False))
    assert grid_scores(bare.cells) == pytest.approx(grid_scores(whole.cells))
    assert column_means(bare.cells) == pytest.approx(column_means(whole.cells))
    assert control_mean(bare.cells) == pytest.approx(control_mean(whole.cells))
    assert bare.cells["aggregate"].all()


def test_a_grid_with_holes_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    rows = sample_rows()
    del rows[-3]  # frames 16, depth 100, "dog"
    write_evaluation(tmp_path, rows)
    with pytest.raises(ValueError, match=r"1 of 18 cells .* missing, the first at 16 frames, depth 100 %.*--partial"):
        read_run(tmp_path)
    run = read_run(tmp_path, partial=True)
    assert run.missing() == {(16, 100): 1}


def test_needles_drawn_anew_in_each_cell_are_no_holes(tmp_path: Path) -> None:
    rows = [
        {
            "context_length": length,
            "depth_percent": depth,
            "needle": f"{length}{depth}{n}",
            "sample": n,
            "correct": True,
        }
        for length in (1000, 2000)
        for depth in (0, 100)
        for n in range(2)
    ]
    path = write_lines(tmp_path / f"{DATE}_samples_text_niah_0.jsonl", [{"text_niah_acc": row} for row in rows])
    run = read_run(path)
    assert (run.task, run.unit, run.frames, run.missing()) == ("text_niah_0", "tokens", (1000, 2000), {})


def journal_of(path: Path) -> Path:
    """A journal as the model writes it, of the same grid."""
    with Journal(path) as journal:
        for number, row in enumerate(sample_rows()):
            scored = max((value for value in row.values() if isinstance(value, dict)), key=len)
            doc = {key: scored[key] for key in ("num_frames", "needle", "control", "question", "answer")}
            doc["depth_percent"] = -1 if scored["control"] else scored["depth_percent"]
            doc["choice"] = False
            result = {key: scored[key] for key in ("predicted_ids", "answer_ids", "answer_logprobs")}
            journal.put(
                f"key{number}",
                {"text": scored["predicted"], "prompt_tokens": 9, **result},
                task="vniah",
                doc_id=number,
                doc=doc,
            )
    return path


def test_a_journal_gives_the_same_grid_as_the_samples(tmp_path: Path) -> None:
    ours = read_run(write_evaluation(tmp_path / "run", sample_rows()))
    run = read_run(journal_of(tmp_path / "run2" / "journal.jsonl"))
    told = ["num_frames", "depth_percent", "needle", "correct", "predicted"]
    assert run.cells[told].equals(ours.cells[told])
    assert read_run(tmp_path / "run2").cells.equals(run.cells), "a folder with a journal and nothing else"
    named = (tmp_path / "run2" / "journal.jsonl").rename(tmp_path / "j")
    assert read_run(named).cells.equals(run.cells), "of any name"


def test_a_journal_of_free_answers_is_matched_by_word_or_letter(tmp_path: Path) -> None:
    def line(answer: str, text: str, *, choice: bool) -> dict[str, object]:
        doc = {
            "num_frames": 4,
            "depth_percent": 0,
            "needle": text,
            "control": False,
            "answer": answer,
            "choice": choice,
        }
        return {"key": text, "task": "vniah_generate", "doc": doc, "result": {"text": text, "answer_ids": []}}

    lines = [line("B", "(B) a panda", choice=True), line("B", "A", choice=True), line("white", "White.", choice=False)]
    run = read_run(write_lines(tmp_path / "j.jsonl", lines))
    assert list(run.cells["correct"]) == [True, False, True]


def test_a_journal_of_a_killed_run_loses_its_torn_line_only(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.jsonl")
    text = path.read_text()
    path.write_text(text[:-20])
    run = read_run(path, partial=True)
    assert len(run.cells) == len(text.splitlines()) - 1


def test_the_later_of_two_journal_lines_counts(tmp_path: Path) -> None:
    row = {"num_frames": 4, "depth_percent": 0, "needle": "a", "correct": False}
    run = read_run(write_lines(tmp_path / "j.jsonl", [row, {**row, "correct": True}]))
    assert list(run.cells["correct"]) == [True]


def test_the_journals_of_a_runs_other_processes_are_read_with_the_first(tmp_path: Path) -> None:
    lines = journal_of(tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("j.jsonl", lines[:5]), ("j.jsonl.rank1", lines[4:9]), ("j.jsonl.rank2", [*lines[9:], "{torn"])):
        (tmp_path / name).write_text("".join(part))
    (tmp_path / "j.jsonl.rank1.lock").touch()
    (tmp_path / "j.jsonlx").write_text("not this")
    assert read_run(tmp_path / "j.jsonl").cells.equals(read_run(tmp_path / "whole.jsonl").cells)


@pytest.mark.parametrize("other", [{"key": "b"}, {"settings": "bf16", "depth_percent": 100}])
def test_a_journal_of_several_runs_is_no_grid(tmp_path: Path, other: dict[str, object]) -> None:
    row = {"key": "a", "settings": "fp32", "num_frames": 4, "depth_percent": 0, "needle": "a", "correct": False}
    assert len(read_run(write_lines(tmp_path / "j.jsonl", [row, {**row, "depth_percent": 50}])).cells) == 2
    with pytest.raises(ValueError, match=r"line 2: lines before it are of another model.*own journal=PATH"):
        read_run(write_lines(tmp_path / "j.jsonl", [row, {**row, **other}]), partial=True)


def test_two_different_scores_for_one_cell_in_samples_are_an_error(tmp_path: Path) -> None:
    rows = sample_rows()
    other = json.loads(json.dumps(rows[0]))
    write_evaluation(tmp_path, [*rows, other])
    assert len(read_run(tmp_path).cells) == len(rows), "the same score twice is one cell"
    other["vniah_acc"]["correct"] = False
    path = write_lines(next(tmp_path.rglob("*samples*")), [*rows, other])
    with pytest.raises(ValueError, match=rf"line {len(rows) + 1}: a second, different score for 4 frames"):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"line 2 is not JSON"),
        ("[1]", r"line 2: expected a JSON object, got list"),
        ({"num_frames": "x"}, r"num_frames must be .*, got 'x'"),
        ({"num_frames": 0}, r"num_frames must be .*, got 0"),
        ({"num_frames": 10**30}, r"num_frames must be .*, got 10{30}"),
        ({"depth_percent": 101}, r"depth_percent must be .*, got 101"),
        ({"depth_percent": None}, r"depth_percent must be .*, got None"),
        ({"correct": "yes"}, r"correct must be .*, got 'yes'"),
        ({"predicted_ids": ["x"]}, "are no numbers"),
        ({"predicted_ids": 7}, "are no numbers"),
        ({"answer_logprobs": [None]}, "are no numbers"),
        ({"needle_index": "first"}, "are no numbers"),
        ({"needle_index": 10**30}, "are no numbers"),
    ],
)
def test_a_faulty_line_is_named_with_its_number(tmp_path: Path, line: str | dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / f"{DATE}_samples_vniah.jsonl", sample_rows())
    lines = path.read_text().splitlines()
    if isinstance(line, dict):
        line = json.dumps({"a": {"num_frames": 4, "depth_percent": 0, "needle": "a", "correct": True, **line}})
    lines[1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_run(path)
    assert f"{path}, line 2" in str(caught.value)


def test_what_is_not_a_run_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run"):
        read_run(tmp_path / "absent")
    with pytest.raises(
        FileNotFoundError, match=r"looked for \*_results.json and \*_samples_\*.jsonl.* or journal.jsonl"
    ):
        read_run(tmp_path)
    video = tmp_path / "film.mp4"
    video.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"cannot read a run from film.mp4"):
        read_run(video)
    broken = tmp_path / f"{DATE}_results.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_run(tmp_path)
    broken.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        read_run(tmp_path)


def test_unnamed_cells_average_to_their_scores() -> None:
    cells = cells_from_scores({(4, 0): 0.6, (4, None): 0.2}, 5)
    assert grid_scores(cells) == {(4, 0): pytest.approx(0.6)}
    assert control_mean(cells) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"0.5 at 4 frames, depth 0 is no mean over 5 needles"):
        cells_from_scores({(4, 0): 0.5}, 5)


def test_a_text_grid_without_samples_is_read_by_what_the_run_says_of_itself(tmp_path: Path) -> None:
    """One control a length and several samples a cell: the number of documents alone tells nothing."""
    grid = {"1000": {"0": 0.5, "100": 1.0, "control": 0.0}, "2000": {"0": 0.0, "100": 1.0, "control": 1.0}}
    told = {"lengths": "1K,2K", "depths": "0,100", "per_place": 2, "cells": 8, "controls": 2, "warnings": []}
    whole = {
        "results": {"text_niah_0": {"text_niah_grid,none": grid, "text_niah_provenance,none": told}},
        "n-samples": {"text_niah_0": {"effective": 10}},
        "model_name": "m",
    }
    path = tmp_path / f"{DATE}_results.json"
    path.write_text(json.dumps(whole))
    run = read_run(path)
    assert grid_scores(run.cells) == {(1000, 0): 0.5, (1000, 100): 1.0, (2000, 0): 0.0, (2000, 100): 1.0}
    assert control_mean(run.cells) == 0.5 and not run.missing() and "text_niah_provenance/cells" not in run.metrics
    # A part of it: over how many samples each mean was taken is not known, and nothing is made up.
    path.write_text(json.dumps({**whole, "n-samples": {"text_niah_0": {"effective": 7}}}))
    with pytest.raises(ValueError, match="--log_samples"):
        read_run(path)


def test_what_a_run_was_to_measure_decides_what_is_missing(tmp_path: Path) -> None:
    """A limited run is a whole grid of fewer cells by its own cells alone."""
    rows = sample_rows(frames=(4,), depths=(0,))
    whole = results_of(rows, model="m")
    whole["results"]["vniah"]["vniah_provenance,none"] = {
        "frames": "4,8", "depths": "0,50", "per_place": 2, "warnings": ["needles were replaced"],
    }  # fmt: skip
    write_lines(tmp_path / f"{DATE}_samples_vniah.jsonl", rows)
    (tmp_path / f"{DATE}_results.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"2 of 8 cells are scored.*8 frames|2 of 8 cells are scored.*depth 50"):
        read_run(tmp_path)
    part = read_run(tmp_path, partial=True)
    assert sum(part.missing().values()) == 6 and part.settings["task"]["warnings"] == ["needles were replaced"]


ESCAPE = "\x1b]0;owned\x07\x1b[31m\nnext"


def test_names_of_strangers_are_printable_wherever_a_run_is_read(tmp_path: Path) -> None:
    run = read_run(
        write_evaluation(tmp_path / "out", sample_rows(), model="org/net" + ESCAPE.replace("/", "")), "given" + ESCAPE
    )
    assert "\x1b" not in run.name + run.model + run.task and "\n" not in run.name + run.model
    whole = results_of(sample_rows(), model="m" + ESCAPE, model_args=f"pretrained={ESCAPE}")
    whole["configs"]["vniah"]["metadata"]["haystack_name"] = ESCAPE
    path = tmp_path / "other" / "m" / "2026_results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(whole))
    (found,) = read_runs(path)
    haystack = found.settings["task"]["haystack_name"]
    assert haystack.isprintable() and haystack.startswith("\\x1b") and haystack.endswith("\\nnext")
    assert found.settings["model"]["model_args"].isprintable() and found.name.isprintable()


@pytest.mark.parametrize("results", [None, 7, True, [["a"]], "abc"])
def test_results_that_are_no_object_are_refused_by_name(tmp_path: Path, results: Any) -> None:
    path = tmp_path / "m" / "2026_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": results}))
    with pytest.raises(ValueError, match=r"2026_results\.json: expected 'results' to be an object of tasks, got "):
        read_runs(path)


@pytest.mark.parametrize(
    "change",
    [
        {"n-samples": {"vniah": {"effective": 10**12}}},
        {"configs": {"vniah": {"metadata": {"cells": 10**12, "controls": 0, "per_place": 10**12}}}},
        {"configs": {"vniah": {"metadata": {"cells": 36, "controls": 0, "per_place": 10**9}}}},
        {"configs": {"vniah": {"metadata": {"cells": -(10**12), "controls": 10**12 + 36, "per_place": 1}}}},
        {"configs": {"vniah": {"metadata": {"frames": "1-1000000000000000000000000", "depths": "0", "per_place": 1}}}},
        {"configs": {"vniah": {"metadata": {"frames": "1-90000", "depths": "0-90000", "per_place": 1}}}},
        {"results": {"vniah": {"vniah_grid,none": {"four": {"0": 1.0}}}}},
        {"results": {"vniah": {"vniah_grid,none": {"4": {"0": [1]}}}}},
        {"results": {"vniah": {"vniah_grid,none": {"4": {"0": 1e308}}}}},
        {"results": []},
        {"results": None},
        {"results": True},
        {"results": [["a"]]},
        {"results": "abc"},
        {"results": {"vniah": 7}},
        {"n-samples": 7, "configs": "x", "config": [], "versions": None},
    ],
)
def test_a_hostile_results_file_ends_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    """It is read or refused, at once and in little memory; nothing else is raised."""
    path = tmp_path / "m" / "2026_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**results_of(sample_rows(), model="m"), **change}))
    try:
        for run in read_runs(path):
            run.missing()
            assert len(run.cells) <= 1_000_000
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(("key", "unit"), [("num_frames", "frames"), ("context_length", "tokens")])
def test_the_unit_is_the_runs_own_whatever_its_task_is_called(tmp_path: Path, key: str, unit: str) -> None:
    cell = {key: 4, "depth_percent": 0, "needle": "a", "correct": True}
    for task in ("my_needles", "text_niah_mine", "vniah"):
        path = write_lines(tmp_path / f"x_samples_{task}.jsonl", [{"acc": cell}])
        assert [run.unit for run in read_runs(path)] == [unit]
    told = {"frames": "4"} if unit == "frames" else {"lengths": "4"}
    family = "vniah" if unit == "frames" else "text_niah"
    whole = {
        "results": {"mine": {f"{family}_grid,none": {"4": {"0": 1.0}}, f"{family}_provenance,none": told}},
        "n-samples": {"mine": {"effective": 1}},
        "config": {"model": "m"},
    }
    path = tmp_path / "m" / "2026_results.json"
    path.parent.mkdir()
    for part in (told, {}):
        whole["results"]["mine"][f"{family}_provenance,none"] = part
        path.write_text(json.dumps(whole))
        assert [run.unit for run in read_runs(path)] == [unit]


# Scores as pure functions.


def cell(frames: int, depth: int | None, correct: bool, needle: str = "n") -> dict[str, object]:
    return {"num_frames": frames, "depth_percent": depth, "needle": needle, "correct": correct}


@pytest.mark.parametrize(
    ("predicted", "answer", "right"),
    [([5], [5], True), ([5, 6], [5, 6], True), ([5, 7], [5, 6], False), ([], [], False)],
)
def test_every_answer_token_must_be_the_argmax(predicted: list[int], answer: list[int], right: bool) -> None:
    assert scoring.teacher_forced_match(predicted, answer) is right


def test_a_scored_pair_survives_what_lmms_eval_does_to_it() -> None:
    pair = scoring.ScoredPair(-0.5, True, {"predicted_ids": [1, 2], "predicted": 'a "quoted" ) word'})
    assert pair == (-0.5, True)
    for form in (pair, str(pair), [str(pair)], pickle.loads(pickle.dumps(pair))):
        assert scoring.parse_loglikelihood(form) == (-0.5, True)
        assert scoring.parse_details(form)["predicted_ids"] == [1, 2]
        assert scoring.parse_details(form)["predicted"] == 'a "quoted" ) word'


def test_a_foreign_pair_has_no_details() -> None:
    assert scoring.parse_loglikelihood("(-1.25, False)") == (-1.25, False)
    assert scoring.parse_details("(-1.25, False)") == {}
    assert scoring.parse_details((-1.25, False)) == {}
    with pytest.raises(ValueError, match="pair"):
        scoring.parse_loglikelihood("nonsense")
    with pytest.raises(ValueError, match="finite"):
        scoring.ScoredPair(float("-inf"), False)


def test_aggregation_leaves_controls_out() -> None:
    rows = [cell(4, 0, True), cell(4, 50, False), cell(8, 0, True), cell(8, 50, True), cell(8, None, True)]
    cells = cells_table(rows)
    assert scoring.grid_scores(cells) == {(4, 0): 1.0, (4, 50): 0.0, (8, 0): 1.0, (8, 50): 1.0}
    assert scoring.column_means(cells) == {4: 0.5, 8: 1.0}
    assert scoring.grid_mean(cells) == 0.75
    assert scoring.control_mean(cells) == 1.0
    assert scoring.control_mean(cells[:4]) is None


@pytest.mark.parametrize(("scores", "frames"), [((10, 9, 9), 12), ((10, 8, 10), 4), ((8, 10, 10), 0), ((9, 9, 8), 8)])
def test_effective_frames_end_at_the_first_weak_column(scores: tuple[int, ...], frames: int) -> None:
    cells = cells_table(
        cell(column, 0, number < right, str(number))
        for column, right in zip((4, 8, 12), scores, strict=True)
        for number in range(10)
    )
    assert scoring.effective_frames(cells) == frames
