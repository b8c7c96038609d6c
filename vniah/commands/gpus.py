"""Named accelerators for the plan: what their makers state, dense, and how much of it to expect."""

from __future__ import annotations

from dataclasses import dataclass

from vniah.notices import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """``tflops`` is the maker's dense bf16 figure; ``memory_gb`` counts 10**9 bytes."""

    name: str
    tflops: float
    memory_gb: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100-40GB", tflops=312, memory_gb=40),
        Gpu(name="A100-80GB", tflops=312, memory_gb=80),
        Gpu(name="L40S", tflops=362, memory_gb=48),
        Gpu(name="RTX-4090", tflops=165, memory_gb=24),
        Gpu(name="H100-80GB", tflops=989, memory_gb=80),
        Gpu(name="H200-141GB", tflops=989, memory_gb=141),
        Gpu(name="B200-180GB", tflops=2250, memory_gb=180),
    )
}
# The share of the maker's figure that long prefills reach; an assumption of the plan, printed with it.
UTILISATION = 0.5


def get_gpu(name: str) -> Gpu:
    """Look a GPU up, by its name or by a beginning of it that fits one alone ("H100"), whatever the letters' case.

    Raises:
        ValueError: no GPU, or several; names them.
    """
    wanted = name.casefold()
    fitting = [one for one in GPUS if one.casefold() == wanted] or [
        one for one in GPUS if one.casefold().startswith(f"{wanted}-")
    ]
    if len(fitting) > 1:
        raise ValueError(f"the GPU {name!r} comes in {' and '.join(fitting)}; say which")
    if not fitting:
        raise ValueError(
            f"no figures for the GPU {name!r}; expected one of {', '.join(GPUS)}{did_you_mean(name, GPUS)}"
        )
    return GPUS[fitting[0]]
