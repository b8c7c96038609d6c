"""Which documents to train on, and which piece of which goes where. Index arithmetic; knows no text and no files.

Fu et al. 2024 ("Data Engineering for Scaling Language Models to 128K Context"): upsampling long documents
regardless of their domain would turn the data into books; so the share of each domain stays what it was, and
only within a domain do long documents take a larger part. They are packed end to end, a separator behind each.

Shape legend: D documents, S selected ones in order. ``lengths_D`` in tokens; ``domains_D`` an index into domain names.
"""

from __future__ import annotations

from collections.abc import Callable
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


def select_documents(
    lengths_D: Ints, domains_D: Ints, *, total_tokens: int, long_document: int, long_share: float, seed: int
) -> Selection:
    """Choose documents so that each domain keeps its share of tokens, in an order of the seed's.

    Documents are repeated where there are too few for ``total_tokens``. Domain totals are exact: the last document of a
    group is cut to fit. Documents of more than ``long_document`` tokens get ``long_share`` of their domain's tokens, or
    what they have where that is more; a domain without long (or without short) documents takes what it has.

    Raises:
        ValueError: no documents, or a share outside 0..1.
    """
    available = int(np.sum(lengths_D))
    if available == 0:
        raise ValueError("there are no documents to choose from")
    if not 0 <= long_share <= 1:
        raise ValueError(f"long_share must be between 0 and 1, got {long_share}")
    rng = np.random.default_rng((seed, 11))
    indices: list[Ints] = []
    takes: list[Ints] = []
    for domain in np.unique(domains_D):
        members = np.flatnonzero(domains_D == domain)
        target = round(total_tokens * int(lengths_D[members].sum()) / available)
        is_long = lengths_D[members] > long_document
        natural = float(lengths_D[members[is_long]].sum() / lengths_D[members].sum())
        # 0 and 1 also when one of the groups is empty, since natural is then 0 or 1.
        share = max(natural, long_share) if 0 < natural < 1 else natural
        long_target = round(target * share)
        for group, wanted in ((members[is_long], long_target), (members[~is_long], target - long_target)):
            index, take = _fill(group, lengths_D, wanted, rng)
            indices.append(index)
            takes.append(take)
    index_S, take_S = np.concatenate(indices), np.concatenate(takes)
    order = rng.permutation(len(index_S))
    return Selection(index_S=index_S[order], take_S=take_S[order])


def _fill(group: Ints, lengths_D: Ints, wanted: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Documents of a group in shuffled rounds until ``wanted`` tokens; the last one is cut."""
    if wanted <= 0 or not len(group):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rounds = -(-wanted // int(lengths_D[group].sum()))
    index = np.concatenate([rng.permutation(group) for _ in range(rounds)])
    ends = np.cumsum(lengths_D[index])
    count = int(np.searchsorted(ends, wanted)) + 1
    take = lengths_D[index[:count]].copy()
    take[-1] -= int(ends[count - 1]) - wanted
    return index[:count], take


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
