"""Recipes as data: a YAML file read into checked, frozen dataclasses.

A recipe is a list of stages. Each names its ``kind``, and where its model comes ``from`` (a stage before it, a folder
or a Hub id), so that the chain is wired and no path is written twice. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vniah.training.stages import KINDS, Stage, inputs

RECIPES = Path(__file__).parent / "recipes"
MERGE = "tag:yaml.org,2002:merge"
FOLDER_NAME = re.compile(r"\w[\w.-]*")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Stages and what they share. ``parallel`` stages that do not wait for each other run at once."""

    name: str
    stages: tuple[Stage, ...]
    output: str = ""
    seed: int = 2024
    parallel: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        for name in (self.name, *names):
            if not FOLDER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} names a folder: letters, digits, '.', '_' and '-', no other signs")
        if self.parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {self.parallel}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"stages need names of their own, got {names}")
        for index, stage in enumerate(self.stages):
            for link in inputs(stage):
                if link in names[index:]:
                    raise ValueError(f"stage {stage.name!r} reads {link!r}, which does not come before it")

    @property
    def folder(self) -> Path:
        """Where the recipe writes: ``output``, or runs/<name>."""
        return Path(self.output or f"runs/{self.name}")

    def stage(self, name: str) -> Stage:
        """The stage called ``name``; ValueError naming the nearest when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"recipe {self.name!r} has no stage {name!r}; {nearest(name, [s.name for s in self.stages])}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a YAML path, or the bare name of one that ships with the project.

    An override is ``key=value`` on the recipe (``seed=3``) or on a stage by its name (``text.train.lr=1e-4``).

    Raises:
        FileNotFoundError: no such file or name, with the names there are.
        ValueError: what is wrong, where, and the nearest key.
    """
    import yaml

    found = _find(path)
    try:
        raw = yaml.load(found.read_text(encoding="utf-8"), Loader=_unique_keys())
    except yaml.YAMLError as error:
        raise ValueError(f"{found} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, Mapping):
        raise ValueError(f"{found}: expected a recipe (keys and values), got {type(raw).__name__}")
    # A deep copy of plain data, so that overrides touch nothing shared; a date, say, becomes the text it was.
    raw = json.loads(json.dumps(raw, default=str))
    for text in overrides:
        _override(raw, text)
    return build_recipe(raw, found.stem)


def _find(path: str | Path) -> Path:
    given = Path(path)
    named = given.suffix in (".yaml", ".yml")
    shipped = RECIPES / (given.name if named else f"{given}.yaml")
    if given.is_file():
        return given
    if shipped.is_file() and (not named or given.parent.name in ("", "recipes")):
        return shipped
    if named:
        raise FileNotFoundError(f"no recipe at {given}; shipped: {', '.join(shipped_recipes())}")
    raise FileNotFoundError(f"no recipe {str(path)!r}; {nearest(str(path), shipped_recipes())}")


def _unique_keys() -> Any:
    """YAML's safe loader, for which a key that is written twice is an error and not a silent choice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag != MERGE and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    return Loader


def _override(raw: dict[str, Any], text: str) -> None:
    """Put the value of ``a.b.c=value``, as YAML reads it, into plain data."""
    import yaml

    left, sign, right = text.partition("=")
    path = left.split(".")
    if not sign or not all(path):
        raise ValueError(f"cannot read the override {text!r}; expected key=value, as in seed=3 or text.train.lr=1e-4")
    try:
        value = yaml.safe_load(right)
    except yaml.YAMLError:
        raise ValueError(f"cannot read the value of {text!r}; expected a number, a word or a [list]") from None
    stages = {stage["name"]: stage for stage in raw.get("stages", []) if isinstance(stage, dict) and "name" in stage}
    target: Any = raw
    if path[0] in stages:
        target, path = stages[path[0]], path[1:]
    elif len(path) > 1:
        raise ValueError(f"override {text!r}: no stage {path[0]!r}; {nearest(path[0], stages)}")
    if not path:
        raise ValueError(f"override {text!r}: name a key of the stage, as in {left}.train.lr=1e-4")
    for key in path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise ValueError(f"override {text!r}: {key!r} holds a value, not keys")
    target[path[-1]] = value


def build_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from plain data; ``where`` opens the errors."""
    stages = raw.get("stages")
    if not isinstance(stages, list):
        raise ValueError(f"{where}: 'stages' must be a list of stages, got {stages!r}")
    built = []
    for index, stage in enumerate(stages):
        label = stage.get("name", index) if isinstance(stage, Mapping) else index
        kind = stage.get("kind") if isinstance(stage, Mapping) else None
        if kind not in KINDS:
            raise ValueError(f"{where}.{label}: no stage kind {kind!r}; {nearest(str(kind), KINDS)}")
        built.append(build(KINDS[kind], stage, f"{where}.{label}"))
    return build(Recipe, {**raw, "stages": built}, where)


def build(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass ``cls`` from keys and values; ``where`` is their dotted path, for the errors.

    Its fields are plain types, ``Literal``, tuples, other such dataclasses, or one of these or ``None``.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), one that is missing, or a value of
            another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {values!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}: there is no key {key!r}; {nearest(str(key), fields)}")
    missing = [name for name in fields if name not in values and fields[name].default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    except ValueError as error:
        # A check in __post_init__ knows the value but not the place.
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def nearest(key: str, known: Iterable[Any]) -> str:
    """Say which known key is nearest, or list them all."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"


def _convert(kind: Any, value: Any, where: str) -> Any:
    """One value as its field's type, without guessing: a bool is no int; "1e-5" is a float, ".nan" is none."""
    args = get_args(kind)
    if dataclasses.is_dataclass(value):
        return value  # a stage of a recipe, built already
    if isinstance(kind, types.UnionType):
        return None if value is None else _convert(args[0], value, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        if value not in args:
            names = ", ".join(map(repr, args))
            raise ValueError(f"{where}: {value!r} is none of {names}; {nearest(str(value), args)}")
        return value
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        if args[1] is not Ellipsis and len(value) != len(args):
            raise ValueError(f"{where}: expected {len(args)} values, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-5, without a point, as a string.
        try:
            if math.isfinite(number := float(value)):
                return number
        except (OverflowError, TypeError, ValueError):
            pass
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
