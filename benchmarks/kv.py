"""Keys and values on the device, in blocks, in the host's memory and in 8 bits: ``python benchmarks/kv.py``.

    python benchmarks/kv.py --device cuda --layers 28 --length 432000 --chunk 8192 --block 16384

A random decoder with LongVA-7B's heads (28 over 4, 128 each) computes one prompt in chunks, each way in this run:
seconds (of CPU, without a GPU) of the whole prompt, of its last chunk and of one token behind it, as a ratio to
``device``; what is kept; and how far the last hidden state is from that of ``device``, relative to its norm. From the
host's memory a chunk comes for nothing as long as its attention takes longer than the past's way over the bus, and a
single token costs that way. On the CPU the way is a copy in memory, beside which nothing runs. About two minutes of one
core.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from harness import options, random_backend, spent, table

from longva_model.engine.chunks import Chunk
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.contract.cost import ModelShape

WAYS = (("device", False), ("device", True), ("host", True), ("fp8", True))


def chunk_of(ids_T: torch.Tensor, start: int, stop: int) -> Chunk:
    return Chunk(
        ids_T=ids_T[start:stop],
        positions=torch.arange(start, stop, device=ids_T.device),
        start=start,
        visual_T=torch.zeros(stop - start, dtype=torch.bool, device=ids_T.device),
        features_kVD=None,
        types_S=torch.zeros(stop, dtype=torch.uint8, device=ids_T.device),
    )


@torch.inference_mode()
def measure(engine: TreeEngine, ids_T: torch.Tensor, chunk: int, kv: str, block: int | None) -> dict[str, Any]:
    """Seconds of a prompt, of its last chunk and of one token behind it; bytes kept; the last hidden state."""
    length = len(ids_T) - 1
    state = engine.state = engine.backend.new_state(length + 1, kv=kv, kv_block=block)
    whole = last = token = 0.0
    hidden = None
    for start, stop in itertools.pairwise([*range(0, length, chunk), length, length + 1]):
        hidden, took = spent(lambda start=start, stop=stop: engine.hidden(chunk_of(ids_T, start, stop), 1))
        seconds = took.wall if ids_T.is_cuda else took.cpu
        if stop > length:
            token = seconds
        else:
            whole, last = whole + seconds, seconds
    engine.state = None
    return {"whole": whole, "last": last, "token": token, "bytes": state.num_bytes, "hidden": hidden}


def main() -> None:
    asked = options(
        __doc__, device="cpu", length=4096, chunk=512, block=1024, layers=2, hidden=512, heads=28, kv_heads=4,
        head_dim=128, rounds=2,
    )  # fmt: skip
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
    shape = ModelShape(
        layers=asked.layers, hidden=asked.hidden, intermediate=4 * asked.hidden, heads=asked.heads,
        kv_heads=asked.kv_heads, head_dim=asked.head_dim, vocab=512, kv_bytes=dtype.itemsize,
    )  # fmt: skip
    backend = random_backend(shape, device=asked.device, dtype=dtype)
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=asked.chunk))
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(0, 512, (asked.length + 1,), generator=generator).to(asked.device)
    print(f"{asked.length:,} tokens in chunks of {asked.chunk:,}, {shape.layers} layers, {dtype}, on {asked.device}")
    best: dict[tuple[str, bool], dict[str, Any]] = {}
    for _ in range(asked.rounds):
        for kv, blocks in WAYS:
            found = measure(engine, ids_T, asked.chunk, kv, asked.block if blocks else None)
            before = best.setdefault((kv, blocks), found)
            for part in ("whole", "last", "token"):
                before[part] = min(before[part], found[part])
    plain, rows = best["device", False], []
    for (kv, blocks), found in best.items():
        off = (found["hidden"] - plain["hidden"]).float().norm() / plain["hidden"].float().norm()
        rows.append({"kv": f"{kv}, blocks of {asked.block:,}" if blocks else kv})
        for part, what in (("whole", "prompt"), ("last", "last chunk"), ("token", "a token")):
            rows[-1][what] = f"{found[part]:.3g} s"
            rows[-1][f"{what}, ratio"] = f"{found[part] / plain[part]:.2f}"
        rows[-1] |= {"kept": f"{found['bytes'] / 1e6:.1f} MB", "off": f"{float(off):.1e}"}
    table(rows)
    same = torch.equal(best["device", True]["hidden"], best["host", True]["hidden"])
    print(f"in the host's memory the bits of the device in blocks: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
