"""What the engine's benchmarks share: a random decoder of any shape as a backend, clocks, and memory peaks."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from transformers import AutoModelForCausalLM, Qwen2Config

from longva_model.attention import register
from longva_model.backends.backend import Backend
from vniah.contract.cost import ModelShape
from vniah.contract.sources import HeldFrames
from vniah.prompts import PLAIN


class LetterTokenizer:
    """One token a character: no files needed."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % 255 for letter in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(33 + int(token) % 90) for token in ids)


class RandomBackend(Backend):
    """A Qwen2 decoder of ``shape`` with random weights; a frame is ``tokens_per_frame`` random vectors."""

    template = PLAIN
    eos_ids: tuple[int, ...] = ()
    max_length = 0
    train_tokens: int | None = None

    def __init__(
        self, shape: ModelShape, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        register()
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=1_000_000,
            rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        )
        self.name = self.fingerprint = f"random-{shape}"
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(
                config, attn_implementation="longva_blockwise", dtype=dtype, trust_remote_code=False
            )
        self.model.eval().requires_grad_(False)
        if dtype == torch.float32:
            # Larger than initial weights, so that attention is sharp and answers have gaps.
            for parameter in self.model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(3)
        self.decoder, self.lm_head = self.model.model, self.model.lm_head
        self.tokenizer = LetterTokenizer()
        self.tokens_per_frame = shape.tokens_per_frame

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames_NHWC[:, 0, 0, 0]).copy())

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        frames = []
        for value in pixels_NHWC.tolist():
            generator = torch.Generator().manual_seed(int(value))
            size = (self.tokens_per_frame, self.decoder.config.hidden_size)
            frames.append(torch.randn(size, generator=generator))
        return torch.stack(frames).to(self.dtype)

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        return self.encode_pixels(self.pixels(np.asarray(image)[None], "pad"))[0]

    def image_tokens(self, size: tuple[int, int]) -> int:
        return self.tokens_per_frame


def numbered_frames(count: int) -> HeldFrames:
    """Frames of one pixel that holds their number."""
    return HeldFrames(np.arange(count).astype(np.uint8)[:, None, None, None].repeat(3, axis=3), "numbered")


@dataclass(slots=True)
class Spent:
    """Seconds by the clock on the wall, and of CPU in all threads of this process."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def clock(spent: Spent) -> Iterator[None]:
    """Add what the block takes to ``spent``; waits for a CUDA device on both sides."""
    _wait()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    _wait()
    spent.wall += time.perf_counter() - wall
    spent.cpu += _cpu_seconds() - cpu


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes(*, anew: bool = False) -> int:
    """The most memory that was resident in this process; ``anew``: what is now, from which a new peak begins."""
    if anew:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    return 0


def in_a_process(work: Callable[[], Any]) -> Any:
    """What ``work`` returns (as JSON), run in a fork of this process, so that memory and clocks are its own.

    Raises:
        RuntimeError: it failed; its error is printed.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
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
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a part of the benchmark failed, see above")
    return json.loads(told)
