"""Which documents to train on: the domain mixture kept, long documents upsampled within each domain.

Fu et al. 2024 ("Data Engineering for Scaling Language Models to 128K Context"): upsampling long documents
regardless of their domain would turn the data into books; so the share of each domain stays what it was, and
only within a domain do long documents take a larger part. Pure index arithmetic; knows no text and no files.

Shape legend: D documents. ``lengths_D`` in tokens; ``domains_D`` an index into the domain names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Documents in training order. Entry i takes the first ``take_S[i]`` tokens of document ``index_S[i]``."""

    index_S: Ints  # noqa: N815 - shape suffix
    take_S: Ints  # noqa: N815

    @property
    def tokens(self) -> int:
        return int(self.take_S.sum())


def select_documents(
    lengths_D: Ints, domains_D: Ints, *, total_tokens: int, long_document: int, long_share: float, seed: int
) -> Selection:
    """Choose documents so that each domain keeps its share of tokens.

    Args:
        lengths_D: tokens of each document.
        domains_D: domain of each document.
        total_tokens: tokens to choose; documents are repeated where there are too few.
        long_document: a document is long above so many tokens.
        long_share: share of a domain's tokens that long documents get; never less than they have. A domain
            without long (or without short) documents takes what it has.
        seed: of the order.

    Returns:
        The selection, shuffled. Domain totals are exact: the last document of a group is cut to fit.

    Raises:
        ValueError: no documents, or a share outside 0..1.
    """
    if not len(lengths_D) or int(lengths_D.sum()) == 0:
        raise ValueError("there are no documents to choose from")
    if not 0 <= long_share <= 1:
        raise ValueError(f"long_share must be between 0 and 1, got {long_share}")
    rng = np.random.default_rng((seed, 11))
    available = int(lengths_D.sum())
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
    chosen: list[Ints] = []
    tokens = 0
    while tokens < wanted and len(group):
        chosen.append(rng.permutation(group))
        tokens += int(lengths_D[group].sum())
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    index = np.concatenate(chosen)
    ends = np.cumsum(lengths_D[index])
    count = int(np.searchsorted(ends, wanted)) + 1
    take = lengths_D[index[:count]].copy()
    take[-1] -= int(ends[count - 1]) - wanted
    return index[:count], take


def domain_shares(tokens_by_domain: dict[str, int]) -> dict[str, float]:
    """Share of each domain in the tokens."""
    total = sum(tokens_by_domain.values())
    return {name: tokens / total for name, tokens in tokens_by_domain.items()} if total else {}
