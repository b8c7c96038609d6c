"""The request tree: merging, splitting, and that a walk spells every request."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from vniah.contract.cost import SHAPES, ModelShape, leaf_costs, longest_path, plain_flops, tree_flops
from vniah.contract.requests import Frames, Image, Node, Request, RequestTree, Segment, Target, Text
from vniah.runs.grid import Grid


def vniah_request(num_frames: int, index: int | None, needle: str) -> Request:
    segments: list[Segment] = [Text("system")]
    if index is None:
        segments.append(Frames("hay", 0, num_frames))
    else:
        if index:
            segments.append(Frames("hay", 0, index))
        segments.append(Image(needle))
        if index < num_frames:
            segments.append(Frames("hay", index, num_frames))
    return Request((*segments, Text("question of " + needle), Text("assistant")), Target("answer"))


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
        vniah_request(frames, None if control else frames * depth // 100, needle)
        for frames, depth, needle, control in cells
    ]
    assert spelled(RequestTree(requests)) == {index: request.segments for index, request in enumerate(requests)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100)), min_size=1, max_size=20))
def test_no_frame_is_computed_twice_behind_one_prefix(cells: list[tuple[int, int]]) -> None:
    tree = RequestTree([vniah_request(frames, frames * depth // 100, "a") for frames, depth in cells])
    for _, node in tree.walk():
        firsts = [(c.segment.source, c.segment.start) for c in node.children if isinstance(c.segment, Frames)]
        assert len(firsts) == len(set(firsts))


def grid_tree(needles: str, *, controls: bool = False) -> RequestTree:
    cells = Grid.parse("200-3000:200", "0-100:20").cells(needles, controls=controls)
    return RequestTree([vniah_request(cell.length, cell.needle_index, cell.needle) for cell in cells])


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
    tree = RequestTree([vniah_request(4, 2, "a"), vniah_request(4, None, "a")])
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
