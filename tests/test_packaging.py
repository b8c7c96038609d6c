"""The wheel holds every module, recipe, task and weight of the tree, and nothing else's."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vniah

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "vniah": "vniah",
    "longva_model": "longva_model",
    "tasks": "vniah/tasks",
    "training": "vniah/training",
    "plots": "vniah/plots",
}


@pytest.mark.slow
def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", "--local", str(ROOT), str(tmp_path / "clone")], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(tmp_path / "clone")],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
        entry_points = file.read(next(name for name in file.namelist() if name.endswith("entry_points.txt"))).decode()
        lock = file.read("vniah/constraints.txt")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=tmp_path / "clone", capture_output=True, text=True, check=True
    ).stdout.split()
    expected = set()
    for name in tracked:
        folder, _, rest = name.partition("/")
        if folder in FOLDERS and rest:
            expected.add(f"{FOLDERS[folder]}/{rest}")
    assert packed == expected
    assert wheel.name.startswith(f"vniah-{vniah.__version__}-")
    assert lock == (ROOT / "constraints.txt").read_bytes()
    assert "vniah.lmms_plugin:manifests" in entry_points and "vniah.cli:main" in entry_points
