"""Mixture, packing and preparation: shares kept, every token accounted for, a killed run repeated to the byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import LoopbackHub
from hypothesis import given, settings
from hypothesis import strategies as st

from vniah.training.data import prepare
from vniah.training.data.packing import Packing, budgets, fill_budgets, keep_documents
from vniah.training.data.shards import RingSequences, read_arrow
from vniah.training.stages import PrepareTextStage

DOMAINS = {"RedPajamaBook": 0.3, "RedPajamaC4": 0.5, "RedPajamaGithub": 0.2}


def test_long_documents_stay_one_short_in_ten_does_and_nothing_is_repeated() -> None:
    """Fu et al. 2024, per source: the shares of domains stay, and within one the long documents grow by themselves."""
    rng = np.random.default_rng(0)
    lengths, domains = rng.integers(50, 8_000, 40_000), rng.choice(3, 40_000, p=[0.5, 0.3, 0.2])
    lengths[domains == 2] = rng.integers(50, 1_000, (domains == 2).sum())
    kept = keep_documents(lengths, long_document=4_096, short_share=0.1, rng=rng)
    assert kept[lengths >= 4_096].all()
    assert kept[lengths < 4_096].mean() == pytest.approx(0.1, abs=0.01)
    budget = {0: 700_000, 1: 200_000, 2: 100_000}
    chosen = fill_budgets(lengths[kept], domains[kept], budget, seed=1)
    assert len(set(chosen.index_S.tolist())) == len(chosen.index_S)
    for domain, tokens in budget.items():
        mine = domains[kept][chosen.index_S] == domain
        assert chosen.take_S[mine].sum() == tokens
        is_long = lengths[kept][chosen.index_S] >= 4_096
        share = chosen.take_S[mine & is_long].sum() / tokens
        there = lengths[kept & (domains == domain)]
        assert share == pytest.approx(there[there >= 4_096].sum() / there.sum(), abs=0.05)
        cut = chosen.take_S[mine] != lengths[kept][chosen.index_S[mine]]
        assert cut.sum() <= 1  # only the last of a domain is cut


def test_a_document_of_just_the_length_is_long() -> None:
    lengths = np.array([4_095, 4_096])
    kept = keep_documents(lengths, long_document=4_096, short_share=0.0, rng=np.random.default_rng(0))
    assert kept.tolist() == [False, True]
    assert budgets({"a": 3, "b": 1}, 100) == {"a": 75, "b": 25}
    assert fill_budgets(lengths, np.zeros(2, np.int64), {0: 9_000}, seed=0).tokens == 8_191


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 25))
def test_packing_uses_every_token_once(takes: list[int], length: int) -> None:
    documents = [np.arange(n) + 1000 * i for i, n in enumerate(takes)]
    stream = np.concatenate([np.append(d, -1) for d in documents])
    packing = Packing(np.array(takes), length)
    packed = [packing.tokens(i, lambda n: documents[n], -1) for i in range(packing.num_sequences)]
    used = packing.num_sequences * (length + 1)
    assert used + packing.tail_tokens == len(stream)
    assert np.array_equal(np.concatenate([np.zeros(0), *packed]), stream[:used])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six files of a few hundred documents, three domains, some documents much longer than the others."""
    rng = np.random.default_rng(5)
    words = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"]
    folder = tmp_path / "corpus"
    folder.mkdir()
    names, shares = list(DOMAINS), list(DOMAINS.values())
    for number in range(6):
        with (folder / f"chunk{number}.jsonl").open("w") as file:
            for _ in range(150):
                length = int(rng.integers(300, 500) if rng.random() < 0.1 else rng.integers(5, 60))
                row = {
                    "text": " ".join(rng.choice(words, length)),
                    "meta": {"redpajama_set_name": str(rng.choice(names, p=shares))},
                }
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def stage(corpus: Path, tmp_path: Path) -> PrepareTextStage:
    from vniah.training.nano.vocabulary import build_tokenizer

    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return PrepareTextStage(
        name="shards",
        tokenizer=str(tmp_path / "tokenizer"),
        source=str(corpus),
        total_tokens=25_000,
        sequence_length=256,
        long_document=200,
        short_share=0.1,
        shard_sequences=20,
        workers=1,
    )


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_shares_within_one_percent_and_every_token_accounted_for(stage: PrepareTextStage, tmp_path: Path) -> None:
    prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    folder = tmp_path / "out" / "shards"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, share in manifest["shares_before"].items():
        assert manifest["shares_after"][name] == pytest.approx(share, abs=0.01)
    assert sum(manifest["tokens_after"].values()) + manifest["separators"] == (
        manifest["tokens_packed"] + manifest["tokens_in_tail"]
    )
    rows = [row for name in manifest["shards"] for row in read_arrow(folder / name)["input_ids"].to_pylist()]
    assert len(rows) == manifest["sequences"] and {len(row) for row in rows} == {257}
    assert manifest["tokens_after"].keys() == DOMAINS.keys()
    for name in DOMAINS:
        assert manifest["tokens_after"][name] > 0
        assert manifest["tokens_before"][name] - manifest["tokens_left_out"][name] == manifest["tokens_after"][name]
    stream = [token for row in rows for token in row]
    assert (
        stream.count(manifest["separator_id"]) <= manifest["separators"] <= stream.count(manifest["separator_id"]) + 40
    )


