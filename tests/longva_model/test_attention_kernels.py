"""Kernels: the self-check turns bad ones away, and the CUDA ones call operators that exist with what they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from longva_model.attention import block_attention, kernels, reference_attention, use_kernel
from longva_model.attention.blockwise import kernel_names
from longva_model.attention.kernels import KERNELS, Kernel, RefusedError
from vniah.notices import forget

CPU = torch.device("cpu")


def use_only(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    """Put ``kernel`` before the plain one and forget earlier verdicts."""
    monkeypatch.setattr(kernels, "KERNELS", (kernel, KERNELS[-1]))
    monkeypatch.setattr(kernels, "works", kernels.works.__wrapped__)


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
