"""The prepare_text stage: a corpus like SlimPajama to packed shards, with every token accounted for.

Three steps, each of which goes on where it was after a kill: tokenise parts (many processes) until every domain's
budget is filled, choose documents (one pass over their lengths), write shards (many processes). What is written depends
on the stage and the seed alone, and not on the number of workers.

A corpus is a folder of files (JSON lines plain, gzip or zstd; JSON lists; parquet) or a data set of the Hub, which is
listed once; a part is a file of it, fetched by the process that reads it: one Arrow file of ids and domains of the
documents that were kept, a report beside it. A row that is no JSON object is a ``BrokenRow``, to be reported and
counted, and does not end the file.

Shape legend: D documents, S selected ones in order.
"""

from __future__ import annotations

import dataclasses
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
from vniah.hub import RemoteFile, fetch_file, list_files
from vniah.training.checkpoints import check_identity, write_json
from vniah.training.data.packing import Packing, Selection, budgets, fill_budgets, keep_documents
from vniah.training.data.shards import HELD_OUT, MANIFEST, id_lists, read_arrow, write_arrow
from vniah.training.fit import MINIMUM_FREE, check_disk
from vniah.training.load import load_tokenizer
from vniah.training.processes import BadSampleError, check_bad, map_parts
from vniah.training.stages import PrepareTextStage, as_data

