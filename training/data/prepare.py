"""The prepare_text stage: a corpus like SlimPajama to packed shards, with every token accounted for.

Three steps, each of which goes on where it was after a kill: tokenise parts (many processes), choose documents
(one pass over their lengths), write shards (many processes). What is written depends on the stage and the seed
alone, and not on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.training.data.mixture import Selection, domain_shares, select_documents
from vniah.training.data.packing import Packing
from vniah.training.data.processes import map_parts
from vniah.training.data.shards import MANIFEST, id_lists, read_arrow, write_arrow
from vniah.training.data.tokenise import Corpus, tokenise_part
from vniah.training.stages import PrepareTextStage

# Scan this many times the tokens wanted, so that long documents are upsampled by choice before repetition.
SCAN_FACTOR = 3
# Below so many documents a share of bad ones says little: then all are looked at before the run stops.
JUDGED = 1_000
ID_BYTES = 4


def run(stage: PrepareTextStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Write ``folder/shards``: shard-*.arrow and manifest.json.

    Raises:
        ValueError: too many bad documents, too few tokens for one sequence, or a corpus that changed on the way.
        OSError: too little room on the disk, before anything is tokenised.
    """
    from vniah.training.identity import check_identity, write_json
    from vniah.training.stages import as_data

    identity = {key: value for key, value in as_data(stage).items() if key != "workers"}
    folder.mkdir(parents=True, exist_ok=True)
    check_identity(folder, {**identity, "seed": seed})
    parts, shards = folder / "parts", folder / "shards"
    parts.mkdir(exist_ok=True)
    shards.mkdir(exist_ok=True)
    corpus = Corpus(
        source=stage.source,
        split=stage.split,
        text_column=stage.text_column,
        domain_column=stage.domain_column,
    )
    check_room(stage, corpus, folder)
    reports = tokenise(stage, corpus, parts, seed)
    check_bad(reports, stage.max_bad_share, parts)
    # Shards that a killed run has left are kept only if they were cut from the same documents.
    check_identity(shards, {"corpus": hashlib.sha256(json.dumps(reports).encode()).hexdigest()})
    job, names = plan(stage, [report["part"] for report in reports], parts, seed)
    if not job.packing.num_sequences:
        raise ValueError(f"{job.selection.tokens} tokens do not fill one sequence of {stage.sequence_length}")
    counts = map_parts(job.write, range(job.num_shards), stage.workers)
    manifest = describe(stage, job, names, reports, seed)
    manifest["shards"] = {shard_name(i): count for i, count in enumerate(counts)}
    write_json(shards / MANIFEST, manifest)
    return {key: manifest[key] for key in ("sequences", "tokens_packed", "num_bad")}


