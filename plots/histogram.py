"""The paper's Figure 5: 2-D histograms of image width and height, one panel a dataset, one scale for all.

Bins are quarters of an octave, so that a chart of 300 pixels and an infographic of 5,000 both show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.plots.image_sizes import Sizes
from vniah.plots.style import TEXT_WIDTH, Look, new_figure, paper_style, save_figure, wrapped
from vniah.plots.table_formats import csv_text

BINS_PER_OCTAVE = 4
GUIDE = 768  # the paper speaks of images smaller than 768 x 768


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


def sizes_figure(datasets: Sequence[Sizes], look: Look | None = None) -> Any:
    """One panel a dataset, three in a row.

    Raises:
        ValueError: no datasets.
    """
    if not datasets:
        raise ValueError("no datasets to draw; name at least one folder, parquet file or Hub dataset")
    from matplotlib.colors import LogNorm

    edges = size_edges(datasets)
    counts = [size_counts(data, edges) for data in datasets]
    across = min(3, len(datasets))
    down = math.ceil(len(datasets) / across)
    look = look or Look()
    side = (look.width - 0.9) / across if look.width else (TEXT_WIDTH - 0.9) / 3
    titles = [
        wrapped(f"{data.name}, {len(data.sizes):,} images", side, 8.5)
        + f"\n{data.share_within(GUIDE):.0%} within {GUIDE} x {GUIDE}"
        for data in datasets
    ]
    lines = max(title.count("\n") for title in titles)
    with paper_style():
        figure = new_figure(side * across + 0.9, (side + 0.35 + 0.14 * (lines - 1)) * down + 0.1, look)
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        most = max(2, max(int(one.max()) for one in counts))
        norm = LogNorm(vmin=1, vmax=most)
        for index, title in enumerate(titles):
            here = axes[index // across][index % across]
            # Zeros are left white: a logarithmic scale has no place for them.
            shown = np.ma.masked_equal(counts[index].T, 0)
            mesh = here.pcolormesh(edges, edges, shown, norm=norm, cmap=look.cmap or "viridis_r", linewidth=0)
            here.plot([edges[0], GUIDE, GUIDE], [GUIDE, GUIDE, edges[0]], color="black", linewidth=0.8, linestyle=":")
            here.set_title(title)
            _octave_ticks(here, edges)
            if index + across >= len(datasets):
                here.set_xlabel("width (pixels)")
                here.tick_params(labelbottom=True)
            if index % across == 0:
                here.set_ylabel("height (pixels)")
        for empty in range(len(datasets), down * across):
            axes[empty // across][empty % across].set_axis_off()
        bar = figure.colorbar(mesh, ax=axes, label="images", fraction=0.04, pad=0.02)
        counted = count_ticks(most)
        bar.set_ticks(counted, labels=[f"{one:,}" for one in counted])
        bar.minorticks_off()
    return figure


def count_ticks(most: int) -> list[int]:
    """1, 10, 100, ... up to ``most``; 1, 2, 5, 10, ... where those would be too few to read off."""
    steps = (1, 2, 5) if most < 300 else (1,)
    return [step * 10**power for power in range(len(str(most))) for step in steps if step * 10**power <= most]


def _octave_ticks(axes: Any, edges: NDArray[np.float64]) -> None:
    from matplotlib.ticker import NullLocator

    octaves = [int(edge) for edge in edges[::BINS_PER_OCTAVE]]
    every = max(1, math.ceil(len(octaves) / 6))
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log", base=2)
        axis.set_ticks(octaves[::every], [str(one) for one in octaves[::every]])
        axis.set_minor_locator(NullLocator())
    axes.set_aspect("equal")
    axes.tick_params(length=2)


def save_sizes(datasets: Sequence[Sizes], path: str | Path) -> Path:
    """Draw and save. See ``style.save_figure`` for what it raises."""
    saved: Path = save_figure(sizes_figure(datasets), path, title="Image sizes")
    return saved
