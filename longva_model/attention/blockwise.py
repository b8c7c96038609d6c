"""Block attention: attention of some queries to some keys, with the log-sum-exp that lets blocks be merged.

    out, lse = block_attention(q, k, v, causal=True)
    out, lse = merge(out_of_some_keys, lse_of_some_keys, out_of_other_keys, lse_of_other_keys)

Causal masks are aligned bottom-right: query t sees keys up to S - T + t, so a chunk after a past just works.
Kernels are chosen by what is there (``kernels.KERNELS``), or named by ``use_kernel``.

Shapes: B batch, H query heads, K key/value heads (H a multiple of K), T queries, S keys, D head size.
``lse`` and merged outputs are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longva_model.attention import kernels
from longva_model.attention.kernels import sum_dtype

_named_kernel: str | None = None


def block_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, causal: bool, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of one block. Differentiable in the output; the log-sum-exp carries no gradient.

    Args:
        q_BHTD: queries. k_BKSD, v_BKSD: keys and values, K dividing H; never repeated in memory.
        causal: query t sees keys up to S - T + t, else all of them.
        scale: factor on the scores, default D ** -0.5.

    Returns:
        out_BHTD in the dtype of q, and lse_BHT. A query that sees no key has out 0 and lse -inf.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    check_inputs(q_BHTD, k_BKSD, v_BKSD)
    scale = default_scale(q_BHTD, scale)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHTD, k_BKSD, v_BKSD)):
        return _BlockAttention.apply(q_BHTD, k_BKSD, v_BKSD, causal, scale)
    return block_forward(q_BHTD, k_BKSD, v_BKSD, causal, scale)


def merge(out_a_BHTD: Tensor, lse_a_BHT: Tensor, out_b_BHTD: Tensor, lse_b_BHT: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys from that over each. Exact; empty blocks (lse -inf) change nothing.

    Returns:
        out_BHTD and lse_BHT, both fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: if an input requires grad: the log-sum-exp carries none, so the gradient would be wrong.
    """
    if torch.is_grad_enabled() and (out_a_BHTD.requires_grad or out_b_BHTD.requires_grad):
        raise ValueError(
            "merge is forward only, got a tensor that requires grad: train through block_attention or "
            "zigzag_ring_attention, which merge inside"
        )
    wide = sum_dtype(out_a_BHTD.dtype)
    out_BHTD, lse_BHT = out_a_BHTD.to(wide, copy=True), lse_a_BHT.to(wide, copy=True)
    merge_(out_BHTD, lse_BHT, out_b_BHTD, lse_b_BHT)
    return out_BHTD, lse_BHT


def merge_(out_BHTD: Tensor, lse_BHT: Tensor, out_b_BHTD: Tensor, lse_b_BHT: Tensor) -> None:
    """``merge`` into the first pair, in place; its dtype is that of the sums. Views (slices of queries) are fine.

    With the share of b, w = exp(lse_b) / (exp(lse_a) + exp(lse_b)) = sigmoid(lse_b - lse_a), out = a + w (b - a).
    Two empty blocks give -inf - -inf = nan, for which w = 0 is right.
    """
    lse_b_BHT = lse_b_BHT.to(lse_BHT.dtype)
    share_BHT = torch.sigmoid(lse_b_BHT - lse_BHT).nan_to_num_(0.0)
    out_BHTD.lerp_(out_b_BHTD.to(out_BHTD.dtype), share_BHT[..., None])
    torch.logaddexp(lse_BHT, lse_b_BHT, out=lse_BHT)


def default_scale(q_BHTD: Tensor, scale: float | None) -> float:
    return q_BHTD.shape[-1] ** -0.5 if scale is None else float(scale)


