"""Attention kernels by shape, and grouped queries folded into rows: ``python benchmarks/attention.py``.

    python benchmarks/attention.py                  # the CPU's kernels, Qwen2-7B's heads, about a minute
    python benchmarks/attention.py --device cuda --dtype bfloat16

Rates: seconds and TFLOP/s of each kernel that runs here, at the shapes that prefill (a chunk behind a past, and its own
causal square), questions, answers and training have, with what its output and log-sum-exp are off from the plain
definition; and which kernels were turned away, and why. ``kernel_rates`` gives them to other programs.

Fold: blocks of so many queries, with the queries of a key head as rows of one and without, in turns, by the CPU seconds
(by the wall on a GPU) of the fastest round, and what the outputs differ by.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from harness import options, spent, table
from torch import Tensor

from longva_model.attention import kernels, use_kernel
from longva_model.attention.blockwise import block_backward, block_forward, usable_kernels


class Shape(NamedTuple):
    """One block: ``heads`` query heads over ``key_heads``, ``queries`` by ``keys``; ``causal`` ends at its corner."""

    heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    causal: bool = False

    def __str__(self) -> str:
        return (
            f"{self.heads}/{self.key_heads} heads of {self.head_size}, {self.queries} x {self.keys}"
            f"{' causal' if self.causal else ''}"
        )

    def flop(self, backward: bool) -> float:
        """Of the two matrix products forward, or of the five backward."""
        seen = self.queries * self.keys - (self.queries * (self.queries - 1) // 2 if self.causal else 0)
        return (5 if backward else 2) * 2 * self.heads * self.head_size * seen


def qwen2_7b(sizes: Sequence[tuple[int, int, bool]]) -> list[Shape]:
    """Shapes with Qwen2-7B's heads (LongVA's), of (queries, keys, causal)."""
    return [Shape(28, 4, queries, keys, 128, causal) for queries, keys, causal in sizes]


# What a run to 3,000 frames (432,000 tokens) meets: an answer's token, a question, chunks behind a past, a chunk's own
# square, and a shard of the paper's training length (224K tokens on eight devices).
GPU_SHAPES = qwen2_7b(
    [
        (1, 432_000, False),
        (64, 432_000, False),
        (8192, 8192, True),
        (8192, 50_000, False),
        (8192, 200_000, False),
        (8192, 432_000, False),
        (28_672, 28_672, True),
    ]
)
CPU_SHAPES = qwen2_7b([(1, 16_384, False), (64, 16_384, False), (512, 512, True), (512, 4096, False)])

# Rows that are compared with the plain definition: the last ones, which see most.
_COMPARED = 16


def kernel_rates(
    device: str | torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape] | None = None,
    *,
    backward: bool = False,
    seconds: float = 0.2,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """What each kernel does at each shape, as JSON.

    Args:
        shapes: default ``GPU_SHAPES`` on a CUDA device, else ``CPU_SHAPES``.
        backward: time the gradients too.
        seconds: how long to repeat each; the fastest counts.
        names: of kernels; default all of ``kernels.KERNELS`` but ``plain``.

    Returns:
        Rows with ``name``, ``shape`` (as text), ``queries``, ``keys``, ``causal``, ``direction`` (forward or backward),
        ``seconds``, ``tflops`` (TFLOP/s), ``out_error`` and ``lse_error`` (largest, absolute, forward only), and
        ``dropped``: "" or why this kernel was not used here, with ``None`` for the figures.
    """
    device = torch.device(device)
    if shapes is None:
        shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    if names is None:
        names = [kernel.name for kernel in kernels.KERNELS if kernel.name != "plain"]
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        generator = torch.Generator(device).manual_seed(0)
        sizes = ((shape.heads, shape.queries), (shape.key_heads, shape.keys)) * 2
        q, k, grad, v = (
            torch.randn(1, heads, length, shape.head_size, generator=generator, device=device).to(dtype)
            for heads, length in sizes
        )
        scale = shape.head_size**-0.5
        want = kernels.plain_forward(q[:, :, -_COMPARED:].float(), k, v, shape.causal, scale)
        for name in names:
            for direction in ("forward", "backward") if backward else ("forward",):
                about = {"name": name, "shape": str(shape), "queries": shape.queries, "keys": shape.keys}
                figures = dict.fromkeys(("seconds", "tflops", "out_error", "lse_error"))
                rows.append({**about, "causal": shape.causal, "direction": direction, **figures, "dropped": ""})
                why = kernels.why_not(name, device, dtype, shape.head_size, direction == "backward")
                if shape.queries * shape.keys < kernels.named(name).least_work:
                    why = why or f"it is used from {kernels.named(name).least_work:,} queries x keys on"
                try:
                    found = {} if why else _figures(name, direction, shape, (q, k, v, grad), want, seconds)
                except RuntimeError as error:  # out of memory too: the other rows are worth having
                    found, why = {}, " ".join(str(error).split())[:200]
                rows[-1] |= {**found, "dropped": why}
    return rows


def _figures(
    name: str, direction: str, shape: Shape, tensors: Sequence[Tensor], want: Sequence[Tensor], seconds: float
) -> dict[str, float]:
    q, k, v, grad = tensors
    scale = shape.head_size**-0.5
    found = {}
    with use_kernel(name):
        forward = functools.partial(block_forward, q, k, v, shape.causal, scale)
        out, lse = forward()
        if direction == "forward":
            for what, got, wanted in (("out_error", out, want[0]), ("lse_error", lse, want[1])):
                found[what] = float((got[:, :, -_COMPARED:] - wanted).abs().max())
            took = _fastest(forward, seconds)
        else:
            took = _fastest(functools.partial(block_backward, grad, q, k, v, out, lse, shape.causal, scale), seconds)
    return {**found, "seconds": took, "tflops": shape.flop(direction == "backward") / took / 1e12}


def _fastest(work: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call, by the fastest of some rounds of as many calls as a clock can tell, warmed up."""
    work()
    once = max(spent(work)[1].wall, 1e-6)
    calls = max(1, int(0.01 / once))

    def several() -> None:
        for _ in range(calls):
            work()

    rounds = max(2, int(seconds / (once * calls)))
    return min(spent(several)[1].wall for _ in range(rounds)) / calls


