"""Mappings to frozen dataclasses, checked: an unknown or ill-typed key is an error that names the nearest key.

Knows nothing about training; a recipe is one user of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass ``cls`` from a mapping.

    Args:
        cls: a dataclass whose fields are plain types, ``Literal``, ``tuple[X, ...]``, ``dict[str, X]``,
            other such dataclasses, or one of these or ``None``.
        values: what was read from YAML.
        where: dotted path, for the errors.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), one that is missing, or a
            value of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {values!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(f"{where}: there is no key {key!r}; {nearest(str(key), fields)}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    try:
        return cls(**{key: convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    except ValueError as error:
        # A check in __post_init__ knows the value but not the place.
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def nearest(key: str, known: Any) -> str:
    """Say which known key is nearest, or list them all."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"


def convert(kind: Any, value: Any, where: str) -> Any:
    """Convert one value to a field's type, or raise ValueError naming the place, the type and the value."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        return _first_that_fits(inner, value, where)
    if origin is Literal:
        if value not in args:
            close = nearest(str(value), args)
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}; {close}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(convert(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if len(value) != len(args):
            raise ValueError(f"{where}: expected {len(args)} values, got {value!r}")
        return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected keys and values, got {value!r}")
        return {str(key): convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where)  # type: ignore[arg-type]
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """Convert to bool, int, float or str without guessing (a bool is no int; '1e-5' is a float, '.nan' is none)."""
    if kind is float and not isinstance(value, bool):
        try:
            # YAML 1.1 reads 1e-5, without a point, as a string.
            if (isinstance(value, int | float) or (isinstance(value, str) and value.strip())) and math.isfinite(
                number := float(value)
            ):
                return number
        except ValueError:
            pass
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif kind in (bool, int, str) and type(value) is kind:
        return value
    raise ValueError(f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")


def _first_that_fits(kinds: Sequence[Any], value: Any, where: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return convert(kind, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split ``a.b.c=value`` into its path and the value as YAML reads it.

    Raises:
        ValueError: no ``=``, an empty path, or a value that is not YAML.
    """
    import yaml

    path, sign, raw = text.partition("=")
    if not sign or not all(path.split(".")):
        raise ValueError(f"cannot read the override {text!r}; expected key=value, as in seed=3 or text.train.lr=1e-4")
    try:
        return path.split("."), yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ValueError(f"cannot read the value of {text!r}; expected a number, a word or a [list]") from None