def check_inputs(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> None:
    """The one check of shapes; everything behind it may rely on them.

    Raises:
        ValueError: naming what does not fit.
    """
    if q_BHTD.ndim != 4 or k_BKSD.ndim != 4:
        raise ValueError(
            f"expected q (B, H, T, D) and k, v (B, K, S, D), got {tuple(q_BHTD.shape)} and {tuple(k_BKSD.shape)}"
        )
    B, H, _, D = q_BHTD.shape
    if k_BKSD.shape != v_BKSD.shape or (k_BKSD.shape[0], k_BKSD.shape[3]) != (B, D) or H % k_BKSD.shape[1]:
        raise ValueError(
            "expected k and v of one shape (B, K, S, D) with K dividing H, got "
            f"q {tuple(q_BHTD.shape)}, k {tuple(k_BKSD.shape)}, v {tuple(v_BKSD.shape)}"
        )
    kinds = {(x.dtype, x.device) for x in (q_BHTD, k_BKSD, v_BKSD)}
    if len(kinds) > 1 or not q_BHTD.dtype.is_floating_point:
        raise ValueError(
            "expected q, k and v of one floating dtype on one device, got "
            + ", ".join(f"{x.dtype} on {x.device}" for x in (q_BHTD, k_BKSD, v_BKSD))
        )


@contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """Prefer the named kernel, where it applies, to all others in this process; None = the best that is there.

    Raises:
        ValueError: for an unknown name.
    """
    global _named_kernel
    if name is not None:
        kernels.named(name)
    previous, _named_kernel = _named_kernel, name
    try:
        yield
    finally:
        _named_kernel = previous


def usable_kernels(q_BHTD: Tensor, num_keys: int, *, backward: bool = False) -> Iterator[kernels.Kernel]:
    """Kernels that run a block of such queries here, best first; ``plain`` takes everything.

    Args:
        backward: those whose gradients are right too.
    """
    work, head_size = q_BHTD.shape[2] * num_keys, q_BHTD.shape[3]
    # Sorting is stable: behind the named one the order stays.
    for kernel in sorted(kernels.KERNELS, key=lambda kernel: kernel.name != _named_kernel):
        if work >= kernel.least_work and not kernels.why_not(
            kernel.name, q_BHTD.device, q_BHTD.dtype, head_size, backward
        ):
            yield kernel


def kernel_names(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """The kernels that compute here, for whoever reads the results: of long blocks, then of one query."""
    queries = (torch.empty(1, 1, length, head_size, device=device, dtype=dtype) for length in (8192, 1))
    return ", ".join(dict.fromkeys(next(usable_kernels(q_BHTD, 2**16)).name for q_BHTD in queries))


def _pieces(kernel: kernels.Kernel, q_BHTD: Tensor, k_BKSD: Tensor, causal: bool) -> list[tuple[slice, slice, bool]]:
    """Cut a block into (queries, keys, causal) pieces with causal only on squares, unless the kernel knows better.

    A chunk after a past = all of the past, and the causal square of the chunk. Queries before the first key
    (T > S) see nothing and are in no piece.
    """
    T, S = q_BHTD.shape[2], k_BKSD.shape[2]
    everything = slice(None)
    if not T or not S:
        return []
    if not causal or T == 1:
        return [(everything, everything, False)]
    if T > S:
        return [(slice(T - S, T), everything, True)]
    # Few queries behind a long past fold into rows there, and a causal block cannot.
    if T == S or (kernel.bottom_right and not kernel.folds(q_BHTD, k_BKSD)):
        return [(everything, everything, True)]
    return [(everything, slice(0, S - T), False), (everything, slice(S - T, S), True)]


def _dense(x: Tensor) -> Tensor:
    """The kernels read the head size with stride 1 and do not all check it."""
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.no_grad()
def block_forward(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, causal: bool, scale: float, *, training: bool = False
) -> tuple[Tensor, Tensor]:
    """``block_attention`` without checks and without autograd.

    Args:
        training: ``block_backward`` will follow: take a kernel that does both.
    """
    q_BHTD, k_BKSD, v_BKSD = _dense(q_BHTD), _dense(k_BKSD), _dense(v_BKSD)
    for kernel in usable_kernels(q_BHTD, k_BKSD.shape[2], backward=training):
        pieces = _pieces(kernel, q_BHTD, k_BKSD, causal)
        try:
            results = [(q, kernel.run(q_BHTD[:, :, q], k_BKSD[:, :, k], v_BKSD[:, :, k], square, scale))
                       for q, k, square in pieces]  # fmt: skip
        except kernels.RefusedError:
            continue
        wide = sum_dtype(q_BHTD.dtype)
        if results and results[0][1][0].shape == q_BHTD.shape:
            (_, (out_BHTD, lse_BHT)), *rest = results
            if not rest:
                return out_BHTD, lse_BHT
            out_BHTD = out_BHTD.to(wide)
        else:  # some queries see no key: merge into attention to none
            out_BHTD = torch.zeros_like(q_BHTD, dtype=wide)
            lse_BHT = torch.full(q_BHTD.shape[:3], -torch.inf, dtype=wide, device=q_BHTD.device)
            rest = results
        for q, (out, lse) in rest:
            merge_(out_BHTD[:, :, q], lse_BHT[:, :, q], out, lse)
        return out_BHTD.to(q_BHTD.dtype), lse_BHT
    raise AssertionError("the plain kernel takes everything")


@torch.no_grad()
def block_backward(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    out_BHTD: Tensor,
    lse_BHT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v through one block, given out and lse over *all* keys that these queries see.

    Summed over the blocks of a query set this is the gradient of the merged output. Returned in the dtype of the
    kernel (q's or wider); callers sum in ``sum_dtype``.
    """
    grad, q, k, v, out = (_dense(x) for x in (grad_BHTD, q_BHTD, k_BKSD, v_BKSD, out_BHTD))
    for kernel in usable_kernels(q, k.shape[2], backward=True):
        try:
            results = [
                (qs, ks, kernel.run_backward(grad[:, :, qs], q[:, :, qs], k[:, :, ks], v[:, :, ks], out[:, :, qs],
                                             lse_BHT[:, :, qs].contiguous(), square, scale))
                for qs, ks, square in _pieces(kernel, q, k, causal)
            ]  # fmt: skip
        except kernels.RefusedError:
            continue
        if len(results) == 1 and results[0][2][0].shape == q.shape:
            return results[0][2]
        wide = sum_dtype(q.dtype)
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        for qs, ks, (dq_part, dk_part, dv_part) in results:
            dq[:, :, qs] += dq_part
            dk[:, :, ks] += dk_part
            dv[:, :, ks] += dv_part
        return dq, dk, dv
    raise AssertionError("the plain kernel takes everything")


class _BlockAttention(torch.autograd.Function):
    """Autograd around ``block_forward`` and ``block_backward``."""

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out_BHTD, lse_BHT = block_forward(q_BHTD, k_BKSD, v_BKSD, causal, scale, training=True)
        ctx.save_for_backward(q_BHTD, k_BKSD, v_BKSD, out_BHTD, lse_BHT)
        ctx.causal, ctx.scale = causal, scale
        ctx.mark_non_differentiable(lse_BHT)
        return out_BHTD, lse_BHT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BKSD, v_BKSD, out_BHTD, lse_BHT = ctx.saved_tensors
        grads = block_backward(
            grad_BHTD.to(q_BHTD.dtype), q_BHTD, k_BKSD, v_BKSD, out_BHTD, lse_BHT, ctx.causal, ctx.scale
        )
        return *(x.to(q_BHTD.dtype) for x in grads), None, None
