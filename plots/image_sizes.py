"""The paper's Figure 5: widths and heights of datasets' images as 2-D histograms, on one scale for all.

Reads a folder of images, parquet files, or a column of a Hub dataset (streamed), by headers alone: no pixel is decoded.
Bins are quarters of an octave, so that a chart of 300 pixels and an infographic of 5,000 both show.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vniah.haystack.pictures import readable_formats
from vniah.plots.style import PLAIN, TEXT_WIDTH, Look, new_figure, octaves, panel_axes, paper_style, wrapped
from vniah.plots.table_formats import csv_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BINS_PER_OCTAVE = 4
GUIDE = 768  # the paper speaks of images smaller than 768 x 768


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A dataset's image sizes in pixels, (width, height) as stored; ``unreadable`` images are counted apart."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    unreadable: int = 0

    def share_within(self, side: int) -> float:
        """The fraction of images that fit into a square of ``side`` pixels."""
        return sum(max(size) <= side for size in self.sizes) / len(self.sizes)


def read_sizes(
    source: str, *, name: str | None = None, column: str | None = None, split: str = "test", limit: int | None = None
) -> Sizes:
    """Read the sizes of every image of a source, or of the first ``limit``.

    Args:
        source: a folder (of images or parquet files), a parquet file, or a Hub dataset
            ``owner/name[:config][@split]``, of ``split`` where it names none.
        name: what to call it; the source's last part otherwise.
        column: the image column of a table; the first that holds images otherwise. A cell may hold several
            images, or none, which is not counted.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without images and tables.
        ValueError: no image column, or not one readable image.
    """
    path = Path(source)
    images: Iterable[Any]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        parquet = sorted(path.rglob("*.parquet"))
        if not files and not parquet:
            raise FileNotFoundError(f"no images ({', '.join(SUFFIXES)}) and no .parquet files in {path}")
        images = files or _from_parquet(parquet, column)
    elif path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(
                f"cannot read images from {path.name}; expected a folder, a .parquet file or a Hub dataset"
            )
        images = _from_parquet([path], column)
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        images = _from_hub(source, column, split)
    else:
        raise FileNotFoundError(f"no such folder or file: {source}; a Hub dataset is named owner/name")
    read = [_size(image) for image in itertools.islice(images, limit)]
    sizes = tuple(size for size in read if size is not None)
    if not sizes:
        raise ValueError(f"{source}: none of {len(read)} images could be read")
    return Sizes(name=name or path.name or source, sizes=sizes, unreadable=len(read) - len(sizes))


def _size(image: Any) -> tuple[int, int] | None:
    """(width, height) by opening lazily: a path, bytes, or a row ``{"bytes", "path"}``; ``None`` if unreadable."""
    try:
        with contextlib.ExitStack() as closed, warnings.catch_warnings():
            # A huge picture is a finding here and not a danger: only its header is read.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return closed.enter_context(Image.open(_opened(image, closed), formats=readable_formats())).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _opened(image: Any, closed: contextlib.ExitStack) -> Any:
    """What PIL opens lazily. A table may name files of its own Hub dataset; any other name in it is a ValueError."""
    if isinstance(image, Path):
        return image
    stored, name = (image.get("bytes"), str(image.get("path"))) if isinstance(image, dict) else (image, "")
    if isinstance(stored, bytes):
        return io.BytesIO(stored)
    if name.startswith("hf://") or "::hf://" in name:
        import fsspec

        return closed.enter_context(fsspec.open(name, "rb"))
    raise ValueError("neither bytes nor a file of the dataset")


def _images(cell: Any) -> Iterator[Any]:
    """The images of a table's cell: one, several or none."""
    if isinstance(cell, list):
        for one in cell:
            yield from _images(one)
    elif cell is not None and (not isinstance(cell, dict) or any(cell.values())):
        yield cell


def _from_parquet(files: Sequence[Path], column: str | None) -> Iterator[Any]:
    """The image column of parquet files, a few rows at a time."""
    import pyarrow.parquet

    for file in files:
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow
        chosen = _column(file, schema.names, [field.name for field in schema if _holds_images(field.type)], column)
        for batch in table.iter_batches(batch_size=64, columns=[chosen]):
            yield from _images(batch.column(0).to_pylist())


def _column(source: object, names: Sequence[str], images: Sequence[str], asked: str | None) -> str:
    """The column that was asked for, else the first that holds images; a ValueError that lists all where it is none."""
    chosen = asked or next(iter(images), None)
    if chosen is None or chosen not in names:
        raise ValueError(f"{source} has no image column{f' {asked!r}' if asked else ''}; it has {list(names)}")
    return chosen


