"""The executor and the runner over several real gloo processes give what one process gives.

One launch (``ring_processes.py``) a number of processes runs all ``CHECKS``; the tests then read what each check
said on each rank. Every rank also computes the single-process answer, with a backend of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ring_processes
import tiny_backends as tiny
import torch
from ring_processes import Checks, assert_passed

from longva_model.arguments import ModelArgs
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.engine.perplexity import measure
from longva_model.engine.ring import RingEngine
from longva_model.frames.embeddings import BLOCK, FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from longva_model.run import processes as work
from longva_model.run.runner import Job, Runner
from vniah import notices
from vniah.contract.requests import Frames, Generate, Image, Leaf, Request, Segment, Target, Text

CHECKS = check = Checks()
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

# 17 tokens a frame: no chunk or world size divides it.
TOKENS = 17
HAY = tiny.NoiseFrames(24)
MEDIA = {HAY.fingerprint: HAY, **{f"needle{number}": tiny.needle_image(number) for number in range(3)}}


@functools.cache
def backend(kind: str = "qwen2", attn: str = "longva_blockwise") -> Any:
    """One a check's side: a ring engine leaves its backend with the attention of rings."""
    return tiny.TinyBackend(kind, attn, TOKENS)


def cell(num_frames: int, index: int | None, needle: int, leaf: Leaf, source: str = HAY.fingerprint) -> Request:
    segments: list[Segment] = [Text("system")]
    if index is None:
        segments.append(Frames(source, 0, num_frames))
    else:
        if index:
            segments.append(Frames(source, 0, index))
        segments.append(Image(f"needle{needle}"))
        if index < num_frames:
            segments.append(Frames(source, index, num_frames))
    return Request((*segments, Text(f"what is {needle}?"), Text("it is")), leaf)


def grid(seed: int, count: int, leaves: Sequence[Leaf]) -> list[Request]:
    """The same random cells on every rank."""
    draw = random.Random(seed)
    cells = []
    for _ in range(count):
        frames = draw.randint(1, len(HAY))
        index = None if draw.random() < 0.2 else frames * draw.randint(0, 100) // 100
        cells.append(cell(frames, index, draw.randrange(3), draw.choice(leaves)))
    return cells


def one_process(requests: Sequence[Request], kind: str = "qwen2", media: Any = None) -> list[LeafResult]:
    model = backend(kind)
    return TreeEngine(model, FrameEmbeddings(model)).run(tiny.prompts(requests, media or MEDIA))


def ring(kind: str = "qwen2", chunk_tokens: int = 8192, frames: FrameEmbeddings | None = None) -> RingEngine:
    model = backend(kind, "longva_ring") if frames is None else frames.backend
    return RingEngine(model, frames or FrameEmbeddings(model), EngineOptions(chunk_tokens=chunk_tokens))


def assert_same(ours: Sequence[LeafResult], reference: Sequence[LeafResult]) -> None:
    for number, (one, other) in enumerate(zip(ours, reference, strict=True)):
        assert dataclasses.replace(one, answer_logprobs=[]) == dataclasses.replace(other, answer_logprobs=[]), number
        torch.testing.assert_close(
            torch.tensor(one.answer_logprobs), torch.tensor(other.answer_logprobs), atol=2e-4, rtol=2e-4
        )


@contextmanager
def shared_folder(rank: int) -> Iterator[Path]:
    """One folder for all processes."""
    folder = Path(work.broadcast(tempfile.mkdtemp() if rank == 0 else ""))
    yield folder
    work.gather(None)
    if rank == 0:
        shutil.rmtree(folder)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# The engine


def targets(rank: int, world: int, *, kind: str, chunk_tokens: int, seed: int) -> None:
    requests = grid(seed, 9, [Target("a"), Target("no"), Target("abcde")])
    found = ring(kind, chunk_tokens).run(tiny.prompts(requests, MEDIA))
    assert_same(found, one_process(requests, kind))
    # Identical to the bit on every rank: else a tie could part them and leave one waiting for the other.
    assert len(set(work.gather(json.dumps([one.as_dict() for one in found])))) == 1


