"""Parts of a GPU session on a decoder of random weights: prefill, the grid's time, its tree, memory, the ring."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from gpu_session import Run, SkippedError
from gpu_settings import Setting, begin, expected_rate, matmul_rate, peak, seconds
from harness import in_processes, random_backend, spent
from PIL import Image

from longva_model.attention.blockwise import kernel_names
from longva_model.attention.past import past_of
from longva_model.engine.chunks import Chunk
from longva_model.engine.engine import Batch, EngineOptions, PlainEngine, TreeEngine
from longva_model.engine.kv_blocks import KV_BLOCK
from longva_model.engine.ring import RingEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from longva_model.run import processes
from vniah.contract.cost import KV_FORMS
from vniah.contract.sources import HeldFrames
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests, make_plan

# What is appended at once where noise fills a cache, in tokens.
_FILLED = 65_536
# Bytes of pinned memory that a host is assumed to give a second.
_PINNED_A_SECOND = 1.5e9
# Tokens of a question, and of an answer that is forced, in the backend that has a token a letter.
_QUESTION, _ANSWER = "q" * 15, "abc"


def engine_of(setting: Setting, kind: type[TreeEngine] = TreeEngine) -> TreeEngine:
    backend = random_backend(setting.shape, setting.device, setting.dtype)
    return kind(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=setting.chunk))


def noise(setting: Setting, length: int) -> torch.Tensor:
    """Random embeddings, (T, D)."""
    return torch.randn(length, setting.shape.hidden, device=setting.device, dtype=setting.dtype)


def chunk_of(engine: TreeEngine, noise_TD: torch.Tensor) -> Chunk:
    """Tokens of noise behind what the engine holds."""
    start, length, device = engine.state.length, len(noise_TD), noise_TD.device
    return Chunk(
        ids_T=torch.zeros(length, dtype=torch.long, device=device),
        positions=torch.arange(start, start + length, device=device),
        start=start,
        visual_T=torch.ones(length, dtype=torch.bool, device=device),
        features_kVD=noise_TD[None],
        types_S=torch.ones(start + length, dtype=torch.uint8, device=device),
    )


class Slices:
    """Seconds of forwards of some lengths behind some pasts; those of any others, by interpolation.

    A forward's time is a line in its past (each new token attends to each token behind it once), also beyond the
    longest past that was measured.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], chunk: int) -> None:
        self._chunk = chunk
        self._by_length: dict[int, list[tuple[int, float]]] = {}
        for row in rows:
            self._by_length.setdefault(row["new"], []).append((row["past"], row["s"]))

    def seconds(self, new: int, past: int = 0) -> float:
        """Of ``new`` tokens behind ``past``, in chunks."""
        total, lengths = 0.0, sorted(self._by_length)
        while new > 0:
            now = min(new, self._chunk)
            total += float(np.interp(now, lengths, [self._behind(length, past) for length in lengths]))
            new, past = new - now, past + now
        return total

    def _behind(self, length: int, past: int) -> float:
        pasts, times = zip(*sorted(self._by_length[length]), strict=True)
        if past > pasts[-1] and len(pasts) > 1:
            slope, at_zero = np.polyfit(pasts, times, 1)
            return float(at_zero + slope * past)
        return float(np.interp(past, pasts, times))


