"""The steps of a walk through a request tree: which segments are run in one go, from where, and at what cost.

A chain of nodes without leaves or branches is one step. Steps depend on the whole tree and not on what of it
is known already, so that a run which goes on where another was cut off computes the very same forwards.
Pure: knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from vniah.contract.cost import ModelShape, TokenCount, answer_flops
from vniah.contract.requests import Leaf, Node, RequestTree, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Segments to run behind a prefix, and the leaves to score at their end.

    Attributes:
        depth: of the chain's first node.
        segments: one a node of the chain.
        node: the chain's last node.
        past, new: tokens before the step, and of it.
        leaves: (request index, leaf) pairs that are not known.
    """

    depth: int
    segments: tuple[Segment, ...]
    node: Node
    past: int
    new: int
    leaves: tuple[tuple[int, Leaf], ...]

    def flops(self, shape: ModelShape, count: TokenCount) -> int:
        end = self.past + self.new
        answers = sum(answer_flops(leaf, end, shape, count) for _, leaf in self.leaves)
        return shape.forward_flops(self.new, self.past) + answers


def steps(tree: RequestTree, tokens: Callable[[Segment], int], known: Collection[int] = ()) -> Iterator[Step]:
    """The steps that lead to leaves not ``known``, depth-first, each prefix before what continues it.

    Args:
        tokens: of a segment.
        known: indices of requests whose results are there already.
    """
    alive = _alive(tree, known)
    chain: list[Segment] = []
    # ``ends[depth]`` is where the node at that depth ends, in tokens.
    ends: list[int] = []
    for depth, node in tree.walk():
        if id(node) not in alive:
            continue
        assert node.segment is not None
        del ends[depth:]
        ends.append((ends[-1] if ends else 0) + tokens(node.segment))
        chain.append(node.segment)
        if len(node.children) == 1 and not node.leaves:
            continue
        first = depth + 1 - len(chain)
        past = ends[first - 1] if first else 0
        leaves = tuple((index, leaf) for index, leaf in node.leaves if index not in known)
        yield Step(depth=first, segments=tuple(chain), node=node, past=past, new=ends[-1] - past, leaves=leaves)
        chain = []


def _alive(tree: RequestTree, known: Collection[int]) -> set[int]:
    """Nodes (by ``id``) on the way to a leaf that is not known."""
    alive: set[int] = set()
    path: list[Node] = []
    for depth, node in tree.walk():
        del path[depth:]
        path.append(node)
        if any(index not in known for index, _ in node.leaves):
            for above in reversed(path):
                if id(above) in alive:
                    break
                alive.add(id(above))
    return alive
