"""What the parts of a GPU session measure, and what they share: sizes, clocks, memory, estimates."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from harness import peak_bytes, spent

from vniah.contract.cost import SHAPES, ModelShape
from vniah.runs.plan import GPUS, UTILISATION, Gpu

if TYPE_CHECKING:
    from gpu_session import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured: the paper's by default.

    Attributes:
        frames: of the whole grid, whose time is computed.
        marks: tokens at which the prefill is read off; the last is the grid's longest cell.
        chunk: tokens of one forward.
        blocks: of attention, (queries, keys, causal): an answer's token, a question, chunks behind a past, squares.
        slice_lengths: tokens of the shorter forwards whose times are taken behind some pasts.
        tree_frames, tree_depths: the grid that is run both ways.
        probe: tokens of the forward that the longest contexts are tried with.
        kv_block: rows of a block of keys and values that are not on the device whole; None is what the engine has.
        most_tokens: of the longest contexts; 0 for what the memory gives.
        ring_tokens: of the prefill by a ring.
        model_frames, model_depths, model_size: the grid of ``hf_tree``.
        train_tokens, train_tile: of one sequence of the training step, and of a tile of its MLPs.
    """

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    shape: ModelShape = SHAPES["LongVA-7B"]
    vision: dict[str, int] | None = None
    frames: str = "200-3000:200"
    marks: tuple[int, ...] = (50_000, 200_000, 432_000)
    chunk: int = 8192
    tower_frames: int = 512
    square: int = 8192
    copied_bytes: int = 1 << 30
    blocks: tuple[tuple[int, int, bool], ...] = (
        (1, 432_000, False), (64, 432_000, False), (8192, 8192, True), (8192, 50_000, False), (8192, 200_000, False),
        (8192, 432_000, False), (28_672, 28_672, True),
    )  # fmt: skip
    slice_lengths: tuple[int, ...] = (16, 64, 512, 2048)
    tree_frames: str = "100-400:100"
    tree_depths: str = "0-100:50"
    probe: int = 1024
    kv_block: int | None = None
    most_tokens: int = 0
    ring_tokens: int = 200_000
    model_frames: str = "256-768:256"
    model_depths: str = "0-100:50"
    model_size: str = "640x360"
    train_tokens: int = 224_000
    train_tile: int = 8192

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


PAPER = Setting()
_TINY = {"layers": 2, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32, "vocab": 512}
_TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = Setting(
    device="cpu",
    dtype=torch.float32,
    shape=ModelShape(**_TINY, tokens_per_frame=4, kv_bytes=4),
    vision={**_TINY_VISION, "image_size": 56},
    frames="20-300:20",
    marks=(200, 800, 1200),
    chunk=256,
    tower_frames=32,
    square=256,
    copied_bytes=1 << 20,
    blocks=((1, 256, False), (64, 64, True)),
    slice_lengths=(8, 64),
    tree_frames="20-60:20",
    probe=64,
    kv_block=128,
    most_tokens=2048,
    ring_tokens=800,
    model_frames="4-8:4",
    model_size="64x64",
    train_tokens=256,
    train_tile=64,
)


def begin(run: Run) -> Setting:
    """A part's sizes; to be called first, in its own process."""
    torch.set_num_threads(run.threads)
    return SMALL if run.small else PAPER


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call, the device's work included; the fastest of some."""
    return min(spent(work)[1].wall for _ in range(repeats))


def peak(setting: Setting, *, anew: bool = False) -> float:
    """GB (10**9 bytes): the most that tensors took of the device, of the host where that is the device.

    ``anew``: what they take now, from which a new peak begins.
    """
    if not setting.cuda:
        return peak_bytes(anew=anew) / 1e9
    if anew:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 1e9


def maker(name: str) -> Gpu | None:
    """What its maker says of a device, by torch's name of it ("NVIDIA H100 80GB HBM3")."""
    beginnings = {re.sub(r"-\d+GB$", "", one).replace("-", " "): gpu for one, gpu in GPUS.items()}
    return next((gpu for beginning, gpu in beginnings.items() if re.search(rf"\b{beginning}\b", name)), None)


def matmul_rate(run: Run, setting: Setting) -> float:
    """FLOP/s of a large matrix product, kept up: what the device gives rather than what its maker states."""
    if found := run.last("device", "rates", what="matrix product"):
        return float(found["value"]) * 1e12
    a = torch.randn(setting.square, setting.square, device=setting.device, dtype=setting.dtype)
    b, a_b = torch.randn_like(a), torch.empty_like(a)
    once = seconds(lambda: torch.matmul(a, b), 3)
    # For a second: a device that was idle is faster at first than it can stay.
    times = max(3, int((1.0 if setting.cuda else 0.02) / once))
    return times * 2 * setting.square**3 / seconds(lambda: [torch.matmul(a, b, out=a_b) for _ in range(times)])


def expected_rate(run: Run, setting: Setting) -> float:
    """FLOP/s of long forwards as estimated before they are run: as ``vniah plan`` does, a share of the maker's figure,
    and for a device that it does not know the same share of the measured matrix product."""
    gpu = maker(torch.cuda.get_device_name(0)) if setting.cuda else None
    return UTILISATION * (gpu.tflops * 1e12 if gpu else matmul_rate(run, setting))
