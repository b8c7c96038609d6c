"""The steps of a walk through a tree of prompts: which atoms are run in one go, from where, and at what cost.

A chain of nodes without leaves or branches is one step. Steps depend on the whole tree and not on what of it
is known already, so that a run which goes on where another was cut off computes the very same forwards.
Pure: knows no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from longva_model.engine.atoms import Lowered, Node, PrefixTree
from vniah.contract.cost import ModelShape, TokenCount, answer_flops
from vniah.contract.requests import Leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Atoms to run behind a prefix, and the leaves to score at their end.

    Attributes:
        depth: of the chain's first node, ``nodes`` of which it has.
        prompt: one that the chain is part of; its atoms ``start`` to ``stop`` are run.
        past, new: tokens before the step, and of it.
        leaves: prompts that end here and are not known.
        lone: whether one prompt ends here, known or not, and none goes on.
    """

    depth: int
    nodes: int
    prompt: Lowered
    start: int
    stop: int
    past: int
    new: int
    leaves: tuple[int, ...]
    lone: bool

    def flops(self, shape: ModelShape, count: TokenCount, leaves: Sequence[Leaf]) -> int:
        """``leaves``: of all prompts."""
        end = self.past + self.new
        answers = sum(answer_flops(leaves[index], end, shape, count) for index in self.leaves)
        return shape.forward_flops(self.new, self.past) + answers


def steps(tree: PrefixTree, known: Collection[int] = ()) -> Iterator[Step]:
    """The steps that lead to leaves not ``known``, depth-first, each prefix before what continues it."""
    alive = _alive(tree, known)
    nodes = start = 0
    for depth, node in tree.walk():
        if id(node) not in alive:
            continue
        if not nodes:
            start = node.start
        nodes += 1
        if len(node.children) == 1 and not node.leaves:
            continue
        prompt = tree.prompts[node.prompt]
        past, end = prompt.begin(start), prompt.begin(node.stop)
        yield Step(
            depth=depth + 1 - nodes,
            nodes=nodes,
            prompt=prompt,
            start=start,
            stop=node.stop,
            past=past,
            new=end - past,
            leaves=tuple(index for index in node.leaves if index not in known),
            lone=len(node.leaves) == 1 and not node.children,
        )
        nodes = 0


def _alive(tree: PrefixTree, known: Collection[int]) -> set[int]:
    """Nodes (by ``id``) on the way to a leaf that is not known."""
    alive: set[int] = set()
    path: list[Node] = []
    for depth, node in tree.walk():
        del path[depth:]
        path.append(node)
        if any(index not in known for index in node.leaves):
            for above in reversed(path):
                if id(above) in alive:
                    break
                alive.add(id(above))
    return alive
