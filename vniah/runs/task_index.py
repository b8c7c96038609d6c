"""Our lmms-eval tasks by name, read from their YAML files without importing lmms_eval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_index(folder: Path) -> dict[str, tuple[str, ...]]:
    """Every task and group below ``folder``: a group's members by name, nothing for a task.

    Raises:
        ValueError: a file that is not YAML; names it.
    """
    index: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _read(path)
        if isinstance(config.get("group"), str):
            index[config["group"]] = tuple(_member_names(config.get("task")))
        elif isinstance(config.get("task"), str):
            index[config["task"]] = ()
    return index


def read_task(folder: Path, name: str) -> dict[str, Any]:
    """A task's YAML as a dict, what it includes put under it; ``!function`` tags stay strings.

    Raises:
        ValueError: no task of that name below ``folder``.
    """
    for path in sorted(folder.rglob("*.yaml")):
        config = _read(path)
        if config.get("task") == name:
            return _included(path, config)
    raise ValueError(f"no task {name!r} in {folder}")


def _included(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """As lmms-eval does it: a key of the file itself replaces the included one whole."""
    if "include" not in config:
        return config
    other = path.parent / str(config["include"])
    return {**_included(other, _read(other)), **{key: value for key, value in config.items() if key != "include"}}


def expand(name: str, index: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The tasks of a group, groups in it opened, in order and without repeats; ``(name,)`` for a task.

    Names that the index does not have are lmms-eval's own and stay as they are.
    """
    found: dict[str, None] = {}
    waiting = [name]
    seen: set[str] = set()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if index.get(current):
            waiting = [*index[current], *waiting]
        else:
            found[current] = None
    return tuple(found)


def _member_names(members: Any) -> Iterator[str]:
    """Group members are names, or mappings with changes to a task."""
    for member in members if isinstance(members, list) else [members]:
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict) and isinstance(member.get("task") or member.get("group"), str):
            yield member.get("task") or member["group"]


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads lmms-eval's ``!function`` tags as plain strings: nothing is imported."""

    Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from None
    return config if isinstance(config, dict) else {}
