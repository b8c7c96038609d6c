"""Checkpoints of families, made once a module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from any_model.families import FAMILIES


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        package = FAMILIES[name].requires
        if package is not None and importlib.util.find_spec(package) is None:
            pytest.skip(f"its processor needs {package}")
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name].build(made[name], 0)
        return made[name]

    return folder