def fold_ratios(
    device: str | torch.device,
    dtype: torch.dtype,
    queries: Sequence[int] = (1, 8, 64, 512),
    *,
    keys: int = 16_384,
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """Full blocks of Qwen2-7B's heads by the kernel that runs here, its groups folded into rows and not, as JSON.

    Returns:
        Rows with ``name`` of the kernel, ``queries``, ``plain`` and ``folded`` (seconds), ``ratio``, ``out_error`` and
        ``lse_error`` (largest difference of the two), and ``used``: whether a run folds here.
    """
    device = torch.device(device)
    rows = []
    for length in queries:
        generator = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(1, heads, size, 128, generator=generator, device=device).to(dtype)
            for heads, size in ((28, length), (4, keys), (4, keys))
        )
        kernel = next(usable_kernels(q, keys))
        ways = [
            functools.partial(dataclasses.replace(kernel, fold_most=most).run, q, k, v, False, 128**-0.5)
            for most in (0, length)
        ]
        (out, lse), (folded_out, folded_lse) = (way() for way in ways)
        took: list[list[float]] = [[], []]
        for _ in range(rounds):
            for way, seconds in zip(ways, took, strict=True):
                part = spent(way)[1]
                seconds.append(part.cpu if device.type == "cpu" else part.wall)
        plain, folded = map(min, took)
        rows.append(
            {
                "name": kernel.name,
                "queries": length,
                "plain": plain,
                "folded": folded,
                "ratio": plain / folded,
                "out_error": float((out - folded_out).abs().max()),
                "lse_error": float((lse - folded_lse).abs().max()),
                "used": kernel.folds(q, k),
            }
        )
    return rows


def print_rates(rows: Sequence[dict[str, Any]]) -> None:
    table(
        {
            "shape": row["shape"],
            "kernel": row["name"],
            "direction": row["direction"],
            "ms": f"{row['seconds'] * 1e3:.3g}",
            "TFLOP/s": f"{row['tflops']:.3g}",
            "out off": "" if row["out_error"] is None else f"{row['out_error']:.0e}",
            "lse off": "" if row["lse_error"] is None else f"{row['lse_error']:.0e}",
        }
        for row in rows
        if not row["dropped"]
    )
    for name, why in dict.fromkeys((row["name"], row["dropped"]) for row in rows if row["dropped"]):
        print(f"not run: {name}: {why}")


def main(given: Any) -> None:
    torch.set_num_threads(given.threads)
    if given.part in ("all", "fold"):
        print(f"folded groups, 28 query heads over 4, {given.keys:,} keys, {given.dtype} on {given.device}")
        table(
            {
                "queries": str(row["queries"]),
                "kernel": row["name"],
                "plain": f"{row['plain'] * 1e3:.1f} ms",
                "folded": f"{row['folded'] * 1e3:.1f} ms",
                "ratio": f"{row['ratio']:.2f}x",
                "out differs": f"{row['out_error']:.0e}",
                "lse differs": f"{row['lse_error']:.0e}",
                "in use": "yes" if row["used"] else "no",
            }
            for row in fold_ratios(
                given.device, getattr(torch, given.dtype), tuple(map(int, given.queries.split("-"))), keys=given.keys
            )
        )
    if given.part == "fold":
        return
    print_rates(kernel_rates(given.device, getattr(torch, given.dtype), backward=given.backward))


if __name__ == "__main__":
    main(
        options(
            __doc__,
            part=("all", "fold", "rates"),
            device=("cpu", "cuda"),
            dtype=("float32", "bfloat16"),
            threads=1,
            queries="1-8-64-512",
            keys=16_384,
            backward=False,
        )
    )
