"""Perplexity of long texts at growing context lengths, through the same executor and ring as the tree.

Two figures, as papers on context extension give them. *Full context*: windows of L tokens side by side,
every token but a window's first predicted from all before it in the window. *Sliding window*: windows of L
tokens, each ``stride`` further on; only its last ``stride`` tokens are scored (all of the first window's),
so that nearly every token is predicted from about L tokens.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from longva_model.engine.atoms import Lowered
from longva_model.engine.engine import TreeEngine
from longva_model.engine.logits import is_finite
from longva_model.run import processes

# Rows of logits at a time: 512 x 152,064 in fp32 is 311 MB.
_LOGIT_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Mean negative log-likelihood of ``num_tokens`` tokens, and its exponential."""

    length: int
    kind: str
    num_tokens: int
    num_windows: int
    nll: float

    @property
    def value(self) -> float:
        return math.exp(self.nll)


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``start`` to ``stop``; those from ``scored_from`` on count."""

    start: int
    stop: int
    scored_from: int


def windows(num_tokens: int, length: int, stride: int | None) -> Iterator[Window]:
    """The windows of a text: side by side without a stride, else each ``stride`` further on.

    A rest shorter than a window is left out, so that every window has the same context.
    """
    step = length if stride is None else stride
    for start in range(0, num_tokens - length + 1, step):
        stop = start + length
        fresh = start + 1 if stride is None or start == 0 else stop - stride
        yield Window(start, stop, max(fresh, start + 1))


@torch.inference_mode()
def window_nll(engine: TreeEngine, ids: Sequence[int], scored_from: int) -> tuple[float, int]:
    """Summed negative log-likelihood of ``ids[scored_from:]``, each given all ids before it; and their number.

    Raises:
        ValueError: NaN or infinite logits, with what is to blame.
    """
    engine.state = engine.new_state(len(ids))
    engine.check_reach(len(ids))
    total, count = 0.0, 0
    prompt = Lowered(np.asarray(ids, np.int64))
    for chunk in engine.chunks(prompt, 0, len(ids) - 1):
        start, stop = chunk.start, chunk.start + len(chunk)
        # The hidden state at position p predicts token p + 1.
        first = max(start, scored_from - 1)
        keep = stop - first
        hidden_TD = engine.hidden(chunk, max(keep, 1))
        if keep <= 0:
            continue
        targets_T = torch.tensor(list(ids[first + 1 : stop + 1]), device=hidden_TD.device)
        # Every process has the hidden states; each makes the logits of its rows.
        rows = min(_LOGIT_ROWS, -(-keep // engine.world_size))
        for row in range(rows * engine.rank, keep, rows * engine.world_size):
            logits_TV = engine.backend.logits(hidden_TD[row : row + rows])
            losses = torch.nn.functional.cross_entropy(logits_TV, targets_T[row : row + rows], reduction="sum")
            total += float(losses) if is_finite(logits_TV) else math.nan
        count += keep
    total = total if engine.world_size == 1 else sum(processes.gather(total, getattr(engine, "ring", None)))
    if not math.isfinite(total):
        raise engine.not_finite(prompt, ())
    engine.state = None
    return total, count


def check_length(documents: Sequence[Sequence[int]], length: int) -> None:
    """Whether a length can be measured.

    Raises:
        ValueError: below 2, or no document that long (names the longest).
    """
    if length < 2:
        raise ValueError(f"a context length must be at least 2 tokens, got {length}")
    longest = max((len(ids) for ids in documents), default=0)
    if longest < length:
        raise ValueError(
            f"no document has {length} tokens (the longest has {longest}); "
            "ask for shorter lengths, or join the documents"
        )


def measure(
    engine: TreeEngine,
    documents: Sequence[Sequence[int]],
    length: int,
    *,
    stride: int | None = None,
    max_windows: int | None = None,
    on_window: Callable[[], object] | None = None,
) -> Perplexity:
    """Perplexity at one context length over all documents that hold it.

    Args:
        documents: token ids of each.
        length: tokens of a window, at least 2.
        stride: sliding window; ``None`` is full context.
        max_windows: stop after so many windows.

    Raises:
        ValueError: a length below 2, a stride outside 1..length, or no document that long (names the longest).
    """
    check_length(documents, length)
    if stride is not None and not 1 <= stride <= length:
        raise ValueError(f"the stride must lie from 1 to the length {length}, got {stride}")
    total, tokens, number = 0.0, 0, 0
    for ids in documents:
        for window in windows(len(ids), length, stride):
            if max_windows is not None and number >= max_windows:
                break
            nll, count = window_nll(engine, ids[window.start : window.stop], window.scored_from - window.start)
            total, tokens, number = total + nll, tokens + count, number + 1
            if on_window is not None:
                on_window()
    kind = "full context" if stride is None else f"sliding window, stride {stride}"
    return Perplexity(length=length, kind=kind, num_tokens=tokens, num_windows=number, nll=total / tokens)
