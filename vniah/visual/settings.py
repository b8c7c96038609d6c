"""What a V-NIAH run is asked to measure: read once, from the environment over a task's YAML metadata.

lmms-eval passes no arguments to a task, so the grid and inputs travel as ``VNIAH_*`` variables
(or an ``env:`` block of ``lmms-eval --config``), or as the same keys in the YAML's metadata.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vniah.notices import did_you_mean, notice
from vniah.runs.grid import PAPER_DEPTHS, PAPER_FRAMES, Grid

DEFAULT_NEEDLES = "lmms-lab/v_niah_needles"
KEYS = ("frames", "depths", "haystack", "needles", "decoder", "presentation", "cache", "cache_gb")
PRESENTATIONS = ("video", "images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The inputs of a grid.

    Attributes:
        frames, depths: grid specs (see ``Grid.parse``).
        haystack: video file, folder of images, or ``synthetic[:seed]``.
        needles: Hub dataset id, folder, ``builtin`` or ``icons[:seed[:count]]``.
        decoder: ``pyav`` (exact), ``pyav-fast`` (approximate) or ``decord``.
        presentation: what models that answer freely are shown of a cell: its ``video``, or its frames as ``images``.
        cache: folder for composed videos and frame embeddings.
        cache_gb: bound of each kind of cached file, in gigabytes.
    """

    frames: str = PAPER_FRAMES
    depths: str = PAPER_DEPTHS
    haystack: str = "synthetic"
    needles: str = DEFAULT_NEEDLES
    decoder: str = "pyav"
    presentation: str = "video"
    cache: str = ""
    cache_gb: float = 20.0

    @classmethod
    def read(
        cls,
        metadata: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Settings:
        """The key of ``given`` (a command's flags), else ``VNIAH_<KEY>`` of the environment, else the key of
        ``metadata``, else the default.

        Raises:
            ValueError: an unknown ``VNIAH_`` variable is not an error (others may own it), but
                ``VNIAH_CACHE_GB`` that is not a positive number is, and a presentation that is none.
        """
        environ = os.environ if environ is None else environ
        metadata, given = metadata or {}, given or {}
        _check_names(environ, "VNIAH_", KEYS)
        values: dict[str, Any] = {}
        for key in KEYS:
            value = environ.get(f"VNIAH_{key.upper()}") or metadata.get(key)
            value = value if given.get(key) is None else given[key]
            if value is not None and value != "":
                values[key] = str(value)
        if "cache_gb" in values:
            told = values["cache_gb"]
            try:
                values["cache_gb"] = float(told)
            except ValueError:
                values["cache_gb"] = -1.0
            if not values["cache_gb"] > 0:
                raise ValueError(f"VNIAH_CACHE_GB is {told!r}; expected a positive number of gigabytes, such as 20")
        if values.get("presentation", "video") not in PRESENTATIONS:
            near = did_you_mean(values["presentation"], PRESENTATIONS)
            expected = f"expected one of {', '.join(PRESENTATIONS)}{near}"
            raise ValueError(f"no presentation {values['presentation']!r} (VNIAH_PRESENTATION); {expected}")
        return cls(**values)

    @property
    def grid(self) -> Grid:
        return Grid.parse(self.frames, self.depths)

    @property
    def cache_dir(self) -> Path:
        return cache_dir(self.cache)

    @property
    def cache_bytes(self) -> int:
        """``cache_gb`` in bytes; without end (``inf``) more than any disk holds."""
        return int(min(self.cache_gb, 1e9) * 1e9)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_names(environ: Mapping[str, str], prefix: str, keys: Sequence[str]) -> None:
    """Say so where a variable is not read and looks like one that is; others may own the rest."""
    known = [key.upper() for key in keys]
    for name in environ:
        ending = name.removeprefix(prefix)
        if name == ending or ending in known:
            continue
        # Near indeed: the judge's variables and those of tests begin alike.
        near = difflib.get_close_matches(ending, known, n=1, cutoff=0.8)
        if near:
            notice(f"the environment's {name} is not read; did you mean '{prefix}{near[0]}'?")


def cache_dir(chosen: str = "") -> Path:
    """``chosen``, else ``VNIAH_CACHE``, else ``$XDG_CACHE_HOME/vniah``, else ``~/.cache/vniah``."""
    if chosen or os.environ.get("VNIAH_CACHE"):
        return Path(chosen or os.environ["VNIAH_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vniah"