for _kind, _chunk, _seed in [
    ("qwen2", 8192, 0), ("qwen2", 311, 1), ("qwen2", 128, 2), ("llama", 257, 3), ("mistral", 8192, 4),
]:  # fmt: skip
    CHECKS[f"targets_{_kind}_in_chunks_of_{_chunk}"] = functools.partial(
        targets, kind=_kind, chunk_tokens=_chunk, seed=_seed
    )


@check
def targets_in_chunks_of_one_token(rank: int, world: int) -> None:
    requests = [cell(3, 1, 0, Target("ab")), cell(3, 1, 1, Target("a"))]
    assert_same(ring(chunk_tokens=1).run(tiny.prompts(requests, MEDIA)), one_process(requests))


@check
def generation(rank: int, world: int) -> None:
    leaf = Generate(max_new_tokens=9)
    requests = [cell(20, index, index % 3, leaf) for index in (0, 11, 20)] + [cell(7, None, 0, leaf)]
    assert_same(ring(chunk_tokens=200).run(tiny.prompts(requests, MEDIA)), one_process(requests))


@check
def sampled_generation_by_seed(rank: int, world: int) -> None:
    requests = [cell(9, 4, 0, Generate(max_new_tokens=8, temperature=1.5, top_k=20, seed=seed)) for seed in range(3)]
    assert_same(ring().run(tiny.prompts(requests, MEDIA)), one_process(requests))


@check
def leaves_of_both_kinds_on_one_prompt(rank: int, world: int) -> None:
    leaves: list[Leaf] = [Target("abc"), Generate(max_new_tokens=4), Target("xy"), Target("abc")]
    requests = [cell(14, 5, 0, leaf) for leaf in leaves] + grid(5, 4, leaves)
    assert_same(ring(chunk_tokens=256).run(tiny.prompts(requests, MEDIA)), one_process(requests))


@check
def every_length_around_the_limit_of_short_chunks(rank: int, world: int) -> None:
    """Text prompts of 32 tokens a process, one less, one more: replicated, or dealt out with uneven shares."""
    for length in (1, 2 * world, 32 * world - 1, 32 * world, 32 * world + 1, 40 * world + 3):
        requests = [Request((Text("x" * length), Text("y" * more)), Target("abc")) for more in (1, 5, 32 * world)]
        assert_same(ring().run(tiny.prompts(requests)), one_process(requests, media={"none": None}))


@check
def keys_and_values_are_spread(rank: int, world: int) -> None:
    """The rows that each process really holds, at the longest prompt."""
    engine = ring(chunk_tokens=256)
    shares: list[tuple[int, ...]] = []
    crop = type(engine.new_state(10)).crop_to

    class Watched(type(engine.new_state(10))):  # type: ignore[misc]
        def crop_to(self, length: int) -> None:
            shares.append(self.shares)
            crop(self, length)

    engine.new_state = lambda room: Watched(engine.backend.shape.layers, room, engine.rank, engine.world_size)  # type: ignore[method-assign]
    requests = [cell(24, index, 0, Target("a")) for index in (0, 7, 24)] + [cell(8, 3, 1, Target("ab"))]
    engine.run(tiny.prompts(requests, MEDIA))
    longest = max(shares, key=sum)
    assert sum(longest) >= 24 * TOKENS
    assert max(longest) - min(longest) <= 32 * world + 8


@check
def a_chunk_is_as_many_tokens_for_each_process_as_it_would_be_for_one(rank: int, world: int) -> None:
    """Half a chunk for each of two processes, an eighth for each of eight: blocks too short for a device."""
    requests = [cell(24, None, 0, Target("ab"))]
    model, chunks = backend(), []

    def noting(engine: TreeEngine, lengths: list[int]) -> TreeEngine:
        hidden = engine.hidden
        engine.hidden = lambda chunk, keep: (lengths.append(len(chunk)), hidden(chunk, keep))[1]  # type: ignore[method-assign, func-returns-value]
        chunks.append(lengths)
        return engine

    together = noting(ring(chunk_tokens=64), [])
    alone = noting(TreeEngine(model, FrameEmbeddings(model), EngineOptions(chunk_tokens=64)), [])
    results = [engine.run(tiny.prompts(requests, MEDIA)) for engine in (together, alone)]
    assert_same(*results)
    of_ring, of_one = chunks
    assert sum(of_ring) == sum(of_one) and 64 - TOKENS < of_one[0] <= 64
    assert 64 * world - TOKENS < of_ring[0] <= 64 * world
    assert len(of_ring) <= len(of_one) / world + 1


