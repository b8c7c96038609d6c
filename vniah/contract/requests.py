"""The contract between the benchmark and a model: requests as sequences of segments, merged into a tree.

A request is a sequence of hashable segments and a leaf::

    Text(pre) Frames(hay, 0, k) Image(needle) Frames(hay, k, F) Text(question) Text(post) -> Target(answer)

``RequestTree`` merges equal prefixes of segments: what a model that computes each shared prefix once would compute, for
plans and for dealing requests out. (An engine merges what its model makes of them, which may share more or less.)
Pure: knows nothing about tokens, tensors or pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A string that is tokenised alone (reference section 3: no merges across segment borders)."""

    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A run of one source, ``start`` to ``stop`` (exclusive): of ``Frames`` or ``Tokens``."""

    source: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"{type(self).__name__} needs 0 <= start < stop, got {self.start}..{self.stop}")


class Frames(Span):
    """Frames of ``source``, the fingerprint of a haystack or video."""

    __slots__ = ()


class Tokens(Span):
    """Tokens of ``source``, the fingerprint of a tokenised text.

    The text counterpart of ``Frames``: a long haystack is tokenised once and shared by every prompt.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Image:
    """One image, by content hash. ``as_frame`` encodes it as one video frame (a needle), else as an image."""

    source: str
    as_frame: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """Here a message of ``role`` begins, for models whose own chat template makes the prompt.

    What follows is the message's content; the last turn is the one that is answered.
    """

    role: str


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames behind it, and images among them that stand for frames, are one video of ``fps`` frames a second.

    ``indices`` are the frames' numbers in a longer video of ``total`` frames that they were sampled from; left out
    where the clip is the video.
    """

    fps: float = 1.0
    indices: tuple[int, ...] | None = None
    total: int | None = None


Segment: TypeAlias = Text | Frames | Image | Tokens | Turn | Clip


@dataclass(frozen=True, slots=True)
class Target:
    """A teacher-forced leaf: score these tokens, tokenised alone, after the segments."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """A generation leaf. Greedy unless ``temperature`` is above 0."""

    max_new_tokens: int = 16
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


Leaf: TypeAlias = Target | Generate


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what is wanted after it."""

    segments: tuple[Segment, ...]
    leaf: Leaf


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """A run of one segment. The root carries ``None``. ``leaves`` are (request index, leaf) pairs that end here."""

    segment: Segment | None
    children: list[Node] = field(default_factory=list)
    leaves: list[tuple[int, Leaf]] = field(default_factory=list)


class RequestTree:
    """Requests merged by equal prefixes; ``Frames`` and ``Tokens`` are split where branches part.

    Example: two cells of one haystack share ``Frames(hay, 0, min(k1, k2))``. A node's children start
    with different first frames or texts, so a walk never computes the same prefix twice.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self.root = Node(None)
        self.requests: tuple[Request, ...] = tuple(requests)
        for index, request in enumerate(self.requests):
            node = self.root
            for segment in request.segments:
                node = _descend(node, segment)
            node.leaves.append((index, request.leaf))

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Yield (depth in nodes, node) depth-first, each parent before its children; the root is left out.

        Iterative, since the trunk of a haystack has a node per splice and may be thousands deep.
        """
        stack = [(0, child) for child in reversed(self.root.children)]
        while stack:
            depth, node = stack.pop()
            yield depth, node
            stack.extend((depth + 1, child) for child in reversed(node.children))


def _descend(node: Node, segment: Segment) -> Node:
    """Follow or create the path for ``segment`` below ``node`` and return its last node.

    Iterative, since a haystack's trunk has a node per splice.
    """
    while True:
        child = next((child for child in node.children if _begin_alike(child.segment, segment)), None)
        if child is None:
            node.children.append(Node(segment))
            return node.children[-1]
        span = child.segment
        if not isinstance(segment, Span) or not isinstance(span, Frames | Tokens) or segment.stop == span.stop:
            return child
        if segment.stop < span.stop:  # the node is cut in two: the tail becomes its only child, with all it led to
            tail = type(span)(span.source, segment.stop, span.stop)
            child.children = [Node(tail, child.children, child.leaves)]
            child.segment, child.leaves = segment, []
            return child
        node, segment = child, type(span)(segment.source, span.stop, segment.stop)


def _begin_alike(other: Segment | None, segment: Segment) -> bool:
    if isinstance(segment, Span) and isinstance(other, type(segment)):
        return (other.source, other.start) == (segment.source, segment.start)
    return other == segment
