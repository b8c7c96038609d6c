"""What a grid costs on a server before it is asked: requests, tokens, what its cache will have, and money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vniah.contract.cost import estimate_tokens
from vniah.contract.requests import Request, Segment, Target, Text
from vniah.runs.task import NeedleTask
from vniah.served.arguments import Prices
from vniah.served.reuse import reused_tokens, tree_order


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPlan:
    """Sums over all requests.

    Attributes:
        prompt_tokens: of all prompts.
        reused_tokens: those of them that the server's cache has, asked in the order of the tree.
        answer_tokens: at most.
        longest_tokens: of a prompt.
    """

    requests: int
    prompt_tokens: int
    reused_tokens: int
    answer_tokens: int
    longest_tokens: int

    def money(self, prices: Prices, *, cached: bool = True) -> float:
        """What they cost, with what the cache has at its price or at the whole one."""
        return prices.of(self.prompt_tokens, self.answer_tokens, self.reused_tokens if cached else 0)


def cell_request(task: NeedleTask, number: int) -> Request:
    """A row as segments, for its place in the tree."""
    row = task.rows[number]
    return Request((*task.segments(row), Text(str(row["question"]))), Target(task.target(row)))


def most_answer_tokens(answer: str) -> int:
    """Tokens that an answer has at most, each a byte at least, and one before it."""
    return len(answer.encode()) + 1


def plan_served(tasks: Sequence[NeedleTask], frame_tokens: int, room: int | None = None) -> ServedPlan:
    """Plan forced tasks, asked one request at a time.

    Args:
        frame_tokens: what the server makes of a frame.
        room: tokens that its cache holds; ``None`` is no bound.
    """

    def tokens(unit: Segment) -> int:
        return estimate_tokens(unit.text) if isinstance(unit, Text) else frame_tokens

    requests = [cell_request(task, number) for task in tasks for number in range(len(task.rows))]
    counts = reused_tokens([requests[number] for number in tree_order(requests)], tokens, room)
    return ServedPlan(
        requests=len(requests),
        prompt_tokens=sum(whole for whole, _ in counts),
        reused_tokens=sum(reused for _, reused in counts),
        answer_tokens=sum(most_answer_tokens(task.target(row)) for task in tasks for row in task.rows),
        longest_tokens=max(whole for whole, _ in counts),
    )
