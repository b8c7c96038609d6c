"""What a text NIAH run is asked to measure: from ``TEXT_NIAH_*`` over a task's YAML metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vniah.runs.grid import Cell, Grid, parse_lengths, parse_range
from vniah.text.puzzles import check_puzzle

PAPER_LENGTHS = "32000-512000:32000"
PAPER_DEPTHS = "0-100:10"
PAPER_SAMPLES = 5
PAPER_SEED = 24242424

_STRINGS = ("lengths", "depths", "haystack", "tokenizer")
_NUMBERS = ("samples", "seed")
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# Part of what a task is, so its YAML's alone: no variable of the environment.
_TASK_NUMBERS = ("num_distractors", "num_needles")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """The inputs of a text NIAH grid.

    Attributes:
        lengths: tokens of haystack, "32000-512000:32000" or "32K,64K" (K for thousands).
        depths: percentages, "0-100:10".
        samples: numbers drawn for each length and depth.
        haystack: folder of .txt files, Hub dataset id, ``builtin[:seed]``; empty for the paper's essays.
        tokenizer: folder or Hub id of the tokenizer that counts lengths for a model that brings none.
        seed: of all draws.
        shared_distractors, num_distractors, variant, num_needles: see ``make_puzzle``.

    Raises:
        ValueError: naming the value that is out of bounds.
    """

    lengths: str = PAPER_LENGTHS
    depths: str = PAPER_DEPTHS
    samples: int = PAPER_SAMPLES
    haystack: str = ""
    tokenizer: str = ""
    seed: int = PAPER_SEED
    shared_distractors: bool = False
    num_distractors: int = 0
    variant: str = "single"
    num_needles: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"TEXT_NIAH_SAMPLES must be at least 1, got {self.samples}")
        check_puzzle(self.num_distractors, self.variant, self.num_needles)

    @classmethod
    def read(
        cls,
        metadata: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> TextSettings:
        """The key of ``given`` (a command's flags), else ``TEXT_NIAH_<KEY>`` of the environment, else the key of
        ``metadata``, else the paper's.

        Raises:
            ValueError: a count or seed that is not a whole number, or a value out of bounds.
        """
        environ = os.environ if environ is None else environ
        metadata, given = metadata or {}, given or {}
        values: dict[str, Any] = {}
        for key in (*_STRINGS, *_NUMBERS):
            value = _first(given.get(key), environ.get(f"TEXT_NIAH_{key.upper()}"), metadata.get(key))
            if value not in (None, ""):
                values[key] = str(value) if key in _STRINGS else _whole(value, f"TEXT_NIAH_{key.upper()}")
        shared = _first(
            given.get("shared_distractors"),
            environ.get("TEXT_NIAH_SHARED_DISTRACTORS"),
            metadata.get("shared_distractors"),
        )
        if shared not in (None, ""):
            values["shared_distractors"] = _switch(shared, "TEXT_NIAH_SHARED_DISTRACTORS")
        for key in _TASK_NUMBERS:
            if metadata.get(key) is not None:
                values[key] = _whole(metadata[key], key)
        if metadata.get("variant"):
            values["variant"] = str(metadata["variant"])
        return cls(**values)

    @property
    def grid(self) -> Grid:
        """The grid with lengths for frames."""
        return Grid(lengths=parse_lengths(self.lengths), depths=parse_range(self.depths, "depths"))

    def cells(self) -> Iterator[Cell]:
        """Every cell, lengths first, then depths, then samples; one no-needle control behind each length."""
        return self.grid.cells(samples=self.samples)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _first(*values: Any) -> Any:
    """The first value that says something: 0 and False do."""
    return next((value for value in values if value not in (None, "")), None)


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
