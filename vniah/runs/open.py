"""From the name of a needle task to the task, opened: what its YAML says under what the user says.

The YAML files of the tasks folder are the one place that knows which tasks there are and what each stands for. They are
read without importing lmms_eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vniah.lmms_plugin import tasks_dir
from vniah.notices import did_you_mean
from vniah.runs.task import NeedleTask, Scoring

# Which inputs a user may choose, by family; of tests on film that draw their cells, under a name of their own.
INPUTS = {
    "vniah": ("frames", "depths", "haystack", "needles", "decoder", "seeds"),
    "vruler": ("frames", "depths", "haystack", "needles", "samples", "seed", "decoder", "seeds"),
    "text_niah": ("lengths", "depths", "samples", "haystack", "tokenizer", "seed", "shared_distractors"),
}
_FAMILIES = ("vniah", "text_niah")
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
    configs = _configs(names)
    families = {name: _inputs_of(config) for name, config in configs.items()}
    _check_inputs(given, families)
    if "text_niah" in families.values():
        from vniah.text.task import open_source

        # Texts are shared by the tasks of one run; a file may have changed since the run before.
        open_source.cache_clear()
    opened = []
    for name, config in configs.items():
        mine = {key: value for key, value in given.items() if key in INPUTS[families[name]]}
        task = open_task(name, _SCORING[config["output_type"]], config["metadata"], mine)
        task.generation = dict(config.get("generation_kwargs") or {})
        opened.append(task)
    return opened


def open_task(
    name: str,
    scoring: Scoring,
    metadata: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    cached: bool = False,
) -> NeedleTask:
    """Open one task.

    Args:
        name, scoring: the task's.
        metadata: what its YAML says, under the environment; its ``family`` is "vniah" or "text_niah".
        given: what wins over both.
        cached: the same object for the same inputs, once a process.
    """
    if _family({"metadata": metadata}) not in _FAMILIES:
        raise ValueError(f"{name}: its metadata names no family; expected family: {' or '.join(_FAMILIES)}")
    if metadata["family"] == "text_niah":
        from vniah.text.settings import TextSettings
        from vniah.text.task import TextTask, open_text

        return (open_text if cached else TextTask)(name, scoring, TextSettings.read(metadata, given=given))
    from vniah.visual.kinds import read_settings
    from vniah.visual.task import VisualTask, open_visual

    return (open_visual if cached else VisualTask)(name, scoring, read_settings(metadata, given))


def metadata_of(name: str) -> Mapping[str, Any]:
    """What the YAML of a task of ours stands for; nothing for a name that is none of ours."""
    return _yaml_files(tasks_dir()).get(name, {}).get("metadata") or {}


def needle_tasks() -> tuple[str, ...]:
    """The names of all needle tasks and of the groups made of them."""
    files = _yaml_files(tasks_dir())
    index = _index(files)
    single = {name for name, config in files.items() if _family(config)}
    groups = {name for name, members in index.items() if members and set(expand(name, index)) <= single}
    return tuple(sorted(single | groups))


def _configs(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The YAML of every needle task that ``names`` stand for."""
    if not names:
        raise ValueError("no task is named; give at least one, such as vniah")
    files = _yaml_files(tasks_dir())
    index = _index(files)
    for name in names:
        if name not in index:
            near = did_you_mean(name, index) or f"; expected one of {', '.join(needle_tasks())}"
            raise ValueError(f"no task {name!r}{near}")
    chosen = {one: files.get(one, {}) for name in names for one in expand(name, index)}
    for name, config in chosen.items():
        if not _family(config):
            raise ValueError(
                f"{name} is no needle task, and those are what is run here ({', '.join(needle_tasks())}); "
                f"run it by lmms-eval --tasks {name}"
            )
    return chosen


def _family(config: Mapping[str, Any]) -> str:
    return str((config.get("metadata") or {}).get("family") or "")


def _inputs_of(config: Mapping[str, Any]) -> str:
    """The name of what a user may choose of a task, among ``INPUTS``."""
    from vniah.ruler.kinds import KINDS

    return "vruler" if (config.get("metadata") or {}).get("kind") in KINDS else _family(config)


def _check_inputs(given: Mapping[str, Any], families: Mapping[str, str]) -> None:
    """Every input must be some task's, and mean one thing for all of them."""
    for key in given:
        takers = {family for family in families.values() if key in INPUTS[family]}
        if not takers:
            known = ", ".join(dict.fromkeys(one for family in families.values() for one in INPUTS[family]))
            raise ValueError(f"{' and '.join(families)}: no {key} is taken; what is taken is {known}")
        if key == "haystack" and "text_niah" in takers and len(takers) > 1:
            raise ValueError(
                "one haystack cannot be both a film and a text; run V-NIAH and text NIAH one after the other, or set "
                "VNIAH_HAYSTACK and TEXT_NIAH_HAYSTACK in place of it"
            )


def read_index(folder: Path) -> dict[str, tuple[str, ...]]:
    """Every task and group below ``folder``: a group's members by name, nothing for a task."""
    return _index(_yaml_files(folder))


def _index(files: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(_member_names(config.get("task"))) if "group" in config else () for name, config in files.items()
    }


def _yaml_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Tasks and groups by name."""
    read = [(path, parse_task(path.read_text(encoding="utf-8"), path)) for path in sorted(folder.rglob("*.yaml"))]
    named = {config.get("group") or config.get("task"): _included(config, path.parent) for path, config in read}
    return {name: config for name, config in named.items() if isinstance(name, str)}


def _included(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """As lmms-eval does it: a key of the file itself replaces the included one whole."""
    if "include" not in config:
        return config
    path = folder / config["include"]
    return {**_included(parse_task(path.read_text(encoding="utf-8"), path), path.parent), **config}


def parse_task(text: str, where: object) -> dict[str, Any]:
    """A task's YAML; lmms-eval's ``!function`` tags stay strings. ValueError for what is not YAML names ``where``."""
    import yaml

    # libyaml's, where PyYAML was built with it, is ten times as fast: every command reads every task.
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))
    try:
        config = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not readable as YAML: {error}") from None
    return config if isinstance(config, dict) else {}


def expand(name: str, index: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The tasks of a group, groups in it opened, in order and without repeats; ``(name,)`` for a task.

    Names that the index does not have are lmms-eval's own and stay as they are.
    """
    found: dict[str, None] = {}
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop(0)
        if current not in seen and index.get(current):
            waiting = [*index[current], *waiting]
        elif current not in seen:
            found[current] = None
        seen.add(current)
    return tuple(found)


def _member_names(members: Any) -> Iterator[str]:
    """Group members are names, or mappings with changes to a task."""
    for member in members if isinstance(members, list) else [members]:
        name = (member.get("task") or member.get("group")) if isinstance(member, dict) else member
        if isinstance(name, str):
            yield name
