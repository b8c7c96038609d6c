"""The request tree: a walk spells every request; and what its leaves cost, dealt out in runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vniah.contract.cost import (
    SHAPES,
    ModelShape,
    answer_flops,
    deal_out,
    leaf_costs,
    longest_path,
    plain_flops,
    run_cost,
    segment_tokens,
    tree_flops,
)
from vniah.contract.requests import Frames, Image, Node, Request, RequestTree, Segment, Target, Text, Tokens
from vniah.runs.grid import Grid, around_needle
from vniah.runs.plan import grid_requests

SHAPE = SHAPES["nano"]


def request(num_frames: int, index: int | None, needle: str) -> Request:
    before, behind = ([Frames("hay", run.start, run.stop)] if run else [] for run in around_needle(num_frames, index))
    shown = [] if index is None else [Image(needle)]
    asked = (Text("question of " + needle), Text("assistant"))
    return Request((Text("system"), *before, *shown, *behind, *asked), Target("answer"))


def tokens(segment: Segment) -> int:
    return segment_tokens(segment, SHAPE, len)


def test_bounds_of_spans_and_of_answers() -> None:
    for kind in (Frames, Tokens):
        assert kind("hay", 0, 1).stop == 1
        for start, stop in ((-1, 1), (1, 1), (2, 1)):
            with pytest.raises(ValueError, match=f"0 <= start < stop, got {start}..{stop}"):
                kind("hay", start, stop)
    # An answer's last token is not fed: one token costs its logits alone.
    assert answer_flops(Target(""), 10, SHAPE, len) == 0
    assert answer_flops(Target("a"), 10, SHAPE, len) == SHAPE.logits_flops(1)
    assert answer_flops(Target("ab"), 10, SHAPE, len) == SHAPE.forward_flops(1, 10) + SHAPE.logits_flops(2)


def spelled(tree: RequestTree) -> dict[int, tuple[Segment, ...]]:
    """The segments on the way to each request's leaf, ``Frames`` joined again."""
    found: dict[int, tuple[Segment, ...]] = {}

    def visit(node: Node, path: tuple[Segment, ...]) -> None:
        if node.segment is not None:
            last = path[-1] if path else None
            if isinstance(node.segment, Frames) and isinstance(last, Frames) and last.stop == node.segment.start:
                path = (*path[:-1], Frames(last.source, last.start, node.segment.stop))
            else:
                path = (*path, node.segment)
        for index, _ in node.leaves:
            found[index] = path
        for child in node.children:
            visit(child, path)

    visit(tree.root, ())
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100), st.sampled_from("ab"), st.booleans()), max_size=25))
def test_every_request_is_spelled_by_its_path(cells: list[tuple[int, int, str, bool]]) -> None:
    requests = [
        request(frames, None if control else frames * depth // 100, needle) for frames, depth, needle, control in cells
    ]
    assert spelled(RequestTree(requests)) == {index: request.segments for index, request in enumerate(requests)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100)), min_size=1, max_size=20))
def test_no_frame_is_computed_twice_behind_one_prefix(cells: list[tuple[int, int]]) -> None:
    tree = RequestTree([request(frames, frames * depth // 100, "a") for frames, depth in cells])
    for _, node in tree.walk():
        firsts = [(c.segment.source, c.segment.start) for c in node.children if isinstance(c.segment, Frames)]
        assert len(firsts) == len(set(firsts))


def grid_tree(needles: str, *, controls: bool = False) -> RequestTree:
    cells = Grid.parse("200-3000:200", "0-100:20").cells(needles, controls=controls)
    return RequestTree([request(cell.length, cell.needle_index, cell.needle) for cell in cells])


# With 2 x vocabulary x hidden of embeddings and the norms these are the 7.62e9 and 7.24e9 of Qwen2-7B and Mistral-7B.
@pytest.mark.parametrize(
    ("name", "params", "kv_bytes", "embeddings"),
    [
        ("LongVA-7B", 6_525_288_448, 57_344, 1_089_994_752),
        ("LLaVA-NeXT-Video-7B-32K", 6_979_321_856, 131_072, 262_668_288),
    ],
)
def test_the_papers_models_have_the_sizes_that_their_makers_state(
    name: str, params: int, kv_bytes: int, embeddings: int
) -> None:
    shape = SHAPES[name]
    assert (shape.decoder_params, shape.kv_bytes_per_token) == (params, kv_bytes)
    assert shape.logits_flops(1) == embeddings  # 2 FLOPs for each weight of the head


def test_nodes_are_told_apart_by_where_they_are() -> None:
    assert Node(None) != Node(None)


def test_the_tree_of_the_papers_grid_needs_2_34_times_fewer_flops() -> None:
    tree, shape = grid_tree("abcde"), SHAPES["LongVA-7B"]
    assert round(plain_flops(tree.requests, shape) / tree_flops(tree, shape), 2) == 2.34
    # 57,344 bytes a token in bf16: the longest cell is 24.8 GB of KV.
    assert shape.kv_bytes_per_token == 57_344
    assert round(longest_path(tree.requests, shape) * shape.kv_bytes_per_token / 1e9, 1) == 24.8


def test_controls_cost_next_to_nothing() -> None:
    shape = SHAPES["LongVA-7B"]
    assert tree_flops(grid_tree("abc", controls=True), shape) / tree_flops(grid_tree("abc"), shape) < 1.001


def test_costs_count_what_stands_before_each_leaf() -> None:
    tree = RequestTree([request(4, 2, "a"), request(4, None, "a")])
    shape = ModelShape(
        layers=1, hidden=4, intermediate=4, heads=1, kv_heads=1, head_dim=4, vocab=8, tokens_per_frame=10
    )
    costs = leaf_costs(tree, shape, lambda s: 10 * (s.stop - s.start) if isinstance(s, Frames) else 1, len)
    ends = {0: 1 + 20 + 1 + 20 + 2, 1: 1 + 40 + 2}
    assert {cost.index: cost.first for cost in costs} == {
        index: shape.forward_flops(end + len("answer") - 1) + shape.logits_flops(len("answer"))
        for index, end in ends.items()
    }
    assert tree_flops(tree, shape) < plain_flops(tree.requests, shape)


CELLS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 100), st.sampled_from("abc")), min_size=1, max_size=25, unique=True
)


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, parts=st.integers(1, 6), shared=st.booleans())
def test_a_runs_cost_is_that_of_its_own_tree(cells: list[tuple[int, int, str]], parts: int, shared: bool) -> None:
    requests = [request(frames, frames * depth // 100, needle) for frames, depth, needle in cells]
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
def test_no_other_cut_has_a_cheaper_dearest_run(cells: list[tuple[int, int, str]], parts: int, shared: bool) -> None:
    requests = list(
        dict.fromkeys(request(frames, frames * depth // 100, needle) for frames, depth, needle in cells[:8])
    )
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
