"""A real server: `transformers serve` with a tiny Qwen2.5-VL, on which the paper's score is that of teacher forcing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vniah

GRID: dict[str, Any] = {"frames": "2,4", "depths": "0,50,100", "haystack": "synthetic:0:8:56x56"}
CELLS = 16


def write_needles(folder: Path, answers: list[str]) -> Path:
    from vniah.needles import open_needles

    folder.mkdir(exist_ok=True)
    rows = []
    for number, (needle, answer) in enumerate(zip(open_needles("icons:0:2"), answers, strict=True)):
        needle.picture.image.save(folder / f"{number}.png")
        rows.append({"id": str(number), "file": f"{number}.png", "question": needle.question, "answer": answer})
    (folder / "needles.json").write_text(json.dumps(rows))
    return folder


def write_model(folder: Path) -> Path:
    """One whose answers hang on what it sees."""
    import torch
    from tiny_hosts import write_tiny_qwen2_5_vl
    from transformers import AutoModelForImageTextToText

    folder.mkdir()
    write_tiny_qwen2_5_vl(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "merger" in name:
                weight.mul_(20)
            elif "proj" in name and "visual" not in name:
                weight.mul_(8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    folder = write_model(tmp_path_factory.mktemp("served") / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "the server ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_score_of_a_server_is_that_of_teacher_forcing(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every cell, in a run that was killed and went on."""
    for key in [key for key in os.environ if key.startswith("VNIAH_") and key != "VNIAH_SHARED"]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder, url = served
    model = f"openai:{folder}"
    # What it says of each needle most often is what is asked for: right of some cells, and wrong of others.
    first = vniah.evaluate(model, "vniah", base_url=url, needles=write_needles(tmp_path / "ask", ["???"] * 2), **GRID)
    answers = [
        Counter(str(text)[:2] for text in first.cells.loc[first.cells["needle"] == needle, "predicted"]).most_common()[
            0
        ][0]
        for needle in first.needles
    ]
    needles = write_needles(tmp_path / "needles", answers)
    given = [part for key, value in {**GRID, "needles": needles}.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "vniah", "run", "vniah", "--model", model, "--base-url", url, *given]
    command += ["--model-args", f"concurrency=1,answer_tokenizer={folder}", "-o", str(tmp_path / "out")]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = 0
    while lines < 4 and run.poll() is None:  # one says what is measured
        time.sleep(0.05)
        lines = sum(file.read_bytes().count(b"\n") for file in (tmp_path / "out").rglob("journal-*.jsonl"))
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = sum(file.read_bytes().count(b"\n") for file in (tmp_path / "out").rglob("journal-*.jsonl")) - 1
    assert 3 <= kept < CELLS
    found = vniah.evaluate(
        model,
        "vniah",
        base_url=url,
        concurrency=1,
        answer_tokenizer=str(folder),
        needles=needles,
        output=tmp_path / "out",
        **GRID,
    )
    # Three more of the check.
    assert found.settings["model"]["requests"] == CELLS - kept + 3
    tree = vniah.evaluate(
        str(folder),
        "vniah",
        presentation="images",
        dtype="float32",
        device="cpu",
        journal="none",
        needles=needles,
        **GRID,
    )
    theirs, ours = ({_place(cell): cell.correct for cell in one.cells.itertuples()} for one in (found, tree))
    assert len(ours) == CELLS and theirs == ours and set(ours.values()) == {True, False}
    assert found.settings["model"]["compared_by"] == {"text of as many tokens": CELLS}


@pytest.mark.slow
def test_lmms_eval_asks_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_requests import cells_of, evaluated
    from served_server import ServedServer

    from vniah.needles import open_needles

    grid = {**GRID, "needles": "icons:0:2", "cache": str(tmp_path / "cache"), "presentation": "images"}
    for key, value in grid.items():
        monkeypatch.setenv(f"VNIAH_{key.upper()}", value)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    needles = open_needles("icons:0:2")

    def answer(parts: list[dict[str, Any]]) -> str:
        question = parts[-1]["text"].strip()
        right = next(needle.answer for needle in needles if needle.question.strip() == question)
        return f"{right}." if len(parts) % 2 else "no idea"

    def correct(cells: list[dict[str, Any]]) -> dict[tuple[Any, ...], bool]:
        return {(one["num_frames"], str(one["depth_percent"]), one["needle"]): one["correct"] for one in cells}

    with ServedServer(answer) as server:
        told = evaluated("served", f"model=tiny,base_url={server.url}", "vniah")
        run = vniah.evaluate("openai:tiny", "vniah", base_url=server.url)
        ours = {(one.num_frames, str(one.depth_percent), one.needle): one.correct for one in run.cells.itertuples()}
        theirs = correct(cells_of(told, "vniah"))
        assert len(ours) == CELLS and set(ours.values()) == {True, False}
        assert {
            (one, depth.replace("None", "<NA>"), needle): right for (one, depth, needle), right in theirs.items()
        } == ours
        free = correct(
            cells_of(evaluated("served", f"model=tiny,base_url={server.url}", "vniah_generate"), "vniah_generate")
        )
        assert len(free) == CELLS and all(free.values())  # an even number of frames, and the question
        told = evaluated("served", f"model=tiny,base_url={server.url}", "vniah_generate")
        assert told["results"]["vniah_generate"]["vniah_exact,none"] == 1.0


def _place(cell: Any) -> tuple[Any, ...]:
    return cell.num_frames, str(cell.depth_percent), cell.needle
