"""The lmms-eval model ``served``: our needle tasks, forced and free, and any task of free answers, asked of a server.

``vniah run`` tells more: in the order of the tree by cell, with a journal, refusals apart, and videos of forced cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from vniah.contract.requests import Request, Target, Text
from vniah.contract.sources import Visual
from vniah.notices import identify, notice
from vniah.runs.scoring import ScoredPair
from vniah.runs.task import Answer
from vniah.served.arguments import ServedArgs
from vniah.served.asking import Asker, BudgetSpentError, Job
from vniah.served.reply import Reply
from vniah.served.reuse import tree_order


class Served(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A model behind a server. See ``ServedArgs``; films of free answers are shown by VNIAH_PRESENTATION."""

    is_simple = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.args = ServedArgs.read(kwargs)
        if self.args.presentation == "video":
            raise ValueError(
                "presentation=video is of `vniah run`; here forced cells are shown as images, and free ones as "
                "VNIAH_PRESENTATION says"
            )
        self.asker = Asker(self.args)
        self.asker.check()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Pairs (log-probability, greedy decoding begins with the answer) of our needle tasks; details behind them.

        Raises:
            ValueError: another task, or a request without an answer.
        """
        jobs, targets = [], []
        for request in requests:
            context, target, doc_to_visual, doc_id, task, split = request.args
            visuals = self._visuals(doc_to_visual, doc_id, task, split)
            if not isinstance(target, str) or len(visuals) != 1 or not isinstance(visuals[0], Visual):
                raise ValueError(f"{task} asks for log-probabilities, and a server is asked for greedy answers alone")
            targets.append(target)
            written = getattr(visuals[0], "text", None)  # a text NIAH prompt is its own whole
            raw, text = written is not None, written or context
            jobs.append(self._job([] if raw else visuals, text, target, {}, raw=raw))
        segments = [self._visuals(*request.args[2:])[0].segments() for request in requests]
        order = tree_order(
            [
                Request((*one, Text(request.args[0])), Target(target))
                for one, request, target in zip(segments, requests, targets, strict=True)
            ]
        )
        answers: dict[int, Answer] = {}
        for number, reply in self._replies([jobs[one] for one in order], order):
            answers[number], _ = self.asker.forced(reply, targets[number])
        self._all_answered([answers[number].unanswered for number in range(len(jobs))])
        if not all(answer.answer_logprobs for answer in answers.values()):
            notice("the server tells not all log-probabilities; 0.0 stands in lmms-eval's samples where it does not")
        return [self._pair(answers[number]) for number in range(len(jobs))]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers as text.

        Raises:
            ValueError: a request without an answer.
        """
        jobs = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            jobs.append(self._job(self._visuals(doc_to_visual, doc_id, task, split), context, None, settings or {}))
        replies = dict(self._replies(jobs, range(len(jobs))))
        self._all_answered([replies[number].failure for number in range(len(jobs))])
        return [replies[number].said for number in range(len(jobs))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise ValueError("a served model is asked in one round; `vniah ask` has follow-up questions")

    def _visuals(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> list[Any]:
        shown = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else None
        several = shown if isinstance(shown, (list, tuple)) else [shown]
        return [one for one in several if one is not None]

    def _job(self, visuals: list[Any], text: Any, target: str | None, settings: Any, *, raw: bool = False) -> Job:
        return self.asker.job(
            lambda: visuals,
            text if callable(text) else lambda: str(text),
            target=target,
            generation=settings,
            raw=raw,
            units=max(1, sum(getattr(one, "num_frames", 1) for one in visuals)),
        )

    def _replies(self, jobs: Sequence[Job], numbers: Sequence[int]) -> list[tuple[int, Reply]]:
        """(number, reply) of all jobs, whose numbers in the requests those are."""
        self.asker.greet()
        found: list[tuple[int, Reply]] = []
        failed: Exception | None = None
        try:
            for place, outcome in self.asker.ask_all(jobs):
                if isinstance(outcome, Reply):
                    found.append((numbers[place], outcome))
                else:
                    failed = failed or outcome
        except BudgetSpentError:
            failed = ValueError(
                f"the budget of {self.args.budget:g} is all but spent; `vniah run` goes on with a larger"
            )
        finally:
            identify({**self.asker.told(), "presentation": "images or as VNIAH_PRESENTATION says"})
        if failed is not None:
            raise failed
        return found

    def _all_answered(self, failures: Sequence[str]) -> None:
        lacking = [one for one in failures if one]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(failures)} requests have no answer ({', '.join(sorted(set(lacking)))}), for "
                "which lmms-eval has no place but a wrong one; `vniah run --model openai:NAME` counts them apart"
            )

    @staticmethod
    def _pair(answer: Answer) -> ScoredPair:
        details = {**answer.logged(), "prompt_tokens": answer.prompt_tokens}
        return ScoredPair(float(sum(answer.answer_logprobs)), bool(answer.is_greedy), details)
