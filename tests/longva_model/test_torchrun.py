"""The whole ``vniah`` task through ``torchrun ... -m lmms_eval`` gives what the parity cases say, cell by cell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find(row: Any, key: str) -> Any:
    """The first value of ``key`` anywhere in a sample."""
    if not isinstance(row, dict):
        return None
    if key in row:
        return row[key]
    return next((found for found in (find(value, key) for value in row.values()) if found is not None), None)


@pytest.mark.parametrize(
    ("processes", "args"),
    [
        pytest.param(2, "parallel=ring", marks=pytest.mark.slow),
        pytest.param(2, "parallel=branch", marks=pytest.mark.slow),
        pytest.param(2, "parallel=auto,scoring=plain", marks=pytest.mark.slow),
        pytest.param(3, "parallel=ring,chunk_tokens=300", marks=pytest.mark.slow),
        pytest.param(3, "parallel=branch", marks=pytest.mark.slow),
    ],
)
def test_every_cell_is_as_the_reference(shared: Path, tmp_path: Path, processes: int, args: str) -> None:
    parity = shared / "parity"
    cells = json.loads((parity / "expected_niah.json").read_text())["cells"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VNIAH_HAYSTACK": str(parity / "niah/haystack"),
        "VNIAH_NEEDLES": str(parity / "niah/needles"),
        "VNIAH_CACHE": str(tmp_path / "cache"),
        "VNIAH_DEPTHS": "0,50,100",
        "VNIAH_FRAMES": ",".join(str(frames) for frames in sorted({cell["num_frames"] for cell in cells})),
    }
    model_args = f"pretrained={parity / 'LongVA-tiny-unires'},dtype=float32,device=cpu,journal={tmp_path / 'j'},{args}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(free_port()), "-m", "lmms_eval", "--model", "longva_ring", "--tasks", "vniah"]
    command += ["--model_args", model_args, "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    rows = [
        json.loads(line)
        for path in (tmp_path / "out").rglob("*samples*vniah*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert rows, done.stderr[-4000:]
    got = {
        (find(row, "num_frames"), find(row, "depth_percent"), find(row, "needle")): row
        for row in rows
        if not find(row, "control")
    }
    assert len(got) == len(cells)
    for cell in cells:
        row = got[cell["num_frames"], round(cell["depth"] * 100), f"needle_{cell['needle']}"]
        assert find(row, "predicted_ids") == cell["pred_ids"]
        assert bool(find(row, "correct")) == bool(cell["correct"])
        for ours, theirs in zip(find(row, "answer_logprobs"), cell["answer_logprobs"], strict=True):
            assert ours == pytest.approx(theirs, abs=5e-4)
    # One journal with every row, the controls' too, however many processes wrote; behind what they are part of.
    header, *lines = (tmp_path / "j").read_text().splitlines()
    assert "run" in json.loads(header) and len(lines) == len(rows)