# So many times the tokens wanted are kept of the parts, by estimate: long documents of a domain whose budget is full
# are kept until the others' are.
KEPT_FACTOR = 2
# Where less than this share of all tokens is wanting, the budgets count as filled: a domain of a few documents in a
# whole corpus must not have all of it read.
SLACK = 1e-3
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
    _check_filled(stage, reports)
    # Shards that a killed run has left are kept only if they were cut from the same documents.
    check_identity(shards, {"corpus": hashlib.sha256(json.dumps(reports).encode()).hexdigest()})
    job, names, domains_D = _plan(stage, reports, parts, seed)
    if not job.packing.num_sequences:
        raise ValueError(f"{job.selection.tokens} tokens do not fill one sequence of {stage.sequence_length}")
    if job.num_sequences < 1:
        raise ValueError(
            f"{job.packing.num_sequences} sequences leave none to train on behind {stage.held_out} held out"
        )
    num_shards = -(-job.num_sequences // job.per_shard)
    shards_written = dict(map_parts(job.write, range(num_shards), stage.workers))
    job.write_held_out()
    manifest = _manifest(stage, job, names, domains_D, reports, seed)
    manifest["shards"] = shards_written
    write_json(shards / MANIFEST, manifest)
    return {key: manifest[key] for key in ("sequences", "tokens_packed", "num_bad")}


def _check_room(stage: PrepareTextStage, folder: Path) -> None:
    """Raise OSError when the disk cannot hold the tokenised parts and the shards (ids of 4 bytes)."""
    kept = KEPT_FACTOR * stage.total_tokens
    if Path(stage.source).is_dir():
        # A token is a byte at least, and text shrinks eightfold at most.
        kept = min(kept, 8 * sum(file.size for file in corpus_files(stage, folder / "parts")))
    there = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    check_disk(folder, max(0, ID_BYTES * (kept + stage.total_tokens) - there) + MINIMUM_FREE)


def _tokenise(stage: PrepareTextStage, folder: Path, seed: int) -> list[Report]:
    """Tokenise parts in an order of the seed's until all budgets are filled; the reports of those needed."""
    files = corpus_files(stage, folder)
    order = np.random.default_rng((seed, 7)).permutation(len(files)).tolist()
    reports: list[Report] = []
    for start in range(0, len(order), stage.workers):
        parts = [(part, files[part]) for part in order[start : start + stage.workers]]
        for report in map_parts(functools.partial(tokenise_part, stage, folder, seed), parts, stage.workers):
            if not _filled(stage, reports):
                reports.append(report)
                if _num_documents(reports) >= JUDGED:
                    _check_bad(reports, stage.max_bad_share, folder)
        if _filled(stage, reports):
            break
    return reports


def _counts(reports: list[Report], key: str) -> Counter[str]:
    """What the reports say of each domain, added up, in the order of the domains' names."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report[key])
    return Counter(dict(sorted(counts.items())))


def _lacks(stage: PrepareTextStage, reports: list[Report]) -> dict[str, int]:
    """By domain, the tokens that lack of its budget."""
    budget, kept = budgets(_counts(reports, "tokens"), stage.total_tokens), _counts(reports, "tokens_kept")
    return {name: max(0, count - kept[name]) for name, count in budget.items()}


def _filled(stage: PrepareTextStage, reports: list[Report]) -> bool:
    lacks = _lacks(stage, reports)
    return bool(lacks) and sum(lacks.values()) <= SLACK * stage.total_tokens


def _check_filled(stage: PrepareTextStage, reports: list[Report]) -> None:
    """Raise ValueError where the whole corpus was read and does not give what was asked for."""
    if _filled(stage, reports):
        return
    if not (lacks := _lacks(stage, reports)):
        raise ValueError(f"there are no documents to choose from in {stage.source}")
    tokens, kept = _counts(reports, "tokens"), _counts(reports, "tokens_kept")
    most = min(kept[name] * sum(tokens.values()) // count for name, count in tokens.items())
    name = max(lacks, key=lacks.__getitem__)
    raise ValueError(
        f"{stage.source} gives {kept[name]:,} tokens of {name!r} and {kept[name] + lacks[name]:,} are wanted, nothing "
        f"being repeated; set total_tokens to at most {most:,}, or short_share above {stage.short_share:g}"
    )


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


def corpus_files(stage: PrepareTextStage, folder: Path) -> list[RemoteFile]:
    """The files of a corpus, in order. A data set of the Hub is listed once: ``folder`` keeps its listing and commit.

    Raises:
        FileNotFoundError: none that can be read.
    """
    source = Path(stage.source)
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if READ.search(path.name) and path.is_file())
        files = [RemoteFile(str(path.relative_to(source)), path.stat().st_size) for path in found]
    else:
        listing = folder / "listing.json"
        if not listing.is_file():
            write_json(listing, [dataclasses.asdict(file) for file in list_files(stage.source, "dataset")])
        listed = [RemoteFile(**file) for file in read_json(listing, max_bytes=None)]
        # As ``datasets`` tells splits by their files' names: where none names this one, all are of it.
        named = re.compile(rf"(^|[/_.-]){re.escape(stage.split)}([/_.-]|$)")
        files = [file for file in listed if READ.search(file.path)]
        files = [file for file in files if named.search(file.path)] or files
    if not files:
        raise FileNotFoundError(f"{stage.source} holds no .jsonl, .jsonl.zst, .json.gz or .parquet file")
    return files


def tokenise_part(stage: PrepareTextStage, folder: Path, seed: int, numbered: tuple[int, RemoteFile]) -> dict[str, Any]:
    """Tokenise a part to ``part-00000.arrow`` and ``part-00000.json``, unless they are there (of this very file).

    Kept are all long documents, and of the shorter ones a random share. Returns the report: tokens and documents by
    domain, tokens that were kept, and all bad rows (without text, domain or tokens) by file, row and reason.
    """
    part, file = numbered
    report_path = folder / f"part-{part:05d}.json"
    if report_path.is_file():
        done = read_json(report_path)
        if (done["name"], done["bytes"]) == (file.path, file.size):
            return dict(done)
    local = Path(stage.source)
    path = local / file.path if local.is_dir() else fetch_file(stage.source, "dataset", file)
    tokenizer = load_tokenizer(stage.tokenizer)
    bad: list[str] = []
    ids_of: list[Any] = []
    domains: list[str] = []
    for number, row in enumerate(read_rows(path)):
        try:
            text, domain = _document(row, stage)
            ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, np.int32)
            if not len(ids):
                raise BadSampleError("a document without a token")
        except BadSampleError as reason:
            bad.append(f"{file.path}:{number}: {reason}")
            continue
        ids_of.append(ids)
        domains.append(domain)
    lengths_D, domains_D = np.array([len(ids) for ids in ids_of], np.int64), np.array(domains, dtype=object)
    rng = np.random.default_rng((seed, 5, part))
    kept_D = keep_documents(lengths_D, long_document=stage.long_document, short_share=stage.short_share, rng=rng)
    kept = {"input_ids": id_lists([ids_of[i] for i in np.flatnonzero(kept_D)]), "domain": domains_D[kept_D].tolist()}
    write_arrow(folder / f"part-{part:05d}.arrow", kept)
    names = sorted(set(domains))
    report = {
        "part": part,
        "name": file.path,
        "bytes": file.size,
        "tokens": {name: int(lengths_D[domains_D == name].sum()) for name in names},
        "tokens_kept": {name: int(lengths_D[kept_D & (domains_D == name)].sum()) for name in names},
        "documents": {name: int((domains_D == name).sum()) for name in names},
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
    held_out: int

    @property
    def num_sequences(self) -> int:
        """Sequences to train on; those behind them are held out."""
        return self.packing.num_sequences - self.held_out

    def write(self, shard: int) -> tuple[str, int]:
        """Write a shard unless it is there; its file's name and the number of its sequences."""
        first = shard * self.per_shard
        count = min(self.per_shard, self.num_sequences - first)
        path = self.out / f"shard-{shard:05d}.arrow"
        if not path.is_file():
            self._write(path, range(first, first + count))
        return path.name, count

    def write_held_out(self) -> None:
        self._write(self.out / HELD_OUT, range(self.num_sequences, self.packing.num_sequences))

    def _write(self, path: Path, numbers: range) -> None:
        tables = [read_arrow(part) for part in self.parts]
        starts = np.cumsum([0, *(table.num_rows for table in tables)])

        def document(entry: int) -> NDArray[np.int64]:
            index = int(self.selection.index_S[entry])
            part = int(np.searchsorted(starts, index, side="right")) - 1
            ids = tables[part]["input_ids"][index - int(starts[part])].values.to_numpy()
            return np.asarray(ids[: int(self.selection.take_S[entry])], np.int64)

        sequences = [self.packing.tokens(i, document, self.separator) for i in numbers]
        write_arrow(path, {"input_ids": id_lists(sequences)})


def _plan(
    stage: PrepareTextStage, reports: list[Report], folder: Path, seed: int
) -> tuple[_Job, list[str], NDArray[np.int64]]:
    """Choose and order the documents; the names of the domains and each document's domain come with the job."""
    paths = tuple(folder / f"part-{report['part']:05d}.arrow" for report in reports)
    tables = [read_arrow(path) for path in paths]
    lengths = [table["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False) for table in tables]
    domains = [name for table in tables for name in table["domain"].to_pylist()]
    budget = budgets(_counts(reports, "tokens"), stage.total_tokens)
    names = list(budget)
    domains_D = np.array([names.index(domain) for domain in domains], np.int64)
    of_number = {names.index(name): count for name, count in budget.items()}
    selection = fill_budgets(np.concatenate(lengths).astype(np.int64), domains_D, of_number, seed=seed)
    job = _Job(
        parts=paths,
        out=folder.parent / "shards",
        selection=selection,
        packing=Packing(selection.take_S, stage.sequence_length),
        per_shard=stage.shard_sequences,
        separator=separator_id(load_tokenizer(stage.tokenizer), stage),
        held_out=stage.held_out,
    )
    return job, names, domains_D


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
    before, selection = _counts(reports, "tokens"), job.selection
    chosen_S = domains_D[selection.index_S]

    def by_domain(counts: NDArray[np.int64], domains: NDArray[np.int64]) -> dict[str, int]:
        return {name: int(counts[domains == i].sum()) for i, name in enumerate(names)}

    def shares(tokens: dict[str, int]) -> dict[str, float]:
        total = sum(tokens.values())
        return {name: count / total for name, count in tokens.items()} if total else {}

    after = by_domain(selection.take_S, chosen_S)
    return {
        "source": stage.source,
        "tokenizer": stage.tokenizer,
        "seed": seed,
        "sequence_length": stage.sequence_length,
        "long_document": stage.long_document,
        "sequences": job.num_sequences,
        "held_out": job.held_out,
        "short_share": stage.short_share,
        "documents_before": dict(_counts(reports, "documents")),
        "tokens_before": dict(before),
        "shares_before": shares(dict(before)),
        "documents_after": by_domain(np.ones_like(chosen_S), chosen_S),
        "tokens_after": after,
        # tokens_before - tokens_left_out = tokens_after, in each domain
        "tokens_left_out": {name: before[name] - after[name] for name in names},
        "shares_after": shares(after),
        # tokens_after + separators = tokens_packed + tokens_in_tail, and nothing else
        "separator_id": job.separator,
        "separators": len(selection.take_S),
        "tokens_packed": job.packing.num_sequences * (stage.sequence_length + 1),
        "tokens_in_tail": job.packing.tail_tokens,
        "num_bad": sum(report["num_bad"] for report in reports),
        "bad": [line for report in reports for line in report["bad"]],
    }
