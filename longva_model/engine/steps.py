"""The steps of a walk through a tree of prompts: which atoms are run in one go, from where, and at what cost.

A chain of nodes without leaves or branches is one step. Where the state is rows, a step is a *trunk*: a chain that goes
on past places where prompts part, along the longest of them (of equals, along what most share), and to which the others
come back. Steps depend on the whole tree and not on what of it is known already, so that a run which goes on where
another was cut off computes the very same forwards.
Pure: knows no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from longva_model.engine.atoms import Lowered, Node, PrefixTree
from vniah.contract.cost import ModelShape, TokenCount, answer_flops
from vniah.contract.requests import Leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Atoms to run behind a prefix, and the leaves to score at their end.

    Attributes:
        depth: of the chain's first node, ``nodes`` of which it has.
        prompt: one that the chain is part of; its atoms ``start`` to ``stop`` are run.
        past, new: tokens before the step, and those of it that are needed: behind them everything is known.
        ends: prompts that end here; ``leaves`` those of them that are not known.
        lone: whether one prompt ends here, known or not, and none goes on.
        shared: whether the step has atoms of several prompts, as the film that a trunk runs on the way to one.
    """

    depth: int
    nodes: int
    prompt: Lowered
    start: int
    stop: int
    past: int
    new: int
    ends: tuple[int, ...]
    leaves: tuple[int, ...]
    lone: bool
    shared: bool

    def flops(self, shape: ModelShape, count: TokenCount, leaves: Sequence[Leaf]) -> int:
        """``leaves``: of all prompts."""
        end = self.past + self.new
        answers = sum(answer_flops(leaves[index], end, shape, count) for index in self.leaves)
        return shape.forward_flops(self.new, self.past) + answers


def steps(tree: PrefixTree, known: Collection[int] = (), *, trunks: bool = False) -> Iterator[Step]:
    """The steps that lead to leaves not ``known``, each prefix before what continues it.

    Args:
        trunks: for a state that can be cut anywhere. Of a grid the film is one step then and not one a splice; cells
            come from its end to its beginning.
    """
    alive = _alive(tree, known)
    longest = _longest(tree) if trunks else {}
    waiting = [(0, child) for child in reversed(tree.root.children)]
    while waiting:
        depth, node = waiting.pop()
        if id(node) not in alive:
            continue
        chain = [node]
        while not chain[-1].leaves and (trunks or len(chain[-1].children) == 1):
            chain.append(max(chain[-1].children, key=lambda child: longest.get(id(child), (0, 0))))
        end = chain[-1]
        prompt = tree.prompts[end.prompt]
        needed = max((one for one in chain if id(one) in alive), key=lambda one: one.stop)
        past = prompt.begin(node.start)
        lone = len(end.leaves) == 1 and not end.children
        yield Step(
            depth=depth,
            nodes=len(chain),
            prompt=prompt,
            start=node.start,
            stop=end.stop,
            past=past,
            new=prompt.begin(needed.stop) - past,
            ends=tuple(end.leaves),
            leaves=tuple(index for index in end.leaves if index not in known),
            lone=lone,
            shared=not lone or any(len(one.children) > 1 for one in chain),
        )
        for level, (one, following) in enumerate(zip_longest(chain, chain[1:]), depth + 1):
            waiting += [(level, child) for child in reversed(one.children) if child is not following]


def _longest(tree: PrefixTree) -> dict[int, tuple[int, int]]:
    """Where the longest prompt through each node (by ``id``) ends, in tokens, and how many prompts go through it."""
    found: dict[int, tuple[int, int]] = {}
    for _, node in reversed(list(tree.walk())):
        below = [found[id(child)] for child in node.children]
        own = (tree.prompts[node.prompt].begin(node.stop), len(node.leaves))
        ends, counts = zip(own, *below, strict=True)
        found[id(node)] = (max(ends), sum(counts))
    return found


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
