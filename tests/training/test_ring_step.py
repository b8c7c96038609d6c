"""One training step sharded by the ring over gloo processes equals one step on one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_sharded_step_equals_the_whole(tmp_path: Path) -> None:
    runner = HERE.parent / "longva_model" / "ring_processes.py"
    command = [sys.executable, str(runner), str(HERE / "ring_step_checks.py"), str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    results = sorted(tmp_path.glob("2-*.json"))
    assert len(results) == 2, done.stderr[-2000:]
    for path in results:
        result = json.loads(path.read_text())
        assert not result["failed"], next(iter(result["failed"].values()))
        assert len(result["seconds"]) == 3
