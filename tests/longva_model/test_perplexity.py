"""Perplexity through the engine equals transformers' own loss; windows cover what they should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_backends as tiny
import torch
from typer.testing import CliRunner

from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.perplexity import Window, measure, windows
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.text.haystack import read_documents

BACKEND = tiny.TinyBackend()
IDS = np.random.default_rng(0).integers(1, tiny.VOCAB, 150).tolist()


def engine(chunk_tokens: int) -> TreeEngine:
    return TreeEngine(BACKEND, FrameEmbeddings(BACKEND), EngineOptions(chunk_tokens=chunk_tokens))


def plain_nll(ids: list[int], scored_from: int) -> list[float]:
    with torch.inference_mode():
        logits = BACKEND.model(input_ids=torch.tensor([ids])).logits[0].float()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return losses[scored_from - 1 :].tolist()


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 512])
@pytest.mark.parametrize("stride", [None, 16, 50])
def test_perplexity_equals_the_models_own_loss(chunk_tokens: int, stride: int | None) -> None:
    found = measure(engine(chunk_tokens), [IDS], 50, stride=stride)
    losses: list[float] = []
    number = 0
    for window in windows(len(IDS), 50, stride):
        losses += plain_nll(IDS[window.start : window.stop], window.scored_from - window.start)
        number += 1
    assert (found.num_tokens, found.num_windows) == (len(losses), number)
    assert found.nll == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found.value == pytest.approx(math.exp(found.nll))


def test_windows_side_by_side_and_sliding() -> None:
    assert list(windows(10, 4, None)) == [Window(0, 4, 1), Window(4, 8, 5)]
    assert list(windows(10, 4, 2)) == [Window(0, 4, 1), Window(2, 6, 4), Window(4, 8, 6), Window(6, 10, 8)]
    scored = [place for window in windows(100, 20, 5) for place in range(window.scored_from, window.stop)]
    assert scored == list(range(1, 100))


@pytest.mark.parametrize(
    ("length", "stride", "said"), [(1, None, "at least 2"), (50, 51, "from 1 to the length 50"), (151, None, "has 150")]
)
def test_what_cannot_be_measured_is_said(length: int, stride: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(engine(64), [IDS], length, stride=stride)


def test_documents_from_a_folder_a_file_and_nowhere(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8-sig")
    (tmp_path / "c.txt").write_text("  \n", encoding="utf-8")
    assert read_documents(str(tmp_path)) == [("a.txt", "first"), ("b.txt", "second")]
    assert read_documents(str(tmp_path / "b.txt")) == [("b.txt", "second")]
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"d\.txt is not UTF-8"):
        read_documents(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_documents(str(tmp_path / "nowhere"))


def test_the_command(shared: Path, tmp_path: Path) -> None:
    from vniah.cli import app

    checkpoint = shared / "parity" / "LongVA-tiny-unires"
    arguments = ["perplexity", "--text", str(shared / "data" / "essays"), "--model", str(checkpoint), "--stride", "64"]
    arguments += [
        "--lengths",
        "64,128",  # the shorter one has no sliding window of stride 64
        "--max-windows",
        "2",
        "-o",
        str(tmp_path / "p.png"),
        "--csv",
        str(tmp_path / "p.csv"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "64 tokens: no sliding window" in done.output
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert rows[0] == "panel,curve,context_length,perplexity"
    assert len(rows) == 1 + 2 + 1
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "16,9999K"], "no document has 9999000 tokens"),
        (["--lengths", "16,1"], "at least 2 tokens, got 1"),
        (["--csv", "nowhere/p.csv"], "the folder nowhere does not exist"),
        (["--csv", "p.txt"], r"ending in \.csv"),
        (["-o", "p.jpeg"], "cannot tell the format of 'p.jpeg'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    shared: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    from longva_model.engine import perplexity
    from vniah.cli import app

    monkeypatch.setattr(perplexity, "window_nll", lambda *_: pytest.fail("measured"))
    command = ["perplexity", "--text", str(shared / "data" / "essays"), "--lengths", "16", *options]
    with pytest.raises((ValueError, OSError), match=said):
        CliRunner().invoke(app, command, catch_exceptions=False)