@check
def perplexity(rank: int, world: int) -> None:
    documents = [np.random.default_rng(seed).integers(1, tiny.VOCAB, 700).tolist() for seed in range(2)]
    one = TreeEngine(backend(), FrameEmbeddings(backend()), EngineOptions(chunk_tokens=97))
    for length, stride, chunk in [(300, None, 8192), (301, 64, 128), (50, 7, 33)]:
        ours = measure(ring(chunk_tokens=chunk), documents, length, stride=stride, max_windows=4)
        reference = measure(one, documents, length, stride=stride, max_windows=4)
        assert (ours.num_tokens, ours.num_windows) == (reference.num_tokens, reference.num_windows)
        assert abs(ours.nll - reference.nll) < 2e-4


# Frames


def encoded_by_each(rank: int, folder: Path | None) -> list[int]:
    """Frames that each rank encoded for a grid on 5 blocks of frames and 2 needles; the results are compared."""
    hay = tiny.NoiseFrames(4 * BLOCK + 30, seed=7)
    media = {**MEDIA, hay.fingerprint: hay}
    requests = [
        cell(frames, index, needle, Target("ab"), hay.fingerprint)
        for frames in (20, len(hay))
        for index in (0, frames // 2)
        for needle in range(2)
    ]
    # One token a frame, and a backend of its own, whose count begins at 0.
    model = tiny.TinyBackend("qwen2", "longva_ring", 1)
    results = ring(frames=FrameEmbeddings(model, folder), chunk_tokens=200).run(tiny.prompts(requests, media))
    alone = tiny.TinyBackend("qwen2", tokens_per_frame=1)
    assert_same(results, TreeEngine(alone, FrameEmbeddings(alone)).run(tiny.prompts(requests, media)))
    assert alone.frames_encoded == len(hay) + 2
    return work.gather(model.frames_encoded)


@check
def frames_are_encoded_once_with_a_shared_folder(rank: int, world: int) -> None:
    with shared_folder(rank) as folder:
        counts = encoded_by_each(rank, folder)
        assert sum(counts) == 4 * BLOCK + 30 + 2
        # 5 blocks in contiguous runs.
        assert max(counts) <= -(-5 // world) * BLOCK + 2
        assert sum(encoded_by_each(rank, folder)) == 0


@check
def frames_are_encoded_once_with_a_folder_each(rank: int, world: int) -> None:
    """As on several machines: what another has encoded comes by the network."""
    with tempfile.TemporaryDirectory() as folder:
        assert sum(encoded_by_each(rank, Path(folder))) == 4 * BLOCK + 30 + 2
        assert sum(encoded_by_each(rank, Path(folder))) == 0


@check
def frames_are_encoded_once_without_a_folder(rank: int, world: int) -> None:
    assert sum(encoded_by_each(rank, None)) == 4 * BLOCK + 30 + 2


@check
def one_rank_has_the_frames_already(rank: int, world: int) -> None:
    with shared_folder(rank) as folder:
        hay = tiny.NoiseFrames(70, seed=8)
        model = tiny.TinyBackend("qwen2", "longva_ring", 1)
        frames = FrameEmbeddings(model, folder / str(rank))
        if rank == world - 1:
            frames.prepare(hay, [0, 1], "crop")
        requests = [cell(70, 10, 0, Target("ab"), hay.fingerprint)]
        ring(frames=frames).run(tiny.prompts(requests, {**MEDIA, hay.fingerprint: hay}))
        assert sum(work.gather(model.frames_encoded)) == 70 + 1


class BrokenFrames(tiny.NoiseFrames):  # type: ignore[misc]
    """Frames that cannot be read past the first block."""

    def frames(self, start: int, stop: int) -> Any:
        if start >= BLOCK:
            raise ValueError("frame 64 is damaged")
        return super().frames(start, stop)


@check
def frames_that_one_rank_cannot_read_are_an_error_on_all(rank: int, world: int) -> None:
    hay = BrokenFrames(2 * BLOCK)
    request = cell(2 * BLOCK, 10, 0, Target("ab"), hay.fingerprint)
    with pytest.raises(ValueError, match="frame 64 is damaged"):
        ring().run(tiny.prompts([request], {**MEDIA, hay.fingerprint: hay}))


# The runner


def jobs() -> list[Job]:
    """12 documents as a task lists them: by frames, then depth."""
    leaves: list[Leaf] = [Target("abc"), Target("d"), Generate(max_new_tokens=3)]
    return [
        Job(task="grid", split="test", doc_id=number, index=0, context="", leaf=leaves[number % 3])
        for number in range(12)
    ]


def build(job: Job) -> Prompt:
    frames, needle = 8 + 12 * (job.doc_id // 6), job.doc_id % 3
    index = frames * (job.doc_id % 6) // 5
    request = cell(frames, index, needle, job.leaf)
    media = {name: MEDIA[name] for name in (HAY.fingerprint, f"needle{needle}")}
    return Prompt(request=request, media=media, preprocess=dict.fromkeys(media, "pad"))


def about(job: Job) -> dict[str, Any]:
    return {"doc_id": job.doc_id}


@functools.cache
def expected() -> dict[int, LeafResult]:
    results = one_process([build(job).request for job in jobs()])
    return {job.doc_id: result for job, result in zip(jobs(), results, strict=True)}


def run_share(rank: int, world: int, args: ModelArgs) -> tuple[Runner, list[LeafResult]]:
    """Run this rank's documents, every ``world``-th as lmms-eval deals them out, and compare their results."""
    runner = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), args)
    mine = jobs()[rank::world]
    mine += mine[:1]  # lmms-eval repeats a request where ranks have unequal numbers
    results = runner.run(mine, build, about)
    assert_same(results, [expected()[job.doc_id] for job in mine])
    return runner, results


def parallel(rank: int, world: int, *, parallel: str, free: int | None, mode: str) -> None:
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        free_bytes = work.free_bytes
        if free is not None:
            work.free_bytes = lambda device: free
        try:
            args = ModelArgs(parallel=parallel, journal=str(folder / "journal.jsonl"), chunk_tokens=256)
            runner, _ = run_share(rank, world, args)
            assert (runner.backend.decoder.config._attn_implementation == "longva_ring") == (mode == "ring")
            told = notices.closing()["model"]
            assert (told["processes"], told["parallel"], told["parallel_size"]) == (world, mode, world)
            assert told["attention"] == ("longva_ring" if mode == "ring" else "longva_blockwise")
            # The haystack by one process each block; in branches a needle by each process that shows it.
            counts = work.gather(runner.frames.frames_encoded)
            assert len(HAY) <= sum(counts) <= len(HAY) + 3 * (1 if mode == "ring" else world)
            lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
            assert sorted(line["doc_id"] for line in lines) == list(range(len(jobs())))
            # Again: everything is known, and nothing is computed.
            again = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), args)
            again.engine = None  # type: ignore[assignment, method-assign]
            mine = jobs()[rank::world]
            assert_same(again.run(mine, build, about), [expected()[job.doc_id] for job in mine])
            assert notices.closing()["model"] == told
        finally:
            work.free_bytes = free_bytes


