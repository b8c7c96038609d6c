"""One part of a corpus, tokenised: text in, ids and domains out, as one Arrow file with a report beside it.

A part is a file of a local corpus or a shard of a streamed one; it does not depend on how many workers there
are, so that a rerun after a kill writes the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vniah.files import read_json
from vniah.training.data.rows import BrokenRow, file_format, read_rows
from vniah.training.data.shards import id_lists, write_arrow


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Where documents come from.

    Attributes:
        source: a folder of .jsonl, .jsonl.zst, .json.gz or .parquet files, or a Hub dataset id.
        split: of a Hub dataset.
        text_column: dotted path to the text.
        domain_column: dotted path to the domain's name.
    """

    source: str
    split: str
    text_column: str
    domain_column: str

    def files(self) -> list[str] | None:
        """Local files in sorted order; ``None`` for a Hub dataset.

        Raises:
            FileNotFoundError: a folder without files to read.
        """
        folder = Path(self.source)
        if not folder.is_dir():
            return None
        found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if file_format(p) and p.is_file())
        if not found:
            raise FileNotFoundError(f"{folder} holds no .jsonl, .jsonl.zst, .json.gz or .parquet file")
        return found

    def num_parts(self) -> int:
        """How many parts the corpus has."""
        files = self.files()
        return len(files) if files is not None else int(self._stream().num_shards)

    def documents(self, part: int) -> Iterator[dict[str, Any] | BrokenRow]:
        """The rows of a part, streamed.

        Raises:
            ValueError: a local file that cannot be read to its end.
        """
        files = self.files()
        if files is not None:
            yield from read_rows(Path(self.source) / files[part])
            return
        stream = self._stream()
        yield from stream.shard(num_shards=stream.num_shards, index=part)

    def part_name(self, part: int) -> str:
        """What a part is called in reports: its file, or its number in a streamed corpus."""
        files = self.files()
        return files[part] if files is not None else str(part)

    def num_bytes(self, part: int | None = None) -> int | None:
        """Size on disk of a part, or of all; ``None`` for a Hub dataset."""
        files = self.files()
        if files is None:
            return None
        return sum((Path(self.source) / name).stat().st_size for name in (files if part is None else [files[part]]))

    def _stream(self) -> Any:
        from datasets import load_dataset

        return load_dataset(self.source, split=self.split, streaming=True)


def column(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of a row; ``None`` where it ends early."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def tokenise_part(corpus: Corpus, part: int, tokenizer_name: str, folder: Path) -> dict[str, Any]:
    """Tokenise a part to ``part-00000.arrow`` and ``part-00000.json``, unless they are there (of this very file).

    Returns:
        The report: documents, tokens and documents by domain, and all bad rows with their ids
        (``file:row: reason``; a row without text or without a domain is bad).
    """
    report_path = folder / f"part-{part:05d}.json"
    name, size = corpus.part_name(part), corpus.num_bytes(part)
    if report_path.is_file():
        done = read_json(report_path)
        if (done["name"], done["bytes"]) == (name, size):
            return dict(done)
    from vniah.training.identity import write_json
    from vniah.training.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name)
    tokens: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    bad: list[str] = []
    ids_of: list[Any] = []
    domains: list[str] = []
    for number, row in enumerate(corpus.documents(part)):
        text, domain, reason = read_document(row, corpus)
        ids = np.zeros(0, np.int32)
        if not reason:
            ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int32)
            reason = "" if len(ids) else "a document without a token"
        if reason:
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


def read_document(row: dict[str, Any] | BrokenRow, corpus: Corpus) -> tuple[str, str, str]:
    """Text and domain of a row, and why it is bad ("" when it is good)."""
    if isinstance(row, BrokenRow):
        return "", "", str(row)
    text, domain = column(row, corpus.text_column), column(row, corpus.domain_column)
    if not isinstance(text, str):
        return "", "", f"no text in {corpus.text_column!r}"
    if not text.strip():
        return "", "", "an empty document"
    if not isinstance(domain, str) or not domain:
        return "", "", f"no domain in {corpus.domain_column!r}"
    return text, domain, ""
