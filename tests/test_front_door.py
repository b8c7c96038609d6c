"""``vniah run`` and ``vniah.evaluate``: without lmms-eval, the same numbers, true exit codes, nothing lost."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import output_of
from lmms_requests import cells_of, evaluated
from typer.testing import CliRunner

import vniah
from vniah.cli import app
from vniah.runs.measure import CallableModel, CellError, code_of, write_results
from vniah.runs.read import read_run, read_runs

SMALL = {"frames": "4,8", "depths": "0,100", "needles": "icons:0:2", "haystack": "synthetic:0:16"}
FLAGS = [part for key, value in SMALL.items() for part in (f"--{key}", value)]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in [key for key in os.environ if key.startswith(("VNIAH_", "TEXT_NIAH_")) and key != "VNIAH_SHARED"]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


run = functools.partial(output_of, "run")


def scores(path: Path) -> list[tuple[Any, ...]]:
    """Every cell with its ids and log-probabilities, to the bit."""
    return sorted(
        (cell.num_frames, cell.depth_percent, cell.control, cell.needle, cell.predicted_ids, cell.answer_logprobs)
        for cell in read_run(path).cells.fillna({"depth_percent": -1}).itertuples()
    )


def test_lmms_eval_is_never_imported_and_the_grid_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what runs; what files import at their top is in tests/test_architecture.py."""
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    said = run("vniah_nano", "--model", "nano", *FLAGS, "-o", str(tmp_path / "out"))
    folder = tmp_path / "out" / "nano"
    assert len(list(folder.glob("*_results.json"))) == len(list(folder.glob("*_samples_vniah_nano.jsonl"))) == 1
    assert list(folder.glob("*.png")) and "next: vniah report" in said
    told = read_run(tmp_path / "out").settings["task"]
    assert (
        told["cells"] == 8 and told["controls"] == 4 and told["per_place"] == 2 and told["scoring"] == "teacher-forced"
    )
    assert told["haystack_fingerprint"] and told["needles_fingerprint"] and "warnings" not in told