for _name, _parallel, _free, _mode in [
    ("branches", "branch", None, "branch"),
    ("the_ring", "ring", None, "ring"),
    ("auto_with_room", "auto", None, "branch"),
    # The longest cell's cache is 97,536 bytes, and 70 % of what is free is for it.
    ("auto_without_room", "auto", 120_000, "ring"),
]:
    CHECKS[f"the_runner_in_{_name}"] = functools.partial(parallel, parallel=_parallel, free=_free, mode=_mode)


@check
def auto_names_the_devices_that_would_do(rank: int, world: int) -> None:
    """A ring that cannot hold the longest cell either was begun all the same."""
    free_bytes, work.free_bytes = work.free_bytes, lambda device: 10_000 + 1_000 * rank
    try:
        with pytest.raises(ValueError, match=r"start \d+ processes") as caught:
            run_share(rank, world, ModelArgs(parallel="auto", journal="none"))
    finally:
        work.free_bytes = free_bytes
    # The device with the least room counts, and 70 % of it is for the cache.
    assert "(381 tokens)" in str(caught.value)
    assert f"start {-(-381 * backend().shape.kv_bytes_per_token // 7_000)} processes" in str(caught.value)


@check
def a_near_tie_does_not_part_the_processes(rank: int, world: int) -> None:
    """Rounding of its own on one process picked another token there; the others' answers changed with it."""
    engine = ring()
    model, exact = engine.backend, engine.backend.logits
    tie = exact(torch.zeros(1, tiny.SIZES["hidden_size"]))[0].zero_()
    picked = []

    def rounded(hidden_TD: torch.Tensor) -> torch.Tensor:
        """Two tokens that tie at every step, and each process rounds towards another one."""
        logits_TV = tie.repeat(len(hidden_TD), 1)
        logits_TV[:, 5 + len(picked) % 7] = 1.0
        logits_TV[:, 20 + rank] = 1.0 + 1e-6 * rank
        picked.append(int(logits_TV[-1].argmax()))
        return logits_TV

    asked = [
        cell(5, 2, 0, Generate(max_new_tokens=6)),
        cell(9, 4, 1, Target("ok")),
        cell(9, 4, 2, Generate(max_new_tokens=4, temperature=0.8)),
    ]
    model.logits = rounded
    try:
        results = engine.run(tiny.prompts(asked, MEDIA))
    finally:
        del model.logits
    assert len(set(map(str, work.gather(picked)))) == world, "each process would have picked another token"
    everyone = work.gather([result.as_dict() for result in results])
    assert all(one == everyone[0] for one in everyone)
    assert len(results[0].predicted_ids) == 6


