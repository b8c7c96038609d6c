"""From the name of a needle task to the task, opened: what its YAML says under what the user says.

The YAML files of the tasks folder are the one place that knows which tasks there are and what each stands for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from vniah.lmms_plugin import tasks_dir
from vniah.notices import did_you_mean
from vniah.runs.task import NeedleTask, Scoring

# By family: which inputs a user may choose.
INPUTS = {
    "vniah": ("frames", "depths", "haystack", "needles", "decoder"),
    "text_niah": ("lengths", "depths", "samples", "haystack", "tokenizer", "seed", "shared_distractors"),
}
_SCORING: dict[str, Scoring] = {"loglikelihood": "teacher-forced", "generate_until": "generated"}


def open_tasks(names: Sequence[str], given: Mapping[str, Any] | None = None) -> list[NeedleTask]:
    """Open needle tasks, groups expanded, each once.

    Args:
        names: of tasks or groups.
        given: inputs by name (see ``INPUTS``), which win over the environment; ``None`` leaves one open.

    Raises:
        ValueError: no such task (names the nearest), a task that is no needle task, an input that is empty, is none of
            the tasks' or would mean two things; and what the tasks raise for theirs.
        OSError: a haystack or needle set that is not there.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    for key, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{key} is empty; leave it out, or give it a value")
    configs = {name: _config(name) for name in _expanded(names)}
    families = {name: str(config["metadata"]["family"]) for name, config in configs.items()}
    _check_inputs(given, families)
    if "text_niah" in families.values():
        from vniah.text.task import open_source

        # Texts are shared by the tasks of one run; a file may have changed since the run before.
        open_source.cache_clear()
    opened = []
    for name, config in configs.items():
        mine = {key: value for key, value in given.items() if key in INPUTS[families[name]]}
        task = open_task(name, families[name], _SCORING[config["output_type"]], config["metadata"], mine)
        task.generation = dict(config.get("generation_kwargs") or {})
        opened.append(task)
    return opened


def open_task(
    name: str,
    family: str,
    scoring: Scoring,
    metadata: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    cached: bool = False,
) -> NeedleTask:
    """Open one task.

    Args:
        name: its name.
        family: "vniah" or "text_niah".
        scoring: how its answers are scored.
        metadata: what its YAML says, under the environment.
        given: what wins over both.
        cached: the same object for the same inputs, once a process.
    """
    if family == "text_niah":
        from vniah.text.settings import TextSettings
        from vniah.text.task import TextTask, open_text

        text = TextSettings.read(metadata, given=given)
        return open_text(name, scoring, text) if cached else TextTask(name, scoring, text)
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask, open_visual

    visual = Settings.read(metadata, given=given)
    return open_visual(name, scoring, visual) if cached else VisualTask(name, scoring, visual)


@functools.cache
def metadata_of(name: str) -> Mapping[str, Any]:
    """What the YAML of a task of ours stands for; nothing for a name that is none of ours.

    Read once a process: lmms-eval's functions ask for it at every document.
    """
    folder = tasks_dir()
    found = read_task(folder, name).get("metadata") if name in read_index(folder) else None
    return MappingProxyType(dict(found or {}))


def needle_tasks() -> tuple[str, ...]:
    """The names of all needle tasks and of the groups made of them."""
    folder = tasks_dir()
    index = read_index(folder)
    single = {name for name, members in index.items() if not members and _family(read_task(folder, name))}
    groups = {name for name, members in index.items() if members and set(expand(name, index)) <= single}
    return tuple(sorted(single | groups))


def _expanded(names: Sequence[str]) -> list[str]:
    if not names:
        raise ValueError("no task is named; give at least one, such as vniah")
    index = read_index(tasks_dir())
    for name in names:
        if name not in index:
            near = did_you_mean(name, index) or f"; expected one of {', '.join(needle_tasks())}"
            raise ValueError(f"no task {name!r}{near}")
    return list(dict.fromkeys(one for name in names for one in expand(name, index)))


def _config(name: str) -> dict[str, Any]:
    folder = tasks_dir()
    config = read_task(folder, name) if name in read_index(folder) else {}
    if not _family(config):
        raise ValueError(
            f"{name} is no needle task, and those are what is run here ({', '.join(needle_tasks())}); "
            f"run it by lmms-eval --tasks {name}"
        )
    return config


def _family(config: Mapping[str, Any]) -> str:
    return str(cast(Mapping[str, Any], config.get("metadata") or {}).get("family") or "")


def _check_inputs(given: Mapping[str, Any], families: Mapping[str, str]) -> None:
    """Every input must be some task's, and mean one thing for all of them."""
    for key in given:
        takers = {family for family in families.values() if key in INPUTS[family]}
        if not takers:
            known = ", ".join(dict.fromkeys(one for family in families.values() for one in INPUTS[family]))
            raise ValueError(f"{' and '.join(families)}: no {key} is taken; what is taken is {known}")
        if key == "haystack" and len(takers) > 1:
            raise ValueError(
                "one haystack cannot be both a film and a text; run V-NIAH and text NIAH one after the other, or set "
                "VNIAH_HAYSTACK and TEXT_NIAH_HAYSTACK in place of it"
            )


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
