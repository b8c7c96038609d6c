"""The kernels behind block attention, each as a pair of functions with one signature, and the plain definition.

forward(q, k, v, causal, scale) -> (out_BHTD in q's dtype, lse_BHT fp32, natural log)
backward(grad, q, k, v, out, lse, causal, scale) -> (dq, dk, dv), with out and lse over all blocks of the queries

Block attention calls them by ``Kernel.run`` and ``Kernel.run_backward`` with T > 0, S > 0, a contiguous head size, and
``causal`` only on squares (T = S), where top-left and bottom-right masks agree; ``bottom_right`` kernels take causal
rectangles too. None of them makes T x S scores or repeats grouped key/value heads in memory. ``reference_attention`` is
the definition that all are tested against; over slices of queries it is the kernel ``plain``, where no other fits
(float64 on a GPU, an unusual head size, another device).

Most are private operators of PyTorch (checked on 2.11 to 2.15), of which FA3 and FA4 replace two while they are active
(``torch.nn.attention.activate_flash_attention_impl``; for torch's own attention in this process too). Their contract
may change under us, so a kernel is used only after ``why_not`` has compared it with the plain definition at sizes that
it will be used for, once a process.

Shapes: B batch, H query heads, K key/value heads (H a multiple of K), G = H / K, T queries, S keys, D head size.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)
from torch.nn.functional import pad

from vniah.notices import notice

Forward = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
Gradients = tuple[Tensor, Tensor, Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]
Blocks = tuple[tuple[int, int, bool], ...]


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


# What a kernel is checked on, (queries, keys, causal): an answer's token, few queries, a square, more keys than a tile.
_BLOCKS: Blocks = ((1, 24, False), (16, 24, False), (16, 16, True), (40, 600, False))
# On a GPU also what a chunk is: other tiles and splits of the keys.
_GPU_BLOCKS: Blocks = (*_BLOCKS, (1, 8192, False), (512, 8192, False), (1024, 1024, True))
# T x S from which cuDNN pays: it plans each pair of sizes anew.
_LONG = 2**28
_LONG_BLOCKS: Blocks = ((2**13, 2**15, False), (2**14, 2**14, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A forward and a backward, and where they are for.

    Attributes:
        refuses: why it is nothing for a device, dtype and head size; "" where it may be tried.
        least_work: queries x keys from which it is used.
        bottom_right: causal rectangles are understood.
        fold_most: queries up to which full blocks of grouped heads are faster with the group as rows.
        blocks: (queries, keys, causal) of what it is checked on.
    """

    name: str
    forward: Forward
    backward: Backward | None
    refuses: Callable[[torch.device, torch.dtype, int], str]
    least_work: int = 0
    bottom_right: bool = False
    fold_most: int = 0
    blocks: Blocks = _BLOCKS

    def run(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """``forward``, with the queries of a key head as rows of one where that is faster: keys are read once."""
        if causal or not self.folds(q, k):
            return self.forward(q, k, v, causal, scale)
        G = q.shape[1] // k.shape[1]
        out, lse = self.forward(_fold(q, G), k, v, False, scale)
        return _unfold(out, G), _unfold(lse, G)

    def run_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> Gradients:
        """``backward``, folded like ``run``."""
        assert self.backward is not None
        if causal or not self.folds(q, k):
            return self.backward(grad, q, k, v, out, lse, causal, scale)
        G = q.shape[1] // k.shape[1]
        grad, q, out, lse = (_fold(x, G) for x in (grad, q, out, lse))
        dq, dk, dv = self.backward(grad, q, k, v, out, lse.contiguous(), False, scale)
        return _unfold(dq, G), dk, dv

    def folds(self, q_BHTD: Tensor, k_BKSD: Tensor) -> bool:
        return q_BHTD.shape[1] > k_BKSD.shape[1] and q_BHTD.shape[2] <= self.fold_most


def _fold(x_BHTx: Tensor, G: int) -> Tensor:
    """(B, K x G, T, ...) to (B, K, G x T, ...)."""
    return x_BHTx.unflatten(1, (-1, G)).flatten(2, 3)


def _unfold(x_BKRx: Tensor, G: int) -> Tensor:
    """(B, K, G x T, ...) to (B, K x G, T, ...)."""
    return x_BKRx.unflatten(2, (G, -1)).flatten(1, 2)


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
) -> Gradients:
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
) -> Gradients:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(grad, q, k, v, out, lse, 0.0, causal, scale=scale)


