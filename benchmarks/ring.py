"""Zigzag ring attention over several processes against attention in one: ``python benchmarks/ring.py``.

Efficiency = seconds of one process / (processes * seconds of the ring), both measured in this run, in turn, one thread
a process on this machine's CPU, the fastest of several rounds. 1 is ideal: all blocks computed at full speed, no time
lost to messages, merging or waiting. It is printed twice: by the clock on the wall, which needs as many idle cores as
processes; and by CPU seconds of the busiest process (messages included), which other programs on the machine hardly
disturb. ``less kept`` is the wall's without the seconds in which a process could have computed and had no core (``kept
from cores``, of one process and of the ring; Linux counts them): what the wall of an idle machine would at least say,
since a process that waits for another one's messages is not counted as kept. Contiguous instead of zigzag shards could
reach (W + 1) / (2 W) at most: the last rank computes W blocks while the first computes one.

Rows: causal attention forward, and forward and backward, at each length; and a chunk of a quarter of the length for
each process, as the engine deals them out, behind a past as long as the length, sharded too, of which the keys and
values travel, or the chunk's queries.

What the messages cost is measured in the same run: ``waited``, the seconds that the slowest process spent waiting for
them (or for the other process to send) while it computed; ``alone``, the same messages with nothing computed between
them; and what share was hidden behind compute, 1 - waited / alone. ``computed`` is the rest of the ring's seconds.

Shape by default: the heads of Qwen2-7B (28 query heads, 4 key heads, 128 each; the LongVA paper trains with 224K tokens
on eight GPUs), at a length that a CPU can do. Compute grows with the square of the length and messages linearly, so
longer sequences only come closer to 1: ``--lengths 4096,8192`` shows it. ``--pin`` gives each process a core of its
own, ``--only "past, keys travel"`` measures one row. Takes about two minutes on two idle cores.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from harness import in_processes, options, spent, table

# Before PyTorch is imported: one thread a process, and no threads to lose in the fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

WALL, CPU, LESS, KEPT, WAITED, COMPUTED = range(6)


def measure(rank: int, given: Any, store: str) -> None:
    """One process of the ring. Rank 0 also runs the single-process side, while the others wait, and reports."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if given.pin:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=given.processes)
    rows = []
    for length in map(int, given.lengths.split(",")):
        for name, one, ring in cases(rank, given, length):
            row = compare(rank, given, one, ring)
            rows.append({"": f"{name}, {length:,}", **row})
    if rank == 0:
        table(rows)
    dist.destroy_process_group()


