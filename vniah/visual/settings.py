"""What a V-NIAH run is asked to measure: ``VNIAH_*`` over a task's YAML metadata."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vniah.notices import did_you_mean, notice
from vniah.runs.grid import PAPER_DEPTHS, PAPER_FRAMES, Grid
from vniah.runs.settings import TaskSettings, own

if TYPE_CHECKING:
    from vniah.haystack import Haystack
    from vniah.visual.scenes import Scenes

DEFAULT_NEEDLES = "lmms-lab/v_niah_needles"
PRESENTATIONS = ("video", "images")
MOST_SEEDS = 100


def _gigabytes(value: Any, name: str) -> float:
    try:
        size = float(value)
    except ValueError:
        size = -1.0
    if not size > 0:
        raise ValueError(f"{name} is {str(value)!r}; expected a positive number of gigabytes, such as 20")
    return size


def known_presentation(value: Any, name: str = "presentation") -> str:
    """One of ``PRESENTATIONS``; ValueError names the nearest."""
    if value not in PRESENTATIONS:
        near = did_you_mean(str(value), PRESENTATIONS)
        raise ValueError(f"no presentation {str(value)!r} ({name}); expected one of {', '.join(PRESENTATIONS)}{near}")
    return str(value)


def _seeds(value: Any, name: str) -> int:
    if not (str(value).isascii() and str(value).isdecimal() and 1 <= int(value) <= MOST_SEEDS):
        raise ValueError(
            f"{name} is how often the grid is repeated, a whole number from 1 to {MOST_SEEDS}, got {value!r}"
        )
    return int(value)


@dataclass(frozen=True, kw_only=True)
class Settings(TaskSettings):
    """The inputs of a grid.

    Attributes:
        frames, depths: grid specs (see ``Grid.parse``).
        haystack: video file, folder of images, or ``synthetic[:seed]``.
        needles: Hub dataset id, folder, ``builtin`` or ``icons[:seed[:count]]``.
        decoder: ``pyav`` (exact), ``pyav-fast`` (approximate) or ``decord``.
        presentation: what models that answer freely are shown of a cell: its ``video``, or its frames as ``images``.
        seeds: how often the grid is repeated, each time with the seeds of film, needles and draws one higher.
        kind: which test it is, a name of ``kinds.KINDS``.
        cache: folder for composed videos and frame embeddings.
        cache_gb: bound of each kind of cached file, in gigabytes.
    """

    prefix = "VNIAH_"
    frames: str = PAPER_FRAMES
    depths: str = PAPER_DEPTHS
    haystack: str = "synthetic"
    needles: str = DEFAULT_NEEDLES
    decoder: str = "pyav"
    presentation: str = field(default="video", metadata={"read": known_presentation})
    seeds: int = field(default=1, metadata={"read": _seeds})
    kind: str = own("needles")
    cache: str = ""
    cache_gb: float = field(default=20.0, metadata={"read": _gigabytes})

    def open_scenes(self, film: Haystack) -> Scenes:
        """What the cells show and ask."""
        from vniah.needles import open_needles
        from vniah.visual.scenes import Needles

        return Needles(open_needles(self.needles))

    def repetitions(self) -> tuple[Settings, ...]:
        """These settings with 0, 1, ... added to every seed in them.

        Raises:
            ValueError: several, and nothing in them has a seed: every repetition would be the same.
        """
        from vniah.haystack.opening import of_seed as film_of_seed
        from vniah.needles.sources import of_seed as needles_of_seed

        own_seed = getattr(self, "seed", None)
        inputs = [("haystack", self.haystack, film_of_seed)]
        inputs += [("needles", self.needles, needles_of_seed)] if own_seed is None else []
        found, fixed = [], [f"the {name} {spec}" for name, spec, move in inputs if move(spec, 1) == spec]
        if self.seeds > 1 and len(fixed) == len(inputs) and own_seed is None:
            raise ValueError(
                f"VNIAH_SEEDS={self.seeds} repeats nothing: {' and '.join(fixed)} have no seed; take a haystack "
                "'synthetic[:seed]' or needles 'icons[:seed]', or leave it out"
            )
        if self.seeds > 1 and fixed:
            moved = [name for name, spec, move in inputs if move(spec, 1) != spec] + ["draws"] * (own_seed is not None)
            notice(
                f"VNIAH_SEEDS={self.seeds}: {' and '.join(fixed)} stay the same in every repetition, having no seed; "
                f"its {' and '.join(moved)} alone are others"
            )
        for more in range(self.seeds):
            changed: dict[str, Any] = {name: move(spec, more) if more else spec for name, spec, move in inputs}
            found.append(replace(self, **changed, **({} if own_seed is None else {"seed": own_seed + more})))
        return tuple(found)

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid.parse(self.frames, self.depths)

    @property
    def cache_dir(self) -> Path:
        return cache_dir(self.cache)

    @property
    def cache_bytes(self) -> int:
        """``cache_gb`` in bytes; without end (``inf``) more than any disk holds."""
        return int(min(self.cache_gb, 1e9) * 1e9)


def cache_dir(chosen: str = "") -> Path:
    """``chosen``, else ``VNIAH_CACHE``, else ``$XDG_CACHE_HOME/vniah``, else ``~/.cache/vniah``."""
    chosen = chosen or os.environ.get("VNIAH_CACHE", "")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(chosen).expanduser() if chosen else (Path(base) if base else Path.home() / ".cache") / "vniah"
