"""The doors between the rooms, by the import graph: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room, its folder, and the rooms of ours it may import.
ROOMS = {
    "vniah": ("vniah", set()),
    "longva_model": ("longva_model", {"vniah"}),
    "vniah.tasks": ("tasks", {"vniah"}),
    "vniah.plots": ("plots", {"vniah"}),
    "vniah.training": ("training", {"vniah", "longva_model"}),
}
HEAVY = {"torch", "transformers", "lmms_eval", "matplotlib", "seaborn", "datasets", "trl", "accelerate", "av"}
ONLY_LMMS = {"vniah/lmms_plugin.py", "vniah/served/lmms_model.py", "longva_model/lmms/longva_ring.py"}


def _room(module: str) -> str | None:
    """The room a dotted name belongs to; the longest match wins."""
    found = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(found, key=len) if found else None


def _imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _top_level(tree) if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def _top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run at import: outside functions and ``if TYPE_CHECKING``."""
    found: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        found.append(node)
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def _dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.split(".")[0] in ROOMS else f"vniah.{name}"


def _files(room: str) -> list[Path]:
    return sorted((ROOT / ROOMS[room][0]).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_through_their_doors(room: str) -> None:
    allowed = ROOMS[room][1] | {room}
    wrong = []
    for path in _files(room):
        if path.is_relative_to(ROOT / "vniah" / "commands"):
            # Commands open any room, inside their functions.
            imported = _imports(path, top_level_only=True)
        else:
            imported = _imports(path)
        for name in imported:
            other = _room(name)
            if other is not None and other not in allowed and not (other == "vniah" and room.startswith("vniah")):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {_dotted(path): path for room in ROOMS for path in _files(room)}
    imported = {name: _imports(path, top_level_only=True) & files.keys() - {name} for name, path in files.items()}
    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError, which names the files


def test_the_top_of_a_room_can_be_taken_in_at_a_glance() -> None:
    crowded = {room: found for room in ("vniah", "longva_model") if len(found := list((ROOT / room).glob("*.py"))) > 9}
    assert not crowded, crowded


def test_the_benchmark_imports_nothing_heavy() -> None:
    wrong = []
    for path in _files("vniah"):
        for name in _imports(path, top_level_only=True):
            glue = path.relative_to(ROOT).as_posix() in ONLY_LMMS
            if name.split(".")[0] in (HEAVY - {"lmms_eval"} if glue else HEAVY):
                wrong.append(f"{path.relative_to(ROOT)} imports {name} at import time")
    assert not wrong, wrong


def test_only_the_glue_knows_lmms_eval() -> None:
    knowing = {
        path.relative_to(ROOT).as_posix()
        for room in ("vniah", "longva_model")
        for path in _files(room)
        if any(name.split(".")[0] == "lmms_eval" for name in _imports(path))
        and not path.is_relative_to(ROOT / "vniah" / "commands")
    }
    assert knowing <= ONLY_LMMS, knowing - ONLY_LMMS


def test_importing_vniah_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, vniah, vniah.runs.grid, vniah.contract.requests, vniah.runs.scoring, vniah.runs.run\n"
        "import vniah.cli, vniah.needles, vniah.haystack\n"
        "import vniah.visual.compose, vniah.runs.journal, vniah.contract.cost, vniah.lmms_plugin\n"
        f"print(sorted({sorted(HEAVY)!r} & sys.modules.keys()))".replace(
            f"{sorted(HEAVY)!r} &", f"set({sorted(HEAVY)!r}) &"
        )
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_folder_of_code_is_packaged() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        pytest.skip("tomllib needs Python 3.11")
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for room, (folder, _) in ROOMS.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join((room, *parts)))
    assert found == listed
