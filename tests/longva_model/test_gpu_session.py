"""The session for a GPU at hand: all of it in small on the CPU; what fails, hangs or is stopped costs nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vniah.contract.cost import KV_FORMS, SHAPES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("device", "prefill", "kernels", "tree", "tower", "ring", "longest", "qwen2_5_vl", "train", "qwen3_vl")

# What a part may do; ``hangs`` also leaves a process behind that it started.
FAULTS = """
import os, subprocess, time
from gpu_session import SkippedError

def good(run):
    run.put("found", value=1.5, seen=sorted(run.found["raises"]))

def raises(run):
    run.put("found", value=1)
    raise ValueError("on purpose")

def crashes(run):
    run.put("found", value=2)
    os.abort()

def hangs(run):
    other = subprocess.Popen(["sleep", "600"])
    run.put("found", value=3, other=other.pid, own=os.getpid())
    time.sleep(600)

def skips(run):
    raise SkippedError("nothing to measure")
"""
# Called with a folder and names of parts; a minute is 20 seconds and the 3 that are kept for the report.
SESSION = """
import sys
from pathlib import Path
from types import SimpleNamespace
import gpu_session

folder, *names = sys.argv[1:]
weights = {"good": 6.0}
gpu_session.PARTS = tuple(
    gpu_session.Part(name=name, weight=weights.get(name, 1.0), work=f"faults:{name}") for name in names
)
given = SimpleNamespace(parts="", minutes=23 / 60, small=True, threads=1, out=f"{folder}/found.json")
sys.exit(gpu_session.main(given))
"""


def start(tmp_path: Path, *names: str) -> subprocess.Popen[str]:
    (tmp_path / "faults.py").write_text(FAULTS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(tmp_path)])}
    command = [sys.executable, "-c", SESSION, str(tmp_path), *names]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def parts_of(told: Any) -> dict[str, Any]:
    return {row["part"]: row for row in told["parts"]}


def is_gone(number: int) -> bool:
    """Ended, if not yet waited for by whoever inherited it."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_fails_crashes_or_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "raises", "crashes", "hangs", "skips", "good")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err[-3000:]
    told = json.loads((tmp_path / "found.json").read_text())
    found = parts_of(told)
    assert {name: row["status"] for name, row in found.items()} == {
        "raises": "failed", "crashes": "crashed", "hangs": "killed", "skips": "skipped", "good": "done",
    }  # fmt: skip
    assert found["raises"]["why"] == "ValueError: on purpose"
    assert "SIGABRT" in found["crashes"]["why"] and "at its limit of" in found["hangs"]["why"]
    assert found["skips"]["why"] == "nothing to measure"
    # What they had found until then is kept, and the others know it.
    assert [found[name]["tables"]["found"][0]["value"] for name in ("raises", "crashes", "hangs")] == [1, 2, 3]
    assert found["good"]["tables"]["found"] == [{"value": 1.5, "seen": ["found"]}]
    hung = found["hangs"]["tables"]["found"][0]
    wait_for(lambda: is_gone(hung["own"]) and is_gone(hung["other"]))
    # It had its share of the time and no more; the last one has what is left.
    assert 1 < found["hangs"]["limit s"] <= found["hangs"]["s"] < found["hangs"]["limit s"] + 5
    assert "in hangs" in err and "on purpose" in err  # where it hung
    assert out == (tmp_path / "found.md").read_text() + "\n"
    assert "| raises | failed | ValueError: on purpose |" in out and "| 1.5 |" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_an_interrupt_keeps_what_there_is(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, "raises", "hangs", "good")
    lines = iter(process.stderr or [])
    assert any("found: value 3" in line for line in lines)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    told = json.loads((tmp_path / "found.json").read_text())
    found = parts_of(told)
    assert told["interrupted"]
    assert [found[name]["status"] for name in ("raises", "hangs", "good")] == ["failed", "interrupted", "not run"]
    hung = found["hangs"]["tables"]["found"][0]
    wait_for(lambda: is_gone(hung["own"]) and is_gone(hung["other"]))


