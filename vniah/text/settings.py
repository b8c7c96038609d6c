"""What a text NIAH run is asked to measure: ``TEXT_NIAH_*`` over a task's YAML metadata."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vniah.runs.grid import Grid, parse_lengths, parse_range
from vniah.runs.settings import TaskSettings, own
from vniah.text.puzzles import check_puzzle


@dataclass(frozen=True, kw_only=True)
class TextSettings(TaskSettings):
    """The inputs of a text NIAH grid; the paper's by default.

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

    prefix = "TEXT_NIAH_"
    lengths: str = "32000-512000:32000"
    depths: str = "0-100:10"
    samples: int = 5
    haystack: str = ""
    tokenizer: str = ""
    seed: int = 24242424
    shared_distractors: bool = False
    num_distractors: int = own(0)
    variant: str = own("single")
    num_needles: int = own(1)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"TEXT_NIAH_SAMPLES must be at least 1, got {self.samples}")
        check_puzzle(self.num_distractors, self.variant, self.num_needles)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid(lengths=parse_lengths(self.lengths), depths=parse_range(self.depths, "depths"))
