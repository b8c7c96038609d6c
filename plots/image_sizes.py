"""Widths and heights of a dataset's images from their headers alone: what the paper's Figure 5 counts.

Reads a folder of images, parquet files, or a column of a Hub dataset (streamed). No pixel is decoded.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vniah.haystack.pictures import readable_formats

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
    """Read the sizes of every image of a source.

    Args:
        source: a folder (of images or parquet files), a parquet file, or a Hub dataset
            ``owner/name[:config][@split]``.
        name: what to call it; the source's last part otherwise.
        column: the image column of a table; the first that holds images otherwise. A cell may hold several
            images, or none, which is not counted.
        split: which split of a Hub dataset that does not name its own.
        limit: stop after so many images.

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
    sizes, unreadable = [], 0
    for image in images:
        size = _size(image)
        if size is None:
            unreadable += 1
        else:
            sizes.append(size)
        if limit is not None and len(sizes) + unreadable >= limit:
            break
    if not sizes:
        raise ValueError(f"{source}: none of {unreadable} images could be read")
    return Sizes(name=name or path.name or source, sizes=tuple(sizes), unreadable=unreadable)


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
    """What PIL opens lazily. A table may name files of its own Hub dataset; any other name in it is not followed.

    Raises:
        ValueError: nothing to open.
    """
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
        found = [field.name for field in schema if _holds_images(field.type)]
        chosen = column or (found[0] if found else None)
        if chosen not in schema.names:
            raise ValueError(f"{file} has no image column{f' {column!r}' if column else ''}; it has {schema.names}")
        for batch in table.iter_batches(batch_size=64, columns=[chosen]):
            yield from _images(batch.column(0).to_pylist())


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
    found = [
        key
        for key, feature in features.items()
        if any(isinstance(one, datasets.Image) for one in (feature, getattr(feature, "feature", None)))
    ]
    chosen = column or (found[0] if found else None)
    if chosen is None or chosen not in features:
        raise ValueError(f"{source} has no image column{f' {column!r}' if column else ''}; it has {list(features)}")
    for row in stream.select_columns([chosen]):
        yield from _images(row[chosen])