@check
def logits_that_are_not_finite_end_every_process(rank: int, world: int) -> None:
    model = tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS)
    with torch.no_grad():
        model.decoder.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    engine = RingEngine(model, FrameEmbeddings(model), EngineOptions(chunk_tokens=256))
    for leaf in (Generate(max_new_tokens=3), Target("ok")):
        with pytest.raises(ValueError, match=r"not finite.*layers\.1\.mlp\.down_proj\.weight"):
            engine.run(tiny.prompts([cell(20, 3, 0, leaf)], MEDIA))
    # Where no weight is to blame the prompt is run again, by all together.
    healthy = tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS)
    norm = healthy.decoder.layers[1].post_attention_layernorm
    norm.register_forward_hook(lambda module, given, output: output * torch.inf)
    engine = RingEngine(healthy, FrameEmbeddings(healthy), EngineOptions(chunk_tokens=256))
    with pytest.raises(ValueError, match=r"they arise in model\.layers\.1\.post_attention_layernorm"):
        engine.run(tiny.prompts([cell(20, 3, 0, Target("ok"))], MEDIA))
    with pytest.raises(ValueError, match="not finite"):
        measure(engine, [list(range(1, 90))], 80)


@check
def a_ring_that_is_not_the_models_own_is_refused(rank: int, world: int) -> None:
    model = tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS)
    runner = Runner(model, ModelArgs(parallel="ring", journal="none"))
    assert runner.engine(ring=True).world_size == world
    scaled = tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS)
    plain = scaled.logits
    scaled.logits = lambda hidden_TD: plain(hidden_TD) * (1.5 if rank == world - 1 else 1.0)
    with pytest.raises(ValueError, match=r"parallel=ring cannot run tiny-qwen2 .* differ from .* parallel=branch"):
        Runner(scaled, ModelArgs(parallel="ring", journal="none")).engine(ring=True)


