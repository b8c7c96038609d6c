"""``vniah compose`` from the command line to the file, and its errors with their exit code."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vniah.haystack import open_haystack
from vniah.visual.compose import letterbox


@pytest.fixture
def compose(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``vniah compose ARGUMENTS``; returns (exit code, output, errors)."""
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    return functools.partial(main, "compose")


@pytest.fixture
def needles(tmp_path: Path) -> Path:
    folder = tmp_path / "needles"
    folder.mkdir()
    Image.new("RGB", (60, 30), (200, 30, 30)).save(folder / "red.png")
    (folder / "needles.json").write_text(
        '[{"id": "red", "file": "red.png", "question": "What colour is the sign?", "answer": "red"}]'
    )
    return folder


def test_writes_one_cell(compose, needles: Path, tmp_path: Path) -> None:
    out = tmp_path / "cell.mp4"
    arguments = ["synthetic:0:50:64x48", "--frames", "8", "--depth", "50", "--needles", str(needles)]
    code, printed, _ = compose(*arguments, "--needle", "red", "-o", str(out))
    assert code == 0 and "10 frames at 1 fps, needle red at frame 4" in printed
    film = open_haystack(str(out))
    assert len(film) == 10 and film.size == (48, 64)
    frame = film.frames(4, 5)[0].astype(int)
    want = letterbox(Image.open(needles / "red.png"), (48, 64)).astype(int)
    assert np.abs(frame - want).mean() < 3
    assert list((tmp_path / "cache" / "composed").glob("haystack-*/*.mp4"))
    # Not overwritten unless asked to.
    before = out.read_bytes()
    code, _, err = compose(*arguments, "--needle", "red", "-o", str(out))
    assert code == 2 and "exists already" in err and "--force" in err and out.read_bytes() == before
    code, printed, _ = compose(*arguments, "--control", "--force", "-o", str(out))
    assert code == 0 and "10 frames at 1 fps, no needle" in printed and len(open_haystack(str(out))) == 10


def test_all_frames_by_default(compose, tmp_path: Path) -> None:
    code, printed, _ = compose("synthetic:0:12:32x32", "--control", "-o", str(tmp_path / "c.mp4"))
    assert code == 0 and "12 frames at 1 fps" in printed


def test_a_flat_opening_composes(compose, tmp_path: Path) -> None:
    """Thirty-two small black frames have 430 bit/s, and x264 opens with no bit rate below 1,000."""
    film = tmp_path / "black"
    film.mkdir()
    for number in range(32):
        Image.new("RGB", (32, 32)).save(film / f"{number:02d}.png")
    out = tmp_path / "c.mp4"
    arguments = ["--needles", "builtin", "--needle", "clock", "--frames", "3", "-o", str(out)]
    code, printed, err = compose(str(film), *arguments)
    assert code == 0 and "4 frames at 1 fps" in printed, err
    assert len(open_haystack(str(out))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "--control"], "no haystack at nowhere.mp4"),
        (["synthetic:0:5", "--control", "--frames", "6"], "has 5 frames and 6 are needed"),
        (["synthetic:0", "--control"], "synthetic:0 has no end; say how many frames of it to take, such as --frames"),
        (["synthetic:0:5", "--control", "--frames", "0"], "num_frames must be positive, got 0"),
        (["synthetic:0:5", "--needle", "red", "--depth", "101"], "from 0 to 100, got 101"),
        (["synthetic:0:5", "--needle", "blue"], "blue"),
        (["synthetic:0:5"], "give --needle ID, or --control for none"),
        (["synthetic:0:5", "--needle", "red", "--control"], "drop one of the two"),
        (["synthetic:0:5", "--control", "-o", "cell.gif"], "must be an .mp4 file"),
        (["synthetic:0:5", "--control", "-o", "no/where/cell.mp4"], "no folder no/where"),
        (["synthetic:0:5", "--control", "--decoder", "vlc"], "no decoder 'vlc'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    compose,
    needles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "-o" not in arguments:
        arguments = [*arguments, "-o", "cell.mp4"]
    code, _, err = compose(*arguments, "--needles", str(needles))
    errors = [line for line in err.splitlines() if line.startswith("vniah: error:")]
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "cell.mp4").exists()
