"""Keys and values in blocks of rows: on the device, in the host's memory, or in 8 bits.

``kv``    where and how                                                       equals
device    one tensor a layer and side, whole rows at hand                     the definition
host      pinned host memory, brought to the device block by block            device with blocks, to the bit
fp8       on the device as float8_e4m3, with a scale a row and head           an approximation

Rows 0 to ``kv_block`` are the first block, whatever chunks brought them, and so on: where sums are cut depends on what
is behind the new tokens and on nothing else. So ``host`` gives the bits of ``device`` with the same ``kv_block``, and
those of ``device`` without one up to the rounding of sums.

In ``fp8`` a scale belongs to one row of one head, not to a block of rows: a row's 8 bits then depend on that row
alone, so a rewind finds them as they were, whatever branch was there in between. New tokens see each other's keys as
they are kept, too, so that chunks change nothing but the rounding of sums. It costs 4 bytes for the D of a row.

Shapes: B batch, K key/value heads, N rows of a whole block, n of a part of it, T new tokens, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longva_model.run import processes
from vniah.contract.cost import KV_BLOCK, KV_FORMS, ModelShape

_FP8 = torch.float8_e4m3fn
_FP8_MOST = torch.finfo(_FP8).max


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., D) in 8 bits and the scale of each, (..., 1) in fp32; what is not finite stays so."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / _FP8_MOST
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale).to(_FP8), scale


def from_fp8(rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (..., D) again."""
    return (rows.float() * scale).to(dtype)


# Tensors of a block, and how many of their first rows are meant.
_Span = tuple[Sequence[Tensor], int]


@dataclass(frozen=True, slots=True)
class _Slot:
    """One of the two places on the device where blocks arrive."""

    buffers: list[Tensor]
    used: Any  # event: what was computed from it is done; None on the CPU

    def takes(self, block: Sequence[Tensor], rows: int) -> bool:
        pairs = zip(self.buffers, block, strict=True)
        return all(len(a) >= rows and (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype) for a, b in pairs)


