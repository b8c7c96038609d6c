"""Scored cells and runs: what is read back from lmms-eval output folders and from journals.

A *run* is one model on one task. Plots, tables and the report read runs and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCell:
    """One scored cell of V-NIAH (or of text NIAH, where ``num_frames`` is the length in tokens).

    ``depth_percent`` and ``needle_index`` are ``None`` for a no-needle control.
    """

    num_frames: int
    depth_percent: int | None
    needle: str
    correct: bool
    control: bool = False
    needle_index: int | None = None
    predicted: str = ""
    answer: str = ""
    predicted_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    answer_logprobs: tuple[float, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model's scores on one task.

    Attributes:
        name: what to call it in a title; ``model`` below unless the user names it.
        task: lmms-eval task name, e.g. "vniah".
        model: the checkpoint that was scored.
        cells: every scored cell, controls included.
        train_frames: the backbone's training length in frames (dotted line), if known.
        metrics: scalar metrics by name.
        settings: grid, haystack, needles, fingerprints, versions.
    """

    name: str
    task: str
    model: str
    cells: tuple[ScoredCell, ...]
    train_frames: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
