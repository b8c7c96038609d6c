"""Needles from a Hub dataset: Parquet with columns image, question, answer; or images with an index.

Read with pyarrow alone, which is several times quicker to import than the datasets library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vniah.files import read_json_lines
from vniah.hub import fetch_dataset
from vniah.needles.folder import INDEX, checked_file, read_folder
from vniah.needles.needle import Needle, NeedleSet, Picture

SPLIT = "test"
COLUMNS = ("image", "question", "answer")
PATTERNS = ("*.parquet", INDEX, "*metadata.jsonl", "*.png", "*.jpg", "*.jpeg", "*.webp")


def read_hub_dataset(repo_id: str, revision: str | None = None, *, refresh: bool = False) -> NeedleSet:
    """The needles of a Hub dataset, from the cache if it is there.

    Raises:
        HubUnreachableError, RepositoryMissingError: see ``vniah.hub.fetch_snapshot``.
        ValueError: no split "test", other columns, or a faulty row.
    """
    snapshot = fetch_dataset(repo_id, revision, allow_patterns=PATTERNS, refresh=refresh, progress=False)
    # cache/datasets--owner--name/snapshots/commit: files are links to the blobs two levels up.
    return read_snapshot(snapshot, repo_id, links_within=snapshot.parent.parent)


def read_snapshot(folder: Path, name: str, *, links_within: Path | None = None) -> NeedleSet:
    """The needles of a downloaded dataset: needles.json, Parquet, or images with metadata.jsonl.

    Raises:
        ValueError, FileNotFoundError: see ``read_hub_dataset``.
    """
    if (folder / INDEX).is_file():
        return read_folder(folder, name=name, links_within=links_within)
    tables = sorted(folder.rglob("*.parquet"))
    if tables:
        rows = _parquet_rows(_of_split(tables, folder, name), folder, name, links_within)
    else:
        rows = _image_folder_rows(folder, name, links_within)
    needles = [
        Needle(id=str(number), question=question, answer=answer, picture=picture)
        for number, (picture, question, answer) in enumerate(rows)
    ]
    return NeedleSet(name, needles)


def _of_split(tables: list[Path], folder: Path, name: str) -> list[Path]:
    """The files of split "test", named as datasets names them: data/test-00000-of-00001.parquet, or test/..."""
    chosen = [
        path
        for path in tables
        if path.stem == SPLIT or path.stem.startswith(f"{SPLIT}-") or SPLIT in path.relative_to(folder).parts[:-1]
    ]
    if not chosen:
        found = ", ".join(path.relative_to(folder).as_posix() for path in tables[:5])
        raise ValueError(f"the dataset {name} has no split {SPLIT!r}; it has {found}")
    return chosen


def _parquet_rows(
    tables: list[Path], folder: Path, name: str, links_within: Path | None
) -> Iterator[tuple[Picture, Any, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for path in tables:
        try:
            file = pq.ParquetFile(path)
            _check_columns(file.schema_arrow.names, name)
            rows = file.read(columns=list(COLUMNS)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path.name} of {name} is not a readable Parquet file: {error}") from None
        for row in rows:
            yield _cell_picture(row["image"], f"row {number} of {name}", folder, links_within), *_texts(row)
            number += 1


def _cell_picture(cell: Any, owner: str, folder: Path, links_within: Path | None) -> Picture:
    """An image cell: {bytes, path} as datasets writes it, or bare bytes."""
    if isinstance(cell, dict) and isinstance(cell.get("path"), str) and cell.get("bytes") is None:
        return checked_file(cell["path"], folder, owner, links_within)
    stored = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(stored, bytes):
        raise ValueError(f"the image of {owner} must be bytes or {{bytes, path}}, got {type(stored).__name__}")
    picture = Picture(stored=stored, name=owner)
    picture.load()
    return picture


def _image_folder_rows(folder: Path, name: str, links_within: Path | None) -> Iterator[tuple[Picture, Any, Any]]:
    indexes = [path for path in (folder / SPLIT / "metadata.jsonl", folder / "metadata.jsonl") if path.is_file()]
    if not indexes:
        raise ValueError(
            f"the dataset {name} has neither Parquet files nor {INDEX} nor metadata.jsonl; expected Parquet with "
            f"columns {', '.join(COLUMNS)} in split {SPLIT!r}"
        )
    index = indexes[0]
    for line, row in read_json_lines(index):
        number = line - 1
        if not isinstance(row, dict):
            raise ValueError(f"{index}, line {line} is no object; expected {{file_name, question, answer}}")
        _check_columns(["image" if key == "file_name" else key for key in row], name)
        yield checked_file(row["file_name"], index.parent, f"row {number} of {name}", links_within), *_texts(row)


def _check_columns(found: list[str], name: str) -> None:
    if not set(COLUMNS) <= set(found):
        raise ValueError(f"the dataset {name} has columns {', '.join(found)}; expected {', '.join(COLUMNS)}")


def _texts(row: dict[str, Any]) -> tuple[Any, Any]:
    return row["question"], row["answer"]
