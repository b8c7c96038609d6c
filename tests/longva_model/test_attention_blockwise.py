"""Block attention against a plain fp64 definition; the tolerance is the plain dtype's own error; kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from longva_model.attention import block_attention, kernels, merge, reference_attention, use_kernel
from longva_model.attention.blockwise import kernel_names, usable_kernels
from longva_model.attention.kernels import KERNELS, Kernel, RefusedError
from vniah.notices import forget


def draw(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def definition(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Written out with repeated heads and a bottom-right mask, apart from the code under test."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if causal:
        T, S = scores.shape[2:]
        last = torch.arange(T)[:, None] + S - T
        scores = scores.masked_fill(torch.arange(S) > last, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def own_error(dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, causal: bool, want: Tensor) -> float:
    """What plain attention in this dtype is off by (masked like ours), with room for rounding twice."""
    T, S = q.shape[2], k.shape[2]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).nan_to_num(0.0)
    return 3 * (out.double() - want).abs().max().item() + 2 * torch.finfo(dtype).eps


SHAPES = [  # B, H, K, T, S, D
    (1, 4, 4, 16, 16, 32),
    (2, 8, 2, 37, 37, 33),
    (1, 6, 1, 5, 41, 16),
    (1, 4, 2, 41, 5, 64),
    (1, 28, 4, 1, 129, 128),
    (1, 2, 2, 300, 700, 8),
]


@pytest.mark.parametrize("kernel", [None, "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_equal_the_definition(
    shape: tuple[int, ...], causal: bool, dtype: torch.dtype, kernel: str | None
) -> None:
    B, H, K, T, S, D = shape
    q, k, v = draw(0, (B, H, T, D), (B, K, S, D), (B, K, S, D), dtype=dtype)
    want, want_lse = definition(q, k, v, causal)
    with use_kernel(kernel):
        out, lse = block_attention(q, k, v, causal=causal)
    assert out.dtype == dtype and lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (out.double() - want).abs().max() <= own_error(dtype, q, k, v, causal, want)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-4 if dtype.itemsize == 2 else 1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [None, "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_gradients_equal_those_of_the_definition(
    shape: tuple[int, ...], causal: bool, dtype: torch.dtype, kernel: str | None
) -> None:
    B, H, K, T, S, D = shape
    *qkv, grad = draw(1, (B, H, T, D), (B, K, S, D), (B, K, S, D), (B, H, T, D), dtype=dtype)
    seen = max(0, T - S) if causal else 0  # queries before the first key have no gradient
    wide = [x.double().requires_grad_() for x in qkv]
    q_wide = wide[0][:, :, seen:]
    want = torch.autograd.grad(definition(q_wide, *wide[1:], causal)[0], wide, grad[:, :, seen:].double())
    ours = [x.clone().requires_grad_() for x in qkv]
    with use_kernel(kernel):
        got = torch.autograd.grad(block_attention(*ours, causal=causal)[0], ours, grad)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
    theirs = [x.clone().requires_grad_() for x in qkv]
    rounded = torch.autograd.grad(
        scaled_dot_product_attention(
            theirs[0][:, :, seen:], *theirs[1:], attn_mask=None if mask is None else mask[seen:], enable_gqa=True
        ),
        theirs,
        grad[:, :, seen:],
    )
    for a, b, c in zip(got, want, rounded, strict=True):
        allowed = 3 * (c.double() - b).abs().max().item() + 4 * torch.finfo(dtype).eps * (1 + b.abs().max().item())
        assert (a.double() - b).abs().max() <= allowed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**31))
def test_merging_blocks_gives_attention_to_all_their_keys(T: int, first: int, second: int, seed: int) -> None:
    q, k, v = draw(seed, (1, 4, T, 8), (1, 2, first + second, 8), (1, 2, first + second, 8))
    a = block_attention(q, k[:, :, :first], v[:, :, :first], causal=False)
    b = block_attention(q, k[:, :, first:], v[:, :, first:], causal=False)
    out, lse = merge(*a, *b)
    if first + second:
        want, want_lse = definition(q, k, v, False)
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=0)
    else:
        assert not out.any() and lse.isneginf().all()
    swapped, swapped_lse = merge(*b, *a)
    torch.testing.assert_close(swapped, out)
    torch.testing.assert_close(swapped_lse, lse)


def test_merging_survives_scores_that_are_far_apart() -> None:
    q, k, v = draw(2, (1, 2, 3, 8), (1, 2, 6, 8), (1, 2, 6, 8))
    k[:, :, :3] *= 1e4
    a, b = (block_attention(q, k[:, :, keys], v[:, :, keys], causal=False) for keys in (slice(0, 3), slice(3, 6)))
    out, lse = merge(*a, *b)
    want, want_lse = definition(q, k, v, False)
    torch.testing.assert_close(out.double(), want, atol=1e-3, rtol=0)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-6 * q.abs().max().item() * k.abs().max().item())


def test_a_chunk_after_a_past_equals_those_rows_of_the_whole() -> None:
    q, k, v = draw(3, (1, 4, 50, 16), (1, 2, 50, 16), (1, 2, 50, 16))
    whole, _ = block_attention(q, k, v, causal=True)
    for start, stop in ((0, 7), (7, 8), (8, 33), (33, 50)):
        chunk, _ = block_attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], causal=True)
        torch.testing.assert_close(chunk, whole[:, :, start:stop])


def test_strides_do_not_matter() -> None:
    """Views into a cache, transposed heads, and a head size that is not dense (which the CPU kernel would misread)."""
    q, k, v = draw(4, (1, 4, 9, 16), (1, 2, 64, 16), (1, 2, 64, 16))
    want, _ = block_attention(q, k[:, :, :20].contiguous(), v[:, :, :20].contiguous(), causal=True)
    transposed = q.transpose(1, 2).contiguous().transpose(1, 2)
    not_dense = q.transpose(2, 3).contiguous().transpose(2, 3)
    for queries in (transposed, not_dense):
        out, _ = block_attention(queries, k[:, :, :20], v[:, :, :20], causal=True)
        torch.testing.assert_close(out, want, atol=1e-6, rtol=0)


def test_autocast_does_not_round_what_is_widened() -> None:
    """Training runs under autocast: kernels are chosen there as elsewhere, and sums are fp32 in either pass."""
    q, k, v, grad = draw(8, *[(1, 2, 40, 72)] * 4, dtype=torch.bfloat16)  # a head size that no other test has probed
    out, lse = reference_attention(q, k, v, causal=True)
    want = kernels.plain_backward(grad, q, k, v, out, lse, True, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        for backward in (False, True):
            assert next(usable_kernels(q, backward=backward)).name == "cpu"
        found = reference_attention(q, k, v, causal=True)
        grads = kernels.plain_backward(grad, q, k, v, out, lse, True, 0.1)
    for a, b in zip((*found, *grads), (out, lse, *want), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_no_queries_or_no_keys() -> None:
    q, k, v = draw(5, (1, 4, 3, 8), (1, 2, 5, 8), (1, 2, 5, 8))
    out, lse = block_attention(q[:, :, :0], k, v, causal=True)
    assert out.shape == (1, 4, 0, 8) and lse.shape == (1, 4, 0)
    out, lse = block_attention(q, k[:, :, :0], v[:, :, :0], causal=False)
    assert not out.any() and lse.isneginf().all()


def test_the_plain_kernel_slices_long_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(6, (1, 4, 33, 8), (1, 2, 50, 8), (1, 2, 50, 8))
    grad = draw(7, (1, 4, 33, 8))[0]
    want, want_lse = reference_attention(q, k, v, causal=True)
    want_grads = kernels.plain_backward(grad, q, k, v, want, want_lse, True, 8**-0.5)
    monkeypatch.setattr(kernels, "_MAX_SCORES", 4 * 50 * 5)  # five queries at a time
    out, lse = kernels.plain_forward(q, k, v, True, 8**-0.5)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)
    for a, b in zip(kernels.plain_backward(grad, q, k, v, want, want_lse, True, 8**-0.5), want_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_cpu_kernel_is_in_use() -> None:
    """Otherwise the fast path of every other test here would be the plain one."""
    q = torch.zeros(1, 2, 3, 64)
    for dtype in (torch.float32, torch.bfloat16):
        for backward in (False, True):
            assert next(usable_kernels(q.to(dtype), backward=backward)).name == "cpu"


def test_choosing_a_kernel_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    block_attention(*draw(0, *[(1, 2, 3, 24)] * 3), causal=True)  # a head size that no other test has probed
    assert torch.equal(torch.rand(3), want)


def test_bad_inputs_are_named() -> None:
    q, k = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match="K dividing H"):
        block_attention(q, torch.zeros(1, 3, 3, 8), torch.zeros(1, 3, 3, 8), causal=True)
    with pytest.raises(ValueError, match="of one shape"):
        block_attention(q, k, torch.zeros(1, 2, 4, 8), causal=True)
    with pytest.raises(ValueError, match="one floating dtype"):
        block_attention(q, k, k.double(), causal=True)
    with pytest.raises(ValueError, match="expected q"):
        block_attention(q[0], k, k, causal=True)
    with pytest.raises(ValueError, match="unknown attention kernel 'fast'"), use_kernel("fast"):
        pass
    out, lse = block_attention(q.requires_grad_(), k, k, causal=True)
    with pytest.raises(ValueError, match="forward only"):
        merge(out, lse, out, lse)


# Kernels: the self-check turns bad ones away, and the CUDA ones call operators that exist with what they take.


CPU = torch.device("cpu")


def use_only(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    """Put ``kernel`` before the plain one and forget earlier verdicts."""
    monkeypatch.setattr(kernels, "KERNELS", (kernel, KERNELS[-1]))
    monkeypatch.setattr(kernels, "why_not", kernels.why_not.__wrapped__)


def named(name: str) -> Kernel:
    return next(kernel for kernel in KERNELS if kernel.name == name)


@pytest.mark.parametrize("fault", ["wrong numbers", "nan", "lse in base 2", "lse transposed", "raises"])
def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = reference_attention(q, k, v, causal=causal, scale=scale)
        if fault == "wrong numbers":
            out = out + 1e-3
        if fault == "nan":
            out = out * torch.nan
        if fault == "lse in base 2":
            lse = lse * 1.4427
        if fault == "lse transposed":
            lse = lse.transpose(1, 2)
        if fault == "raises":
            raise RuntimeError("no such operator")
        return out, lse

    bad = Kernel(name="bad", forward=forward, backward=None, applies=lambda q: True)
    use_only(monkeypatch, bad)
    assert not kernels.works("bad", CPU, torch.float32, 16, False)
    q, k = torch.randn(1, 4, 6, 16), torch.randn(1, 2, 6, 16)
    torch.testing.assert_close(block_attention(q, k, k, causal=True)[0], reference_attention(q, k, k, causal=True)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fault", ["lse off by 0.6", "lse off by 0.01", "scale 20 % off", "out off by 3 %"])
def test_rounding_of_half_precision_hides_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, fault: str
) -> None:
    """One tolerance for all let a log-sum-exp pass that was off by 0.6, and merging by it would be wrong."""

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        factor = 1.2 if fault == "scale 20 % off" else 1.0
        out, lse = reference_attention(q, k, v, causal=causal, scale=scale * factor)
        if fault.startswith("lse"):
            lse = lse + float(fault.split()[-1])
        if fault == "out off by 3 %":
            out = out * 1.03
        return out.to(dtype), lse

    bad = Kernel(name="bad", forward=forward, backward=None, applies=lambda q: True)
    use_only(monkeypatch, bad)
    forget()
    assert not kernels.works("bad", CPU, dtype, 64, False)
    assert "attention kernel bad is not used on cpu" in capsys.readouterr().err
    monkeypatch.setattr(kernels, "KERNELS", KERNELS)
    assert kernels.works("cpu", CPU, dtype, 64, False) and kernels.works("cpu", CPU, dtype, 64, True)


def test_a_kernel_is_checked_on_sizes_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for 1,024 queries and more was checked on 1 and 16."""
    seen: list[int] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        seen.append(q.shape[2])
        out, lse = reference_attention(q, k, v, causal=causal, scale=scale)
        return (out, lse) if q.shape[2] < 1024 else (out * 1.5, lse)

    use_only(monkeypatch, Kernel(name="long", forward=forward, backward=None, applies=lambda q: q.shape[2] >= 1024))
    assert not kernels.works("long", CPU, torch.float32, 16, False)
    assert seen and min(seen) >= 1024


