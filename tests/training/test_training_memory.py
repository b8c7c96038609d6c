"""What two sharded ranks take of host and device, by benchmarks/training_memory.py, against the plan and other ways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"


@pytest.mark.slow
def test_two_ranks_hold_one_model_and_no_whole_gradient(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    subprocess.run([sys.executable, str(BENCHMARK), "--json", str(path)], check=True, timeout=3600)
    ours, others, assembled, assembled_by_all = json.loads(path.read_text()).values()
    size = 4 * ours[0]["parameters"]
    assert ours[0]["planned"] == pytest.approx(ours[0]["device"], rel=0.25)
    # Summed once a step, whole gradients wait on every rank between micro-batches.
    assert others[0]["device"] - ours[0]["device"] > 0.4 * size
    # The second rank's host holds its shards, and never the model.
    assert ours[1]["host"] < 0.85 * size < others[1]["host"]
    size = 4 * assembled[0]["parameters"]
    assert assembled[1]["host"] < 0.85 * size < assembled_by_all[1]["host"]
