"""Rows of a corpus file on disk, streamed: JSON lines (plain, gzip or zstd), a JSON list, or parquet.

A line that is no JSON object is a ``BrokenRow``, to be reported and counted, and does not end the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vniah.files import parse_json

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


class BrokenRow(str):
    """Why a row could not be read."""


def file_format(path: Path) -> str:
    """ "json", "parquet", or "" for files that are not read."""
    name = path.name.lower()
    for suffix in COMPRESSION:
        name = name.removesuffix(suffix)
    if name.endswith((".jsonl", ".json")):
        return "json"
    return "parquet" if path.name.lower().endswith(".parquet") else ""


def read_rows(path: Path) -> Iterator[dict[str, Any] | BrokenRow]:
    """The rows of a file in order.

    Raises:
        ValueError: a file that cannot be read to its end, by name.
    """
    import pyarrow as pa

    try:
        yield from (_parquet if file_format(path) == "parquet" else _json)(path)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); mend or remove it") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _json(path: Path) -> Iterator[dict[str, Any] | BrokenRow]:
    import pyarrow as pa

    with pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower())) as stream:
        start = stream.read(1 << 20).removeprefix(b"\xef\xbb\xbf")
        if start.lstrip().startswith(b"[") and ".jsonl" not in path.suffixes:
            yield from _list(start + stream.read(), path)
            return
        for line in _lines(start, stream):
            yield _row(line)


def _list(text: bytes, path: Path) -> Iterator[dict[str, Any] | BrokenRow]:
    for row in parse_json(text, str(path)):
        yield row if isinstance(row, dict) else BrokenRow("not a JSON object")


def _lines(start: bytes, stream: Any) -> Iterator[bytes]:
    *whole, rest = start.split(b"\n")
    yield from (line for line in whole if line.strip())
    while chunk := stream.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _row(line: bytes) -> dict[str, Any] | BrokenRow:
    try:
        row = parse_json(line, "it")
    except ValueError as error:
        return BrokenRow(str(error).removeprefix("it is "))
    return row if isinstance(row, dict) else BrokenRow("not a JSON object")