def tokenise(stage: PrepareTextStage, corpus: Corpus, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Tokenise parts in an order of the seed's until enough tokens are scanned; the reports of those needed."""
    order = np.random.default_rng((seed, 7)).permutation(corpus.num_parts())
    wanted = SCAN_FACTOR * stage.total_tokens
    reports: list[dict[str, Any]] = []
    scanned = 0
    work = _Tokenise(corpus, stage.tokenizer, folder)
    for start in range(0, len(order), stage.workers):
        chunk = [int(part) for part in order[start : start + stage.workers]]
        for report in map_parts(work, chunk, stage.workers):
            if scanned < wanted:
                reports.append(report)
                scanned += sum(report["tokens"].values())
                if num_documents(reports) >= JUDGED:
                    check_bad(reports, stage.max_bad_share, folder)
        if scanned >= wanted:
            break
    return reports


@dataclass(frozen=True)
class _Tokenise:
    """``tokenise_part`` of one corpus, in a form that other processes can be handed."""

    corpus: Corpus
    tokenizer: str
    folder: Path

    def __call__(self, part: int) -> dict[str, Any]:
        return tokenise_part(self.corpus, part, self.tokenizer, self.folder)


def num_documents(reports: Iterable[dict[str, Any]]) -> int:
    """Documents looked at, bad ones included."""
    return sum(report["num_bad"] + sum(report["documents"].values()) for report in reports)


def check_bad(reports: list[dict[str, Any]], max_share: float, folder: Path) -> None:
    """Stop when more than ``max_share`` of the documents are bad, naming the first ones.

    What the parts with bad documents held is forgotten, so that a run after the corpus was mended reads them again.
    """
    bad, total = sum(report["num_bad"] for report in reports), num_documents(reports)
    if total and bad > max_share * total:
        for report in reports:
            if report["num_bad"]:
                (folder / f"part-{report['part']:05d}.json").unlink()
        first = "; ".join([line for report in reports for line in report["bad"]][:3])
        raise ValueError(f"{bad} of {total} documents are bad, more than the share of {max_share:g} allowed: {first}")


def check_room(stage: PrepareTextStage, corpus: Corpus, folder: Path) -> None:
    """Raise OSError when the disk cannot hold the tokenised parts and the shards (ids of 4 bytes)."""
    from vniah.training.preflight import MINIMUM_FREE, check_disk

    scanned, size = SCAN_FACTOR * stage.total_tokens, corpus.num_bytes()
    if size is not None:
        scanned = min(scanned, 8 * size)  # a token is a byte at least, and text shrinks eightfold at most
    there = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    check_disk(folder, max(0, ID_BYTES * (scanned + stage.total_tokens) - there) + MINIMUM_FREE)


@dataclass(frozen=True)
class Job:
    """Everything a process needs to write a shard."""

    parts: tuple[int, ...]
    rows: tuple[int, ...]
    folder: Path
    out: Path
    selection: Selection
    packing: Packing
    per_shard: int
    separator: int

    @property
    def num_shards(self) -> int:
        return -(-self.packing.num_sequences // self.per_shard)

    def write(self, shard: int) -> int:
        """Write a shard unless it is there; the number of its sequences."""
        first = shard * self.per_shard
        count = min(self.per_shard, self.packing.num_sequences - first)
        path = self.out / shard_name(shard)
        if path.is_file():
            return count
        tables = {part: read_arrow(self.folder / f"part-{part:05d}.arrow") for part in self.parts}
        starts = np.concatenate([[0], np.cumsum(self.rows)])

        def document(entry: int) -> NDArray[np.int64]:
            index = int(self.selection.index_S[entry])
            place = int(np.searchsorted(starts, index, side="right")) - 1
            ids = tables[self.parts[place]]["input_ids"][index - int(starts[place])].values.to_numpy()
            return np.asarray(ids[: int(self.selection.take_S[entry])], np.int64)

        sequences = [self.packing.tokens(i, document, self.separator) for i in range(first, first + count)]
        write_arrow(path, {"input_ids": id_lists(sequences)})
        return count


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.arrow"


def plan(stage: PrepareTextStage, parts: list[int], folder: Path, seed: int) -> tuple[Job, list[str]]:
    """Choose and order the documents; the domain names in index order come with the job."""
    from vniah.training.loading import load_tokenizer

    lengths, domains, rows = [], [], []
    for part in parts:
        table = read_arrow(folder / f"part-{part:05d}.arrow")
        offsets = table["input_ids"].combine_chunks()
        lengths.append(np.asarray(offsets.value_lengths().to_numpy(zero_copy_only=False), np.int64))
        domains += table["domain"].to_pylist()
        rows.append(table.num_rows)
    names = sorted(set(domains))
    number = {name: i for i, name in enumerate(names)}
    selection = select_documents(
        np.concatenate(lengths),
        np.array([number[name] for name in domains], np.int64),
        total_tokens=stage.total_tokens,
        long_document=stage.long_document,
        long_share=stage.long_share,
        seed=seed,
    )
    separator = separator_id(load_tokenizer(stage.tokenizer), stage)
    job = Job(
        parts=tuple(parts),
        rows=tuple(rows),
        folder=folder,
        out=folder.parent / "shards",
        selection=selection,
        packing=Packing(selection.take_S, stage.sequence_length),
        per_shard=stage.shard_sequences,
        separator=separator,
    )
    return job, names


def separator_id(tokenizer: Any, stage: PrepareTextStage) -> int:
    """The id that goes between documents.

    Raises:
        ValueError: a separator that is not one token, or a tokenizer with neither of the tokens taken by default.
    """
    if stage.separator:
        ids = tokenizer(stage.separator, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"the separator {stage.separator!r} is {len(ids)} tokens of {stage.tokenizer!r}, not one")
        return int(ids[0])
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise ValueError(f"{stage.tokenizer!r} has no token of its own to put between documents; give separator")
    return int(found)


def describe(
    stage: PrepareTextStage, job: Job, names: list[str], reports: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """The manifest: tokens and documents by domain before and after, and where every token went."""
    before: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for report in reports:
        before.update(report["tokens"])
        documents.update(report["documents"])
    domain_of = np.concatenate([_domain_numbers(job.folder / f"part-{part:05d}.arrow", names) for part in job.parts])
    chosen_S = domain_of[job.selection.index_S]
    after = {name: int(job.selection.take_S[chosen_S == i].sum()) for i, name in enumerate(names)}
    once_D = np.zeros(len(domain_of), np.int64)  # tokens of each document that are used at all
    np.maximum.at(once_D, job.selection.index_S, job.selection.take_S)
    once = {name: int(once_D[domain_of == i].sum()) for i, name in enumerate(names)}
    separators = len(job.selection.take_S)
    return {
        "source": stage.source,
        "tokenizer": stage.tokenizer,
        "seed": seed,
        "sequence_length": stage.sequence_length,
        "long_document": stage.long_document,
        "sequences": job.packing.num_sequences,
        "documents_before": dict(sorted(documents.items())),
        "tokens_before": dict(sorted(before.items())),
        "shares_before": domain_shares(dict(before)),
        "documents_after": {name: int((chosen_S == i).sum()) for i, name in enumerate(names)},
        "tokens_after": after,
        # tokens_before - tokens_left_out + tokens_repeated = tokens_after, in each domain
        "tokens_left_out": {name: before[name] - once[name] for name in names},
        "tokens_repeated": {name: after[name] - once[name] for name in names},
        "shares_after": domain_shares(after),
        # tokens_after + separators = tokens_packed + tokens_in_tail, and nothing else
        "separator_id": job.separator,
        "separators": separators,
        "tokens_packed": job.packing.num_sequences * (stage.sequence_length + 1),
        "tokens_in_tail": job.packing.tail_tokens,
        "num_bad": sum(report["num_bad"] for report in reports),
        "bad": [line for report in reports for line in report["bad"]],
    }


def _domain_numbers(path: Path, names: list[str]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for name in read_arrow(path)["domain"].to_pylist()], np.int64)
