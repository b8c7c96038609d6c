"""One part of a corpus, tokenised: text in, ids and domains out, as one Arrow file with a report beside it.

A part is a file of a local corpus or a shard of a streamed one; it does not depend on how many workers there
are, so that a rerun after a kill writes the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vniah.training.data.shards import id_lists, write_arrow

BAD_KEPT = 100


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
        found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if _format(p) and p.is_file())
        if not found:
            raise FileNotFoundError(f"{folder} holds no .jsonl, .jsonl.zst, .json.gz or .parquet file")
        return found

    def num_parts(self) -> int:
        """How many parts the corpus has."""
        files = self.files()
        return len(files) if files is not None else int(self._stream().num_shards)

    def documents(self, part: int) -> Iterator[dict[str, Any]]:
        """The rows of a part, streamed."""
        files = self.files()
        if files is None:
            stream = self._stream()
            yield from stream.shard(num_shards=stream.num_shards, index=part)
            return
        from datasets import load_dataset

        path = Path(self.source) / files[part]
        yield from load_dataset(_format(path), data_files=str(path), split="train", streaming=True)

    def _stream(self) -> Any:
        from datasets import load_dataset

        return load_dataset(self.source, split=self.split, streaming=True)


def _format(path: Path) -> str:
    name = path.name
    if name.endswith((".jsonl", ".json", ".jsonl.zst", ".jsonl.gz", ".json.gz")):
        return "json"
    return "parquet" if name.endswith(".parquet") else ""


def column(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of a row; ``None`` where it ends early."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def tokenise_part(corpus: Corpus, part: int, tokenizer_name: str, folder: Path) -> dict[str, Any]:
    """Tokenise a part to ``part-00000.arrow`` and ``part-00000.json``, unless they are there.

    Returns:
        The report: documents, tokens and documents by domain, and bad rows with their ids
        (``part:row: reason``; a row without text or without a domain is bad).
    """
    report_path = folder / f"part-{part:05d}.json"
    if report_path.is_file():
        return dict(json.loads(report_path.read_text(encoding="utf-8")))
    from vniah.training.fit import write_json
    from vniah.training.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name)
    tokens: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    bad: list[str] = []
    num_bad = 0
    ids_of: list[Any] = []
    domains: list[str] = []
    for number, row in enumerate(corpus.documents(part)):
        text, domain = column(row, corpus.text_column), column(row, corpus.domain_column)
        reason = _reason(text, domain, corpus)
        if reason:
            num_bad += 1
            bad = [*bad, f"{part}:{number}: {reason}"][:BAD_KEPT]
            continue
        ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int32)
        ids_of.append(ids)
        domains.append(domain)
        tokens[domain] += len(ids)
        documents[domain] += 1
    write_arrow(folder / f"part-{part:05d}.arrow", {"input_ids": id_lists(ids_of), "domain": domains})
    report = {
        "part": part,
        "tokens": dict(sorted(tokens.items())),
        "documents": dict(sorted(documents.items())),
        "num_bad": num_bad,
        "bad": bad,
    }
    write_json(report_path, report)
    return report


def _reason(text: Any, domain: Any, corpus: Corpus) -> str:
    if not isinstance(text, str):
        return f"no text in {corpus.text_column!r}"
    if not text.strip():
        return "an empty document"
    if not isinstance(domain, str) or not domain:
        return f"no domain in {corpus.domain_column!r}"
    return ""