def test_time_that_is_over_is_said(tmp_path: Path) -> None:
    code = SESSION.replace("minutes=23 / 60", "minutes=3.5 / 60")
    (tmp_path / "faults.py").write_text(FAULTS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(tmp_path)])}
    command = [sys.executable, "-c", code, str(tmp_path), "raises", "good"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    found = parts_of(json.loads((tmp_path / "found.json").read_text()))
    assert [(row["status"], row["why"]) for row in found.values()] == [("not run", "no time was left")] * 2


def small_session(folder: Path, *arguments: str) -> Any:
    """In small: the JSON, and what was printed."""
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), "--small", "--threads", "1", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OUT": str(folder)}, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads((folder / "gpu_session.json").read_text())
    return told, done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All parts; for slow tests, since each part imports torch in a process of its own."""
    return small_session(tmp_path_factory.mktemp("session"))


def rows(told: Any, part: str, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parts_of(told)[part]["tables"][table]
    return found


@pytest.mark.slow
def test_all_parts_run_in_small(small: Any) -> None:
    told, printed = small
    assert {name: row["status"] for name, row in parts_of(told).items()} == dict.fromkeys(NAMES, "done")
    assert printed.startswith("## CPU, 1 thread(s)\n")
    assert all(f"| {name} | done |" in printed for name in NAMES)
    (device,) = rows(told, "device", "device")
    assert device["torch"] and device["attention"] == "cpu"
    assert all(row["value"] > 0 for row in rows(told, "device", "rates"))
    assert {row["frames at once"] for row in rows(told, "tower", "tower")} == {16, 32, 64}


def test_one_prefill_gives_rates_memory_and_the_grids_time(tmp_path: Path) -> None:
    told, printed = small_session(tmp_path, "--parts", "device,prefill")
    assert printed.startswith("## CPU, 1 thread(s)\n")
    assert {name: row["status"] for name, row in parts_of(told).items()} == {"device": "done", "prefill": "done"}
    read_off = rows(told, "prefill", "prefill")
    assert [row["tokens"] for row in read_off] == [200, 800, 1200]
    assert all(row["s"] > 0 and row["estimate s"] > 0 and row["of matmul"] > 0 for row in read_off)
    assert [row["s"] for row in read_off] == sorted(row["s"] for row in read_off)
    (memory,) = rows(told, "prefill", "memory")
    # Rows of both sides, two layers, two heads of 32 in fp32, of 1,200 tokens and the longest of the shorter forwards.
    assert memory["frames"] == 300 and memory["keys and values GB"] == pytest.approx(1264 * 2 * 2 * 2 * 32 * 4 / 1e9)
    # The grid's trunk is walked once; its FLOPs are those of the plan.
    tree, plain = rows(told, "prefill", "whole grid by slices")
    assert (tree["cells"], tree["times the tree's"], tree["by FLOPs"]) == (450, 1, 1)
    assert plain["by FLOPs"] == pytest.approx(2.52, abs=0.01) and plain["min"] > tree["min"]


@pytest.mark.slow
def test_both_ways_are_compared(small: Any) -> None:
    told, _ = small
    for part, cells in (("tree", 9), ("qwen2_5_vl", 2), ("qwen3_vl", 2)):
        (compared,) = rows(told, part, "both ways")
        assert compared["cells"] == compared["every argmax equal"] == cells
        assert compared["log-probabilities within"] < 1e-4
    ways = rows(told, "tree", "slice of the grid")
    assert [row["way"] for row in ways] == ["one tree", "one forward a cell"]
    for row in ways:  # by how much the slices were off, the whole grid is
        whole = next(one for one in rows(told, "prefill", "whole grid by slices") if one["way"] == row["way"])
        assert row["whole grid min"] == pytest.approx(whole["min"] * row["s"] / row["estimate s"])
    for name in ("qwen2_5_vl", "qwen3_vl"):
        tree, plain = rows(told, name, "grid")
        forwards = rows(told, name, "the model's own forward")
        assert tree["prompts"] == plain["prompts"] == 8
        # Three depths and the control of each of two columns.
        assert plain["s"] == pytest.approx(4 * sum(row["s"] for row in forwards))


@pytest.mark.slow
def test_the_ring_the_longest_context_and_a_training_step(small: Any) -> None:
    told, _ = small
    (ring,) = rows(told, "ring", "ring")
    alone = next(row for row in rows(told, "prefill", "prefill") if row["tokens"] == ring["tokens"])
    assert ring["devices"] == 2 and ring["of ideal"] == pytest.approx(alone["s"] / ring["s"] / 2)
    forms = {row["kv"]: row for row in rows(told, "longest", "longest context")}
    assert forms.keys() == set(KV_FORMS) and all(row["tokens"] == 2048 for row in forms.values())
    whole, shorter = (forms[kv]["keys and values GB"] for kv in ("device", "fp8"))
    assert whole == forms["host"]["keys and values GB"] == pytest.approx(2048 * 2 * 2 * 2 * 32 * 4 / 1e9)
    assert shorter == pytest.approx(whole * (32 + 4) / (32 * 4))  # a byte a number and a scale a row
    (step,) = rows(told, "train", "one step")
    assert (step["layers"], step["tokens"]) == (2, 256) and 5 < step["loss"] < 8  # log(512) of random weights
    assert step["tokens/s"] == pytest.approx(256 / step["s"])


@pytest.fixture(scope="module")
def decoder() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_decoder
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_decoder


def test_slices_give_the_time_of_any_forward(decoder: Any) -> None:
    def seconds(new: int, past: int) -> float:
        return 0.25 + 2.0 * new + 0.5 * new * past

    measured = [{"new": new, "past": past, "s": seconds(new, past)} for new in (8, 64, 256) for past in (0, 100, 900)]
    slices = decoder.Slices(measured, chunk=256)
    for new, past in ((8, 0), (30, 50), (256, 500), (100, 5000)):  # the last one behind all that was measured
        assert slices.seconds(new, past) == pytest.approx(seconds(new, past))
    assert slices.seconds(600, 10) == pytest.approx(seconds(256, 10) + seconds(256, 266) + seconds(88, 522))


def test_a_grids_time_by_slices_follows_its_flops(decoder: Any) -> None:
    """Where seconds are FLOPs, the grid's seconds are its FLOPs: no forward is forgotten or counted twice."""
    import gpu_settings

    setting = gpu_settings.SMALL
    engine = decoder.engine_of(setting)
    batch = decoder.grid_batch(engine, "20-100:20", "0-100:20", 2)
    lengths, pasts = (1, 8, 32, 64, 128, 256), (0, 200, 400)
    flops = setting.shape.forward_flops
    measured = [{"new": new, "past": past, "s": flops(new, past)} for new in lengths for past in pasts]
    found = decoder.by_slices(batch, decoder.Slices(measured, setting.chunk))
    answers = len(batch.prompts) * setting.shape.logits_flops(3)
    for took, wanted in zip(found, decoder.flops_of(engine, batch), strict=True):
        assert took == pytest.approx(wanted - answers, rel=0.01)


def test_a_devices_figures_are_found_by_its_name(decoder: Any) -> None:
    from gpu_session import PARTS
    from gpu_settings import PAPER, maker

    names = {"NVIDIA H200": 989, "NVIDIA H100 80GB HBM3": 989, "NVIDIA A100-SXM4-80GB": 312}
    names |= {"NVIDIA GeForce RTX 4090": 165, "NVIDIA L40S": 362, "NVIDIA B200": 2250}
    assert {name: gpu.tflops for name in names if (gpu := maker(name))} == names
    assert maker("NVIDIA T4") is None and maker("NVIDIA H2000") is None
    # All of it fits ten minutes of an H200 at a third of its stated rate: the longest prefill is 43 PFLOP.
    assert PAPER.shape == SHAPES["LongVA-7B"] and sum(part.weight for part in PARTS) < 600
    prefill = next(part for part in PARTS if part.name == "prefill")
    assert prefill.weight > PAPER.shape.forward_flops(PAPER.marks[-1]) / (989e12 / 3) + 15


def test_a_part_that_there_is_not_is_named() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), "--small", "--parts", "prefil"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no part prefil; expected some of device, prefill, kernels" in done.stderr