@torch.inference_mode()
def prefill(run: Run) -> None:
    """The grid's longest cell: its prefill in chunks, read off on the way, its question, its memory but the tower.

    On the way, shorter forwards are timed behind pasts of some lengths. From them, and from the chunks themselves, the
    time of the whole grid is computed.
    """
    setting = begin(run)
    shape, more = setting.shape, max(setting.slice_lengths)
    rate, expected = matmul_rate(run, setting), expected_rate(run, setting)
    engine = engine_of(setting)
    total = min(max(setting.marks), _fitting(setting) - more)
    marks = [*(mark for mark in sorted(setting.marks) if mark < total), total]
    if total < max(setting.marks):
        run.note(f"memory is enough for {total:,} of {max(setting.marks):,} tokens")
    peak(setting, anew=True)
    engine.state = engine.new_state(total + more)
    # All frames' features stay on the device while a grid is walked.
    features_TD = noise(setting, total)
    start = engine.state.mark()
    engine.hidden(chunk_of(engine, features_TD[: setting.chunk]), 1)  # the first forward compiles and plans
    engine.state.rewind(start)
    taken, done, last, found = 0.0, 0, 0.0, []
    points = [0, total // 8, total // 4, total // 2]
    for mark in marks:
        while done < mark:
            if points and done >= points[0]:
                points.pop(0)
                found += _short_forwards(engine, setting, features_TD)
            # The next chunk; the last shorter forwards, which take about as long as one; the grid.
            if run.left() < 2.2 * last + 4:
                run.note(f"the prefill ended at {done:,} of {total:,} tokens, when its time was over")
                break
            new = min(setting.chunk, mark - done)
            chunk = chunk_of(engine, features_TD[done : done + new])
            took = seconds(functools.partial(engine.hidden, chunk, 1))
            taken, done = taken + took, done + new
            if new == setting.chunk:
                last = took
                found.append({"new": new, "past": done - new, "s": took})
        if done < mark:
            break
        speed = shape.forward_flops(mark) / taken
        run.put(
            "prefill", **{
                "tokens": mark, "frames": mark // shape.tokens_per_frame, "s": taken,
                "estimate s": shape.forward_flops(mark) / expected, "TFLOP/s": speed / 1e12, "of matmul": speed / rate,
            }
        )  # fmt: skip
    question = len(_QUESTION) + len(_ANSWER) - 1

    def answer() -> None:
        hidden_LD = engine.hidden(chunk_of(engine, features_TD[:question]), len(_ANSWER))
        engine.backend.logits(hidden_LD)

    end = engine.state.mark()
    answered = seconds(answer)
    engine.state.rewind(end)
    plan = _plan_of(done // shape.tokens_per_frame, setting)
    run.put(
        "memory", **{
            "frames": done // shape.tokens_per_frame, "peak GB": peak(setting),
            "estimate GB": (plan.peak_bytes + features_TD.nbytes) / 1e9, "weights GB": plan.weight_bytes / 1e9,
            "keys and values GB": engine.state.num_bytes / 1e9, "frames' features GB": features_TD.nbytes / 1e9,
            "question and answer s": answered,
        }
    )  # fmt: skip
    found += _short_forwards(engine, setting, features_TD)
    for row in sorted(found, key=lambda row: (row["new"], row["past"])):
        run.put("slices", **row)
    engine.state = None
    _put_grid(run, engine, setting, Slices(found, setting.chunk), expected)


def _fitting(setting: Setting) -> int:
    """Tokens whose keys, values and features fit beside a chunk's work, with some to spare."""
    free = processes.free_bytes(torch.device(setting.device)) - 2 * _plan_of(1, setting).chunk_bytes
    return int(free / (setting.shape.kv_bytes_per_token + setting.shape.hidden * setting.dtype.itemsize) * 0.95)


def _short_forwards(engine: TreeEngine, setting: Setting, noise_TD: torch.Tensor) -> list[dict[str, Any]]:
    """Seconds of forwards shorter than a chunk, behind what the engine holds, and goes on to hold."""
    mark, rows = engine.state.mark(), []
    for new in setting.slice_lengths:

        def forward(new: int = new) -> None:
            engine.hidden(chunk_of(engine, noise_TD[:new]), 1)
            engine.state.rewind(mark)

        forward()
        rows.append({"new": new, "past": engine.state.length, "s": seconds(forward, 2)})
    return rows


def _plan_of(frames: int, setting: Setting) -> Any:
    cells, _ = grid_requests(Grid.parse(str(frames), "100"), [("needle", _QUESTION, _ANSWER)])
    return make_plan(cells, [], setting.shape, chunk_tokens=setting.chunk, count=len)


def grid_batch(engine: TreeEngine, frames: str, depths: str, needles: int) -> Batch:
    """The cells of a grid of random frames."""
    grid = Grid.parse(frames, depths)
    named = [(f"needle{number}", _QUESTION, _ANSWER) for number in range(needles)]
    numbered_NHWC = np.arange(grid.longest).astype(np.uint8)[:, None, None, None].repeat(3, axis=3)
    media: dict[str, Any] = {"haystack": HeldFrames(numbered_NHWC, "numbered")}
    media |= {name: Image.new("RGB", (1, 1), (200 + number, 0, 0)) for number, (name, *_) in enumerate(named)}
    cells, _ = grid_requests(grid, named)
    return engine.lower([Prompt(request=cell, media=media) for cell in cells])


def by_slices(batch: Batch, slices: Slices) -> tuple[float, float]:
    """Seconds of a grid as one tree, and as one forward a cell; a leaf's forced tokens ride in the same forward."""
    more = len(_ANSWER) - 1
    tree = sum(slices.seconds(step.new + (more if step.leaves else 0), step.past) for step in steps(batch.tree))
    return tree, sum(slices.seconds(prompt.tokens + more) for prompt in batch.lowered)


def flops_of(engine: TreeEngine, batch: Batch) -> tuple[int, int]:
    """Of a grid as one tree, and as one forward a cell."""
    plain = PlainEngine(engine.backend, engine.feeder.frames, engine.options)  # type: ignore[arg-type]
    return engine.planned_flops(batch), plain.planned_flops(batch)


_WAYS = ("one tree", "one forward a cell")


def _put_grid(run: Run, engine: TreeEngine, setting: Setting, slices: Slices, expected: float) -> None:
    """The paper's grid in time: every forward of the tree, and every forward of one cell after the other."""
    batch = grid_batch(engine, setting.frames, "0-100:20", 5)
    found, flops = by_slices(batch, slices), flops_of(engine, batch)
    for way, took, work in zip(_WAYS, found, flops, strict=True):
        run.put(
            "whole grid by slices", **{
                "cells": len(batch.prompts), "way": way, "min": took / 60, "estimate min": work / expected / 60,
                "times the tree's": took / found[0], "by FLOPs": work / flops[0],
            }
        )  # fmt: skip


def tree_against_plain(run: Run) -> None:
    """A slice of the grid, run as one tree and as one forward a cell: seconds, memory, and that both give the same.

    Slices of forwards say beforehand what it takes; by how much they were off is a factor for the whole grid.
    """
    setting = begin(run)
    rows = run.found.get("prefill", {}).get("slices", [])
    slices = Slices(rows, setting.chunk) if rows else None
    tree = engine_of(setting)
    plain = PlainEngine(tree.backend, tree.feeder.frames, tree.options)  # type: ignore[arg-type]
    batch = grid_batch(tree, setting.tree_frames, setting.tree_depths, 1)
    frames, flops = Grid.parse(setting.tree_frames, "0").longest, flops_of(tree, batch)
    by_rate = [work / expected_rate(run, setting) for work in flops]
    estimates = by_slices(batch, slices) if slices else by_rate
    list(tree.feeder.frames.get(batch.prompts[0].media["haystack"], 0, frames, "crop"))  # encoded once for both
    tree.run(batch.prompts[:1])  # the first forward compiles and plans
    results, walls = {}, {}
    for way, engine, work, estimate in zip(_WAYS, (tree, plain), flops, estimates, strict=True):
        if not run.has(estimate, f"{way} of {len(batch.prompts)} cells"):
            return
        peak(setting, anew=True)
        results[way], took = spent(functools.partial(engine.run, batch))
        walls[way] = took.wall
        whole = run.last("prefill", "whole grid by slices", way=way).get("min")
        run.put(
            "slice of the grid", **{
                "cells": len(batch.prompts), "frames": frames, "way": way, "s": took.wall, "estimate s": estimate,
                "TFLOP/s": work / took.wall / 1e12, "peak GB": peak(setting),
                "times the tree's": took.wall / walls[_WAYS[0]], "by FLOPs": work / flops[0],
                "whole grid min": whole and whole * took.wall / estimate,
            }
        )  # fmt: skip
    pairs = list(zip(*results.values(), strict=True))
    same = sum(one.predicted_ids == other.predicted_ids for one, other in pairs)
    apart = (
        abs(a - b) for one, other in pairs for a, b in zip(one.answer_logprobs, other.answer_logprobs, strict=True)
    )
    run.put("both ways", **{"log-probabilities within": max(apart), "cells": len(pairs), "every argmax equal": same})


@torch.inference_mode()
def longest(run: Run) -> None:
    """The longest context that fits, for each form of keys and values: by arithmetic, then tried.

    What is tried is a full cache, of noise, with a short forward behind it and, beside it, as much memory as a whole
    chunk takes beyond a short forward: a whole chunk behind millions of tokens would take a minute. Where memory is
    out, a little shorter is tried. In the host's memory no more is tried than half of it holds, or the time allows.
    """
    setting = begin(run)
    engine = engine_of(setting)
    noise_TD = noise(setting, setting.chunk)
    for kv in sorted(KV_FORMS, key=["device", "fp8", "host"].index):
        _longest_of(kv, run, engine, setting, noise_TD)
        _release(engine, setting)


def _longest_of(kv: str, run: Run, engine: TreeEngine, setting: Setting, noise_TD: torch.Tensor) -> None:
    shape, device, plan = setting.shape, torch.device(setting.device), _plan_of(1, setting)
    bytes_a_token = shape.kv_bytes_as(kv)
    chunk_bytes, short_bytes = (
        _forward_bytes(kv, engine, setting, noise_TD[:new]) for new in (setting.chunk, setting.probe)
    )
    _release(engine, setting)
    on_device = processes.total_bytes(device) - plan.weight_bytes - plan.chunk_bytes
    estimate = on_device // bytes_a_token
    fitting, bound = (processes.free_bytes(device) - chunk_bytes) // bytes_a_token, "memory"
    if kv == "host":
        estimate = processes.free_host_bytes() // bytes_a_token
        in_time = int(run.left() / 2 * _PINNED_A_SECOND / bytes_a_token)
        fitting, bound = min((estimate // 2, "half of the host's memory"), (in_time, "the time to pin memory"))
    if setting.most_tokens:
        fitting, bound = min((fitting, bound), (setting.most_tokens, "--small"))
    for _ in range(8):
        tokens = fitting // setting.probe * setting.probe
        expected = shape.forward_flops(setting.probe, tokens) / expected_rate(run, setting)
        if not run.has(3 + 2 * expected, f"kv={kv} of {tokens:,} tokens"):
            return
        took = _tried(kv, engine, setting, tokens, noise_TD[: setting.probe], chunk_bytes - short_bytes)
        if took is not None:
            break
        run.note(f"kv={kv}: {tokens:,} tokens do not fit")
        _release(engine, setting)
        fitting = int(fitting * 0.98)
    else:
        return
    run.put(
        "longest context", **{
            "kv": kv, "tokens": tokens, "frames": tokens // shape.tokens_per_frame, "bounded by": bound,
            "estimate tokens": estimate, "keys and values GB": engine.state.num_bytes / 1e9,
            "a chunk's own GB": chunk_bytes / 1e9, f"s of {setting.probe:,} tokens there": took,
        }
    )  # fmt: skip


def _tried(
    kv: str, engine: TreeEngine, setting: Setting, tokens: int, noise_TD: torch.Tensor, beside_bytes: int
) -> float | None:
    """Seconds of a forward that ends at ``tokens``, with so many bytes beside it; None where memory is out."""
    try:
        beside = torch.empty(max(0, beside_bytes), dtype=torch.uint8, device=setting.device)
        fill(kv, engine, setting, tokens - len(noise_TD), room=tokens)
        took = seconds(lambda: engine.hidden(chunk_of(engine, noise_TD), 1))
        del beside
        return took
    except torch.OutOfMemoryError:
        return None


def fill(kv: str, engine: TreeEngine, setting: Setting, tokens: int, room: int) -> None:
    """A state that holds ``tokens`` of noise, as if they had been computed, and has room for as many as ``room``."""
    engine.state = engine.backend.new_state(room, kv=kv, kv_block=setting.kv_block if kv != "device" else None)
    shape = (1, setting.shape.kv_heads, min(tokens, _FILLED), setting.shape.head_dim)
    noise_BKTD = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    for layer in range(setting.shape.layers):
        for start in range(0, tokens, _FILLED):
            piece_BKTD = noise_BKTD[:, :, : min(_FILLED, tokens - start)]
            keys, _ = engine.state.update(piece_BKTD, piece_BKTD, layer)
            if (past := past_of(keys)) is not None:
                past.was_read = True  # type: ignore[attr-defined]  # of noise nothing is computed


def _forward_bytes(kv: str, engine: TreeEngine, setting: Setting, noise_TD: torch.Tensor) -> int:
    """What a forward behind some blocks takes while it runs, beside weights, keys and values."""
    past = 2 * (setting.kv_block or KV_BLOCK)
    fill(kv, engine, setting, past, room=past + 2 * len(noise_TD))
    for _ in range(2):  # the first one makes what stays
        before = peak(setting, anew=True)
        engine.hidden(chunk_of(engine, noise_TD), 1)
    return int((peak(setting) - before) * 1e9)


def _release(engine: TreeEngine, setting: Setting) -> None:
    engine.state = None
    if setting.cuda:
        torch.cuda.empty_cache()


def ring(run: Run) -> None:
    """One prefill over all devices, keys and values sharded; against one device's where that was measured."""
    run.threads = 1  # a fork may have no use of threads that were there before it
    setting = begin(run)
    world = torch.cuda.device_count() if setting.cuda else 2  # asks no more than how many: the forks begin with CUDA
    if world < 2:
        raise SkippedError("there is one device, and a ring takes several")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    work = functools.partial(_ring_process, run, setting, world, port)
    told = in_processes(*(functools.partial(work, rank) for rank in range(world)))
    taken, flops = max(one["s"] for one in told), setting.shape.forward_flops(setting.ring_tokens)
    alone = run.last("prefill", "prefill", tokens=setting.ring_tokens).get("s")
    run.put(
        "ring", **{
            "devices": world, "tokens": setting.ring_tokens, "s": taken, "estimate s": alone and alone / world,
            "TFLOP/s": flops / taken / 1e12, "times one device's speed": alone and alone / taken,
            "of ideal": alone and alone / taken / world, "peak GB": max(one["peak"] for one in told),
            "attention": ", ".join(sorted({one["attention"] for one in told})),
        }
    )  # fmt: skip


@torch.inference_mode()
def _ring_process(run: Run, setting: Setting, world: int, port: int, rank: int) -> dict[str, Any]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}
    processes.join_processes(setting.device)
    engine = engine_of(setting, RingEngine)
    # The same on every process, as features that travel are.
    torch.manual_seed(0)
    size = setting.chunk * world
    noise_TD, room = noise(setting, size), setting.ring_tokens + size
    engine.state = engine.new_state(room)
    start = engine.state.mark()
    engine.hidden(chunk_of(engine, noise_TD), 1)  # the first forward compiles, plans and meets the others
    engine.state.rewind(start)
    peak(setting, anew=True)

    def whole() -> None:
        while (left := setting.ring_tokens - engine.state.length) > 0:
            engine.hidden(chunk_of(engine, noise_TD[:left]), 1)

    torch.distributed.barrier()
    names = kernel_names(torch.device(setting.device), setting.dtype, setting.shape.head_dim)
    return {"s": seconds(whole), "peak": peak(setting), "attention": names}