def test_results_name_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_names(CPU, torch.float32, 16) == "cpu"
    monkeypatch.setattr(kernels, "KERNELS", KERNELS[-1:])
    assert kernel_names(CPU, torch.float32, 16) == "plain"


def test_a_good_kernel_passes_and_one_that_refuses_sizes_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        calls.append(q.shape[2])
        if q.shape[2] > 16:
            raise RefusedError("too long")
        return reference_attention(q, k, v, causal=causal, scale=scale)

    use_only(monkeypatch, Kernel(name="shy", forward=forward, backward=None, applies=lambda q: True))
    assert kernels.works("shy", CPU, torch.float32, 16, False)
    q = torch.randn(1, 2, 40, 16)
    out, _ = block_attention(q, q, q, causal=True)
    assert 40 in calls
    torch.testing.assert_close(out, reference_attention(q, q, q, causal=True)[0])


def test_a_backward_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = named("cpu").backward(*arguments)  # type: ignore[misc]
        return dq, dk * 1.01, dv

    use_only(monkeypatch, Kernel(name="bad", forward=named("cpu").forward, backward=backward, applies=lambda q: True))
    assert kernels.works("bad", CPU, torch.float32, 16, False)
    assert not kernels.works("bad", CPU, torch.float32, 16, True)


def test_naming_a_kernel_that_does_not_apply_here_falls_back() -> None:
    q = torch.randn(1, 2, 5, 16)
    with use_kernel("flash"):
        out, _ = block_attention(q, q, q, causal=True)
    torch.testing.assert_close(out, reference_attention(q, q, q, causal=True)[0])


