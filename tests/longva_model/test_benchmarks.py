"""The benchmarks run and print their ratios (the numbers themselves are not tested)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from video_files import write_video

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def printed(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / command[0]), *command[1:]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_grid() -> None:
    text = printed("grid.py", "--frames", "4-12:4", "--hidden", "64", "--layers", "2", "--rounds", "1")
    assert re.search(r"ratio: \d+\.\d+ by the wall, \d+\.\d+ by CPU seconds; theory for this shape \d+\.\d+", text)
    assert "every argmax equal" in text
    assert "theory for the paper's grid on LongVA-7B (450 cells, 144 tokens a frame): 2.34" in text


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
def test_haystack(tmp_path: Path) -> None:
    # decord cannot read a batch of pictures whose rows it pads.
    video = write_video(tmp_path / "film.mp4", num_frames=120, side=64)
    text = printed("haystack.py", str(video), "--minutes", "0", "--rounds", "1", "--threads", "1")
    rows = re.findall(r"^(exact|approximate) \(\S+\) .* (\d+\.\d+)x +(\d+\.\d+)x .* (\S+)$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["exact", "approximate"] * 2
    # The same pixel values, to the bit.
    assert rows[0][3] == rows[2][3] == "0.0e+00"


def test_gpu_grid_in_small_on_the_cpu() -> None:
    text = printed("gpu_grid.py", "--small")
    for what in ("frames/s", "TFLOP/s", "peak memory", "longest context", "one tree", "times the tree's"):
        assert what in text
    assert re.search(r"one forward a cell +0 h 0\d min", text)


def test_the_ring_prints_an_efficiency_for_both_directions() -> None:
    text = printed("ring.py", "--length", "66", "--heads", "4", "--key-heads", "2", "--rounds", "1")
    assert float(re.search(r"largest difference of the outputs (\S+)", text)[1]) < 1e-5  # type: ignore[index]
    assert len(re.findall(r"efficiency \d+\.\d+ by the wall, \d+\.\d+ by CPU seconds", text)) == 2
