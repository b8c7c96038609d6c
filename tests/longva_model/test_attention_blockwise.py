"""Block attention against a plain fp64 definition; the tolerance is the plain dtype's own error; kernels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import Library
from torch.nn.attention import _registry, current_flash_attention_impl
from torch.nn.functional import scaled_dot_product_attention

from longva_model.attention import block_attention, kernels, merge, reference_attention, use_kernel
from longva_model.attention.blockwise import kernel_names, usable_kernels
from longva_model.attention.kernels import KERNELS, Kernel, RefusedError, named
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
            assert next(usable_kernels(q, q.shape[2], backward=backward)).name == "cpu"
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
            assert next(usable_kernels(q.to(dtype), 3, backward=backward)).name == "cpu"


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


def fake(**settings: Any) -> Kernel:
    """A kernel that is right and takes everything, but for ``settings``."""
    right = {"name": "fake", "forward": kernels.plain_forward, "backward": kernels.plain_backward}
    return Kernel(**{**right, "refuses": lambda device, dtype, head_size: "", **settings})


@pytest.fixture
def use_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Kernel], None]]:
    """Put a kernel before the plain one, with no verdicts from before, and leave none behind."""

    def use(kernel: Kernel) -> None:
        monkeypatch.setattr(kernels, "KERNELS", (kernel, KERNELS[-1]))
        kernels._why_not.cache_clear()
        forget()

    yield use
    kernels._why_not.cache_clear()
    kernels._rejected.clear()


Use = Callable[[Kernel], None]
# Of every form: what is asked of it, and the setting that makes it so.
FORMS: dict[str, dict[str, Any]] = {
    "short": {},
    "long": {"least_work": 2**12, "blocks": ((64, 80, False), (64, 64, True))},
    "folding": {"fold_most": 16},
    "rectangles": {"bottom_right": True},
}
FAULTS = [
    "nan", "lse 0.05 off", "lse 0.01 off", "lse in base 2", "lse transposed", "scale 20 % off", "out 3 % off",
    "group members swapped", "last key unseen", "raises",
]  # fmt: skip


def spoil(fault: str, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Right attention with a planted fault."""
    if fault == "raises":
        raise RuntimeError("no such operator")
    if fault == "last key unseen" and not causal:
        k, v = k[:, :, :-1], v[:, :, :-1]
    out, lse = kernels.plain_forward(q, k, v, causal, scale * 1.2 if fault == "scale 20 % off" else scale)
    if fault == "nan":
        out = out * torch.nan
    if fault.startswith("lse 0"):
        lse = lse + float(fault.split()[1])
    if fault == "lse in base 2":
        lse = lse * 1.4427
    if fault == "lse transposed":
        lse = lse.transpose(1, 2)
    if fault == "out 3 % off":
        out = out * 1.03
    if fault == "group members swapped":
        out = out.roll(1, 1)
    return out, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_that_is_wrong_is_not_used(
    use_only: Use, capsys: pytest.CaptureFixture[str], form: str, fault: str, dtype: torch.dtype
) -> None:
    """One tolerance for all let a log-sum-exp pass that was off by 0.6, and merging by it would be wrong."""
    use_only(fake(forward=functools.partial(spoil, fault), **FORMS[form]))
    assert kernels.why_not("fake", CPU, dtype, 64, False)
    assert "attention kernel fake is not used on cpu" in capsys.readouterr().err
    q, k = torch.randn(1, 4, 72, 64).to(dtype), torch.randn(1, 2, 72, 64).to(dtype)
    got, want = block_attention(q, k, k, causal=True)[0], kernels.plain_forward(q, k, k, True, 64**-0.5)[0]
    assert torch.equal(got, want)
    use_only(fake(**FORMS[form]))
    assert not kernels.why_not("fake", CPU, dtype, 64, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fault", ["lse 0.05 off", "scale 20 % off", "dk 5 % off", "dv of one head", "no delta"])
@pytest.mark.parametrize("form", FORMS)
def test_a_backward_that_is_wrong_is_not_used(
    use_only: Use, capsys: pytest.CaptureFixture[str], form: str, fault: str, dtype: torch.dtype
) -> None:
    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        lse = lse + 0.05 if fault.startswith("lse") else lse
        scale = scale * 1.2 if fault.startswith("scale") else scale
        out = out * 0 if fault == "no delta" else out
        dq, dk, dv = kernels.plain_backward(grad, q, k, v, out, lse, causal, scale)
        if fault == "dk 5 % off":
            dk = dk * 1.05
        if fault == "dv of one head":
            dv = dv[:, :1].expand_as(dv)
        return dq, dk, dv

    use_only(fake(backward=backward, **FORMS[form]))
    assert not kernels.why_not("fake", CPU, dtype, 64, False)
    assert kernels.why_not("fake", CPU, dtype, 64, True)
    assert "attention kernel fake backward is not used" in capsys.readouterr().err
    # Trained by neither of its halves; answers still come by its forward.
    q = torch.zeros(1, 4, 72, 64, dtype=dtype)
    assert [next(usable_kernels(q, 72, backward=both)).name for both in (False, True)] == ["fake", "plain"]


def test_forward_and_backward_of_training_are_one_kernel_s(use_only: Use) -> None:
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        called.append("forward")
        return kernels.plain_forward(*arguments)

    called: list[str] = []
    use_only(fake(forward=forward, backward=None))
    q = torch.randn(1, 4, 72, 64)
    block_attention(q, q, q, causal=True)
    assert called
    called.clear()
    out, _ = block_attention(q.clone().requires_grad_(), q, q, causal=True)
    out.sum().backward()
    assert not called


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("head_size", [8, 33, 64, 128])
def test_the_cpu_kernel_passes_its_check(dtype: torch.dtype, head_size: int) -> None:
    for backward in (False, True):
        assert not kernels.why_not("cpu", CPU, dtype, head_size, backward)


@pytest.mark.parametrize("kernel", ["FA3", "FA4"])
@pytest.mark.parametrize("fault", [None, "lse 0.05 off", "scale 20 % off", "backward"])
def test_an_activated_implementation_is_checked_and_deactivated_if_wrong(
    monkeypatch: pytest.MonkeyPatch, use_only: Use, capsys: pytest.CaptureFixture[str], kernel: str, fault: str | None
) -> None:
    """Its operators, given to the CPU, behind torch's own registry."""
    activated = []

    def forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float) -> tuple[Tensor, ...]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = spoil(fault or "", q, k, v, rest[5], scale)
        return out.transpose(1, 2), lse, *(torch.empty(0) for _ in range(3))

    def backward(*arguments: Any, scale: float) -> tuple[Tensor, ...]:
        grad, q, k, v, out = (x.transpose(1, 2) for x in arguments[:5])
        grads = kernels.plain_backward(grad, q, k, v, out, arguments[5], arguments[11], scale)
        return tuple(x.transpose(1, 2) * (0.9 if fault == "backward" else 1) for x in grads)

    class Handle:
        def __init__(self) -> None:
            self.library: Library | None = Library("aten", "IMPL")
            self.library.impl("_flash_attention_forward", forward, "CPU")
            self.library.impl("_flash_attention_backward", backward, "CPU")
            activated.append(kernel)

        def remove(self) -> None:
            self.library = None

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, kernel, Handle)
    use_only(dataclasses.replace(named(kernel), refuses=lambda *_: "", blocks=((16, 24, False), (16, 16, True))))
    q, k = torch.randn(1, 4, 20, 64), torch.randn(1, 2, 30, 64)
    try:
        for learnt in (q, q.clone().requires_grad_()):
            out, _ = block_attention(learnt, k, k, causal=False)
            torch.testing.assert_close(out.detach(), reference_attention(q, k, k, causal=False)[0])
        out.sum().backward()
        said = capsys.readouterr().err
        if fault is None:
            assert current_flash_attention_impl() == kernel and not said and activated == [kernel]
            assert kernel_names(CPU, torch.float32, 64) == kernel
        else:
            assert current_flash_attention_impl() is None
            assert f"attention kernel {kernel}" in said and "it is deactivated" in said
            assert kernel_names(CPU, torch.float32, 64) == "plain"
    finally:
        kernels._activate(None)