class Carrier:
    """Carries rows between the host and one device, on a stream of its own beside the computing.

    Two slots on the device serve all layers of a cache: while one block is computed on, the next is on its way. On the
    CPU the same copies are made in step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: list[_Slot | None] = [None, None]

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Start copying a dense tensor of the device into dense rows of the host."""
        self._wait_for_computing()
        with self._beside():
            target.copy_(source, non_blocking=True)
        if self._stream is not None:
            source.record_stream(self._stream)

    def to_device(self, blocks: Sequence[_Span]) -> Iterator[list[Tensor]]:
        """The first rows of host tensors, block after block on the device, each valid until the next is asked for.

        The first is on its way when this returns.
        """
        # Behind rows that were just written, and behind what an earlier call was still computing.
        self._wait_for_computing()
        first = self._send(0, blocks[0]) if blocks else None
        return self._arriving(first, blocks)

    def _arriving(self, coming: Any, blocks: Sequence[_Span]) -> Iterator[list[Tensor]]:
        for number in range(len(blocks)):
            (here, arrived), slot = coming, self._slots[number % 2]
            if number + 1 < len(blocks):
                coming = self._send((number + 1) % 2, blocks[number + 1])
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_event(arrived)
            yield here
            if self._stream is not None and slot is not None:
                slot.used.record(torch.cuda.current_stream(self.device))

    def _send(self, number: int, span: _Span) -> tuple[list[Tensor], Any]:
        """Start copying a block into a slot; its rows there, and the event of their arrival."""
        (block, rows), slot = span, self._slots[number]
        if slot is None or not slot.takes(block, rows):
            slot = self._slots[number] = self._new_slot(block)
        here = [there[:rows] for there in slot.buffers]
        if self._stream is not None:
            self._stream.wait_event(slot.used)
        with self._beside():
            for there, x in zip(here, block, strict=True):
                there.copy_(x[:rows], non_blocking=True)
        return here, None if self._stream is None else self._stream.record_event()

    def _new_slot(self, like: Sequence[Tensor]) -> _Slot:
        buffers = [torch.empty_like(x, device=self.device) for x in like]
        if self._stream is None:
            return _Slot(buffers, None)
        for x in buffers:
            x.record_stream(self._stream)
        # The allocator gives memory that may still be computed on.
        self._wait_for_computing()
        return _Slot(buffers, torch.cuda.Event())

    def _wait_for_computing(self) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def _beside(self) -> Any:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class KVStore:
    """How the layers of one cache keep their rows, and what they share for it.

    Args:
        kv: "device", "host" or "fp8".
        block: rows of a block; ``KV_BLOCK`` by default.

    Raises:
        ValueError: no such form.
    """

    def __init__(self, kv: str, block: int | None = None) -> None:
        if kv not in KV_FORMS:
            raise ValueError(f"kv={kv!r}: expected one of {', '.join(KV_FORMS)}")
        self.kv = kv
        self.block = KV_BLOCK if block is None else block
        self._carriers: dict[torch.device, Carrier] = {}
        self._unread: PastRows | None = None

    def carrier(self, device: torch.device) -> Carrier:
        if device not in self._carriers:
            self._carriers[device] = Carrier(device)
        return self._carriers[device]

    def handed(self, past: PastRows) -> None:
        """Note a past that attention is to read."""
        self.check_read()
        self._unread = past

    def check_read(self) -> None:
        """Whether what was handed over last has been read.

        Raises:
            ValueError: the decoder's attention passed it by.
        """
        if self._unread is not None and not self._unread.was_read:
            self.forget()
            raise ValueError(
                f"kv={self.kv} keeps {self.block} rows a block, and this decoder's attention does not read blocks (it "
                'is not "longva_blockwise", or keys are changed behind the cache); use kv=device'
            )
        self._unread = None

    def forget(self) -> None:
        """Of a forward that did not end, nothing need have been read."""
        self._unread = None


def host_bytes(shape: ModelShape, tokens: int, block: int | None = None, *, pinned: bool = True) -> int:
    """What ``kv=host`` takes of the host's memory for ``tokens``; pinned memory comes in powers of two."""

    def taken(rows: int) -> int:
        num_bytes = rows * shape.kv_bytes_per_token // (2 * shape.layers)
        return 1 << (num_bytes - 1).bit_length() if pinned and num_bytes else num_bytes

    whole, rest = divmod(tokens, block or KV_BLOCK)
    return 2 * shape.layers * (whole * taken(block or KV_BLOCK) + taken(rest))


def refuse_too_long(shape: ModelShape, tokens: int, block: int | None, device: torch.device) -> None:
    """Refuse what does not fit the host's memory, before anything is computed.

    Raises:
        ValueError: naming what is needed and what is free.
    """
    need, free = host_bytes(shape, tokens, block, pinned=device.type == "cuda"), processes.free_host_bytes()
    if need > free:
        raise ValueError(
            f"kv=host: the keys and values of {tokens:,} tokens take {need / 1e9:.1f} GB of the host's memory, and "
            f"{free / 1e9:.1f} GB of it are free for this process; show fewer frames, use kv=fp8, or share them over "
            "devices (parallel=ring in place of kv=host)"
        )


