"""Runs of leaves: their costs add up to those of their own trees, and the dearest is as cheap as can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
from hypothesis import given, settings

from vniah.contract.cost import SHAPES, deal_out, leaf_costs, plain_flops, run_cost, segment_tokens, tree_flops
from vniah.contract.requests import Frames, Image, Node, Request, RequestTree, Segment, Target, Text
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests

SHAPE = SHAPES["nano"]


def tokens(segment: Segment) -> int:
    return segment_tokens(segment, SHAPE, len)


def cell(num_frames: int, index: int, needle: int) -> Request:
    segments: list[Segment] = [Text("system")]
    segments += [Frames("hay", 0, index)] if index else []
    segments += [Image(f"needle{needle}")]
    segments += [Frames("hay", index, num_frames)] if index < num_frames else []
    return Request((*segments, Text(f"what is {needle}?")), Target("abc"))


CELLS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 100), st.integers(0, 2)), min_size=1, max_size=25, unique=True
)


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, parts=st.integers(1, 6), shared=st.booleans())
def test_a_runs_cost_is_that_of_its_own_tree(cells: list[tuple[int, int, int]], parts: int, shared: bool) -> None:
    requests = [cell(frames, frames * depth // 100, needle) for frames, depth, needle in cells]
    # Equal requests are scored once, which the costs leave out of account.
    requests = list(dict.fromkeys(requests))
    costs = leaf_costs(RequestTree(requests), SHAPE, tokens, len, shared=shared)
    assert sorted(leaf.index for leaf in costs) == list(range(len(requests)))
    runs = deal_out(costs, parts)
    assert len(runs) == parts
    assert list(itertools.chain(*runs)) == costs
    for run in filter(None, runs):
        tree = RequestTree([requests[leaf.index] for leaf in run])
        plain, whole = plain_flops(tree.requests, SHAPE, len), tree_flops(tree, SHAPE, len)
        assert run_cost(run) == (whole if shared else plain)
        # Each node once, by its tokens behind those before it.
        assert whole == sum(node_flops(tree.root, 0))


def node_flops(node: Node, past: int) -> Iterator[int]:
    new = tokens(node.segment) if node.segment is not None else 0
    yield SHAPE.forward_flops(new, past)
    for _, leaf in node.leaves:
        assert isinstance(leaf, Target)
        yield SHAPE.forward_flops(len(leaf.text) - 1, past + new) + SHAPE.logits_flops(len(leaf.text))
    for child in node.children:
        yield from node_flops(child, past + new)


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, parts=st.integers(1, 4), shared=st.booleans())
def test_no_other_cut_has_a_cheaper_dearest_run(cells: list[tuple[int, int, int]], parts: int, shared: bool) -> None:
    requests = list(dict.fromkeys(cell(frames, frames * depth // 100, needle) for frames, depth, needle in cells[:8]))
    costs = leaf_costs(RequestTree(requests), SHAPE, tokens, len, shared=shared)
    ours = max(run_cost(run) for run in deal_out(costs, parts))
    best = run_cost(costs)
    for number in range(1, min(parts, len(costs))):
        for places in itertools.combinations(range(1, len(costs)), number):
            edges = [0, *places, len(costs)]
            best = min(best, max(run_cost(costs[a:b]) for a, b in itertools.pairwise(edges)))
    assert ours == best


def test_the_papers_grid_is_dealt_out_evenly_to_eight_processes() -> None:
    needles = [(f"n{number}", f"question {number}?", "answer") for number in range(5)]
    cells, _ = grid_requests(Grid.parse("200-3000:200", "0-100:20"), needles)
    shape = SHAPES["LongVA-7B"]
    costs = leaf_costs(RequestTree(cells), shape, lambda segment: segment_tokens(segment, shape), len)
    spent = [run_cost(run) for run in deal_out(costs, 8)]
    assert max(spent) < 1.1 * sum(spent) / 8
