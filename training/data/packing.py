"""Which documents to train on, and which piece of which goes where. Index arithmetic; knows no text and no files.

Fu et al. 2024 ("Data Engineering for Scaling Language Models to 128K Context", per-source upsampling): taking more long
documents regardless of their domain would turn the data into books. So the share of each domain stays what it was, and
within a domain short documents are thinned out (``keep_documents``) until its budget is filled (``fill_budgets``).
Nothing is repeated. They are packed end to end, a separator behind each.

Shape legend: D documents, S selected ones in order. ``lengths_D`` in tokens; ``domains_D`` an index into domain names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Documents in training order. Entry i takes the first ``take_S[i]`` tokens of document ``index_S[i]``."""

    index_S: Ints
    take_S: Ints

    @property
    def tokens(self) -> int:
        return int(self.take_S.sum())


def keep_documents(
    lengths_D: Ints, *, long_document: int, short_share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which documents stay, (D,): all of at least ``long_document`` tokens, and of the shorter ones a random share."""
    return (lengths_D >= long_document) | (rng.random(len(lengths_D)) < short_share)


def budgets(tokens: Mapping[str, int], total_tokens: int) -> dict[str, int]:
    """``total_tokens`` shared out to domains in the proportions of their ``tokens``."""
    whole = sum(tokens.values())
    return {name: round(total_tokens * count / whole) for name, count in tokens.items()}


def fill_budgets(lengths_D: Ints, domains_D: Ints, budget: Mapping[int, int], *, seed: int) -> Selection:
    """Documents that were kept, as they come, until their domain's ``budget`` is filled; in an order of the seed's.

    Each is taken once at most; the last of a domain is cut to fit. A domain of too few takes what it has.
    """
    rng = np.random.default_rng((seed, 11))
    indices, takes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for domain, wanted in budget.items():
        members = np.flatnonzero(domains_D == domain)
        ends = np.cumsum(lengths_D[members])
        take = np.minimum(lengths_D[members], wanted - (ends - lengths_D[members]))
        indices.append(members[take > 0])
        takes.append(take[take > 0])
    index_S, take_S = np.concatenate(indices), np.concatenate(takes)
    order = rng.permutation(len(index_S))
    return Selection(index_S=index_S[order], take_S=take_S[order])


class Packing:
    """The stream of all selected documents, cut into sequences.

    A sequence is ``length + 1`` tokens, so that it gives ``length`` next-token predictions and no two sequences share
    a token. A document's separator counts as one more token of it.

    ``take_S`` tokens are taken of each selected document.
    """

    def __init__(self, take_S: Ints, length: int) -> None:
        if length < 1:
            raise ValueError(f"the sequence length must be positive, got {length}")
        self.length = length
        self.ends_S = np.cumsum(take_S + 1)
        total = int(self.ends_S[-1]) if len(take_S) else 0
        self.num_sequences, self.tail_tokens = divmod(total, length + 1)

    def tokens(self, sequence: int, document: Callable[[int], Ints], separator: int) -> NDArray[np.int32]:
        """The ids of a sequence; ``document`` gives the taken ids of the n-th selected document."""
        if not 0 <= sequence < self.num_sequences:
            raise IndexError(f"sequence {sequence} of {self.num_sequences}")
        position, stop = sequence * (self.length + 1), (sequence + 1) * (self.length + 1)
        entry = int(np.searchsorted(self.ends_S, position, side="right"))
        pieces = []
        while position < stop:
            begin = int(self.ends_S[entry - 1]) if entry else 0
            end = min(stop, int(self.ends_S[entry]))
            pieces.append(np.append(document(entry), separator)[position - begin : end - begin])
            position, entry = end, entry + 1
        return np.concatenate(pieces).astype(np.int32)
