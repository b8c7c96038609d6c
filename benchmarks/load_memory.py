"""Peak host memory of loading a sharded checkpoint of the released layout.

    python benchmarks/load_memory.py --gigabytes 4 --shard-gigabytes 1

Writes a synthetic LongVA checkpoint (random weights, Qwen2-shaped, the true tower) into a temporary folder, loads it
in a process of its own, and compares the growth of that process's peak resident memory, mapped files included, with
the model's own size and the largest shard. The claim: growth <= model + 1.3 x largest shard; exits 1 where it fails.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import in_processes, options, spent


def write_checkpoint(folder: Path, gigabytes: float, shard_gigabytes: float) -> int:
    """Write a random checkpoint of the released layout in bf16 and return its largest shard in bytes.

    One shard is made at a time, so that writing needs no more memory than loading.
    """
    import torch
    from safetensors.torch import save_file

    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from longva_model.checkpoints.layouts import to_released_key, write_config

    large = gigabytes > 1
    width = 2048 if large else 256
    per_layer = 2 * (12 * width**2 + 2 * width * width * 4 // 16 + 2 * width**2)
    layers = max(1, int(gigabytes * 2**30 / per_layer))
    text = {"model_type": "qwen2", "vocab_size": 32_000 if large else 1000, "num_hidden_layers": layers}
    text |= {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 16, "num_key_value_heads": 4}
    tower = {"num_hidden_layers": 2, "image_size": 336, "patch_size": 14, "hidden_size": 64, "intermediate_size": 128}
    config = LongVAConfig(text_config=text, vision_config=None if large else {**tower, "num_attention_heads": 4})
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LongVAForConditionalGeneration(config).state_dict().items()}
    (folder / "vision_tower").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write_config(config)))
    (folder / "vision_tower" / "config.json").write_text(json.dumps(config.vision_config.to_dict()))
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size and size + 2 * shape.numel() > shard_gigabytes * 2**30:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * shape.numel()
    weight_map: dict[str, str] = {}
    draw = torch.Generator().manual_seed(0)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {to_released_key(name): torch.empty(shapes[name], dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            tensor.normal_(0, 0.02, generator=draw)
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return max((folder / file).stat().st_size for file in weight_map.values())


def load(folder: Path, tiny: Path, given: Any) -> tuple[int, int]:
    """Bytes by which loading grew this process at most, and of the model on the host."""
    import torch

    from longva_model import LongVAForConditionalGeneration

    device = None if given.device == "cpu" else given.device
    # What importing and warming up costs.
    LongVAForConditionalGeneration.from_pretrained(tiny, trust_remote_code=False, device_map=device)

    def read() -> Any:
        model = LongVAForConditionalGeneration.from_pretrained(
            folder, trust_remote_code=False, dtype=getattr(torch, given.dtype), device_map=device
        )
        for parameter in model.parameters():
            parameter.detach().view(-1)[::512].sum()  # touches every page, should any be mapped only
        return model

    model, took = spent(read, memory=True)
    return took.peak_bytes, sum(x.nbytes for x in model.parameters() if x.device.type == "cpu")


def main(given: Any) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (largest,) = in_processes(lambda: write_checkpoint(root / "model", given.gigabytes, given.shard_gigabytes))
        in_processes(lambda: write_checkpoint(root / "tiny", 0, 1))
        ((growth, size),) = in_processes(functools.partial(load, root / "model", root / "tiny", given))
    allowed = size + 1.3 * largest
    gib = 2**30
    print(f"peak grew by {growth / gib:.2f} GiB; model on the host {size / gib:.2f} GiB, largest shard ", end="")
    print(f"{largest / gib:.2f} GiB, allowed {allowed / gib:.2f} GiB: ratio {growth / allowed:.2f}")
    sys.exit(growth > allowed)


if __name__ == "__main__":
    main(options(__doc__, gigabytes=4.0, shard_gigabytes=1.0, dtype="bfloat16", device="cpu"))