def test_a_corpus_that_is_too_small_is_not_read_twice(stage: PrepareTextStage, tmp_path: Path) -> None:
    import dataclasses

    more = dataclasses.replace(stage, total_tokens=60_000)
    with pytest.raises(ValueError, match=r"are wanted, nothing being repeated; set total_tokens to at most") as raised:
        prepare.run(more, tmp_path / "out", seed=3, resolve=str)
    most = int(str(raised.value).split("at most ")[1].split(", or")[0].replace(",", ""))
    assert 20_000 < most < 60_000
    prepare.run(dataclasses.replace(stage, total_tokens=most), tmp_path / "fits", seed=3, resolve=str)


def test_a_data_set_of_the_hub_is_listed_once_and_each_file_fetched_once(
    stage: PrepareTextStage, corpus: Path, tmp_path: Path, online: LoopbackHub
) -> None:
    import dataclasses

    files = {f"train/chunk1/part_{path.stem}.jsonl": path.read_bytes() for path in sorted(corpus.iterdir())}
    files |= {"validation/part_0.jsonl": b"{torn", "train/chunk1/readme.txt": b"no"}
    online.add_repo("org/slim", files)
    online.fail("chunk3", 429, times=1)
    remote = dataclasses.replace(stage, source="org/slim")
    prepare.run(remote, tmp_path / "out", seed=3, resolve=str)
    read = len(list((tmp_path / "out" / "parts").glob("*.arrow")))
    assert online.count("GET", "/tree/") == 1
    assert online.count("GET", "/resolve/") == read + 1  # and once more where the Hub was busy
    assert online.count("HEAD") == 0 and online.count("GET", "validation") == 0
    prepare.run(stage, tmp_path / "local", seed=3, resolve=str)
    there, here = (fingerprints(tmp_path / name / "shards") for name in ("out", "local"))
    assert {name for name in there if there[name] != here[name]} == {"manifest.json", "identity.json"}
    before = len(online.requests)
    for report in (tmp_path / "out" / "parts").glob("*.json"):
        if report.name != "listing.json":
            report.unlink()
    prepare.run(remote, tmp_path / "out", seed=3, resolve=str)
    assert len(online.requests) == before, "a run that goes on asks for nothing that is there"


