"""The wheel holds every file of the rooms and nothing else; the lock meets what pyproject.toml asks."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")], ids="-".join
)
def test_the_lock_has_one_fitting_version_of_each_requirement(python: str, system: str, machine: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "platform_machine": machine,
        "extra": "",
    }
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in pins, f"two versions of {pin.name}"
            pins[pin.name] = str(pin.specifier).removeprefix("==")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["train"], *extras["test"], *extras["dev"]]:
        required = Requirement(text)
        if required.name == "vniah" or not (required.marker is None or required.marker.evaluate(environment)):
            continue
        assert required.specifier.contains(pins[canonicalize_name(required.name)]), f"{text}: run .ci/lock"
