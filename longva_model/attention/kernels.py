"""The kernels behind block attention, each as a pair of functions with one signature, and the plain definition.

forward(q, k, v, causal, scale) -> (out_BHTD in q's dtype, lse_BHT fp32, natural log)
backward(grad, q, k, v, out, lse, causal, scale) -> (dq, dk, dv), with out and lse over all blocks of the queries

Block attention calls them with T > 0, S > 0, a contiguous head size, and ``causal`` only on squares (T = S), where
top-left and bottom-right masks agree; ``bottom_right`` kernels take causal rectangles too. None of them makes
T x S scores or repeats grouped key/value heads in memory. ``reference_attention`` is the definition that all are tested
against; over slices of queries it is the kernel ``plain``, where no other fits (float64 on a GPU, an unusual head size,
another device).

Most are private operators of PyTorch (checked on 2.11 to 2.15). Their contract may change under us, so a kernel
is used only after ``works`` has compared it with the plain definition on a few numbers, once a process.

Shapes: B batch, H query heads, K key/value heads (H a multiple of K), G = H / K, T queries, S keys, D head size.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vniah.notices import notice

Forward = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor, Tensor]]


# Scores of one slice of queries: 2**25 fp32 numbers are 128 MiB.
_MAX_SCORES = 2**25


P = ParamSpec("P")
R = TypeVar("R")


def _own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` outside of autocast, which would round what is widened here to bf16 again."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device.type for value in args if isinstance(value, Tensor))
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


class RefusedError(Exception):
    """The kernel cannot run these sizes; the next one is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A forward and a backward, where they apply, and whether causal rectangles (bottom-right) are understood."""

    name: str
    forward: Forward
    backward: Backward | None
    applies: Callable[[Tensor], bool]
    bottom_right: bool = False


@_own_precision
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


@_own_precision
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


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(grad, q, k, v, out, lse, 0.0, causal, scale=scale)


def _to_eight(*tensors: Tensor) -> list[Tensor]:
    """Zero-pad the head size to a multiple of 8, as the CUDA kernels want it; zeros change no score."""
    missing = -tensors[0].shape[-1] % 8
    return [pad(x, (0, missing)) if missing else x for x in tensors]


def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """The random state that the backward operators ask for and, without dropout, never read."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.zeros((), dtype=torch.uint64, device=device)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]
    # The operator's layout is (B, T, H, D), which is how transformers stores what it shows as (B, H, T, D).
    q, k, v = (x.transpose(1, 2) for x in _to_eight(q, k, v))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, None, None, T, S, 0.0, causal, False, scale=scale)
    return out.transpose(1, 2)[..., :D], lse


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]
    grad, q, k, v, out = (x.transpose(1, 2) for x in _to_eight(grad, q, k, v, out))
    grads = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, None, None, T, S, 0.0, causal, *_no_dropout(q.device), scale=scale
    )
    dq, dk, dv = (x.transpose(1, 2)[..., :D] for x in grads)
    return dq, dk, dv


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    D, T, G = q.shape[-1], q.shape[2], q.shape[1] // k.shape[1]
    q, k, v = _to_eight(q, k, v)
    # The operator wants as many key heads as query heads: one call a group member, on strided views.
    outs, lses = [], []
    for member in range(G):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q[:, member::G], k, v, None, True, 0.0, causal, scale=scale
        )
        outs.append(out[..., :D])
        lses.append(lse[..., :T])  # padded to a multiple of 32 queries
    if G == 1:
        return outs[0], lses[0]
    return torch.stack(outs, 2).flatten(1, 2), torch.stack(lses, 2).flatten(1, 2)


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    D, T, G = q.shape[-1], q.shape[2], q.shape[1] // k.shape[1]
    grad, q, k, v, out = _to_eight(grad, q, k, v, out)
    # The operator reads lse rows at multiples of 32; +inf there means a probability of zero.
    lse = pad(lse, (0, -T % 32), value=torch.inf) if torch.version.hip is None else lse
    dqs = []
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    for member in range(G):
        heads = slice(member, None, G)
        dq, dk_member, dv_member, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            grad[:, heads], q[:, heads], k, v, None, out[:, heads], lse[:, heads].contiguous(),
            *_no_dropout(q.device), 0.0, [True, True, True, False], causal, scale=scale,
        )  # fmt: skip
        dqs.append(dq)
        dk += dk_member
        dv += dv_member
    return torch.stack(dqs, 2).flatten(1, 2)[..., :D], dk[..., :D], dv[..., :D]


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    D = q.shape[-1]
    q, k, v = _to_eight(q, k, v)
    try:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False, scale=scale
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # "no valid execution plans" for sizes that it does not know
        raise RefusedError(str(error)) from error
    return out[..., :D], lse.reshape(q.shape[:3])


def _flash_attn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, _ = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return out.transpose(1, 2), lse


def _flash_attn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.flash_attn_interface import _flash_attn_backward as operator

    D = q.shape[-1]
    grad, q, k, v, out = (x.transpose(1, 2).contiguous() for x in _to_eight(grad, q, k, v, out))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    operator(
        grad, q, k, v, out, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=scale, causal=causal, window_size_left=-1,
        window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False, rng_state=None,
    )  # fmt: skip
    dq, dk, dv = (x.transpose(1, 2)[..., :D] for x in (dq, dk, dv))
    return dq, dk, dv