def test_numbers_are_lmms_evals_to_the_bit_on_the_parity_cells(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lmms_eval")
    parity = shared / "parity"
    inputs = {"haystack": str(parity / "niah" / "haystack"), "needles": str(parity / "niah" / "needles")}
    for key, value in {"FRAMES": "4,8", "DEPTHS": "0,50,100", **inputs}.items():
        monkeypatch.setenv(f"VNIAH_{key.upper()}", value)
    model_args = {"dtype": "float32", "device": "cpu", "journal": "none"}
    checkpoint = str(parity / "LongVA-tiny-unires")
    ours = vniah.evaluate(checkpoint, "vniah", output=tmp_path / "ours", **model_args)
    given = ",".join(f"{key}={value}" for key, value in {"pretrained": checkpoint, **model_args}.items())
    theirs = evaluated("longva_ring", given, "vniah")
    samples = cells_of(theirs, "vniah")
    assert len(samples) == len(ours.cells) == 16
    for cell, sample in zip(ours.cells.itertuples(), samples, strict=True):
        assert list(cell.predicted_ids) == sample["predicted_ids"]
        assert list(cell.answer_logprobs) == sample["answer_logprobs"]
        assert cell.correct == sample["correct"]
    metrics = theirs["results"]["vniah"]
    assert ours.metrics["vniah_acc"] == metrics["vniah_acc,none"]
    # Both say the same of what was measured.
    told = dict(metrics["vniah_provenance,none"])
    model, versions = told.pop("model"), told.pop("versions")
    assert told.pop("warnings") == [] and {key: ours.settings["task"][key] for key in told} == told
    assert model["fingerprint"] and model.items() <= ours.settings["model"].items()
    assert versions["torch"] and versions.items() <= ours.settings["versions"].items()


def test_evaluate_gives_tables_and_pictures(tmp_path: Path) -> None:
    found = vniah.evaluate("nano", "vniah_nano", **{**SMALL, "frames": [4, 8]})
    assert len(found.cells) == 12 and list(found.table().shape) == [2, 2] and "files" not in found.settings
    assert found.cells["depth_percent"].isna().sum() == 4
    assert found.heatmap(tmp_path / "a.png").stat().st_size > 5000
    assert found.report(tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="cannot tell the format"):
        found.heatmap(tmp_path / "a.txt")


def test_a_limited_run_says_what_is_missing(tmp_path: Path) -> None:
    run("vniah_nano", "--model", "nano", *FLAGS, "-o", str(tmp_path / "out"), "--limit", "5")
    with pytest.raises(ValueError, match=r"4 of 8 cells are scored.*--partial"):
        read_run(tmp_path / "out")
    part = read_run(tmp_path / "out", partial=True)
    assert part.missing() == {(8, 0): 2, (8, 100): 2} and part.table().isna().sum().sum() == 2
    with pytest.raises(ValueError, match="--partial"):
        part.heatmap(tmp_path / "a.png")


def test_an_interrupted_run_goes_on_and_its_journal_says_what_it_was_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longva_model.engine.engine import TreeEngine

    whole = tmp_path / "whole"
    run("vniah_nano", "--model", "nano", *FLAGS, "--model-args", "journal=none", "-o", str(whole))
    original, left = TreeEngine._finish, [3]

    def finish(self: Any, *given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *given)

    monkeypatch.setattr(TreeEngine, "_finish", finish)
    journal = tmp_path / "j" / "journal.jsonl"
    arguments = (
        "vniah_nano",
        "--model",
        "nano",
        *FLAGS,
        "--model-args",
        f"journal={journal}",
        "-o",
        str(tmp_path / "out"),
    )
    stopped = CliRunner().invoke(app, ["run", *arguments])
    assert stopped.exit_code == 130 and "the same command" in stopped.output
    with pytest.raises(ValueError, match=r"\d of 8 cells are scored"):
        read_run(journal)
    part = read_run(journal, partial=True)
    assert part.intended is not None and part.settings["model"]["fingerprint"]
    assert part.settings["task"]["needles_name"].startswith("icons:0:2")
    monkeypatch.setattr(TreeEngine, "_finish", original)
    run(*arguments)
    assert scores(tmp_path / "out") == scores(whole)
    assert read_run(journal).is_grid


def test_a_function_is_a_model(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def red(mp4: str, question: str) -> str:
        asked.append((mp4, question))
        return "red"

    found = vniah.evaluate(red, "vniah_generate", **SMALL, output=tmp_path)
    assert len(found.cells) == 12 and found.model == "red" and set(found.cells["predicted"]) == {"red"}
    assert all(Path(mp4).suffix == ".mp4" for mp4, _ in asked) and len({mp4 for mp4, _ in asked}) == 8 + 2
    assert found.settings["task"]["scoring"] == "generated" and found.settings["task"]["needles_fingerprint"]
    text = vniah.evaluate(lambda path, prompt: str(path), "text_niah_generate", lengths="200", depths="0", samples=1)
    assert set(text.cells["predicted"]) == {"None"}


def test_a_function_that_fails_keeps_what_was_scored_and_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []

    def model(mp4: str, question: str) -> Any:
        calls.append(mp4)
        if len(calls) == 4:
            raise RuntimeError("server gone")
        return "red"

    with pytest.raises(CellError, match=r"vniah_generate, num_frames 4.*RuntimeError: server gone; the 3 of 12 cells"):
        vniah.evaluate(model, "vniah_generate", **SMALL, output=tmp_path)
    (part,) = read_runs(tmp_path)
    assert len(part.cells) == 3 and sum(part.missing().values()) == 5
    found = vniah.evaluate(model, "vniah_generate", **SMALL, output=tmp_path)
    assert len(found.cells) == 12 and len(calls) == 4 + 9, "what was answered is not asked again"
    assert not list(tmp_path.rglob("journal*"))
    vniah.evaluate(model, "vniah_generate", **SMALL, output=tmp_path)
    assert len(calls) == 4 + 9 + 12, "a run that ended is asked anew"


def test_a_function_loses_no_answer_to_another_grid_or_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vniah.runs import measure

    asked: list[str] = []

    def model(mp4: str, question: str) -> str:
        asked.append(mp4)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return "red"

    grid = {**SMALL, "frames": "4"}
    with pytest.raises(KeyboardInterrupt, match=r"what was answered is kept in .*journal"):
        vniah.evaluate(model, "vniah_generate", **grid, output=tmp_path)
    vniah.evaluate(model, "vniah_generate", **{**grid, "frames": "5"}, output=tmp_path)
    assert len(asked) == 3 + 6

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "write_results", full)
        with pytest.raises(OSError, match="No space left"):
            vniah.evaluate(model, "vniah_generate", **grid, output=tmp_path)
    assert len(asked) == 3 + 6 + 4, "two of six were answered before"
    assert len(vniah.evaluate(model, "vniah_generate", **grid, output=tmp_path).cells) == 6
    assert len(asked) == 3 + 6 + 4, "nothing is asked again"
    # Another function of the same name has a journal of its own.
    first, second = (lambda mp4, question: "red"), (lambda mp4, question: "blue")
    assert CallableModel(first).name == CallableModel(second).name and code_of(first) != code_of(second)


class Fixed:
    """A model that answers with what it was made with."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, mp4: Any, question: str) -> str:
        return self.text


def _bound(text: str) -> Any:
    def model(mp4: Any, question: str) -> str:
        return text

    return model


def _wrapped(model: Any) -> Any:
    @functools.wraps(model)
    def inner(*given: Any) -> Any:
        return model(*given)

    return inner


def _nested(number: int) -> Any:
    if number:

        def model(mp4: Any, question: str) -> str:
            def ask() -> str:
                return "blue"

            return ask()
    else:

        def model(mp4: Any, question: str) -> str:
            def ask() -> str:
                return "red"

            return ask()

    return model


def _answer(text: str, mp4: Any, question: str) -> str:
    return text


@pytest.mark.parametrize(
    "make",
    [
        Fixed,
        _bound,
        lambda text: Fixed(text).__call__,
        lambda text: functools.partial(_answer, text),
        lambda text: functools.partial(_answer, text=text),
        lambda text: _wrapped(_bound(text)),
        lambda text: _nested(text == "red"),
        lambda text: eval(f"lambda mp4, question, answer={text!r}: answer"),
        lambda text: eval(f"lambda mp4, question, *, answer=({text!r}, 1): answer"),
    ],
)
def test_a_changed_function_does_not_take_the_answers_of_the_one_before(make: Any) -> None:
    assert code_of(make("red")) == code_of(make("red")) != code_of(make("blue"))


def test_what_a_function_fills_while_it_runs_does_not_change_it() -> None:
    asked: list[str] = []

    def model(mp4: Any, question: str, seen: dict[str, int] = {}) -> str:  # noqa: B006 (as users write it)
        asked.append(question)
        seen[question] = 1
        return "red"

    before = code_of(model)
    model(None, "?")
    assert code_of(model) == before


def test_a_journal_of_two_films_is_no_ones_grid(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"frames": "4", "needles": "icons:0:2", "journal": str(tmp_path / "j.jsonl")}
    vniah.evaluate("nano", "vniah_nano", depths="0,100", haystack="synthetic:0", limit=2, **grid)
    vniah.evaluate("nano", "vniah_nano", depths="100", haystack="synthetic:7", **grid)
    with pytest.raises(ValueError, match="measured different things"):
        read_run(tmp_path / "j.jsonl", partial=True)


def test_lines_of_another_films_journal_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    grid = {**SMALL, "frames": "4"}
    lines = []
    for film in (0, 1):
        path = tmp_path / f"{film}.jsonl"
        vniah.evaluate("nano", "vniah_nano", **{**grid, "haystack": f"synthetic:{film}:16"}, journal=str(path))
        lines.append(path.read_bytes().splitlines(keepends=True))
    mixed = tmp_path / "mixed.jsonl"
    for parts in ([*lines[0][:3], *lines[1][3:]], [lines[1][0], *lines[0][1:]]):
        mixed.write_bytes(b"".join(parts))
        with pytest.raises(ValueError, match="measured different things"):
            read_run(mixed, partial=True)


def test_a_text_that_changes_between_runs_is_read_anew(tmp_path: Path) -> None:
    prompts: list[str] = []
    for word in ("apple", "melon"):
        (tmp_path / "a.txt").write_text(f"The old {word} fell. " * 500)
        vniah.evaluate(
            lambda path, prompt: prompts.append(prompt) or "1",  # type: ignore[func-returns-value]
            "text_niah_generate", lengths="200", depths="0", samples=1, haystack=str(tmp_path),
        )  # fmt: skip
    assert "apple" in prompts[0] and "melon" in prompts[-1] and "apple" not in prompts[-1]


def test_controls_that_are_missing_make_a_run_partial(tmp_path: Path) -> None:
    found = vniah.evaluate("nano", "vniah_nano", **{**SMALL, "frames": "4"}, limit=4)
    assert not found.missing()
    with pytest.raises(ValueError, match="0 of 2 controls are scored"):
        found.heatmap(tmp_path / "a.png")


def test_of_several_runs_in_a_folder_the_newest_is_read_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        vniah.evaluate("nano", "vniah_nano", **{**SMALL, "frames": "4", "needles": f"icons:{seed}:1"}, output=tmp_path)
    assert vniah.load(tmp_path).settings["task"]["needles_name"].startswith("icons:1:1")
    assert "holds 2 evaluations; the newest is read" in capsys.readouterr().err


def test_files_are_dated_by_lmms_evals_clock(tmp_path: Path) -> None:
    """In one folder the newest of both must be the newest: lmms-eval takes the time of Singapore everywhere."""
    utils = pytest.importorskip("lmms_eval.utils")
    before = utils.get_datetime_str(timezone="Asia/Singapore")
    ours = write_results(tmp_path, {}, {}).name[: len(before)]
    assert before <= ours <= utils.get_datetime_str(timezone="Asia/Singapore")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": None}, "a model is a name or a function, got None"),
        ({"task": ["vniah_nano"]}, "the name of one needle task"),
        ({"task": "text_niah"}, "text_niah stands for text_niah_0, text_niah_3, text_niah_5; name one"),
        ({"limit": 1.5}, "limit must be a whole number"),
        ({"name": 5}, "name must be a text"),
        ({"output": ""}, "output is empty"),
        ({"frames": b"4"}, "cannot read b'4'"),
        ({"frames": "4_0"}, "cannot read '4_0'"),
        ({"needles": 0}, "no needle set '0'"),
        ({"needles": "icons:0:99999999999"}, "count from 1 to 100,000"),
        ({"model": "nan"}, "no model 'nan'; did you mean 'nano'"),
        ({"model": len, "frame": "4"}, "frame is no input.*did you mean 'frames'"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_asked(given: dict[str, Any], said: str) -> None:
    task = given.get("task", "vniah_nano")
    inputs = {} if task == "text_niah" else SMALL
    with pytest.raises((ValueError, OSError), match=said):
        vniah.evaluate(**{"model": "nano", "task": task, **inputs, **given})


def test_a_variable_that_is_not_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah import notices
    from vniah.text.settings import TextSettings
    from vniah.visual.settings import Settings

    for settings, name, meant in ((Settings, "VNIAH_FRAME", "FRAMES"), (TextSettings, "TEXT_NIAH_LENGHTS", "LENGTHS")):
        notices.forget()
        for one in (name, "VNIAH_SHARED", "VNIAH_JUDGE_URL", "VNIAH_CACHE_GB", "TEXT_NIAH_SEED"):
            monkeypatch.setenv(one, "1")
        settings.read()
        (said,) = notices.recorded()
        assert f"{name} is not read; did you mean '{settings.prefix}{meant}'" in said


def test_two_results_of_one_second_are_two(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda number: write_results(tmp_path, {"number": number}, {"t": []}), range(8)))
    assert len(set(paths)) == 8
    assert sorted(json.loads(path.read_text())["number"] for path in paths) == list(range(8))
    assert not list(tmp_path.glob(".*"))


def test_half_a_character_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = vniah.evaluate(lambda *_: "red \ud83d", "vniah_generate", **SMALL, output=tmp_path, name="m\ud800")
    assert set(found.cells["predicted"]) == {"red ?"} and "half a character" in capsys.readouterr().err
    assert set(vniah.load(tmp_path).cells["predicted"]) == {"red ?"}

    def fails(*_: object) -> str:
        raise ValueError("\ud83d")

    with pytest.raises(CellError) as caught:
        vniah.evaluate(fails, "vniah_generate", **SMALL, output=tmp_path)
    assert str(caught.value).encode()


def test_a_function_that_returns_no_text_is_named() -> None:
    with pytest.raises(CellError, match=r"returned int at the cell vniah_generate, num_frames 4, needle 0000"):
        vniah.evaluate(lambda mp4, question: 7, "vniah_generate", **SMALL)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="use vniah_generate"):
        vniah.evaluate(lambda mp4, question: "red", "vniah", **SMALL)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": "vnia"}, "no task 'vnia'; did you mean 'vniah'"),
        ({"task": "videomme_longva"}, "is no needle task.*lmms-eval --tasks videomme_longva"),
        ({"--model": "no-such/model"}, "no-such/model"),
        ({"--model": "nanno"}, "nanno"),
        ({"--haystack": "nope.mp4"}, "nope.mp4"),
        ({"--needles": "nope"}, "no needle set 'nope'"),
        ({"--frames": "17"}, "has 16 frames and 17 are needed"),
        ({"--frames": ""}, "frames is empty"),
        ({"--frames": "1-40000", "--depths": "0-100", "--haystack": "synthetic"}, "8,160,000 cells, and at most"),
        ({"--decoder": "vlc"}, "no decoder 'vlc'"),
        ({"--lengths": "1K"}, "no lengths is taken"),
        ({"--model-args": "chunk_token=1"}, "did you mean 'chunk_tokens'"),
        ({"--model-args": "device=tpu9"}, "device='tpu9'"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_weight_is_read(
    changed: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longva_model.run.runner import Runner

    monkeypatch.setattr(Runner, "load", classmethod(lambda *_: pytest.fail("the model was loaded")))
    changed = dict(changed)
    task = changed.pop("task", "vniah_nano")
    flags = {**{f"--{key}": value for key, value in SMALL.items()}, "--model": "nano", **changed}
    with pytest.raises((ValueError, OSError), match=said):
        run(task, *(part for pair in flags.items() for part in pair), "-o", str(tmp_path / "out"))


def test_a_failed_run_ends_with_a_line_and_a_true_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["--haystack", "nope.mp4", "-o", "out"], "nope.mp4"),
        (["-o", "file"], "the output file is a file"),
        (["-o", "file/out"], "cannot write results"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vniah", "run", "vniah_nano", "--model", "nano", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_model_larger_than_the_device_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longva_model.run import processes as work

    monkeypatch.setattr(work, "total_bytes", lambda device: 3_000_000)
    with pytest.raises(ValueError, match=r"nano does not fit cpu: weights of .* GB .* fewer frames") as told:
        run("vniah_nano", "--model", "nano", *FLAGS, "-o", str(tmp_path / "out"))
    assert "kv=host" not in str(told.value), "which is the CPU's own memory"


def test_needles_that_replace_the_papers_are_said_and_written_down(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = vniah.evaluate("nano", "vniah", frames=2, depths=0)
    (said,) = [text for text in found.settings["task"]["warnings"] if "built-in" in text]
    assert said in capfd.readouterr().err and found.settings["task"]["needles_name"] == "builtin"


@pytest.mark.slow  # lmms-eval's way to the same is tests/longva_model/test_torchrun.py
def test_two_ranks_with_the_ring_write_one_run(tmp_path: Path) -> None:
    one = tmp_path / "one"
    run("vniah_nano", "--model", "nano", *FLAGS, "--model-args", "journal=none", "-o", str(one))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    command += ["-m", "vniah", "run", "vniah_nano", "--model", "nano", *FLAGS, "-o", str(tmp_path / "two")]
    command += ["--model-args", "parallel=ring,device=cpu,journal=none"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "two").rglob("*_results.json"))) == 1
    for (*place, ids, logprobs), (*other, other_ids, other_logprobs) in zip(
        scores(one), scores(tmp_path / "two"), strict=True
    ):
        assert (place, ids) == (other, other_ids) and logprobs == pytest.approx(other_logprobs, abs=1e-4)


def test_results_files_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    run("vniah_nano", "text_niah_generate", "--model", "nano", *FLAGS[:4], "--needles", "icons:0:1", "--lengths", "120",
        "--samples", "1", "-o", str(tmp_path), "--model-args", "chunk_tokens=512")  # fmt: skip
    (path,) = tmp_path.rglob("*_results.json")
    whole = json.loads(path.read_text())
    assert set(whole["results"]) == {"vniah_nano", "text_niah_generate"}
    assert (
        whole["config"]["model_args"] == "pretrained=nano,chunk_tokens=512"
        and whole["results"]["vniah_nano"]["vniah_provenance,none"]["model"]["fingerprint"]
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frame": "4"}, "frame is no input and no model argument; did you mean 'frames'?"),
        ({"haystak": "x"}, "did you mean 'haystack'?"),
        ({"limt": 1}, "did you mean 'limit'?"),
        ({"chunk_token": 1}, "did you mean 'chunk_tokens'?"),
        ({"qqq": 1}, "inputs are frames, depths, .*; model arguments are .*chunk_tokens"),
        ({"frames": "200-3000"}, r"'200-3000' are 2,801 columns.* such as '200-3000:200'"),
    ],
)
def test_a_mistyped_option_of_evaluate_names_the_nearest(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vniah.evaluate("nano", "vniah_nano", **{**SMALL, **given})


def test_a_file_as_model_and_a_forgotten_step_are_one_line(tmp_path: Path) -> None:
    film = tmp_path / "c.mp4"
    film.touch()
    command = ["run", "vniah_nano", "--model", str(film), "-o", str(tmp_path / "out"), *FLAGS]
    result = CliRunner().invoke(app, command)
    assert result.exit_code and "c.mp4 is a file; a model is a folder" in str(result.exception)