def cases(rank: int, given: Any, length: int) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """What is measured: its name, in one process, and this process's part in the ring. Outputs are compared."""
    import torch

    from longva_model.attention import (
        block_attention,
        local_lengths,
        padded_length,
        ring_attention_with_past,
        zigzag_ring_attention,
        zigzag_shard,
    )

    world, dtype = given.processes, getattr(torch, given.dtype)
    length = padded_length(length, world)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(1, heads, length, given.head_size, generator=generator).to(dtype)
        for heads in (given.heads, given.key_heads, given.key_heads, given.heads)
    )
    shards: Any = [zigzag_shard(x, rank, world, 2).contiguous() for x in (q, k, v, grad)]

    def gradients(attend: Callable[..., Any], grad: Any, *qkv: Any) -> Any:
        leaves = [x.detach().requires_grad_() for x in qkv]
        return torch.autograd.grad(attend(*leaves), leaves, grad)

    def one(*qkv: Any) -> Any:
        return block_attention(*qkv, causal=True)[0]

    # A past in which each process holds its shard, and new tokens behind it.
    new = padded_length(min(length, max(1, world * length // 4)), world)
    new_q, new_k, new_v = (x[:, :, :new].contiguous() for x in (q, k, v))
    new_shards: Any = [zigzag_shard(x, rank, world, 2).contiguous() for x in (new_q, new_k, new_v)]
    past = [torch.cat((x, x[:, :, :new]), 2) for x in (k, v)]

    def behind(travel: Any) -> Any:
        lengths = local_lengths(length, world)
        return ring_attention_with_past(*new_shards, *shards[1:3], past_lengths=lengths, travel=travel)

    def behind_in_one() -> Any:
        return block_attention(new_q, *past, causal=True)[0]

    found: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        ("forward", functools.partial(one, q, k, v), functools.partial(zigzag_ring_attention, *shards[:3])),
        (
            "forward and backward",
            functools.partial(gradients, one, grad, q, k, v),
            functools.partial(gradients, zigzag_ring_attention, shards[3], *shards[:3]),
        ),
        ("past, keys travel", behind_in_one, functools.partial(behind, "keys")),
        ("past, queries travel", behind_in_one, functools.partial(behind, "queries")),
    ]
    return [case for case in found if given.only in ("", case[0])]


def compare(rank: int, given: Any, one: Callable[[], Any], ring: Callable[[], Any]) -> dict[str, str]:
    """A row of the table, on rank 0: one process and the ring in turn, and the ring's messages alone."""
    import torch
    import torch.distributed as dist

    from longva_model.attention import zigzag_shard
    from longva_model.attention.ring import TRAFFIC

    def in_step(work: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
        """What all processes begin together, and what it took the slowest of them."""
        dist.barrier()
        before = TRAFFIC.waited
        result, seconds = measured(work)
        waited = TRAFFIC.waited - before
        figures = torch.tensor([*seconds, waited, seconds[WALL] - waited], dtype=torch.float64)
        dist.all_reduce(figures, dist.ReduceOp.MAX)
        return result, figures

    off = 0.0
    alone, together, messages = [], [], []
    for _ in range(given.rounds + 1):  # the first round warms up
        if rank == 0:
            whole, seconds = measured(one)
            alone.append(torch.tensor(seconds, dtype=torch.float64))
        part, figures = in_step(ring)
        together.append(figures)
        with nothing_computed():
            messages.append(in_step(ring)[1])
        if rank == 0 and len(together) == 1:
            pairs = zip(whole, part, strict=True) if isinstance(whole, tuple) else [(whole, part)]
            off = max(float((zigzag_shard(a, 0, given.processes, 2) - b).abs().max()) for a, b in pairs)
    if rank:
        return {}
    best_one, best_ring, best_messages = (torch.stack(x[1:]).min(0).values for x in (alone, together, messages))
    waited, transfer = float(best_ring[WAITED]), float(best_messages[WAITED])
    efficiency = best_one[: LESS + 1] / best_ring[: LESS + 1] / given.processes
    return {
        "one, wall s": f"{best_one[WALL]:.3f}",
        "ring": f"{best_ring[WALL]:.3f}",
        "efficiency by the wall": f"{efficiency[WALL]:.2f}",
        "less kept": f"{efficiency[LESS]:.2f}",
        "one, CPU s": f"{best_one[CPU]:.3f}",
        "busiest": f"{best_ring[CPU]:.3f}",
        "by CPU": f"{efficiency[CPU]:.2f}",
        "kept from cores": f"{best_one[KEPT]:.2f}, {best_ring[KEPT]:.2f}",
        "computed, wall s": f"{best_ring[COMPUTED]:.3f}",
        "waited": f"{waited:.3f}",
        "alone": f"{transfer:.3f}",
        "hidden": f"{max(0.0, 1 - waited / transfer):.0%}" if transfer else "",
        "difference": f"{off:.0e}",
    }


def measured(work: Callable[[], Any]) -> tuple[Any, list[float]]:
    """What ``work`` returns, and its seconds: on the wall, of CPU, on the wall less kept, kept from cores."""

    def noted() -> tuple[Any, float]:
        before = kept_from_cores()
        return work(), kept_from_cores() - before

    (result, kept), took = spent(noted)
    return result, [took.wall, took.cpu, max(took.wall - kept, 1e-6), kept]


def kept_from_cores() -> float:
    """Seconds so far in which this thread was ready and had no core; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def nothing_computed() -> Any:
    """The ring's messages and no more: blocks that cost nothing, and no merging."""
    import torch

    def forward(q: Any, k: Any, *_: Any, **__: Any) -> Any:
        return torch.empty_like(q), torch.empty(q.shape[:3])

    def backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
        return torch.empty(()), torch.empty(()), torch.empty(())

    ring = "longva_model.attention.ring"
    return mock.patch.multiple(ring, block_forward=forward, block_backward=backward, merge_=lambda *_: None)


def main(given: Any) -> None:
    import torch  # noqa: F401  imported once, before the fork

    cores = len(os.sched_getaffinity(0))
    print(f"{given}\n{cores} cores, load {os.getloadavg()[0]:.1f}")
    if given.processes > cores:
        print("more processes than cores: they share, and the efficiency says little")
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        in_processes(*(functools.partial(measure, rank, given, store) for rank in range(given.processes)))
    print(f"contiguous shards could reach {(given.processes + 1) / (2 * given.processes):.2f}")


if __name__ == "__main__":
    shape: dict[str, Any] = {"lengths": "4096", "heads": 28, "key_heads": 4, "head_size": 128}
    main(options(__doc__, processes=2, **shape, rounds=5, only="", pin=False, dtype=("float32", "bfloat16")))