def _half_on_cuda(q: Tensor) -> bool:
    """bf16 or fp16 on a CUDA device of compute capability 8.0 or more, heads of up to 256."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.is_cuda and half and q.shape[-1] <= 256 and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _long_on_hopper(q: Tensor) -> bool:
    """cuDNN is the faster one from Hopper on, but plans each new shape anew: for long blocks only."""
    return (
        _half_on_cuda(q)
        and q.shape[-1] <= 128
        and q.shape[2] >= 1024
        and torch.cuda.get_device_capability(q.device) >= (9, 0)
        and torch.version.hip is None
    )


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


# In order of preference. The last one always works.
KERNELS = (
    Kernel(
        name="flash_attn",
        forward=_flash_attn_forward,
        backward=_flash_attn_backward,
        applies=lambda q: _half_on_cuda(q) and _has_flash_attn(),
        bottom_right=True,
    ),
    Kernel(name="cudnn", forward=_cudnn_forward, backward=None, applies=_long_on_hopper),
    Kernel(name="flash", forward=_flash_forward, backward=_flash_backward, applies=_half_on_cuda),
    Kernel(
        name="efficient",
        forward=_efficient_forward,
        backward=_efficient_backward,
        applies=lambda q: q.is_cuda and q.dtype in (torch.float32, torch.bfloat16, torch.float16),
    ),
    Kernel(
        name="cpu",
        forward=_cpu_forward,
        backward=_cpu_backward,
        applies=lambda q: q.device.type == "cpu" and q.dtype.is_floating_point,
    ),
    Kernel(name="plain", forward=plain_forward, backward=plain_backward, applies=lambda q: True, bottom_right=True),
)


def works(name: str, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool) -> bool:
    """Whether a kernel gives the plain definition on full and causal blocks of grouped heads."""
    return not why_not(name, device, dtype, head_size, backward)


@functools.cache
def why_not(name: str, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool) -> str:
    """ "" for a kernel that gives the plain definition, else why it is not used. Cached.

    One that is turned away is said, since the next one may be several times slower.
    """
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    if name == "plain":
        return ""
    if backward and kernel.backward is None:
        return "it has no backward"
    try:
        why = _self_check(kernel, device, dtype, head_size, backward)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # of an operator that may have changed: anything
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
    if why:
        part = " backward" if backward else ""
        notice(f"attention kernel {name}{part} is not used on {device} in {str(dtype).removeprefix('torch.')}: {why}")
    return why


def _tolerances(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    """What rounding explains of an output, a log-sum-exp and a gradient.

    Outputs and gradients relative to 1 + their largest value, log-sum-exps absolute: a kernel's sums are fp32 whatever
    goes in, so its log-sum-exp is far more exact than its output, which is rounded.
    """
    if dtype == torch.bfloat16:
        return 1e-2, 1e-3, 2e-2
    if dtype == torch.float16:
        return 2e-3, 1e-3, 4e-3
    if dtype == torch.float32 and device.type == "cuda":
        # On Ampere and later "float32" kernels may multiply in TF32, whose mantissa is as short as fp16's.
        return 5e-3, 5e-3, 1e-2
    eps = torch.finfo(dtype).eps
    return 16 * eps, 64 * eps, 16 * eps


# (queries, keys, causal) of the blocks that a kernel is checked on: the short ones that it takes, else the long ones.
_SHORT_BLOCKS = ((16, 24, False), (1, 24, False), (16, 16, True))
_LONG_BLOCKS = ((1024, 1536, False), (1024, 1024, True))


@torch.no_grad()
def _self_check(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool) -> str:
    """ "" where a kernel gives the plain definition, else how far it is off."""
    generator = torch.Generator().manual_seed(0)  # leaves the global random state alone

    def draw(heads: int, length: int) -> Tensor:
        return torch.randn(1, heads, length, head_size, generator=generator).to(device, dtype)

    def difference(got: Tensor, want: Tensor, relative: bool) -> float:
        if got.shape != want.shape:
            return torch.inf
        largest = (got.to(want.dtype) - want).abs().max()
        return float(largest / (1 + want.abs().max()) if relative else largest)

    def taken(blocks: tuple[tuple[int, int, bool], ...]) -> list[tuple[int, int, bool]]:
        return [block for block in blocks if kernel.applies(draw(4, block[0]))]

    blocks = taken(_SHORT_BLOCKS) or taken(_LONG_BLOCKS)
    if not blocks:
        return "it takes no block of the sizes that it would be checked on"
    if kernel.bottom_right:
        blocks.append((*blocks[0][:2], True))
    scale, (out_most, lse_most, grad_most) = head_size**-0.5, _tolerances(device, dtype)
    for num_queries, num_keys, causal in blocks:
        q, grad, k, v = draw(4, num_queries), draw(4, num_queries), draw(2, num_keys), draw(2, num_keys)
        out, lse = reference_attention(q, k, v, causal=causal, scale=scale)
        if backward:
            assert kernel.backward is not None
            wide_grad, wide_q, wide_k, wide_v = (x.to(out.dtype) for x in (grad, q, k, v))
            want = plain_backward(wide_grad, wide_q, wide_k, wide_v, out, lse, causal, scale)
            got = kernel.backward(grad, q, k, v, out.to(dtype), lse, causal, scale)
            found = [("gradient", difference(a, b, True), grad_most) for a, b in zip(got, want, strict=True)]
        else:
            got_out, got_lse = kernel.forward(q, k, v, causal, scale)
            found = [
                ("output", difference(got_out, out, True), out_most),
                ("log-sum-exp", difference(got_lse, lse, False), lse_most),
            ]
        for what, error, most in found:
            if not error <= most:  # nan counts as wrong
                return f"its {what} is off by {error:.1e} ({most:.1e} allowed)"
    return ""