class BlockRows:
    """One layer's rows of keys and values, in blocks that are made when they are needed.

    Rows come first in a block, (N, B, K, D), so that any run of them is dense and one copy moves it.

    Args:
        store: of the layer's cache.
        planned: rows that will be needed at most, if known.
    """

    def __init__(self, store: KVStore, planned: int | None) -> None:
        self.store = store
        self._planned = planned
        self._blocks: list[list[Tensor]] = []
        self._device: torch.device | None = None
        self._dtypes: list[torch.dtype] = []

    def write(self, start: int, keys_BKTD: Tensor, values_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new rows from ``start`` on; returns them as they will be read, (B, K, T, D) each."""
        self._device = keys_BKTD.device
        self._dtypes = [keys_BKTD.dtype, values_BKTD.dtype]
        parts = [part for x in (keys_BKTD, values_BKTD) for part in self._kept(x)]
        stop, size = start + keys_BKTD.shape[2], self.store.block
        for number in range(start // size, -(-stop // size)):
            first, last = max(start - number * size, 0), min(stop - number * size, size)
            block = self._block(number, last, parts)
            at = number * size + first - start
            for there, part in zip(block, parts, strict=True):
                self._put(part[at : at + last - first], there[first:last])
        if self.store.kv != "fp8":
            return keys_BKTD, values_BKTD
        return self._read(parts)

    def past(self, length: int) -> PastRows:
        """The first ``length`` rows, for attention."""
        past = PastRows(self, length)
        self.store.handed(past)
        return past

    def blocks(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of the first ``length`` rows, (B, K, n, D) of each block."""
        size = self.store.block
        spans = [(self._blocks[start // size], min(size, length - start)) for start in range(0, length, size)]
        assert self._device is not None, "rows are written before they are read"
        if self.store.kv == "host":
            return map(self._read, self.store.carrier(self._device).to_device(spans))
        return (self._read([x[:rows] for x in block]) for block, rows in spans)

    def tensors(self) -> list[Tensor]:
        return [part for block in self._blocks for part in block]

    def _kept(self, x_BKTD: Tensor) -> tuple[Tensor, ...]:
        """New rows as they are kept, rows first."""
        x_TBKD = x_BKTD.permute(2, 0, 1, 3)
        return to_fp8(x_TBKD) if self.store.kv == "fp8" else (x_TBKD.contiguous(),)

    def _read(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, K, n, D) keys and values of kept rows."""
        if self.store.kv == "fp8":
            keys, keys_scale, values, values_scale = parts
            of_keys, of_values = self._dtypes
            parts = [from_fp8(keys, keys_scale, of_keys), from_fp8(values, values_scale, of_values)]
        keys_BKnD, values_BKnD = (part.permute(1, 2, 0, 3) for part in parts)
        return keys_BKnD, values_BKnD

    def _put(self, source: Tensor, target: Tensor) -> None:
        if self.store.kv == "host":
            self.store.carrier(source.device).to_host(source, target)
        else:
            target.copy_(source)

    def _block(self, number: int, rows: int, like: Sequence[Tensor]) -> list[Tensor]:
        """A block with room for its first ``rows``; blocks before it are whole."""
        if number == len(self._blocks):
            self._blocks.append([x.new_empty((0, *x.shape[1:])) for x in like])
        old = self._blocks[number]
        if rows > len(old[0]):
            ahead = (self._planned or 0) - number * self.store.block
            room = min(self.store.block, ahead if ahead >= rows else max(2 * rows, 256))
            self._blocks[number] = [self._empty(room, x) for x in like]
            for there, x in zip(self._blocks[number], old, strict=True):
                if len(x):
                    self._settle()
                    there[: len(x)] = x
        return self._blocks[number]

    def _empty(self, rows: int, like: Tensor) -> Tensor:
        shape = (rows, *like.shape[1:])
        if self.store.kv != "host":
            return like.new_empty(shape)
        # Pinned memory is what a device reads and writes by itself, while the host goes on.
        return torch.empty(shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")

    def _settle(self) -> None:
        """Rows of the host may still be on their way to it."""
        if self._device is not None and self._device.type == "cuda" and self.store.kv == "host":
            torch.cuda.synchronize(self._device)


class PastRows:
    """A layer's first ``length`` rows, as attention reads them (``attention.past.Past``)."""

    def __init__(self, rows: BlockRows, length: int) -> None:
        self.length = length
        self.was_read = False
        self._rows = rows

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.was_read = True
        return self._rows.blocks(self.length)