def test_killed_while_writing_and_run_again_gives_the_same_shards(
    stage: PrepareTextStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare.run(stage, whole, seed=3, resolve=str)
    writes = {"left": 9}
    real = prepare.write_arrow

    def dying(path: Path, columns: dict[str, Any]) -> None:
        writes["left"] -= 1
        if writes["left"] < 0:
            raise KeyboardInterrupt
        real(path, columns)

    monkeypatch.setattr(prepare, "write_arrow", dying)
    writes["left"] = 8  # six parts, and two shards
    with pytest.raises(KeyboardInterrupt):
        prepare.run(stage, broken, seed=3, resolve=str)
    assert not (broken / "shards" / "manifest.json").exists()
    monkeypatch.setattr(prepare, "write_arrow", real)
    prepare.run(stage, broken, seed=3, resolve=str)
    assert fingerprints(broken / "shards") == fingerprints(whole / "shards")


def test_the_separator_is_the_beginning_of_text_unless_named(stage: PrepareTextStage) -> None:
    import dataclasses

    from vniah.training.load import load_tokenizer

    tokenizer = load_tokenizer(stage.tokenizer)
    assert prepare.separator_id(tokenizer, stage) == tokenizer.bos_token_id
    named = dataclasses.replace(stage, separator=tokenizer.eos_token)
    assert prepare.separator_id(tokenizer, named) == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="is 2 tokens of"):
        prepare.separator_id(tokenizer, dataclasses.replace(stage, separator="time year"))
    tokenizer.bos_token = None
    assert prepare.separator_id(tokenizer, stage) == tokenizer.eos_token_id


