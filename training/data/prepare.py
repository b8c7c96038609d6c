"""The prepare_text stage: a corpus like SlimPajama to packed shards, with every token accounted for.

Three steps, each of which goes on where it was after a kill: tokenise parts (many processes), choose documents
(one pass over their lengths), write shards (many processes). What is written depends on the stage and the seed
alone, and not on the number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.training.data.mixture import Selection, domain_shares, select_documents
from vniah.training.data.packing import Packing
from vniah.training.data.shards import MANIFEST, id_lists, read_arrow, write_arrow
from vniah.training.data.tokenise import Corpus, tokenise_part
from vniah.training.stages import PrepareTextStage

# Scan this many times the tokens wanted, so that long documents are upsampled by choice before repetition.
SCAN_FACTOR = 3


def run(stage: PrepareTextStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Write ``folder/shards``: shard-*.arrow and manifest.json.

    Raises:
        ValueError: too many bad documents, or too few tokens for one sequence.
    """
    from vniah.training.fit import check_identity, write_json
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
    reports = tokenise(stage, corpus, parts, seed)
    check_bad(reports, stage.max_bad_share)
    job, names = plan(stage, [report["part"] for report in reports], parts, seed)
    if not job.packing.num_sequences:
        raise ValueError(f"{job.selection.tokens} tokens do not fill one sequence of {stage.sequence_length}")
    counts = _map(job.write, range(job.num_shards), stage.workers)
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
    for start in range(0, len(order), stage.workers):
        chunk = [int(part) for part in order[start : start + stage.workers]]
        for report in _map(_Tokenise(corpus, stage.tokenizer, folder), chunk, stage.workers):
            if scanned < wanted:
                reports.append(report)
                scanned += sum(report["tokens"].values())
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


def check_bad(reports: Iterable[dict[str, Any]], max_share: float) -> None:
    """Stop when more than ``max_share`` of the documents are bad, naming the first ones."""
    reports = list(reports)
    bad = sum(report["num_bad"] for report in reports)
    total = bad + sum(sum(report["documents"].values()) for report in reports)
    if total and bad > max_share * total:
        first = "; ".join([line for report in reports for line in report["bad"]][:3])
        raise ValueError(f"{bad} of {total} documents are bad, more than the share of {max_share:g} allowed: {first}")


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
    separator = load_tokenizer(stage.tokenizer).eos_token_id
    if separator is None:
        raise ValueError(f"the tokenizer {stage.tokenizer!r} has no end-of-text token to put between documents")
    job = Job(
        parts=tuple(parts),
        rows=tuple(rows),
        folder=folder,
        out=folder.parent / "shards",
        selection=selection,
        packing=Packing(selection.take_S, stage.sequence_length),
        per_shard=stage.shard_sequences,
        separator=int(separator),
    )
    return job, names


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
        "shares_after": domain_shares(after),
        # tokens_after + separators = tokens_packed + tokens_in_tail, and nothing else
        "separators": separators,
        "tokens_packed": job.packing.num_sequences * (stage.sequence_length + 1),
        "tokens_in_tail": job.packing.tail_tokens,
        "num_bad": sum(report["num_bad"] for report in reports),
        "bad": [line for report in reports for line in report["bad"]][:100],
    }


def _domain_numbers(path: Path, names: list[str]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for name in read_arrow(path)["domain"].to_pylist()], np.int64)


def _map(work: Callable[[int], Any], items: Iterable[int], workers: int) -> list[Any]:
    """``work`` of every item, in order, on ``workers`` processes."""
    items = list(items)
    if workers <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    import multiprocessing

    with ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, items))
