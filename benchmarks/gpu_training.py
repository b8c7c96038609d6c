"""A part of a GPU session: one step of the paper's text extension, at its length, on one device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from gpu_session import Run
from gpu_settings import Setting, begin, expected_rate, maker, matmul_rate, peak
from harness import qwen2_config, spent
from transformers import Qwen2ForCausalLM

from longva_model.attention import register
from longva_model.run import processes
from vniah.contract.cost import ModelShape
from vniah.training.activations import reduce_activations
from vniah.training.fit import build_optimizer
from vniah.training.losses import install_loss
from vniah.training.plan import GIB, RESERVE, Memory, longest_sequence, memory
from vniah.training.recipe import load_recipe
from vniah.training.stages import TextStage, Train

# A step with checkpointing is a forward, one more, and a backward of two; what is counted as the model's work is three.
_FORWARDS, _COUNTED = 4, 3
# The plan is within a quarter of what is measured, and a step that does not fit tells nothing.
_OF_MEMORY = 0.8
# Attention runs slower backward than forward: an assumption, for choosing what fits the time.
_SLOWER = 0.6


def extension_step(run: Run) -> None:
    """Tokens a second, the share of the device's rate, and peak memory against the plan.

    With weights, gradients and AdamW's moments in fp32, 7.6 billion parameters take more than one device has. So the
    decoder has as many of its layers as memory and time allow, at the recipe's length: what a layer costs is what it
    costs in the whole.
    """
    setting = begin(run)
    stage = next(one for one in load_recipe("text_extension_224k").stages if isinstance(one, TextStage))
    changed: dict[str, Any] = {"sharding": "none", "offload": False, "accumulation": 1, "steps": 1}
    changed |= {"checkpointing": "full", "tile_tokens": setting.train_tile}
    train = dataclasses.replace(stage.train, **changed)
    run.note(f"as {stage.name} of the recipe, but {', '.join(f'{key}={value}' for key, value in changed.items())}")
    device = torch.device(setting.device)
    capacity = processes.total_bytes(device) - (RESERVE if setting.cuda else 0)
    rate = _SLOWER * expected_rate(run, setting)
    if found := run.last("prefill", "prefill"):
        rate = _SLOWER * found["TFLOP/s"] * 1e12
    tokens, shape, plan = _fitting(setting, train, capacity, rate * max(1.0, run.left() - 15) * 0.7)
    parameters = shape.decoder_params + 2 * shape.vocab * shape.hidden
    whole = setting.shape.decoder_params + 2 * setting.shape.vocab * setting.shape.hidden
    run.put(
        "plan", **{
            "layers": setting.shape.layers, "longest sequence on one device": longest_sequence(
                setting.shape, train, gpus=1, capacity=capacity, trained=whole
            ),
            "weights, gradients and optimizer GiB": whole * 16 / GIB, "device GiB": capacity / GIB,
        }
    )  # fmt: skip
    register()
    torch.manual_seed(0)
    config = qwen2_config(shape, tokens=tokens, rope_theta=stage.rope_theta, tie_word_embeddings=False)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).train()
    model.set_attn_implementation("longva_ring")
    install_loss(model, ring=1)
    reduce_activations(model, train)
    optimizer = build_optimizer(model, train)

    def step(length: int) -> float:
        ids_1T = torch.randint(0, shape.vocab, (1, length), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = model(input_ids=ids_1T, labels=ids_1T)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    step(min(tokens, 4 * setting.train_tile) // 2)  # compiles and plans; AdamW makes its moments
    peak(setting, anew=True)
    loss, took = spent(lambda: step(tokens))
    flops = _COUNTED * (shape.forward_flops(tokens) + shape.logits_flops(tokens))
    gpu = maker(torch.cuda.get_device_name(0)) if setting.cuda else None
    run.put(
        "one step", **{
            "layers": shape.layers, "tokens": tokens, "parameters": parameters, "s": took.wall,
            "estimate s": flops / _COUNTED * _FORWARDS / rate, "tokens/s": tokens / took.wall,
            "model TFLOP/s": flops / took.wall / 1e12, "of matmul": flops / took.wall / matmul_rate(run, setting),
            "of the maker's rate (MFU)": gpu and flops / took.wall / (gpu.tflops * 1e12),
            "peak GB": peak(setting), "planned GB": plan.peak / 1e9, "loss": loss,
        }
    )  # fmt: skip


def _fitting(setting: Setting, train: Train, capacity: int, flops: float) -> tuple[int, ModelShape, Memory]:
    """Tokens and layers of a step that fits the memory and so many FLOPs: the recipe's length, and layers first.

    Raises:
        ValueError: not even a layer fits.
    """
    tokens = setting.train_tokens
    while tokens >= 64:
        for layers in range(setting.shape.layers, 0, -1):
            shape = dataclasses.replace(setting.shape, layers=layers)
            trained = shape.decoder_params + 2 * shape.vocab * shape.hidden
            plan = memory(shape, train, tokens=tokens, gpus=1, trained=trained)
            work = _FORWARDS * shape.forward_flops(tokens) + _COUNTED * shape.logits_flops(tokens)
            if plan.peak <= _OF_MEMORY * capacity and work <= flops:
                return tokens, shape, plan
        tokens //= 2
    raise ValueError(f"no layer of {setting.shape} fits {capacity / GIB:.0f} GiB and {flops / 1e15:.2g} PFLOP")