def _to_eight(*tensors: Tensor) -> list[Tensor]:
    """Zero-pad the head size to a multiple of 8, as the CUDA kernels want it; zeros change no score."""
    missing = -tensors[0].shape[-1] % 8
    return [pad(x, (0, missing)) if missing else x for x in tensors]


def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """The random state that the backward operators ask for and, without dropout, never read."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.zeros((), dtype=torch.uint64, device=device)


# Who replaces the operators, and what brings it.
_PACKAGES = {"FA3": "flash_attn_interface", "FA4": "flash-attn-4"}
_rejected: set[str] = set()  # failed their check in this process


def _activate(name: str | None) -> None:
    """Make ``name`` what the operators of flash attention call; None = torch's own, or a third party's left alone."""
    active = current_flash_attention_impl()
    if name is not None and name != active:
        activate_flash_attention_impl(name)
    elif name is None and active in _PACKAGES:
        restore_flash_attention_impl()


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, *, by: str | None = None
) -> tuple[Tensor, Tensor]:
    _activate(by)
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]
    # The operator's layout is (B, T, H, D), which is how transformers stores what it shows as (B, H, T, D).
    q, k, v = (x.transpose(1, 2) for x in _to_eight(q, k, v))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, None, None, T, S, 0.0, causal, False, scale=scale)
    return out.transpose(1, 2)[..., :D], lse


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    *,
    by: str | None = None,
) -> Gradients:
    _activate(by)
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
) -> Gradients:
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
    out, lse, *_ = _planned(
        torch.ops.aten._scaled_dot_product_cudnn_attention, q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return out[..., :D], lse.reshape(q.shape[:3])


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    D, T, S = q.shape[-1], q.shape[2], k.shape[2]
    grad, q, k, v, out = _to_eight(grad, q, k, v, out)
    dq, dk, dv = _planned(
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
        grad, q, k, v, out, lse[..., None], *_no_dropout(q.device), None, None, None, T, S, 0.0, causal, scale=scale,
    )  # fmt: skip
    return dq[..., :D], dk[..., :D], dv[..., :D]


def _planned(operator: Callable[..., tuple[Tensor, ...]], *values: object, **named: object) -> tuple[Tensor, ...]:
    try:
        return operator(*values, **named)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # "no valid execution plans" for sizes that it does not know
        raise RefusedError(str(error)) from error


def _flash_attn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse, _ = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return out.transpose(1, 2), lse


def _flash_attn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
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


def _not_half_on_cuda(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a CUDA device of compute capability 8.0 or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bfloat16 and float16"
    return "" if head_size <= 256 else "its heads have 256 numbers at most"


def _no_activation(name: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Only what was installed on purpose is activated; whether it knows the device, it says itself when it is tried."""
    if why := _not_half_on_cuda(device, dtype, head_size):
        return why
    if torch.version.hip is not None or name not in list_flash_attention_impls():
        return "this PyTorch does not know it"
    if name == "FA3":
        # Its package has another name wherever it is built.
        found = importlib.util.find_spec(_PACKAGES[name]) is not None
        right = torch.cuda.get_device_capability(device)[0] == 9
        return "" if found and right else "it is for Hopper" if found else f"no module {_PACKAGES[name]} is installed"
    try:
        version(_PACKAGES[name])
    except PackageNotFoundError:
        return f"{_PACKAGES[name]} is not installed"
    return "" if torch.cuda.get_device_capability(device)[0] >= 9 else "it is for Hopper and later"