def _holds_images(kind: Any) -> bool:
    """Whether an Arrow type is that of stored images, or of lists of them."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_images(kind.value_type)
    if types.is_struct(kind):
        return "bytes" in {kind.field(at).name for at in range(kind.num_fields)}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _from_hub(source: str, column: str | None, split: str) -> Iterator[Any]:
    """The image column of a Hub dataset, streamed and undecoded."""
    import datasets

    named, _, own_split = source.partition("@")
    repository, _, config = named.partition(":")
    stream = datasets.load_dataset(repository, config or None, split=own_split or split, streaming=True).decode(False)
    features = stream.features or {}
    images = [
        key
        for key, feature in features.items()
        if any(isinstance(one, datasets.Image) for one in (feature, getattr(feature, "feature", None)))
    ]
    chosen = _column(source, list(features), images, column)
    for row in stream.select_columns([chosen]):
        yield from _images(row[chosen])


def size_edges(datasets: Sequence[Sizes]) -> NDArray[np.float64]:
    """Bin edges in pixels that hold every width and height, whole octaves from the smallest to the largest."""
    sides = [side for one in datasets for size in one.sizes for side in size]
    low, high = math.floor(math.log2(max(1, min(sides)))), math.floor(math.log2(max(sides))) + 1
    return np.exp2(np.linspace(low, high, (high - low) * BINS_PER_OCTAVE + 1))


def size_counts(data: Sizes, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many images fall into each bin, of shape (width bins, height bins)."""
    sizes = np.array(data.sizes, dtype=float)
    counts, _, _ = np.histogram2d(sizes[:, 0], sizes[:, 1], bins=(edges, edges))
    whole: NDArray[np.int64] = counts.astype(np.int64)
    return whole


def sizes_csv(datasets: Sequence[Sizes]) -> str:
    """The histograms as CSV, one bin that is not empty a line."""
    edges = size_edges(datasets)
    head = ["dataset", "width_from", "width_to", "height_from", "height_to", "images"]
    rows: list[tuple[object, ...]] = []
    for data in datasets:
        counts = size_counts(data, edges)
        for at, up in zip(*np.nonzero(counts), strict=True):
            box = (float(edge) for edge in (edges[at], edges[at + 1], edges[up], edges[up + 1]))
            rows.append((data.name, *box, int(counts[at, up])))
    return csv_text(head, rows)


def sizes_figure(datasets: Sequence[Sizes], look: Look = PLAIN) -> Any:
    """One panel a dataset, three in a row; a ValueError for no datasets."""
    if not datasets:
        raise ValueError("no datasets to draw; name at least one folder, parquet file or Hub dataset")
    from matplotlib.colors import LogNorm

    edges = size_edges(datasets)
    counts = [size_counts(data, edges) for data in datasets]
    across = min(3, len(datasets))
    down = math.ceil(len(datasets) / across)
    side = (look.width - 0.9) / across if look.width else (TEXT_WIDTH - 0.9) / 3
    titles = [
        wrapped(f"{data.name}, {len(data.sizes):,} images", side, 8.5)
        + f"\n{data.share_within(GUIDE):.0%} within {GUIDE} x {GUIDE}"
        for data in datasets
    ]
    lines = max(title.count("\n") for title in titles)
    whole = [int(edge) for edge in edges[::BINS_PER_OCTAVE]]
    ticks = whole[:: max(1, math.ceil(len(whole) / 6))]
    with paper_style():
        figure = new_figure(side * across + 0.9, (side + 0.35 + 0.14 * (lines - 1)) * down + 0.1, look)
        most = max(2, max(int(one.max()) for one in counts))
        norm = LogNorm(vmin=1, vmax=most)
        axes = panel_axes(figure, len(datasets), across, sharex=True, sharey=True)
        for index, (here, title) in enumerate(zip(axes, titles, strict=True)):
            # Zeros are left white: a logarithmic scale has no place for them.
            shown = np.ma.masked_equal(counts[index].T, 0)
            mesh = here.pcolormesh(edges, edges, shown, norm=norm, cmap=look.cmap or "viridis_r", linewidth=0)
            here.plot([edges[0], GUIDE, GUIDE], [GUIDE, GUIDE, edges[0]], color="black", linewidth=0.8, linestyle=":")
            here.set_title(title)
            for which in ("x", "y"):
                octaves(here, which, ticks, [str(one) for one in ticks])
            here.set_aspect("equal")
            here.tick_params(length=2)
            if index + across >= len(datasets):
                here.set_xlabel("width (pixels)")
                here.tick_params(labelbottom=True)
            if index % across == 0:
                here.set_ylabel("height (pixels)")
        bar = figure.colorbar(mesh, ax=figure.axes, label="images", fraction=0.04, pad=0.02)
        counted = count_ticks(most)
        bar.set_ticks(counted, labels=[f"{one:,}" for one in counted])
        bar.minorticks_off()
    return figure


def count_ticks(most: int) -> list[int]:
    """1, 10, 100, ... up to ``most``; 1, 2, 5, 10, ... where those would be too few to read off."""
    steps = (1, 2, 5) if most < 300 else (1,)
    return [step * 10**power for power in range(len(str(most))) for step in steps if step * 10**power <= most]