@pytest.mark.parametrize("head_size", [64, 20])
@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn"])
def test_cuda_kernels_fit_their_operators(name: str, head_size: int) -> None:
    """Schemas and shapes on a pretended device: catches a changed operator without a GPU, not wrong numbers."""
    kernel = named(name)
    if not torch.backends.cuda.is_built():
        pytest.skip("this PyTorch has no CUDA operators")
    B, H, K, T, S, D = 2, 8, 2, 40, 40, head_size
    with FakeTensorMode():
        q, grad = (torch.empty(B, H, T, D, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        k, v = (torch.empty(B, K, S, D, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        out, lse = kernel.forward(q, k, v, True, 0.1)
        assert out.shape == q.shape and out.dtype == q.dtype
        assert lse.shape == (B, H, T) and lse.dtype == torch.float32
        if kernel.backward is not None:
            grads = kernel.backward(grad, q, k, v, out, lse, True, 0.1)
            assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [kernel.name for kernel in KERNELS if kernel.name not in ("cpu", "plain")])
def test_cuda_kernels_equal_the_definition(kernel: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 1536, 128, device="cuda", dtype=dtype) for heads in (28, 4, 4))
    if not named(kernel).applies(q):
        pytest.skip(f"{kernel} does not apply to {dtype} on this device")
    assert kernels.works(kernel, q.device, dtype, 128, False)
    want, want_lse = reference_attention(q.double(), k.double(), v.double(), causal=True)
    with use_kernel(kernel):
        out, lse = block_attention(q, k, v, causal=True)
    eps = torch.finfo(torch.float16 if dtype == torch.float32 else dtype).eps  # TF32 may be on
    assert (out - want).abs().max() <= 4 * eps and (lse - want_lse).abs().max() <= 4 * eps
