"""Image sizes from headers alone, and the histogram's counts."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import LoopbackHub
from hub_tables import card, parquet
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vniah.plots.image_sizes import Sizes, count_ticks, read_sizes, size_counts, size_edges, sizes_csv, sizes_figure


def image_bytes(width: int, height: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, form)
    return out.getvalue()


def test_a_folder_is_read_by_headers_with_broken_images_counted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").write_bytes(image_bytes(30, 20))
    (tmp_path / "deep" / "b.JPG").write_bytes(image_bytes(40, 50, "JPEG"))
    # The header is whole and the pixels are not: sizes must not need them.
    (tmp_path / "c.png").write_bytes(image_bytes(700, 800)[:60])
    (tmp_path / "d.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    found = read_sizes(str(tmp_path), name="mine")
    assert (found.name, found.sizes, found.unreadable) == ("mine", ((30, 20), (700, 800), (40, 50)), 1)
    assert found.share_within(100) == pytest.approx(2 / 3)
    assert read_sizes(str(tmp_path), limit=2).sizes == ((30, 20), (700, 800))


def test_parquet_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [image_bytes(30, 20), image_bytes(40, 50)]
    plain = pyarrow.table({"id": [1, 2], "picture": rows})
    pyarrow.parquet.write_table(plain, tmp_path / "plain.parquet")
    nested = pyarrow.table({"image": [{"bytes": one, "path": None} for one in rows], "q": ["a", "b"]})
    pyarrow.parquet.write_table(nested, tmp_path / "nested.parquet")
    assert read_sizes(str(tmp_path / "plain.parquet")).sizes == ((30, 20), (40, 50))
    assert read_sizes(str(tmp_path / "nested.parquet"), column="image").sizes == ((30, 20), (40, 50))
    with pytest.raises(ValueError, match=r"no image column 'x'; it has \['image', 'q'\]"):
        read_sizes(str(tmp_path / "nested.parquet"), column="x")
    assert len(read_sizes(str(tmp_path)).sizes) == 4, "a folder of parquet files"


def test_cells_may_hold_several_images_or_none_and_name_no_files_of_ours(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "mine.png").write_bytes(image_bytes(9, 9))
    one, other = ({"bytes": image_bytes(width, 20), "path": None} for width in (30, 40))
    cells = [[one, other], [], None, [one, {"bytes": None, "path": str(tmp_path / "mine.png")}]]
    pyarrow.parquet.write_table(pyarrow.table({"images": cells}), tmp_path / "lists.parquet")
    found = read_sizes(str(tmp_path / "lists.parquet"))
    assert (found.sizes, found.unreadable) == (((30, 20), (40, 20), (30, 20)), 1)


def test_hub_datasets_are_streamed(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    """Parquet with a configuration and a column half empty, and files in a folder, in one figure."""
    picture = Image.new("RGB", (30, 20))
    table = parquet([{"q": "a", "image_2": picture}, {"q": "b", "image_2": None}])
    loopback_hub.add_repo("org/table", {"README.md": card(Art="validation"), "Art/validation-0.parquet": table})
    folder = {"test/a.png": image_bytes(40, 50), "test/b.png": b"no image"}
    loopback_hub.add_repo("org/folder", {"README.md": card(), **folder})
    command = [sys.executable, "-m", "vniah.cli", "figure", "5", "org/table:Art@validation", "org/folder"]
    command += ["--name", "table", "--csv", str(tmp_path / "sizes.csv")]
    env = loopback_hub.env(tmp_path / "home")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("table: 1 images\nfolder: 1 images, 1 unreadable\n")
    rows = list(csv.DictReader((tmp_path / "sizes.csv").open()))
    assert [(row["dataset"], row["images"]) for row in rows] == [("table", "1"), ("folder", "1")]


def test_sources_that_hold_no_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no images .* in"):
        read_sizes(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        read_sizes(str(tmp_path / "absent"))
    (tmp_path / "d.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 1 images could be read"):
        read_sizes(str(tmp_path))
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"cannot read images from film\.mp4"):
        read_sizes(str(tmp_path / "film.mp4"))


sides = st.integers(1, 20_000)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=30))
def test_every_image_is_counted_once_in_the_bin_that_holds_it(sizes: list[tuple[int, int]]) -> None:
    data = Sizes(name="x", sizes=tuple(sizes))
    edges = size_edges([data])
    counts = size_counts(data, edges)
    assert counts.sum() == len(sizes)
    assert np.all(np.diff(edges) > 0)
    width, height = sizes[0]
    # Rounding of powers of two may move a size that is exactly on an edge by one bin.
    at = [int(np.searchsorted(edges, side * (1 + 1e-9), side="right")) - 1 for side in (width, height)]
    assert counts[max(0, at[0] - 1) : at[0] + 2, max(0, at[1] - 1) : at[1] + 2].sum() > 0


def test_width_runs_across_and_height_up() -> None:
    data = Sizes(name="wide", sizes=((1000, 100),) * 5 + ((100, 100),))
    figure = sizes_figure([data, Sizes(name="small", sizes=((50, 60),))])
    wide, small, *_ = figure.axes
    assert "wide, 6 images" in wide.get_title() and "17% within 768 x 768" in wide.get_title()
    drawn = np.ma.filled(wide.collections[0].get_array(), 0)  # (height bins, width bins)
    edges = size_edges([data, Sizes(name="small", sizes=((50, 60),))])
    row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
    assert drawn[row, column] == 5
    assert edges[column] <= 1000 < edges[column + 1] and edges[row] <= 100 < edges[row + 1]
    assert wide.get_xlim() == small.get_xlim(), "one scale for all"
    with pytest.raises(ValueError, match="no datasets"):
        sizes_figure([])


def test_the_scale_of_counts_can_be_read_off() -> None:
    assert count_ticks(7) == [1, 2, 5] and count_ticks(40) == [1, 2, 5, 10, 20]
    assert count_ticks(4000) == [1, 10, 100, 1000]


def test_csv_holds_the_bins_that_are_not_empty() -> None:
    lines = sizes_csv([Sizes(name='a "b"', sizes=((64, 128), (64, 130), (300, 40)))]).splitlines()
    assert lines[0] == "dataset,width_from,width_to,height_from,height_to,images"
    assert lines[1].startswith('"a ""b""",64,76.1093,128,152.219,2')
    assert len(lines) == 3
