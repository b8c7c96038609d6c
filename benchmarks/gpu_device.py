"""Parts of a GPU session that need no decoder: the device itself, its attention kernels, the vision tower."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import torch
from attention import kernel_rates, qwen2_7b
from gpu_session import Run
from gpu_settings import Setting, begin, matmul_rate, peak, seconds

from longva_model import LongVAConfig, LongVAForConditionalGeneration
from longva_model.attention.blockwise import kernel_names
from longva_model.pictures.levels import levels_to_pixels
from longva_model.pictures.preprocess import level_table
from vniah.runs.grid import Grid

_PACKAGES = ("transformers", "flash-attn", "flash-attn-4", "kernels", "liger-kernel")


def device(run: Run) -> None:
    """Name and versions; rates of a matrix product, of copies, and of the device's memory."""
    setting = begin(run)
    run.put("device", **_described(setting))
    run.put("rates", what="matrix product", value=matmul_rate(run, setting) / 1e12, unit="TFLOP/s")
    there = torch.empty(setting.copied_bytes, dtype=torch.uint8, device=setting.device)
    here = torch.empty_like(there)
    run.put("rates", what="memory, read and written", value=2 * _gb_a_second(there, here), unit="GB/s")
    for what, pinned in (("from the host", False), ("from the host, pinned", True)):
        host = torch.empty(setting.copied_bytes, dtype=torch.uint8, pin_memory=pinned and setting.cuda)
        run.put("rates", what=what, value=_gb_a_second(host, there), unit="GB/s")


def _gb_a_second(source: torch.Tensor, target: torch.Tensor) -> float:
    target.copy_(source)
    return source.nbytes / seconds(lambda: target.copy_(source), 3) / 1e9


def _described(setting: Setting) -> dict[str, Any]:
    told: dict[str, Any] = {"device": f"CPU, {torch.get_num_threads()} thread(s)"}
    if setting.cuda:
        properties = torch.cuda.get_device_properties(0)
        several = f"{torch.cuda.device_count()} x " if torch.cuda.device_count() > 1 else ""
        told = {
            "device": f"{several}{properties.name}, {properties.total_memory / 1e9:.0f} GB",
            "compute capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "CUDA": torch.version.cuda,
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    told |= {"torch": torch.__version__, "type": str(setting.dtype).removeprefix("torch.")}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            told[name] = importlib.metadata.version(name)
    told["attention"] = kernel_names(torch.device(setting.device), setting.dtype, setting.shape.head_dim)
    return told


def _driver() -> str | None:
    if not (tool := shutil.which("nvidia-smi")):
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.split()
        return lines[0] if lines else None
    return None


def tower(run: Run) -> None:
    """Frames a second from 8-bit pixels on the CPU to pooled tokens on the CPU, as the pipeline moves them."""
    setting = begin(run)
    # The decoder plays no part: one small layer, of the right width.
    text = {"hidden_size": setting.shape.hidden, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 128}
    heads = {"num_attention_heads": setting.shape.heads, "num_key_value_heads": setting.shape.kv_heads}
    vision = setting.vision and {"model_type": "clip_vision_model", "patch_size": 14, **setting.vision}
    config = LongVAConfig(text_config={"model_type": "qwen2", **text, **heads}, vision_config=vision)
    with torch.device(setting.device):
        model = LongVAForConditionalGeneration._from_config(config, dtype=setting.dtype).eval()
    edge, frames = config.layout.tile_size, setting.tower_frames
    pixels_NHWC = torch.randint(0, 256, (frames, edge, edge, 3), dtype=torch.uint8)
    tower_config, patches = config.vision_config, (edge // 14) ** 2
    width, tokens = tower_config.hidden_size, patches + 1
    layers = tower_config.num_hidden_layers - 1  # the last one's output is not read
    weights = layers * (4 * width**2 + 2 * width * tower_config.intermediate_size)
    flops = 2 * weights * tokens + 4 * layers * width * tokens**2
    rate, grid_frames = matmul_rate(run, setting), Grid.parse(setting.frames, "0-100:20").longest
    with torch.inference_mode():
        for batch in (16, 32, 64):
            model.model.vision_batch_size = batch

            def encode(batch: int = batch) -> None:
                for start in range(0, frames, batch):
                    levels = pixels_NHWC[start : start + batch].to(setting.device)
                    model.encode_frames(levels_to_pixels(levels, level_table()).to(setting.dtype)).cpu()

            peak(setting, anew=True)
            encode()
            a_second = frames / seconds(encode, 2)
            speed = flops * a_second
            run.put(
                "tower", **{
                    "frames at once": batch, "frames/s": a_second, "estimate frames/s": rate / 2 / flops,
                    "TFLOP/s": speed / 1e12, "of matmul": speed / rate, "peak GB": peak(setting),
                    f"s for {grid_frames:,} frames": grid_frames / a_second,
                }
            )  # fmt: skip


def kernel_table(run: Run) -> None:
    """Seconds and TFLOP/s of each attention kernel by shape, what it is off, and which were turned away, and why."""
    setting = begin(run)
    rate, turned_away = matmul_rate(run, setting), set()
    for sizes in setting.blocks:
        (shape,) = qwen2_7b([sizes])
        # The slowest that is measured, warmed up and repeated.
        if not run.has(1 + 10 * shape.flop(backward=False) / rate, f"attention of {shape}"):
            return
        # Squares are what training has.
        for row in kernel_rates(setting.device, setting.dtype, [shape], backward=shape.causal):
            why = (row["name"], row["direction"], row["dropped"])
            if not row["dropped"]:
                run.put(
                    "attention", **{
                        "queries": row["queries"], "keys": row["keys"], "causal": row["causal"], "kernel": row["name"],
                        "direction": row["direction"], "ms": row["seconds"] * 1e3, "TFLOP/s": row["tflops"],
                        "of matmul": row["tflops"] * 1e12 / rate, "output off": row["out_error"],
                        "log-sum-exp off": row["lse_error"],
                    }
                )  # fmt: skip
            elif why not in turned_away:
                turned_away.add(why)
                run.put("not used", kernel=row["name"], direction=row["direction"], why=row["dropped"])
