"""A text corpus, read row by row and tokenised in parts: one Arrow file of ids and domains a part, a report beside it.

A corpus is a folder of files (JSON lines plain, gzip or zstd; JSON lists; parquet) or a data set of the Hub. A part is
a file of it or a shard; it does not depend on how many workers there are, so that a rerun after a kill writes the same
bytes. A row that is no JSON object is a ``BrokenRow``, to be reported and counted, and does not end the file.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vniah.files import parse_json, read_json
from vniah.training.checkpoints import load_tokenizer, write_json
from vniah.training.data.labels import BadSampleError
from vniah.training.data.shards import id_lists, write_arrow
from vniah.training.stages import PrepareTextStage

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
READ = re.compile(r"\.(jsonl?(\.zst)?(\.gz)?|parquet)$", re.IGNORECASE)


class BrokenRow(str):
    """Why a row could not be read."""


def read_rows(path: Path) -> Iterator[dict[str, Any] | BrokenRow]:
    """The rows of a file in order. ValueError: it cannot be read to its end, by name."""
    import pyarrow as pa

    try:
        for row in (_parquet if path.suffix.lower() == ".parquet" else _json)(path):
            yield row if isinstance(row, dict | BrokenRow) else BrokenRow("not a JSON object")
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); mend or remove it") from None


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _json(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    compressed = pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower()))
    with io.BufferedReader(compressed, 1 << 20) as stream:
        if stream.peek().startswith(BYTE_ORDER_MARK):
            stream.read(len(BYTE_ORDER_MARK))
        if stream.peek().lstrip().startswith(b"[") and ".jsonl" not in path.suffixes:
            yield from parse_json(stream.read(), str(path))
            return
        for line in stream:
            if line.strip():
                try:
                    yield parse_json(line, "it")
                except ValueError as error:
                    yield BrokenRow(str(error).removeprefix("it is "))


def corpus_files(stage: PrepareTextStage) -> list[Path] | None:
    """The files of a corpus that is a folder, in order; ``None`` for a data set of the Hub."""
    folder = Path(stage.source)
    if not folder.is_dir():
        return None
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if READ.search(path.name) and path.is_file()
    )
    if not names:
        raise FileNotFoundError(f"{folder} holds no .jsonl, .jsonl.zst, .json.gz or .parquet file")
    return [folder / name for name in names]


def num_parts(stage: PrepareTextStage) -> int:
    """How many parts a corpus has: its files, or the shards of a data set."""
    files = corpus_files(stage)
    return int(_stream(stage).num_shards) if files is None else len(files)


def _stream(stage: PrepareTextStage) -> Any:
    from datasets import load_dataset

    return load_dataset(stage.source, split=stage.split, streaming=True)


def tokenise_part(stage: PrepareTextStage, folder: Path, part: int) -> dict[str, Any]:
    """Tokenise a part to ``part-00000.arrow`` and ``part-00000.json``, unless they are there (of this very file).

    Returns the report: tokens and documents by domain, and all bad rows (without text, domain or tokens) by file, row
    and reason.
    """
    report_path = folder / f"part-{part:05d}.json"
    files = corpus_files(stage)
    name = str(part) if files is None else str(files[part].relative_to(stage.source))
    size = None if files is None else files[part].stat().st_size
    if report_path.is_file():
        done = read_json(report_path)
        if (done["name"], done["bytes"]) == (name, size):
            return dict(done)
    if files is None:
        stream = _stream(stage)
        rows = stream.shard(num_shards=stream.num_shards, index=part)
    else:
        rows = read_rows(files[part])
    tokenizer = load_tokenizer(stage.tokenizer)
    tokens: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    bad: list[str] = []
    ids_of: list[Any] = []
    domains: list[str] = []
    for number, row in enumerate(rows):
        try:
            text, domain = _document(row, stage)
            ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int32)
            if not len(ids):
                raise BadSampleError("a document without a token")
        except BadSampleError as reason:
            bad.append(f"{name}:{number}: {reason}")
            continue
        ids_of.append(ids)
        domains.append(domain)
        tokens[domain] += len(ids)
        documents[domain] += 1
    write_arrow(folder / f"part-{part:05d}.arrow", {"input_ids": id_lists(ids_of), "domain": domains})
    report = {
        "part": part,
        "name": name,
        "bytes": size,
        "tokens": dict(sorted(tokens.items())),
        "documents": dict(sorted(documents.items())),
        "num_bad": len(bad),
        "bad": bad,
    }
    write_json(report_path, report)
    return report


def _document(row: dict[str, Any] | BrokenRow, stage: PrepareTextStage) -> tuple[str, str]:
    """Text and domain of a row; BadSampleError where it has none."""
    if isinstance(row, BrokenRow):
        raise BadSampleError(row)
    text, domain = _column(row, stage.text_column), _column(row, stage.domain_column)
    if not isinstance(text, str):
        raise BadSampleError(f"no text in {stage.text_column!r}")
    if not text.strip():
        raise BadSampleError("an empty document")
    if not isinstance(domain, str) or not domain:
        raise BadSampleError(f"no domain in {stage.domain_column!r}")
    return text, domain


def _column(row: Any, path: str) -> Any:
    """The value at a dotted path of a row; ``None`` where it ends early."""
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row
