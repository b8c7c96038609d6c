"""What a grid costs: FLOPs of a tree against one forward a request, KV memory; to plan, and to deal requests out.

Counts multiply-adds as 2 FLOPs. Attention is causal and counted exactly: n new tokens behind p past ones
make ``n * p + n * (n + 1) / 2`` query-key pairs. The vision tower is not in these figures: frames are
encoded once whatever the way of scoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vniah.contract.requests import Clip, Frames, Leaf, Request, RequestTree, Segment, Target, Text, Tokens, Turn

# Where and how keys and values are kept: on the device, in the host's memory, or in 8 bits on the device.
KV_FORMS = ("device", "host", "fp8")
# In 8 bits, a row of a head has a scale in fp32.
_SCALE_BYTES = 4
# Tokens that attention reads of them at a time where they are in blocks: of LongVA-7B 16 MiB a layer and side, which
# PCIe 5 moves in a third of a millisecond.
KV_BLOCK = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The decoder's sizes.

    ``tokens_per_frame`` is 144 for LongVA (24x24 patches pooled 2x2). ``kv_bytes`` is the size of one
    number in the KV cache (2 for bf16). ``tied``: the head's weights are the embedding's.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tokens_per_frame: int = 144
    kv_bytes: int = 2
    tied: bool = False

    @property
    def decoder_params(self) -> int:
        """Weights that every token passes: the layers' matrices, without embeddings and head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    def kv_bytes_as(self, kv: str) -> int:
        """Bytes that a token adds to the KV cache in one of ``KV_FORMS``, wherever that is."""
        if kv != "fp8":
            return self.kv_bytes_per_token
        numbers = self.kv_bytes_per_token // self.kv_bytes
        return numbers + numbers // self.head_dim * _SCALE_BYTES

    def forward_flops(self, new: int, past: int = 0) -> int:
        """FLOPs of ``new`` tokens behind ``past`` ones, without logits."""
        pairs = new * past + new * (new + 1) // 2
        return 2 * self.decoder_params * new + 4 * self.layers * self.heads * self.head_dim * pairs

    def logits_flops(self, positions: int) -> int:
        return 2 * self.hidden * self.vocab * positions


# The shapes behind the paper's figures, and the one that ships.
SHAPES = {
    "LongVA-7B": ModelShape(
        layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128, vocab=152064
    ),
    "LLaVA-NeXT-Video-7B-32K": ModelShape(
        layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocab=32064
    ),
    "nano": ModelShape(
        layers=3, hidden=128, intermediate=352, heads=4, kv_heads=2, head_dim=32, vocab=298, tokens_per_frame=4
    ),
}

TokenCount = Callable[[str], int]
ESTIMATED_CHARS = 4


def estimate_tokens(text: str) -> int:
    """A rough count where no tokenizer is at hand: one token for ``ESTIMATED_CHARS`` characters, rounded up."""
    return math.ceil(len(text) / ESTIMATED_CHARS)


def segment_tokens(segment: Segment, shape: ModelShape, count: TokenCount = estimate_tokens) -> int:
    """Tokens of a segment; an ``Image`` that is not a frame counts as one grid, for want of its size, and what only
    says how to show what follows as none."""
    if isinstance(segment, Turn | Clip):
        return 0
    if isinstance(segment, Text):
        return count(segment.text)
    if isinstance(segment, Tokens):
        return segment.stop - segment.start
    return shape.tokens_per_frame * (segment.stop - segment.start if isinstance(segment, Frames) else 1)


def request_tokens(request: Request, shape: ModelShape, count: TokenCount = estimate_tokens) -> int:
    """Tokens of a request's prompt, without its answer."""
    return sum(segment_tokens(segment, shape, count) for segment in request.segments)


def answer_tokens(leaf: Leaf, count: TokenCount = estimate_tokens) -> int:
    """Tokens of a leaf; of a generated answer, the most it may have."""
    return count(leaf.text) if isinstance(leaf, Target) else leaf.max_new_tokens


def answer_flops(leaf: Leaf, end: int, shape: ModelShape, count: TokenCount) -> int:
    """FLOPs of a leaf behind a prompt of ``end`` tokens."""
    answer = answer_tokens(leaf, count)
    return shape.forward_flops(max(0, answer - 1), end) + shape.logits_flops(answer)


def tree_flops(tree: RequestTree, shape: ModelShape, count: TokenCount = estimate_tokens) -> int:
    """FLOPs when each shared prefix is computed once."""
    return run_cost(leaf_costs(tree, shape, lambda segment: segment_tokens(segment, shape, count), count))


def plain_flops(requests: Iterable[Request], shape: ModelShape, count: TokenCount = estimate_tokens) -> int:
    """FLOPs of one forward a request, answer included."""
    total = 0
    for request in requests:
        prompt = request_tokens(request, shape, count)
        total += shape.forward_flops(prompt) + answer_flops(request.leaf, prompt, shape, count)
    return total


def longest_path(requests: Iterable[Request], shape: ModelShape, count: TokenCount = estimate_tokens) -> int:
    """Tokens of the longest prompt with its answer: what the KV cache must hold."""
    return max(request_tokens(request, shape, count) + answer_tokens(request.leaf, count) for request in requests)


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
    ends, paths = [0], [0]  # of each node on the way: where it ends, in tokens, and what led there, in FLOPs
    fresh = 0
    for depth, node in tree.walk():
        assert node.segment is not None
        del ends[depth + 1 :], paths[depth + 1 :]
        new = tokens(node.segment)
        cost = shape.forward_flops(new, ends[-1])
        ends.append(ends[-1] + new)
        paths.append(paths[-1] + cost)
        fresh += cost
        for index, leaf in node.leaves:
            own = answer_flops(leaf, ends[-1], shape, count)
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
