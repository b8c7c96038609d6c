"""What two sharded ranks take of a device, by benchmarks/training_memory.py, against the plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"


@pytest.mark.slow
def test_between_micro_batches_no_rank_holds_a_whole_gradient(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    subprocess.run([sys.executable, str(BENCHMARK), "--json", str(path)], check=True, timeout=3600)
    ours, others, *_ = json.loads(path.read_text()).values()
    size = 4 * ours[0]["parameters"]
    assert ours[0]["planned"] == pytest.approx(ours[0]["device"], rel=0.25)
    # Summed once a step, whole gradients wait on every rank between micro-batches.
    assert others[0]["device"] - ours[0]["device"] > 0.1 * size
