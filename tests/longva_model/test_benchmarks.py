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


def test_the_ring_prints_an_efficiency_for_both_directions() -> None:
    shape = ("--heads", "4", "--key-heads", "2", "--head-size", "16", "--rounds", "1")
    lines = [re.split(r"  +", line) for line in printed("ring.py", "--lengths", "66,132", *shape).splitlines()]
    heads = next(line for line in lines if "by CPU" in line)
    rows = {line[0]: dict(zip(heads[1:], line[1:], strict=True)) for line in lines if len(line) == len(heads)}
    del rows[""]
    assert len(rows) == 8 and {"forward, 66", "forward and backward, 132", "past, keys travel, 66"} <= set(rows)
    for row in rows.values():
        assert float(row["difference"]) < 1e-5
        for figure in ("efficiency by the wall", "less kept", "by CPU", "computed, wall s", "waited", "alone"):
            assert float(row[figure]) >= 0
        assert re.fullmatch(r"\d+%", row["hidden"])


def test_keys_and_values_in_blocks_are_measured_each_way() -> None:
    text = printed("kv.py", "--length", "100", "--chunk", "30", "--block", "16", "--hidden", "32", "--rounds", "1")
    assert [line.split()[0].rstrip(",") for line in text.splitlines()[2:6]] == ["device", "device", "host", "fp8"]
    assert "in the host's memory the bits of the device in blocks: yes" in text


def test_attention_prints_the_fold_and_rates_by_shape() -> None:
    text = printed("attention.py", "--keys", "512", "--queries", "1-8", "--backward")
    assert len(re.findall(r"^[18] +cpu .* \d+\.\d+x .* yes$", text, re.MULTILINE)) == 2
    assert len(re.findall(r" cpu +(?:for|back)ward +\S+ +\d", text)) == 8
    assert "not run: cudnn: it needs a CUDA device" in text


# Small enough for a test: a decoder of two layers, two columns.
TINY_MODEL = ("--hidden", "64", "--layers", "2", "--tower-hidden", "32", "--size", "64x48", "--needles", "1")


def test_any_model_is_the_same_as_a_tree_and_as_its_own_forward() -> None:
    text = printed("any_model.py", "--part", "forward", "--frames", "4-8:4", "--depths", "0-100:50", *TINY_MODEL)
    assert "8 cells and controls, 8 frames of 64x48 at most" in text
    ratio = r"ratio: \d+\.\d+ by the wall, \d+\.\d+ by CPU seconds; decoder alone \d+\.\d+; FLOPs of the decoder (\S+)"
    found = re.search(ratio, text)
    assert found and float(found[1]) > 1
    assert float(re.search(r"results: log-probabilities within (\S+)", text)[1]) < 1e-3  # type: ignore[index]


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_any_model_against_the_adapter_of_lmms_eval() -> None:
    grid = ("--adapter-frames", "7", "--depths", "0,100", "--presentations", "video")
    text = printed("any_model.py", "--part", "adapter", *grid, *TINY_MODEL)
    rows = re.findall(r"^(qwen2_5_vl|hf_tree) +\d+\.\d +\d+\.\d +\S+$", text, re.MULTILINE)
    assert rows == ["qwen2_5_vl", "hf_tree"]
    assert re.search(r"as video: ratio \S+ by the wall, \S+ by CPU seconds; \d+% of the answers equal", text)


def test_any_model_lowers_the_papers_shape() -> None:
    text = printed("any_model.py", "--part", "lowering", "--lowering-frames", "20-60:20")
    assert "lowering: 105 cells and controls" in text
    assert re.search(r"lowered and merged in \d+\.\d CPU s", text)
