"""One look for every figure: colours, fonts and sizes, and how a figure lands on disk.

The scale runs red, yellow, green as in the paper, but each step is lighter than the one before, so
that it stays in order when printed in grey. Figures are made without pyplot: no global state, no
window. Sizes are in inches for a text width of 7 and fonts in points of the printed page.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vniah.files import replacing

TEXT_WIDTH = 7.0
SCALE_STOPS = ("#b5203f", "#e8a13a", "#9be8b4")
IMAGE_SUFFIXES = (".png", ".pdf", ".svg")

SMALL_PRINT = 6.5  # points: a figure's caption

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a "$" in a run's name is a dollar sign
    "pdf.fonttype": 42,  # TrueType: what paper checkers ask for
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a user may choose of any figure: its width in inches, the pixels an inch of a PNG, a matplotlib colour map
    for scores or counts, and a title above. What is not told is the figure's own.

    Raises:
        ValueError: a width or dpi out of range, or a colour map that matplotlib does not have (names the nearest).
    """

    width: float | None = None
    dpi: int = 200
    cmap: str | None = None
    title: str = ""

    def __post_init__(self) -> None:
        # Beyond these a figure is a mistake: unreadable, or more pixels than a machine holds.
        if self.width is not None and not 2 <= self.width <= 40:
            raise ValueError(f"a figure of {self.width:g} inches was asked for; --width takes 2 to 40, 7 fits a page")
        if not 30 <= self.dpi <= 1200:
            raise ValueError(f"{self.dpi} pixels an inch were asked for; --dpi takes 30 to 1200, 300 is for print")
        if self.cmap is not None:
            from matplotlib import colormaps

            if self.cmap not in colormaps:
                near = difflib.get_close_matches(self.cmap, colormaps, n=3) or ["viridis", "cividis", "RdYlGn"]
                raise ValueError(f"matplotlib has no colour map {self.cmap!r}; try {', '.join(near)}")

    def colormap(self) -> Any:
        """The scale of scores: the one that was chosen, else the paper's red, yellow, green."""
        from matplotlib import colormaps

        return score_colormap() if self.cmap is None else colormaps[self.cmap]

    def ink(self, score: float) -> str:
        """Black or white on the scale's colour at ``score``."""
        if self.cmap is None:
            return ink_on(score)
        from matplotlib.colors import to_hex

        return _ink_on_colour(to_hex(self.colormap()(float(score))))


PLAIN = Look()


@contextmanager
def paper_style() -> Iterator[None]:
    """The style's settings while a figure is made and saved; whatever held before holds again after."""
    import matplotlib

    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield


def score_colormap() -> Any:
    """0 to 1 as red, yellow, green, rising in lightness (a matplotlib colormap)."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("vniah_score", list(SCALE_STOPS))


def score_colour(score: float) -> str:
    """The scale's colour at ``score`` as ``#rrggbb``; without matplotlib, for pages."""
    stops = [tuple(int(stop[at : at + 2], 16) for at in (1, 3, 5)) for stop in SCALE_STOPS]
    place = min(max(score, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    mixed = (round(a + (b - a) * (place - left)) for a, b in zip(stops[left], stops[left + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ink_on(score: float) -> str:
    """Black or white on the scale's colour at ``score``, in figures and pages alike."""
    return _ink_on_colour(score_colour(score))


def _ink_on_colour(colour: str) -> str:
    """Black or white, whichever stands out more from ``#rrggbb`` (WCAG's contrast)."""
    red, green, blue = ((int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5))
    return "black" if (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) ** 2 > 1.05 * 0.05 else "white"


def new_figure(width: float, height: float, look: Look = PLAIN, *, notes: Sequence[str] = ()) -> Any:
    """An empty figure of so many inches that can save itself; constrained layout.

    The chosen title goes above and the small print below; both are wrapped to the width, and the figure grows by
    their lines, so that neither takes room from what is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = wrapped(look.title, width - 0.15, 10, bold=True)
    small = [line for note in notes for line in wrapped(note, width - 0.15, SMALL_PRINT).splitlines()]
    # What is drawn has room for one line of small print as it is.
    height += 0.2 * len(title.splitlines()) + 0.12 * max(0, len(small) - 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if small:
        figure.supxlabel("\n".join(small), fontsize=SMALL_PRINT, x=0.01, ha="left")
    return figure


def panel_axes(figure: Any, count: int, across: int, **shared: bool) -> list[Any]:
    """Axes for so many panels, so many in a row; places that are left over stay empty."""
    axes = figure.subplots(math.ceil(count / across), across, squeeze=False, **shared).ravel()
    for empty in axes[count:]:
        empty.set_axis_off()
    return list(axes[:count])


def octaves(axes: Any, which: Literal["x", "y"], ticks: Sequence[float], labels: Sequence[str]) -> None:
    """Give one of the axes octaves and ticks."""
    from matplotlib.ticker import NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, labels)
    axis.set_minor_locator(NullLocator())


def wrapped(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Text in lines of at most so many inches at ``size`` points, broken at spaces, else behind marks in a word."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for piece in _pieces(paragraph):
            if line and _inches(line + piece.rstrip(), size, bold) > inches:
                lines.append(line.rstrip())
                line = ""
            line += piece
            while (fits := max(1, _fitting(line.rstrip(), inches, size, bold))) < len(line.rstrip()):
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line.rstrip())
    return "\n".join(lines)


def _fitting(text: str, inches: float, size: float, bold: bool) -> int:
    """How many characters of a text fit into a line."""
    # Of a text without end no more is measured than the narrowest letters, a quarter as wide as high, would fill.
    most = min(len(text), int(inches * 72 / (0.25 * size)) + 1)
    return bisect_right(range(1, most + 1), inches, key=lambda n: _inches(text[:n], size, bold))


def _pieces(text: str) -> list[str]:
    """A text in pieces behind each of which a line may end: a space, or a mark of a model's or file's name.

    What stands in short brackets stays together.
    """
    return re.findall(r"[/_+-]*(?:\([^()]{1,24}\)|[^ /_+-])*(?: +|[/_+-]+ *|$)", text)


@functools.lru_cache(maxsize=4096)
def _inches(text: str, size: float, bold: bool) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=_RC["font.sans-serif"], size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def check_image_path(path: str | Path) -> Path:
    """The path, if a figure may be written there; a ValueError for another ending than ``IMAGE_SUFFIXES``, so that a
    figure never replaces another kind of file, and an OSError as ``check_output_path`` raises."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"cannot tell the format of {path.name!r}; expected a name ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    return check_output_path(path)


def check_output_path(path: Path) -> Path:
    """The path, if a file may be written there: its folder exists and it is no folder itself."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    return path


def save_figure(figure: Any, path: str | Path, *, title: str = "", dpi: int = 200) -> Path:
    """Save atomically in the format of the path's ending, with ``title`` in the file's metadata; an image of that name
    is replaced. Raises as ``check_image_path`` does, and an OSError for a folder that cannot be written to."""
    path = check_image_path(path)
    kind = path.suffix.lower()[1:]
    # No dates or versions inside: the same run gives the same bytes.
    metadata: dict[str, Any] = {"Title": title} if title else {}
    metadata |= {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with paper_style(), _whole(path) as part:
        figure.savefig(part, format=kind, metadata=metadata, dpi=dpi)
    return path


def save_text(text: str, path: str | Path) -> Path:
    """Write a text file atomically; an OSError names the path."""
    path = check_output_path(Path(path))
    with _whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """``replacing``, with an error that names the output."""
    try:
        with replacing(path) as part:
            yield part
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror or error}") from error
