"""Zigzag ring attention over several processes against attention in one: ``python benchmarks/ring.py``.

Efficiency = seconds of one process / (processes * seconds of the ring), both measured in this run, alternating, one
thread a process on this machine's CPU. 1 is ideal: all blocks computed at full speed, no time lost to messages,
merging or waiting. It is printed twice: by the clock on the wall, which needs as many idle cores as processes; and by
CPU seconds of the busiest process (messages included), which other programs on the machine hardly disturb. Beside it
stands the most that a ring could reach with contiguous instead of zigzag shards, where the last rank computes W blocks
while the first computes one: (W + 1) / (2 W).

Shape by default: the heads of Qwen2-7B (28 query heads, 4 key heads, 128 each; the LongVA paper trains with 224K tokens
on eight GPUs), at a length that a CPU can do. Compute grows with the square of the length and messages linearly, so
longer sequences only come closer to 1. Takes about a minute.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

from harness import Spent, in_processes, options, spent

# Before PyTorch is imported: one thread a process, and no threads to lose in the fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def measure(rank: int, sizes: Any, store: str) -> None:
    """One process of the ring. Rank 0 also runs the single-process side, while the others wait, and reports."""
    import torch
    import torch.distributed as dist

    from longva_model.attention import block_attention, padded_length, zigzag_ring_attention, zigzag_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=sizes.processes)
    length, dtype = padded_length(sizes.length, sizes.processes), getattr(torch, sizes.dtype)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(1, heads, length, sizes.head_size, generator=generator).to(dtype)
        for heads in (sizes.heads, sizes.key_heads, sizes.key_heads, sizes.heads)
    )
    local_q, local_k, local_v, local_grad = (
        zigzag_shard(x, rank, sizes.processes, 2).contiguous() for x in (q, k, v, grad)
    )

    def forward(*qkv: torch.Tensor) -> torch.Tensor:
        return zigzag_ring_attention(*qkv) if qkv[0] is local_q else block_attention(*qkv, causal=True)[0]

    def with_backward(*qkv: torch.Tensor) -> None:
        for x in qkv:
            x.requires_grad_()
        torch.autograd.grad(forward(*qkv), qkv, local_grad if qkv[0] is local_q else grad)
        for x in qkv:
            x.requires_grad_(False)

    def seconds(run: Callable[..., object], *qkv: torch.Tensor) -> torch.Tensor:
        """Seconds on the wall, and of CPU in all threads of this process."""
        took: Spent = spent(lambda: run(*qkv))[1]
        return torch.tensor([took.wall, took.cpu])

    if rank == 0:
        off = (zigzag_shard(forward(q, k, v), 0, sizes.processes, 2) - forward(local_q, local_k, local_v)).abs().max()
        print(f"{sizes}\nlength {length}, {os.cpu_count()} cores; largest difference of the outputs {off.item():.1e}")
        if sizes.processes > (os.cpu_count() or 1):
            print("more processes than cores: they share, and the efficiency says little")
    else:
        forward(local_q, local_k, local_v)
    for name, run in (("forward", forward), ("forward and backward", with_backward)):
        one, ring = [], []
        for _ in range(sizes.rounds + 1):  # the first round warms up
            if rank == 0:
                one.append(seconds(run, q, k, v))
            dist.barrier()
            slowest = seconds(run, local_q, local_k, local_v)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)  # the ring is as fast as its slowest rank
            ring.append(slowest)
        if rank == 0:
            alone, together = (torch.stack(rounds[1:]).median(0).values for rounds in (one, ring))
            efficiency = alone / together / sizes.processes
            print(
                f"{name}: one process {alone[0]:.2f} s, ring of {sizes.processes} {together[0]:.2f} s, "
                f"{alone[0] / together[0]:.2f}x faster; efficiency {efficiency[0]:.2f} by the wall, "
                f"{efficiency[1]:.2f} by CPU seconds ({alone[1]:.2f} and {together[1]:.2f}); contiguous shards could "
                f"reach {(sizes.processes + 1) / (2 * sizes.processes):.2f}",
                flush=True,
            )
    dist.destroy_process_group()


def main(sizes: Any) -> None:
    import torch  # noqa: F401  imported once, before the fork

    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        in_processes(*(functools.partial(measure, rank, sizes, store) for rank in range(sizes.processes)))


if __name__ == "__main__":
    shape: dict[str, Any] = {"length": 4096, "heads": 28, "key_heads": 4, "head_size": 128}
    main(options(__doc__, processes=2, **shape, rounds=5, dtype=("float32", "bfloat16")))