def test_every_kind_of_file_is_read_and_broken_lines_are_told_apart(tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    good = [{"text": "a", "n": 1}, {"text": 3}]
    lines = "\n".join(map(json.dumps, good)).encode() + b"\n\n"
    (tmp_path / "a.jsonl").write_bytes(lines + b'{"text": "torn\n[1]\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(good).encode()))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as stream:
        stream.write(lines)
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").write_bytes(b"")
    read_rows, BrokenRow = prepare.read_rows, prepare.BrokenRow
    torn = list(read_rows(tmp_path / "a.jsonl"))
    assert torn[:2] == good and [type(row) for row in torn[2:]] == [BrokenRow, BrokenRow]
    assert list(read_rows(tmp_path / "b.json.gz")) == list(read_rows(tmp_path / "c.jsonl.zst")) == good
    assert list(read_rows(tmp_path / "d.parquet")) == good[:1] and not list(read_rows(tmp_path / "e.jsonl"))
    (tmp_path / "c.jsonl.zst").write_bytes((tmp_path / "c.jsonl.zst").read_bytes()[:20])
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    for name in ("c.jsonl.zst", "d.parquet"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            list(read_rows(tmp_path / name))


def test_a_wrong_column_stops_the_run_before_the_whole_corpus_is_read(
    stage: PrepareTextStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setattr(prepare, "JUDGED", 200)
    with pytest.raises(ValueError, match=r"300 of 300 documents are bad.*no text in 'body'"):
        prepare.run(dataclasses.replace(stage, text_column="body"), tmp_path / "out", seed=3, resolve=str)
    assert len(list((tmp_path / "out" / "parts").glob("*.arrow"))) == 2


def test_a_mended_corpus_is_read_again(stage: PrepareTextStage, corpus: Path, tmp_path: Path) -> None:
    import dataclasses

    strict = dataclasses.replace(stage, max_bad_share=0.0)
    whole = (corpus / "chunk0.jsonl").read_text()
    (corpus / "chunk0.jsonl").write_text(whole + "{torn\n")
    with pytest.raises(ValueError, match=r"1 of 751 documents are bad.*chunk0\.jsonl:150: not JSON"):
        prepare.run(strict, tmp_path / "out", seed=3, resolve=str)
    (corpus / "chunk0.jsonl").write_text(whole)
    assert prepare.run(strict, tmp_path / "out", seed=3, resolve=str)["num_bad"] == 0
    (corpus / "chunk1.jsonl").write_text(whole)
    with pytest.raises(ValueError, match="differs in corpus"):
        prepare.run(strict, tmp_path / "out", seed=3, resolve=str)


def test_a_full_disk_is_an_error_before_anything_is_tokenised(
    stage: PrepareTextStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 64 << 20))
    with pytest.raises(OSError, match="64 MiB free"):
        prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    assert not list((tmp_path / "out" / "parts").iterdir())


def test_steps_beyond_the_sequences_are_an_error_and_epochs_read_them_again(
    stage: PrepareTextStage, tmp_path: Path
) -> None:
    from vniah.training import text
    from vniah.training.stages import TextData, TextStage, Train

    prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    data = TextData(shards=str(tmp_path / "out" / "shards"))

    def prepared(**train: Any) -> tuple[Any, int]:
        settings = Train(lr=1e-3, batch_size=2, accumulation=3, **train)
        return text._prepared(
            TextStage(name="t", model_from="m", data=data, sequence_length=256, train=settings), 1, str
        )

    dataset, steps = prepared(epochs=2)
    count = dataset.num_sequences
    assert steps == -(-2 * count // 6) and len(dataset) >= 6 * steps
    first, second = ([dataset[i + start]["input_ids"] for i in range(count)] for start in (0, count))
    assert sorted(t.tolist() for t in first) == sorted(t.tolist() for t in second)
    assert [t.tolist() for t in first] != [t.tolist() for t in second]
    assert text.together([dataset[0], dataset[1]])["shift_labels"].shape == (2, 256)
    assert prepared(steps=count // 6)[1] == count // 6
    with pytest.raises(ValueError, match=f"{count // 6 + 1} steps take .* holds {count}; prepare more tokens"):
        prepared(steps=count // 6 + 1)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(stage: PrepareTextStage, tmp_path: Path) -> None:
    import dataclasses

    prepare.run(stage, tmp_path / "one", seed=3, resolve=str)
    prepare.run(dataclasses.replace(stage, workers=2), tmp_path / "two", seed=3, resolve=str)
    assert fingerprints(tmp_path / "one" / "shards") == fingerprints(tmp_path / "two" / "shards")


def test_bad_documents_are_counted_with_their_ids_and_stop_the_run(
    stage: PrepareTextStage, corpus: Path, tmp_path: Path
) -> None:
    import dataclasses

    first = corpus / "chunk0.jsonl"
    lines = first.read_text().splitlines()
    lines[3] = json.dumps({"text": "  ", "meta": {"redpajama_set_name": "RedPajamaC4"}})
    lines[5] = json.dumps({"text": "no domain", "meta": {"redpajama_set_name": ""}})
    first.write_text("\n".join(lines) + "\n")
    prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    manifest = json.loads((tmp_path / "out" / "shards" / "manifest.json").read_text())
    assert manifest["num_bad"] == 2
    assert sorted(manifest["bad"]) == [
        "chunk0.jsonl:3: an empty document",
        "chunk0.jsonl:5: no domain in 'meta.redpajama_set_name'",
    ]
    with pytest.raises(ValueError, match="2 of 750 documents are bad"):
        prepare.run(dataclasses.replace(stage, max_bad_share=0.001), tmp_path / "strict", seed=3, resolve=str)


def test_an_output_of_another_recipe_is_refused(stage: PrepareTextStage, tmp_path: Path) -> None:
    import dataclasses

    prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    with pytest.raises(ValueError, match=r"another recipe.*short_share"):
        prepare.run(dataclasses.replace(stage, short_share=0.5), tmp_path / "out", seed=3, resolve=str)


def test_sequences_are_read_in_a_seeds_order_and_shards_join_to_the_whole(
    stage: PrepareTextStage, tmp_path: Path
) -> None:
    import torch

    from longva_model.attention import zigzag_unshard

    prepare.run(stage, tmp_path / "out", seed=3, resolve=str)
    folder = str(tmp_path / "out" / "shards")
    whole = RingSequences(folder, 256, seed=1, ring=False, world_size=1)
    ring = RingSequences(folder, 256, seed=1, ring=True, world_size=2)
    assert len(ring) == 2 * len(whole)
    for key in ("input_ids", "shift_labels", "position_ids"):
        joined = zigzag_unshard([ring[6][key], ring[7][key]], 2, 1)
        assert torch.equal(joined, whole[3][key])
    other = RingSequences(folder, 256, seed=2, ring=False, world_size=1)
    assert not torch.equal(other[0]["input_ids"], whole[0]["input_ids"])
    with pytest.raises(ValueError, match="packed to 256"):
        RingSequences(folder, 300, seed=1, ring=False)
