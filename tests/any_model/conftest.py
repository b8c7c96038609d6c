"""Checkpoints of families, made once a session and shared by every file here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from any_model.families import FAMILIES
from packaging.version import Version


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, built when it is first asked for. A test that changes its files copies it.

    Folders lie side by side, each under its family's name.
    """
    root = tmp_path_factory.mktemp("families")
    missing: dict[str, str] = {}

    def folder(name: str) -> Path:
        package = FAMILIES[name].requires
        if package is not None and importlib.util.find_spec(package) is None:
            pytest.skip(f"its processor needs {package}")
        old = Version(transformers.__version__) < Version("5.24")
        if old and FAMILIES[name].newer:
            pytest.skip(f"transformers {transformers.__version__}: {FAMILIES[name].newer}")
        if name not in missing and not (root / name).exists():
            try:
                FAMILIES[name].build(root / name, 0)
            except ImportError as error:  # by name: a family that came after the oldest transformers we take
                if not old:
                    raise
                missing[name] = f"transformers {transformers.__version__} has no {name}: {error}"
        if name in missing:
            pytest.skip(missing[name])
        return root / name

    return folder