@check
def journals_of_a_run_with_more_processes_are_used(rank: int, world: int) -> None:
    """Half of the rows in the file of a process that is no longer there, a quarter in this process's."""
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        path = folder / "journal.jsonl"
        args = ModelArgs(parallel="branch", journal=str(path), chunk_tokens=256)
        run_share(rank, world, args)
        work.gather(None)
        if rank == 0:
            lines = path.read_text().splitlines(keepends=True)
            for other in folder.glob("journal.jsonl.rank*"):
                other.unlink()
            path.write_text("".join(lines[:3]))
            (folder / f"journal.jsonl.rank{world + 3}").write_text("".join(lines[3:9]))
        work.gather(None)
        runner = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), args)
        computed: list[int] = []
        tiny.watch_leaves(runner, computed.append)
        mine = jobs()[rank::world]
        assert_same(runner.run(mine, build, about), [expected()[job.doc_id] for job in mine])
        assert sum(work.gather(len(computed))) == 3
        assert len(path.read_text().splitlines()) == len(jobs())


@check
def a_ring_and_then_branches_in_one_process(rank: int, world: int) -> None:
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        runner = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), ModelArgs(parallel="ring", journal="none"))
        mine = jobs()[rank::world]
        runner.run(mine, build, about)
        runner.args = dataclasses.replace(runner.args, parallel="branch")
        assert_same(runner.run(mine, build, about), [expected()[job.doc_id] for job in mine])
        # Not even in step.
        for job in mine[: rank + 1]:
            assert_same([runner.run_one(build(job))], [expected()[job.doc_id]])


@check
def a_rank_without_documents(rank: int, world: int) -> None:
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        for parallel in ("ring", "branch"):
            args = ModelArgs(parallel=parallel, journal="none")
            runner = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), args)
            mine = jobs()[:2] if rank == 0 else []
            assert_same(runner.run(mine, build, about), [expected()[job.doc_id] for job in mine])


@check
def a_journal_that_one_rank_is_refused_is_refused_to_all(rank: int, world: int) -> None:
    from vniah.runs.journal import Journal

    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        args = ModelArgs(journal=str(folder / "journal.jsonl"))
        runner = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), args)
        held = Journal(folder / "journal.jsonl.rank1") if rank == 0 else None
        work.gather(None)
        with pytest.raises(ValueError, match=r"journal\.jsonl\.rank1 is in use by another process"):
            runner.run(jobs()[rank::world], build, about)
        work.gather(None)
        if held is not None:
            held.close()
        work.gather(None)
        assert_same(runner.run(jobs()[rank::world], build, about), [expected()[j.doc_id] for j in jobs()[rank::world]])


@check
def a_full_disk_of_one_process_ends_all(rank: int, world: int) -> None:
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        for parallel, failing in (("ring", 0), ("branch", world - 1)):
            runner = Runner(
                tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS),
                ModelArgs(parallel=parallel, journal=str(folder / f"{parallel}.jsonl")),
            )
            put, lines = runner._put, 0

            def full(*line: Any, put: Any = put, failing: int = failing) -> None:
                nonlocal lines
                lines += 1
                if rank == failing and lines == 3:
                    raise OSError(28, "No space left on device")
                put(*line)

            runner._put = full  # type: ignore
            with pytest.raises((OSError, ValueError), match="No space left"):
                runner.run(jobs()[rank::world], build, about)
            assert sum(work.gather(lines)) < len(jobs()) or parallel == "branch"
            work.gather(None)
            again = Runner(tiny.TinyBackend("qwen2", tokens_per_frame=TOKENS), runner.args)
            mine = jobs()[rank::world]
            assert_same(again.run(mine, build, about), [expected()[job.doc_id] for job in mine])


@check
def plain_scoring_is_dealt_out_and_never_a_ring(rank: int, world: int) -> None:
    with shared_folder(rank) as folder, environment(VNIAH_CACHE=str(folder)):
        run_share(rank, world, ModelArgs(parallel="auto", scoring="plain", journal="none"))
        with pytest.raises(ValueError, match="scoring=plain runs on one device"):
            run_share(rank, world, ModelArgs(parallel="ring", scoring="plain", journal="none"))


# The tests


@functools.cache
def reports(world: int) -> list[Any]:
    """What each rank of ``world`` wrote; one launch for all tests."""
    with tempfile.TemporaryDirectory(prefix="ring-engine") as folder:
        return ring_processes.reports(__file__, Path(folder), [world])[world]


@pytest.mark.parametrize("name", list(CHECKS))
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_ring_engine(world: int, name: str) -> None:
    assert_passed(reports(world), name)
