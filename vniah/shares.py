"""Sharing a tree between processes: contiguous runs of its leaves that cost about the same.

Leaves are taken in the order of a depth-first walk, so that neighbours share the most; a process then walks
the tree of its own run. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vniah.flops import ModelShape, TokenCount, answer_flops, walk_tokens
from vniah.requests import RequestTree, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafCost:
    """What a leaf costs in FLOPs: as the first of a run, and behind the leaf before it.

    In a depth-first walk the nodes between two leaves are those on the second's path which the first's lacks,
    so a run costs the ``first`` of its first leaf and the ``next`` of every other.
    """

    index: int
    first: int
    next: int


def leaf_costs(
    tree: RequestTree, shape: ModelShape, tokens: Callable[[Segment], int], count: TokenCount, *, shared: bool = True
) -> list[LeafCost]:
    """The leaves in depth-first order with their costs; without ``shared``, every prompt is computed whole."""
    found: list[LeafCost] = []
    paths: list[int] = []
    fresh = 0
    for (depth, _), (node, past, new) in zip(tree.walk(), walk_tokens(tree, tokens), strict=True):
        cost = shape.forward_flops(new, past)
        del paths[depth:]
        paths.append((paths[-1] if paths else 0) + cost)
        fresh += cost
        for index, leaf in node.leaves:
            own = answer_flops(leaf, past + new, shape, count)
            found.append(LeafCost(index=index, first=paths[-1] + own, next=(fresh if shared else paths[-1]) + own))
            fresh = 0
    return found


def run_cost(run: Sequence[LeafCost]) -> int:
    """FLOPs of a run."""
    return run[0].first + sum(leaf.next for leaf in run[1:]) if run else 0


def deal_out(costs: Sequence[LeafCost], parts: int) -> list[list[LeafCost]]:
    """Cut leaves into at most ``parts`` contiguous runs such that the dearest is as cheap as can be.

    A run that starts one leaf later never costs more (a path holds nothing but the path before it and what is
    new), so for a bound on the dearest run the longest runs that keep it are the fewest; the bound is searched for.

    Returns:
        ``parts`` runs, the last of which may be empty.
    """
    assert parts > 0
    low, high = max((leaf.first for leaf in costs), default=0), run_cost(costs)
    while low < high:
        bound = (low + high) // 2
        if len(_cut(costs, bound)) <= parts:
            high = bound
        else:
            low = bound + 1
    runs = _cut(costs, low)
    return runs + [[] for _ in range(parts - len(runs))]


def _cut(costs: Sequence[LeafCost], bound: int) -> list[list[LeafCost]]:
    """Runs as long as they may be, none dearer than ``bound`` (which every leaf alone must keep)."""
    runs: list[list[LeafCost]] = []
    spent = 0
    for leaf in costs:
        if runs and spent + leaf.next <= bound:
            runs[-1].append(leaf)
            spent += leaf.next
        else:
            runs.append([leaf])
            spent = leaf.first
    return runs
