"""The prepare_text stage: a corpus like SlimPajama to packed shards, with every token accounted for.

Three steps, each of which goes on where it was after a kill: tokenise parts (many processes), choose documents
(one pass over their lengths), write shards (many processes). What is written depends on the stage and the seed
alone, and not on the number of workers.

A corpus is a folder of files (JSON lines plain, gzip or zstd; JSON lists; parquet) or a data set of the Hub. A part is
a file of it or a shard: one Arrow file of ids and domains, a report beside it. A row that is no JSON object is a
``BrokenRow``, to be reported and counted, and does not end the file.

Shape legend: D documents, S selected ones in order.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.files import parse_json, read_json
from vniah.training.checkpoints import check_identity, load_tokenizer, write_json
from vniah.training.data.packing import Packing, Selection, select_documents
from vniah.training.data.shards import MANIFEST, id_lists, read_arrow, write_arrow
from vniah.training.fit import MINIMUM_FREE, check_disk
from vniah.training.processes import BadSampleError, check_bad, map_parts
from vniah.training.stages import PrepareTextStage, as_data

# Scan this many times the tokens wanted, so that long documents are upsampled by choice before repetition.
SCAN_FACTOR = 3
# Below so many documents a share of bad ones says little: then all are looked at before the run stops.
JUDGED = 1_000
ID_BYTES = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
READ = re.compile(r"\.(jsonl?(\.zst)?(\.gz)?|parquet)$", re.IGNORECASE)
Report = dict[str, Any]


class BrokenRow(str):
    """Why a row could not be read."""


def run(stage: PrepareTextStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> Report:
    """Write ``folder/shards``: shard-*.arrow and manifest.json.

    Raises:
        ValueError: too many bad documents, too few tokens for one sequence, or a corpus that changed on the way.
        OSError: too little room on the disk, before anything is tokenised.
    """
    identity = {key: value for key, value in as_data(stage).items() if key != "workers"}
    check_identity(folder, {**identity, "seed": seed})
    parts, shards = folder / "parts", folder / "shards"
    parts.mkdir(exist_ok=True)
    shards.mkdir(exist_ok=True)
    _check_room(stage, folder)
    reports = _tokenise(stage, parts, seed)
    _check_bad(reports, stage.max_bad_share, parts)
    # Shards that a killed run has left are kept only if they were cut from the same documents.
    check_identity(shards, {"corpus": hashlib.sha256(json.dumps(reports).encode()).hexdigest()})
    job, names, domains_D = _plan(stage, [report["part"] for report in reports], parts, seed)
    if not job.packing.num_sequences:
        raise ValueError(f"{job.selection.tokens} tokens do not fill one sequence of {stage.sequence_length}")
    num_shards = -(-job.packing.num_sequences // job.per_shard)
    shards_written = dict(map_parts(job.write, range(num_shards), stage.workers))
    manifest = _manifest(stage, job, names, domains_D, reports, seed)
    manifest["shards"] = shards_written
    write_json(shards / MANIFEST, manifest)
    return {key: manifest[key] for key in ("sequences", "tokens_packed", "num_bad")}


def _check_room(stage: PrepareTextStage, folder: Path) -> None:
    """Raise OSError when the disk cannot hold the tokenised parts and the shards (ids of 4 bytes)."""
    scanned, files = SCAN_FACTOR * stage.total_tokens, corpus_files(stage)
    if files is not None:
        # A token is a byte at least, and text shrinks eightfold at most.
        scanned = min(scanned, 8 * sum(path.stat().st_size for path in files))
    there = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    check_disk(folder, max(0, ID_BYTES * (scanned + stage.total_tokens) - there) + MINIMUM_FREE)


def _tokenise(stage: PrepareTextStage, folder: Path, seed: int) -> list[Report]:
    """Tokenise parts in an order of the seed's until enough tokens are scanned; the reports of those needed."""
    order = np.random.default_rng((seed, 7)).permutation(num_parts(stage)).tolist()
    wanted = SCAN_FACTOR * stage.total_tokens
    reports: list[Report] = []
    scanned = 0
    work = functools.partial(tokenise_part, stage, folder)
    for start in range(0, len(order), stage.workers):
        for report in map_parts(work, order[start : start + stage.workers], stage.workers):
            if scanned < wanted:
                reports.append(report)
                scanned += sum(report["tokens"].values())
                if _num_documents(reports) >= JUDGED:
                    _check_bad(reports, stage.max_bad_share, folder)
        if scanned >= wanted:
            break
    return reports


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


def _num_documents(reports: list[Report]) -> int:
    return sum(report["num_bad"] + sum(report["documents"].values()) for report in reports)


