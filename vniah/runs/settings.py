"""The inputs of a needle family as a dataclass, each read once and by its type.

lmms-eval passes no arguments to a task, so they travel as variables of the environment (or an ``env:`` block of
``lmms-eval --config``), or as keys of the YAML's metadata.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from vniah.notices import notice
from vniah.runs.scoring import THRESHOLD

_Settings = TypeVar("_Settings", bound="TaskSettings")
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Base of the families' settings. A field is a text, a whole number or a switch, as its default is.

    What a field's metadata may say: ``read``, a function of a value and its name, in place of that rule; and ``own``:
    it is part of what a task is, so no variable sets it.
    """

    prefix: ClassVar[str]

    @classmethod
    def read(
        cls: type[_Settings],
        metadata: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> _Settings:
        """The key of ``given`` (a command's flags), else ``PREFIX_KEY`` of the environment, else the key of
        ``metadata``, else the default. What is empty says nothing; 0 and False do.

        A variable that is near to a known one and none is told of; others may own the rest.

        Raises:
            ValueError: naming a value of another type, or out of bounds.
        """
        environ = os.environ if environ is None else environ
        variables = {one.name: f"{cls.prefix}{one.name.upper()}" for one in fields(cls) if not one.metadata.get("own")}
        _tell_mistyped(environ, cls.prefix, [*variables.values(), THRESHOLD])
        values = {}
        for one in fields(cls):
            told = [(metadata or {}).get(one.name)]
            if one.name in variables:
                told = [(given or {}).get(one.name), environ.get(variables[one.name]), *told]
            value = next((value for value in told if value not in (None, "")), None)
            if value is not None:
                read = one.metadata.get("read") or _READERS[type(one.default)]
                values[one.name] = read(value, variables.get(one.name, one.name))
        return cls(**values)


def _tell_mistyped(environ: Iterable[str], prefix: str, known: Collection[str]) -> None:
    for name in environ:
        # Near indeed: the judge's variables and those of tests begin alike.
        if name.startswith(prefix) and name not in known:
            endings = [one.removeprefix(prefix) for one in known]
            for near in difflib.get_close_matches(name.removeprefix(prefix), endings, 1, 0.8):
                notice(f"the environment's {name} is not read; did you mean '{prefix}{near}'?")


def own(default: Any) -> Any:
    """A field that the YAML of a task alone sets."""
    return field(default=default, metadata={"own": True})


def _whole(value: Any, name: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _switch(value: Any, name: str) -> bool:
    word = str(value).strip().lower()
    if word not in _ON and word not in _OFF:
        raise ValueError(f"{name} must be 1 or 0, got {value!r}")
    return word in _ON


_READERS: dict[type, Callable[[Any, str], Any]] = {str: lambda value, name: str(value), int: _whole, bool: _switch}
