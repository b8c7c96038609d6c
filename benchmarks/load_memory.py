"""Peak host memory of loading a sharded checkpoint of the released layout.

    python benchmarks/load_memory.py --gigabytes 4 --shard-gigabytes 1

Writes a synthetic LongVA checkpoint (random weights, Qwen2-shaped, the true tower) into a temporary folder, loads
it in a fresh process, and compares the growth of that process's peak resident memory, mapped files included, with
the model's own size and the largest shard. The claim: growth <= model + 1.3 x largest shard.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import json, sys
import torch
from longva_model import LongVAForConditionalGeneration

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

device = None if sys.argv[3] == "cpu" else sys.argv[3]
LongVAForConditionalGeneration.from_pretrained(sys.argv[4], device_map=device)  # what importing and warming up costs
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
dtype = getattr(torch, sys.argv[2])
model = LongVAForConditionalGeneration.from_pretrained(sys.argv[1], dtype=dtype, device_map=device)
for p in model.parameters():
    p.detach().view(-1)[::512].sum()  # touches every page, should any be mapped only
size = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu")
print(json.dumps({"growth": status("VmHWM") - before, "model": size}))
"""


def write_checkpoint(folder: Path, gigabytes: float, shard_gigabytes: float) -> int:
    """Write a random checkpoint of the released layout in bf16 and return its largest shard in bytes.

    One shard is made at a time, so that writing needs no more memory than loading.
    """
    import torch
    from safetensors.torch import save_file

    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from longva_model.checkpoints.layouts import to_released_key, write_config

    vision = (
        None
        if gigabytes > 1
        else {
            "num_hidden_layers": 2,
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
        }
    )
    width = 2048 if gigabytes > 1 else 256
    text = {
        "model_type": "qwen2",
        "vocab_size": 32_000 if gigabytes > 1 else 1000,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_hidden_layers": 1,
    }
    per_layer = 2 * (12 * width**2 + 2 * width * width * 4 // 16 + 2 * width**2)
    text["num_hidden_layers"] = max(1, int(gigabytes * 2**30 / per_layer)) if gigabytes > 0 else 1
    config = LongVAConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LongVAForConditionalGeneration(config).state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write_config(config)))
    tower = folder / "vision_tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(config.vision_config.to_dict()))
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size and size + 2 * shape.numel() > shard_gigabytes * 2**30:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * shape.numel()
    largest = 0
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            to_released_key(name): torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        largest = max(largest, (folder / file).stat().st_size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return largest


def main() -> None:
    """Measure, print, and exit 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shard-gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        largest = write_checkpoint(root / "model", args.gigabytes, args.shard_gigabytes)
        write_checkpoint(root / "tiny", 0, 1)
        command = [sys.executable, "-c", _CHILD, str(root / "model"), args.dtype, args.device, str(root / "tiny")]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seen = json.loads(child.stdout.strip().splitlines()[-1])
    allowed = seen["model"] + 1.3 * largest
    gib = 2**30
    print(
        f"peak grew by {seen['growth'] / gib:.2f} GiB; model on the host {seen['model'] / gib:.2f} GiB, largest shard "
        f"{largest / gib:.2f} GiB, allowed {allowed / gib:.2f} GiB: ratio {seen['growth'] / allowed:.2f}"
    )
    sys.exit(seen["growth"] > allowed)


if __name__ == "__main__":
    main()