def test_what_is_not_installed_is_not_activated() -> None:
    for name in ("FA3", "FA4", "cudnn", "flash_attn"):
        assert kernels.why_not(name, CPU, torch.bfloat16, 64, False)
    assert current_flash_attention_impl() is None


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("queries", [1, 3, 16, 17])
def test_grouped_queries_as_rows_change_nothing(use_only: Use, queries: int, causal: bool) -> None:
    """Full blocks up to ``fold_most`` queries: the kernel sees a head a group, and nothing else changes."""
    seen: set[tuple[int, int]] = set()

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        seen.add((q.shape[1], q.shape[2]))
        return kernels.plain_forward(q, k, v, causal, scale)

    *qkv, grad = draw(8, (2, 14, queries, 32), (2, 2, 40, 32), (2, 2, 40, 32), (2, 14, queries, 32))
    qkv[0] = qkv[0].transpose(1, 2).contiguous().transpose(1, 2)
    use_only(fake(forward=forward, fold_most=16, bottom_right=True))
    assert not kernels.why_not("fake", CPU, torch.float32, 32, True)
    seen.clear()
    got, got_lse = block_attention(*qkv, causal=causal)
    want, want_lse = definition(*qkv, causal)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(got_lse.double(), want_lse, atol=1e-5, rtol=0)
    assert ((2, 7 * queries) in seen) == (queries <= 16)
    assert ((14, queries) in seen) == (queries > 16 or (causal and queries > 1))  # one query sees all keys
    ours, wide = [x.clone().requires_grad_() for x in qkv], [x.double().requires_grad_() for x in qkv]
    grads = torch.autograd.grad(block_attention(*ours, causal=causal)[0], ours, grad)
    for a, b in zip(grads, torch.autograd.grad(definition(*wide, causal)[0], wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=0)


def test_a_kernel_for_long_blocks_is_checked_and_used_on_those(use_only: Use) -> None:
    """One for 1,024 queries and more was checked on 1 and 16."""
    seen: list[int] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        seen.append(q.shape[2])
        return kernels.plain_forward(q, k, v, causal, scale)

    use_only(fake(forward=forward, **FORMS["long"]))
    for queries, name in ((63, "plain"), (64, "fake")):
        assert next(usable_kernels(torch.zeros(1, 2, queries, 16), 64)).name == name
    assert set(seen) == {64}
    cudnn = next(kernel for kernel in KERNELS if kernel.name == "cudnn")
    assert all(queries * keys >= cudnn.least_work for queries, keys, _ in cudnn.blocks)


def test_results_name_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_names(CPU, torch.float32, 16) == "cpu"
    monkeypatch.setattr(kernels, "KERNELS", KERNELS[-1:])
    assert kernel_names(CPU, torch.float32, 16) == "plain"


def test_a_good_kernel_passes_and_one_that_refuses_sizes_gives_way(use_only: Use) -> None:
    calls = []

    def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        calls.append(("forward", q.shape[2]))
        if q.shape[2] == 41:
            raise RefusedError("no plan")
        return kernels.plain_forward(q, k, v, causal, scale)

    def backward(grad: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(("backward", q.shape[2]))
        if q.shape[2] == 42:
            raise RefusedError("no plan")
        return kernels.plain_backward(grad, q, *rest)

    use_only(fake(forward=forward, backward=backward))
    assert not kernels.why_not("fake", CPU, torch.float32, 16, True)
    for length in (41, 42):
        q = torch.randn(1, 2, length, 16, requires_grad=True)
        out, _ = block_attention(q, q, q, causal=True)
        torch.testing.assert_close(out, reference_attention(q, q, q, causal=True)[0])
        want = torch.autograd.grad(reference_attention(q, q, q, causal=True)[0].sum(), q)[0]
        torch.testing.assert_close(torch.autograd.grad(out.sum(), q)[0], want, atol=1e-5, rtol=0)
    assert ("forward", 41) in calls and ("backward", 42) in calls


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
    length = 16384 if kernel == "cudnn" else 1536
    q, k, v = (torch.randn(1, heads, length, 128, device="cuda", dtype=dtype) for heads in (14, 2, 2))
    if why := named(kernel).refuses(q.device, dtype, 128):
        pytest.skip(f"{kernel}: {why}")
    assert not kernels.why_not(kernel, q.device, dtype, 128, True)
    want, want_lse = kernels.plain_forward(q.double(), k.double(), v.double(), True, 128**-0.5)
    with use_kernel(kernel):
        assert next(usable_kernels(q, length)).name == kernel
        out, lse = block_attention(q, k, v, causal=True)
    eps = torch.finfo(torch.float16 if dtype == torch.float32 else dtype).eps  # TF32 may be on
    assert (out - want).abs().max() <= 4 * eps and (lse - want_lse).abs().max() <= 4 * eps
