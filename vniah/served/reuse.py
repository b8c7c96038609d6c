"""Which part of each prompt a server's prefix cache has already, in the order in which prompts are sent.

Servers keep keys and values of prompts by their beginnings. Prompts in the order of the tree (``contract/requests.py``)
follow those that they share most with, so that a cache which holds a few prompts is enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from vniah.contract.requests import Frames, Request, RequestTree, Segment, Tokens


def tree_order(requests: Sequence[Request]) -> list[int]:
    """The numbers of the requests, those with a beginning in common beside each other."""
    return [index for _, node in RequestTree(requests).walk() for index, _ in node.leaves]


def units(request: Request) -> Iterator[Segment]:
    """A prompt in pieces that are the same or not: a frame, a token of a text, anything else whole."""
    for segment in request.segments:
        if isinstance(segment, (Frames, Tokens)):
            for index in range(segment.start, segment.stop):
                yield type(segment)(segment.source, index, index + 1)
        else:
            yield segment


def reused_tokens(
    requests: Sequence[Request], tokens: Callable[[Segment], int], room: int | None = None
) -> list[tuple[int, int]]:
    """(prompt tokens, those that the cache has) of each request, asked one after the other.

    Args:
        requests: in the order in which they are sent.
        tokens: of a unit.
        room: tokens that the cache holds; the least recently used go first, the ends of prompts before their
            beginnings. ``None`` is no bound.
    """
    kept: OrderedDict[tuple[int, Segment], int] = OrderedDict()
    names: dict[tuple[int, Segment], int] = {}
    held = 0
    found = []
    for request in requests:
        whole = reused = behind = 0
        path: list[tuple[tuple[int, Segment], int]] = []
        hit = True
        for unit in units(request):
            place = (behind, unit)  # a unit behind all that is before it
            behind = names.setdefault(place, len(names) + 1)
            count = tokens(unit)
            whole += count
            hit = hit and place in kept
            reused += count if hit else 0
            path.append((place, count))
        for place, count in reversed(path):  # the beginning was used last
            if place not in kept:
                held += count
            kept[place] = count
            kept.move_to_end(place)
        while room is not None and held > room and kept:
            held -= kept.popitem(last=False)[1]
        found.append((whole, reused))
    return found
