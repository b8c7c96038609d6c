"""The ring benchmark runs and prints its ratios (the numbers themselves are not tested)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_prints_an_efficiency_for_both_directions() -> None:
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "ring.py"
    command = [sys.executable, str(program), "--length", "66", "--heads", "4", "--key-heads", "2", "--rounds", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert float(re.search(r"largest difference of the outputs (\S+)", printed)[1]) < 1e-5  # type: ignore[index]
    assert len(re.findall(r"efficiency \d+\.\d+ by the wall, \d+\.\d+ by CPU seconds", printed)) == 2
