"""Attention with log-sum-exp in plain PyTorch: the definition that every kernel is tested against, and the
fall-back where no kernel fits (float64 on a GPU, an unusual head size, another device).

Shapes: B batch, H query heads, K key/value heads (H a multiple of K), T queries, S keys, D head size.
Causal masks are aligned bottom-right: query t sees keys up to S - T + t, so a chunk after a past just works.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of one slice of queries: 2**25 fp32 numbers are 128 MiB.
_MAX_SCORES = 2**25


def reference_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, causal: bool, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention with all T x S scores at once, in fp32 (in fp64 for fp64 inputs).

    Returns:
        out_BHTD and lse_BHT, the natural log of the sum of exp(scores); a query that sees no key has out 0, lse -inf.
    """
    scores_BKGTS, v_BKSD = _scores(q_BHTD, k_BKSD, causal, scale), _wide(v_BKSD)
    lse_BKGT = scores_BKGTS.logsumexp(-1)
    p_BKGTS = torch.exp(scores_BKGTS - lse_BKGT.masked_fill(lse_BKGT.isneginf(), 0)[..., None])
    out_BKGTD = torch.einsum("bkgts,bksd->bkgtd", p_BKGTS, v_BKSD)
    return out_BKGTD.flatten(1, 2), lse_BKGT.flatten(1, 2)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(sum_dtype(x.dtype))


def _scores(q_BHTD: Tensor, k_BKSD: Tensor, causal: bool, scale: float | None) -> Tensor:
    q_BKGTD = _wide(q_BHTD).unflatten(1, (k_BKSD.shape[1], -1))
    T, S, D = q_BKGTD.shape[3], k_BKSD.shape[2], q_BKGTD.shape[4]
    scores_BKGTS = torch.einsum("bkgtd,bksd->bkgts", q_BKGTD, _wide(k_BKSD)) * (D**-0.5 if scale is None else scale)
    if causal:
        hidden_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTD.device).triu(S - T + 1)
        scores_BKGTS.masked_fill_(hidden_TS, -torch.inf)
    return scores_BKGTS


def _slices(q_BHTD: Tensor, num_keys: int) -> list[tuple[int, int]]:
    """Spans of queries whose scores fit ``_MAX_SCORES``."""
    B, H, T, _ = q_BHTD.shape
    step = max(1, _MAX_SCORES // max(1, B * H * num_keys))
    return [(start, min(start + step, T)) for start in range(0, T, step)]


def plain_forward(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """``reference_attention`` over slices of queries, so that memory stays bounded for long S."""
    T, S = q_BHTD.shape[2], k_BKSD.shape[2]
    outs, lses = [], []
    for start, stop in _slices(q_BHTD, S):
        # A slice of queries sees keys up to its last query: bottom-right alignment again.
        seen = max(0, S - T + stop) if causal else S
        out, lse = reference_attention(
            q_BHTD[:, :, start:stop], k_BKSD[:, :, :seen], v_BKSD[:, :, :seen], causal=causal, scale=scale
        )
        outs.append(out.to(q_BHTD.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def plain_backward(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    out_BHTD: Tensor,
    lse_BHT: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block, given the output and log-sum-exp over *all* blocks of these queries.

    With P = exp(scores - lse) and delta = sum(grad * out): dV = P^T grad, dS = P * (grad V^T - delta),
    dQ = scale * dS K, dK = scale * dS^T Q. The lse of all blocks makes P this block's share of the softmax.
    """
    K, T, S = k_BKSD.shape[1], q_BHTD.shape[2], k_BKSD.shape[2]
    dq_BHTD = torch.zeros_like(_wide(q_BHTD))
    dk_BKSD, dv_BKSD = torch.zeros_like(_wide(k_BKSD)), torch.zeros_like(_wide(v_BKSD))
    for start, stop in _slices(q_BHTD, S):
        seen = max(0, S - T + stop) if causal else S
        q, grad, out = (_wide(x[:, :, start:stop]) for x in (q_BHTD, grad_BHTD, out_BHTD))
        k, v = _wide(k_BKSD[:, :, :seen]), _wide(v_BKSD[:, :, :seen])
        lse_BKGT = lse_BHT[:, :, start:stop].unflatten(1, (K, -1))
        p_BKGTS = torch.exp(_scores(q, k, causal, scale) - lse_BKGT.masked_fill(lse_BKGT.isneginf(), 0)[..., None])
        delta_BKGT = (grad * out).sum(-1).unflatten(1, (K, -1))
        grad_BKGTD = grad.unflatten(1, (K, -1))
        ds_BKGTS = p_BKGTS * (torch.einsum("bkgtd,bksd->bkgts", grad_BKGTD, v) - delta_BKGT[..., None])
        dq_BHTD[:, :, start:stop] = torch.einsum("bkgts,bksd->bkgtd", ds_BKGTS, k).flatten(1, 2) * scale
        dk_BKSD[:, :, :seen] += torch.einsum("bkgts,bkgtd->bksd", ds_BKGTS, q.unflatten(1, (K, -1))) * scale
        dv_BKSD[:, :, :seen] += torch.einsum("bkgts,bkgtd->bksd", p_BKGTS, grad_BKGTD)
    return dq_BHTD.to(q_BHTD.dtype), dk_BKSD.to(k_BKSD.dtype), dv_BKSD.to(v_BKSD.dtype)
