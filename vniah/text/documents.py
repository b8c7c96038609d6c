"""Whole documents to measure perplexity on: a folder of .txt files, one file, or a column of a Hub dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vniah.files import is_hub_id, read_text, text_files, user_path


def read_documents(spec: str) -> list[tuple[str, str]]:
    """(name, text) of every non-empty document, in a fixed order.

    Args:
        spec: a folder of .txt files, a .txt file, or ``owner/dataset:column`` (column ``text`` when left out).

    Raises:
        FileNotFoundError: no such folder or file, or nothing to read in it.
        ValueError: a file that is not UTF-8, or a dataset without that column (names those it has).
    """
    path = user_path(spec)
    if path.is_file() or path.is_dir():
        files = [path] if path.is_file() else text_files(path)
        found = [(file.name, read_text(file)) for file in files]
        found = [(name, text) for name, text in found if text.strip()]
        if not found:
            raise FileNotFoundError(f"{spec} holds no .txt file with text in it")
        return found
    repo, _, column = spec.partition(":")
    if not is_hub_id(repo):
        raise FileNotFoundError(f"{spec!r} is no folder or file here; expected one, or a Hub dataset owner/name:column")
    return list(_from_hub(repo, column or "text"))


def _from_hub(repo: str, column: str) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as parquet

    from vniah.hub import fetch_dataset

    files = sorted(Path(fetch_dataset(repo)).rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"the dataset {repo} has no parquet files to read")
    number = 0
    for file in files:
        names = parquet.read_schema(file).names
        if column not in names:
            raise ValueError(f"the dataset {repo} has no column {column!r}; it has {', '.join(names)}")
        for text in parquet.read_table(file, columns=[column]).column(column).to_pylist():
            if text and str(text).strip():
                yield f"{repo}[{number}]", str(text)
            number += 1