def _no_cudnn(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    if why := _not_half_on_cuda(device, dtype, head_size):
        return why
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (9, 0):
        return "it is the faster one from Hopper on"
    return "" if head_size <= 128 else "its heads have 128 numbers at most"


def _no_flash_attn(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    spec = importlib.util.find_spec("flash_attn")
    # flash-attn-4 alone makes a package of this name that has no file.
    if spec is None or spec.origin is None:
        return "flash-attn is not installed"
    return _not_half_on_cuda(device, dtype, head_size)


def _no_efficient(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    single = dtype in (torch.float32, torch.bfloat16, torch.float16)
    return "" if device.type == "cuda" and single else "it needs a CUDA device and no float64"


# In order of preference. The last one always works. Where grouped heads fold: FA3 and FA4 pack them themselves, FA2's
# tiles have 64 queries or more, ``efficient`` else takes a call for each member of a group, and the CPU's kernel takes
# larger slices of queries up to 768 of them.
KERNELS = (
    *(
        Kernel(
            name=name,
            forward=functools.partial(_flash_forward, by=name),
            backward=functools.partial(_flash_backward, by=name),
            refuses=functools.partial(_no_activation, name),
            blocks=_GPU_BLOCKS,
        )
        for name in _PACKAGES
    ),
    Kernel(
        name="cudnn",
        forward=_cudnn_forward,
        backward=_cudnn_backward,
        refuses=_no_cudnn,
        least_work=_LONG,
        blocks=_LONG_BLOCKS,
    ),
    Kernel(
        name="flash_attn",
        forward=_flash_attn_forward,
        backward=_flash_attn_backward,
        refuses=_no_flash_attn,
        bottom_right=True,
        fold_most=32,
        blocks=_GPU_BLOCKS,
    ),
    Kernel(
        name="flash",
        forward=_flash_forward,
        backward=_flash_backward,
        refuses=_not_half_on_cuda,
        fold_most=32,
        blocks=_GPU_BLOCKS,
    ),
    Kernel(
        name="efficient",
        forward=_efficient_forward,
        backward=_efficient_backward,
        refuses=_no_efficient,
        fold_most=2**62,
        blocks=_GPU_BLOCKS,
    ),
    Kernel(
        name="cpu",
        forward=_cpu_forward,
        backward=_cpu_backward,
        refuses=lambda device, dtype, head_size: "" if device.type == "cpu" else "it is the CPU's",
        fold_most=767,
    ),
    Kernel(
        name="plain",
        forward=plain_forward,
        backward=plain_backward,
        refuses=lambda device, dtype, head_size: "",
        bottom_right=True,
    ),
)


def named(name: str) -> Kernel:
    """The kernel of this name.

    Raises:
        ValueError: for an unknown name.
    """
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    names = ", ".join(kernel.name for kernel in KERNELS)
    raise ValueError(f"unknown attention kernel {name!r}, expected one of {names}")


def why_not(name: str, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool) -> str:
    """ "" for a kernel that gives the plain definition here (``backward``: both ways), else why it is not used.

    One that fails the comparison is said, since the next one may be several times slower. Cached until another
    implementation of flash attention is activated.
    """
    return _why_not(name, device, dtype, head_size, backward, _third_party())


def _third_party() -> str | None:
    """What is behind ``flash`` if someone else replaced it."""
    active = current_flash_attention_impl()
    return None if active in _PACKAGES else active


@functools.cache
def _why_not(
    name: str, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool, third_party: str | None
) -> str:
    kernel = named(name)
    if why := kernel.refuses(device, dtype, head_size):
        return why
    if name in _rejected:
        return "it failed its check in this process"
    if name == "plain":
        return ""
    if backward:
        if kernel.backward is None:
            return "it has no backward"
        if why := _why_not(name, device, dtype, head_size, False, third_party):
            return why
    try:
        why = _self_check(kernel, device, dtype, head_size, backward)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # of an operator that may have changed: anything
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
    if why:
        part, after = " backward" if backward else "", ""
        if name in _PACKAGES:
            _rejected.add(name)
            _activate(None)
            _why_not.cache_clear()  # what it passed before
            after = "; it is deactivated, and torch's own flash attention is back"
        where = f"on {device} in {str(dtype).removeprefix('torch.')}"
        notice(f"attention kernel {name}{part} is not used {where}: {why}{after}")
    return why


def _tolerances(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    """What rounding explains of an output and a log-sum-exp (the largest difference) and of a gradient.

    A gradient's is the norm of its difference by its own, or a quarter of the largest difference by its largest value:
    rounding is everywhere alike, a fault in one place is not. A kernel's sums are fp32 whatever goes in, so its
    log-sum-exp is far more exact than its output, which is rounded.
    """
    if dtype == torch.bfloat16:
        return 1e-2, 1e-3, 2e-2
    if dtype == torch.float16:
        return 2e-3, 1e-3, 4e-3
    if dtype == torch.float32 and device.type == "cuda":
        # On Ampere and later "float32" kernels may multiply in TF32, whose mantissa is as short as fp16's.
        return 5e-3, 5e-3, 1e-2
    eps = torch.finfo(dtype).eps
    return 64 * eps, 256 * eps, 256 * eps


@torch.no_grad()
def _self_check(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, backward: bool) -> str:
    """ "" where a kernel gives the plain definition, else how far it is off.

    Scores have a deviation of 3 and values lie within 1: some keys then decide a query however many there are, and a
    faulty output is as far off as it can be. With even weights, the mean of many keys is near 0 whoever computes it.
    """
    generator = torch.Generator().manual_seed(0)  # leaves the global random state alone
    scale, (out_most, lse_most, grad_most) = head_size**-0.5, _tolerances(device, dtype)
    blocks = kernel.blocks
    if kernel.bottom_right:
        blocks = (*blocks, *((queries, keys, True) for queries, keys, causal in blocks if 1 < queries < keys))
    for num_queries, num_keys, causal in blocks:
        # Stored as models have them: queries behind one another, keys in a cache by heads. Groups of seven, as Qwen2's.
        q, grad = (
            torch.randn(1, num_queries, 14, head_size, generator=generator).to(device, dtype).transpose(1, 2)
            for _ in range(2)
        )
        k, v = (torch.randn(1, 2, num_keys, head_size, generator=generator).to(device, dtype) for _ in range(2))
        q, v = q * 3, v.tanh()
        wide_grad, wide_q, wide_k, wide_v = (_wide(x) for x in (grad, q, k, v))
        out, lse = plain_forward(wide_q, wide_k, wide_v, causal, scale)
        if backward:
            want = plain_backward(wide_grad, wide_q, wide_k, wide_v, out, lse, causal, scale)
            got = kernel.run_backward(grad, q, k, v, out.to(dtype), lse, causal, scale)
            names = ("gradient of q", "gradient of k", "gradient of v")
            found = [(x, ours, right, grad_most) for x, ours, right in zip(names, got, want, strict=True)]
        else:
            got_out, got_lse = kernel.run(q, k, v, causal, scale)
            found = [("output", got_out, out, out_most), ("log-sum-exp", got_lse, lse, lse_most)]
        for what, ours, right, most in found:
            if ours.shape != right.shape:
                return f"its {what} has the shape {tuple(ours.shape)}, not {tuple(right.shape)}"
            off = ours.to(right.dtype) - right
            error = float(off.abs().max())
            if backward:
                error = max(float(off.norm() / right.norm()), error / float(right.abs().max()) / 4)
            if not error <= most:  # nan counts as wrong
                sizes = f"{num_queries} x {num_keys}{' causal' if causal else ''}"
                return f"its {what} is off by {error:.1e} ({most:.1e} allowed) on {sizes}"
    return ""
