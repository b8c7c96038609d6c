"""Which run a folder holds, and JSON files that are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vniah.files import read_json, replacing
from vniah.training.stages import WITHOUT_EFFECT


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Write identity.json, or compare with the one there. Keys that move no weight may differ.

    Raises:
        ValueError: naming the keys that differ.
    """
    path = folder / "identity.json"
    plain = json.loads(json.dumps(identity, default=str))
    if path.is_file():
        different = sorted(differences(read_json(path), plain))
        if different:
            raise ValueError(
                f"{folder} holds a run of another recipe (differs in {', '.join(different)}); "
                "choose another output, or remove that folder to start anew"
            )
        return
    write_json(path, plain)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted keys in which plain data differ, leaving out what moves no weight. Lists of stages go by their names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}.keys() - WITHOUT_EFFECT:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif _named(old) and _named(new):
        before, now = ({stage["name"]: stage for stage in stages} for stages in (old, new))
        for name in {**before, **now}:
            yield from differences(before.get(name), now.get(name), f"{where}.{name}")
    elif old != new:
        yield where


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "name" in item for item in value)


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