def _check_bad(reports: list[Report], max_share: float, folder: Path) -> None:
    """Stop when more than ``max_share`` of the documents are bad."""
    bad = [line for report in reports for line in report["bad"]]
    forget = [folder / f"part-{report['part']:05d}.json" for report in reports if report["num_bad"]]
    check_bad("documents", bad, _num_documents(reports), max_share, forget=forget)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything a process needs to write a shard."""

    parts: tuple[Path, ...]
    out: Path
    selection: Selection
    packing: Packing
    per_shard: int
    separator: int

    def write(self, shard: int) -> tuple[str, int]:
        """Write a shard unless it is there; its file's name and the number of its sequences."""
        first = shard * self.per_shard
        count = min(self.per_shard, self.packing.num_sequences - first)
        path = self.out / f"shard-{shard:05d}.arrow"
        if path.is_file():
            return path.name, count
        tables = [read_arrow(part) for part in self.parts]
        starts = np.cumsum([0, *(table.num_rows for table in tables)])

        def document(entry: int) -> NDArray[np.int64]:
            index = int(self.selection.index_S[entry])
            part = int(np.searchsorted(starts, index, side="right")) - 1
            ids = tables[part]["input_ids"][index - int(starts[part])].values.to_numpy()
            return np.asarray(ids[: int(self.selection.take_S[entry])], np.int64)

        sequences = [self.packing.tokens(i, document, self.separator) for i in range(first, first + count)]
        write_arrow(path, {"input_ids": id_lists(sequences)})
        return path.name, count


def _plan(
    stage: PrepareTextStage, parts: list[int], folder: Path, seed: int
) -> tuple[_Job, list[str], NDArray[np.int64]]:
    """Choose and order the documents; the names of the domains and each document's domain come with the job."""
    paths = tuple(folder / f"part-{part:05d}.arrow" for part in parts)
    tables = [read_arrow(path) for path in paths]
    lengths = [table["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False) for table in tables]
    domains = [name for table in tables for name in table["domain"].to_pylist()]
    names, domains_D = np.unique(domains, return_inverse=True)
    selection = select_documents(
        np.concatenate(lengths).astype(np.int64),
        domains_D,
        total_tokens=stage.total_tokens,
        long_document=stage.long_document,
        long_share=stage.long_share,
        seed=seed,
    )
    job = _Job(
        parts=paths,
        out=folder.parent / "shards",
        selection=selection,
        packing=Packing(selection.take_S, stage.sequence_length),
        per_shard=stage.shard_sequences,
        separator=separator_id(load_tokenizer(stage.tokenizer), stage),
    )
    return job, names.tolist(), domains_D


def separator_id(tokenizer: Any, stage: PrepareTextStage) -> int:
    """The id that goes between documents: of the stage's separator, else of the tokenizer's first or last of a text."""
    if stage.separator:
        ids = tokenizer(stage.separator, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"the separator {stage.separator!r} is {len(ids)} tokens of {stage.tokenizer!r}, not one")
        return int(ids[0])
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise ValueError(f"{stage.tokenizer!r} has no token of its own to put between documents; give separator")
    return int(found)


def _manifest(
    stage: PrepareTextStage, job: _Job, names: list[str], domains_D: NDArray[np.int64], reports: list[Report], seed: int
) -> Report:
    """The manifest: tokens and documents by domain before and after, and where every token went."""
    before: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for report in reports:
        before.update(report["tokens"])
        documents.update(report["documents"])
    selection = job.selection
    chosen_S = domains_D[selection.index_S]
    once_D = np.zeros(len(domains_D), np.int64)  # tokens of each document that are used at all
    np.maximum.at(once_D, selection.index_S, selection.take_S)

    def by_domain(counts: NDArray[np.int64], domains: NDArray[np.int64]) -> dict[str, int]:
        return {name: int(counts[domains == i].sum()) for i, name in enumerate(names)}

    def shares(tokens: dict[str, int]) -> dict[str, float]:
        total = sum(tokens.values())
        return {name: count / total for name, count in tokens.items()} if total else {}

    after, once = by_domain(selection.take_S, chosen_S), by_domain(once_D, domains_D)
    return {
        "source": stage.source,
        "tokenizer": stage.tokenizer,
        "seed": seed,
        "sequence_length": stage.sequence_length,
        "long_document": stage.long_document,
        "sequences": job.packing.num_sequences,
        "documents_before": dict(sorted(documents.items())),
        "tokens_before": dict(sorted(before.items())),
        "shares_before": shares(dict(before)),
        "documents_after": by_domain(np.ones_like(chosen_S), chosen_S),
        "tokens_after": after,
        # tokens_before - tokens_left_out + tokens_repeated = tokens_after, in each domain
        "tokens_left_out": {name: before[name] - once[name] for name in names},
        "tokens_repeated": {name: after[name] - once[name] for name in names},
        "shares_after": shares(after),
        # tokens_after + separators = tokens_packed + tokens_in_tail, and nothing else
        "separator_id": job.separator,
        "separators": len(selection.take_S),
        "tokens_packed": job.packing.num_sequences * (stage.sequence_length + 1),
        "tokens_in_tail": job.packing.tail_tokens,
        "num_bad": sum(report["num_bad"] for report in reports),
        "bad": [line for report in reports for line in report["bad"]],
    }
