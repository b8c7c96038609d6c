"""What the benchmarks share: options, clocks, memory peaks, processes, tables, and a random decoder as a backend."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from vniah.contract.cost import ModelShape


def options(doc: str | None, several: str = "", **defaults: Any) -> Any:
    """Options of the command line, of their defaults' types; a tuple is a choice, of which the first is the default.

    Args:
        several: name of the arguments without a flag, if any.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if several:
        parser.add_argument(several, nargs="*")
    for name, default in defaults.items():
        how: dict[str, Any] = {"type": type(default), "default": default, "help": f"default {default}"}
        if default is False:
            how = {"action": "store_true"}
        elif isinstance(default, tuple):
            how = {"choices": default, "default": default[0]}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    return parser.parse_args()


def table(rows: Iterable[Mapping[str, str]]) -> None:
    """Print rows of equal keys: the first column on the left of its place, the others on the right."""
    lines = list(rows)
    lines = [dict(zip(lines[0], lines[0], strict=True)), *lines]
    widths = {key: max(len(line[key]) for line in lines) for key in lines[0]}
    for line in lines:
        first, *others = line
        cells = [line[first].ljust(widths[first]), *(line[key].rjust(widths[key]) for key in others)]
        print("  ".join(cells), flush=True)


class Spent(NamedTuple):
    """What a piece of work took: seconds by the clock on the wall, CPU seconds of all threads, resident memory."""

    wall: float
    cpu: float
    peak_bytes: int


def spent(work: Callable[[], Any], *, memory: bool = False) -> tuple[Any, Spent]:
    """What ``work`` returns, and what it took, a CUDA device's part included; by how much memory grew if asked."""
    before = peak_bytes(anew=True) if memory else 0
    _wait()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    _wait()
    took = time.perf_counter() - wall, time.process_time() - cpu
    return result, Spent(*took, peak_bytes() - before if memory else 0)


def _wait() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(*, anew: bool = False) -> int:
    """The most memory that was resident in this process; ``anew``: what is now, from which a new peak begins."""
    with suppress(OSError):
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return 0


def in_processes(*works: Callable[[], Any]) -> list[Any]:
    """What each of ``works`` returns (as JSON), all run at once in forks of this process, with memory of their own.

    Raises:
        RuntimeError: one failed; its error is printed.
    """
    sys.stdout.flush()
    children = []
    for work in works:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(reader)
                with os.fdopen(writer, "w") as pipe:
                    json.dump(work(), pipe)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(writer)
        children.append((child, reader))
    told = [os.fdopen(reader).read() for _, reader in children]
    if sum(os.waitpid(child, 0)[1] for child, _ in children):
        raise RuntimeError("a part of the benchmark failed, see above")
    return [json.loads(text) for text in told]


class LetterTokenizer:
    """One token a character: no files needed."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % 255 for letter in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(33 + int(token) % 90) for token in ids)


def qwen2_config(shape: ModelShape, *, tokens: int, rope_theta: float, **more: Any) -> Any:
    """transformers' config of a Qwen2 decoder of a shape, for so many positions."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=tokens,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        **more,
    )


def random_backend(shape: ModelShape, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A Qwen2 decoder of ``shape`` with random weights; a frame is ``tokens_per_frame`` random vectors."""
    import torch
    from transformers import AutoModelForCausalLM

    from longva_model.attention import register
    from longva_model.backends.backend import Backend
    from vniah.prompts import PLAIN

    class RandomBackend(Backend):
        template, tokenizer, eos_ids, max_length, train_tokens = PLAIN, LetterTokenizer(), (), 0, None
        name = fingerprint = f"random-{shape}"
        tokens_per_frame = shape.tokens_per_frame

        def pixels(self, frames_NHWC: Any, preprocess: str) -> torch.Tensor:
            return torch.tensor(frames_NHWC[:, 0, 0, 0].tolist())

        def encode_pixels(self, pixels_N: torch.Tensor) -> torch.Tensor:
            size = (self.tokens_per_frame, shape.hidden)
            draw = (torch.Generator(self.device).manual_seed(int(value)) for value in pixels_N.tolist())
            drawn = [torch.randn(size, generator=generator, device=self.device) for generator in draw]
            return torch.stack(drawn).to(self.dtype)

    register()
    torch.manual_seed(0)
    config = qwen2_config(shape, tokens=1_000_000, rope_theta=1e9)
    backend: Any = RandomBackend()
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="longva_blockwise", dtype=dtype, trust_remote_code=False
        )
    backend.model = model.eval().requires_grad_(False)
    if model.dtype == torch.float32:
        # Larger than initial weights, so that attention is sharp and answers have gaps.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    backend.decoder, backend.lm_head = model.model, model.lm_head
    return backend
