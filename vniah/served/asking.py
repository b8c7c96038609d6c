"""Prompts sent to one server, several at a time, and what came of each; and what the server is found to understand.

Before the first prompt a short question finds out which parameters it takes, that it is the model that was named, and
that it decodes greedily: three answers to one question are alike.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vniah.notices import did_you_mean, notice, shortened
from vniah.runs.task import Answer
from vniah.served.arguments import ServedArgs
from vniah.served.content import Content
from vniah.served.endpoint import EndpointError
from vniah.served.plan import most_answer_tokens
from vniah.served.reply import Reply, whole_numbers

# Beside temperature=0, from the most telling to what any server takes. Servers have what else changes an argmax, such
# as a repetition penalty, from the model's own generation config unless told otherwise.
_FORMS: tuple[Mapping[str, Any], ...] = (
    {"logprobs": True, "return_token_ids": True, "repetition_penalty": 1.0, "frequency_penalty": 0},
    {"logprobs": True, "frequency_penalty": 0},
    {"frequency_penalty": 0},
    {},
)
_LONGER, _SHORTER = "max_completion_tokens", "max_tokens"
_CHECK = "Write ten words about the sea."
_CHECK_TOKENS = 16
_HONOURED = {"max_new_tokens", "max_gen_toks", "temperature", "do_sample", "top_p", "until"}
_IGNORED = {"num_beams", "use_cache"}
_NO_STOP = ["\n\n"]  # lmms-eval's, of every task that names none; its own models drop it


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One prompt.

    Attributes:
        visuals: made when it is sent, in a thread.
        text: behind them; a whole raw prompt where ``raw``.
        most_tokens: of the answer.
        more: further parameters.
        forced: scored by the first tokens that are written.
        units: how much is shown, for what it may cost: frames, or tokens of text.
    """

    visuals: Callable[[], Sequence[Any]]
    text: Callable[[], str]
    most_tokens: int
    raw: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    units: int = 1
    forced: bool = False


@dataclass(kw_only=True)
class Usage:
    """What a server says that it did."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached_tokens: int | None = None  # of the prompts; None where it does not tell
    untold: int = 0  # answers without usage

    def add(self, reply: Reply) -> None:
        self.requests += 1
        self.untold += reply.prompt_tokens is None
        self.prompt_tokens += reply.prompt_tokens or 0
        self.answer_tokens += reply.answer_tokens or 0
        if reply.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + reply.cached_tokens


class BudgetSpentError(Exception):
    """The next request may cost more than is left."""


class Asker:
    """Asks one server.

    Attributes:
        usage: of all requests so far.
        spent: money of all requests, those of an earlier run that a journal holds among them.
    """

    def __init__(self, args: ServedArgs) -> None:
        self.args, self.endpoint = args, args.endpoint()
        self.usage = Usage()
        self.spent = 0.0
        self.unit_cost = 0.0  # the most that a unit of a job has cost
        self.form: Mapping[str, Any] = {}
        self.answered_by = ""
        self.owner = ""
        self._length_name = _SHORTER
        self._greeted = self._thinks = False
        self._stopped = threading.Event()
        self.content = Content(image_format=args.image_format, timestamps=args.timestamps)

    def check(self) -> None:
        """Raise EndpointError for a server that is not there, refuses the key, or says that it has no such model."""
        listed = self.endpoint.models()
        if listed is None:
            return
        known = {str(one["id"]): str(one.get("owned_by") or "") for one in listed}
        if known and self.args.model not in known:
            near = did_you_mean(self.args.model, known) or f"; it serves {shortened(', '.join(known), 200)}"
            raise EndpointError(f"{self.endpoint.url} serves no model {self.args.model!r}{near}", permanent=True)
        self.owner = known.get(self.args.model, "")
        self.content.ids = self.owner == "vllm"  # others may refuse what they do not know

    def greet(self) -> None:
        """Find out what the server understands, once.

        Raises:
            EndpointError: it refuses, is another model, or samples.
        """
        if self._greeted:
            return
        job = Job(visuals=tuple, text=lambda: _CHECK, most_tokens=_CHECK_TOKENS)
        level = 0
        while True:
            self.form = _FORMS[level]
            try:
                replies = [self._ask(job)]
                break
            except EndpointError as error:
                if error.status not in (400, 422):
                    raise
                if _LONGER in str(error) and self._length_name == _SHORTER:
                    self._length_name = _LONGER
                elif level + 1 < len(_FORMS):
                    level += 1
                else:
                    raise
        if self.args.self_check:
            replies += [self._ask(job), self._ask(job)]
            texts = {reply.text for reply in replies}
            if len(texts) > 1:
                one, other = (shortened(text, 60) for text in sorted(texts)[:2])
                raise EndpointError(
                    f"{self.endpoint.url} samples although greedy answers were asked (temperature=0): {one!r} and "
                    f"{other!r} to one question; its scores would be chance. If such answers are near ties of a server "
                    "that batches, self_check=0 goes on",
                    permanent=True,
                )
        for reply in replies:
            self._count(reply)
        self._thinks = any(reply.thinks for reply in replies)
        ids, known = replies[0].token_ids, self.answer_ids(replies[0].text)
        if known and not {*ids} & {*known}:
            if ids:
                notice(f"{self.endpoint.url} tells token ids that are not of its own answer; they are not used")
            self.form = {key: value for key, value in self.form.items() if key != "return_token_ids"}
            self.answer_ids.cache_clear()
        self._greeted = True

    def job(
        self,
        visuals: Callable[[], Sequence[Any]],
        text: Callable[[], str],
        *,
        target: str | None,
        generation: Mapping[str, Any],
        raw: bool = False,
        units: int = 1,
    ) -> Job:
        """One prompt with a forced answer, or a free one by lmms-eval's settings."""
        if target is not None:
            most = len(self.answer_ids(target)) if self.args.answer_tokenizer else most_answer_tokens(target)
            return Job(visuals=visuals, text=text, most_tokens=most, raw=raw, units=units, forced=True)
        most, more = _generation(generation)
        return Job(visuals=visuals, text=text, most_tokens=most, more=more, raw=raw, units=units)

    def ask_all(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Reply | Exception]]:
        """(number, reply or what went wrong) of each job as it comes; asked in their order.

        The first goes alone, so that those behind it find its beginning in the server's cache, and what one costs is
        known. After an error nothing more is sent, and what is on its way comes in.

        Raises:
            BudgetSpentError: the next may cost more than is left; raised when all that were sent have come.
        """
        waiting, flying = deque(range(len(jobs))), 0
        done: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
        reserved: dict[int, float] = {}
        failed = broke = False

        def run(number: int) -> None:
            try:
                done.put((number, self._ask(jobs[number])))
            except Exception as error:
                done.put((number, error))

        self._stopped.clear()
        try:
            while waiting or flying:
                room = self.args.concurrency if len(waiting) + flying < len(jobs) else 1
                while waiting and flying < room and not failed:
                    cost = self.unit_cost * jobs[waiting[0]].units
                    budget = self.args.budget
                    if budget is not None and self.spent + sum(reserved.values()) + cost > budget:
                        broke = True
                        break
                    number = waiting.popleft()
                    reserved[number] = cost
                    threading.Thread(target=run, args=(number,), daemon=True).start()
                    flying += 1
                if not flying:
                    break
                number, outcome = done.get()
                flying -= 1
                reserved.pop(number)
                if isinstance(outcome, Reply):
                    self.learn(self._count(outcome), jobs[number].units)
                    if self.args.budget is not None and outcome.prompt_tokens is None:
                        outcome = EndpointError(f"{self.endpoint.url} tells no usage; a budget cannot be kept there")
                failed = failed or isinstance(outcome, Exception)
                if failed:
                    self._stopped.set()  # no retries of what is on its way
                yield number, outcome
            if broke and not failed:
                raise BudgetSpentError
        finally:
            self._stopped.set()

    def learn(self, cost: float, units: int) -> None:
        """What so many units have cost, for what the next may."""
        self.unit_cost = max(self.unit_cost, cost / max(1, units))

    def told(self) -> dict[str, Any]:
        """What results say of the server: who answered, and what it says that it did."""
        usage = self.usage
        all_untold = 0 < usage.requests == usage.untold  # 0 tokens would be a figure
        found: dict[str, Any] = {
            "served_model": self.answered_by,
            "server": self.owner,
            "timestamps": self.args.timestamps,
            "image_format": self.args.image_format,
            "requests": usage.requests,
            "requests_without_usage": usage.untold or None,
            "prompt_tokens": None if all_untold else usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "answer_tokens": None if all_untold else usage.answer_tokens,
            "spent": None if self.args.prices is None or all_untold else round(self.spent, 6),
        }
        return {key: value for key, value in found.items() if value not in (None, "")}

    def _count(self, reply: Reply) -> float:
        self.usage.add(reply)
        cost = self.cost(reply)
        self.spent += cost
        return cost

    def cost(self, reply: Reply) -> float:
        """Money of one request; 0 without prices."""
        prices = self.args.prices
        counts = (reply.prompt_tokens or 0, reply.answer_tokens or 0, reply.cached_tokens or 0)
        return 0.0 if prices is None else prices.of(*counts)

    @functools.cached_property
    def _encode(self) -> Callable[[str], Sequence[int]]:
        from vniah.text.task import named_tokenizer

        return named_tokenizer(self.args.answer_tokenizer)

    def forced(self, reply: Reply, target: str) -> tuple[Answer, str]:
        """A reply as an answer under teacher forcing, and by what it was compared."""
        return reply.forced(target, self.answer_ids(target), cut=bool(self.args.answer_tokenizer))

    def talk(self, messages: Sequence[Mapping[str, Any]], generation: Mapping[str, Any]) -> Reply:
        """The answer to a whole conversation."""
        most, more = _generation(generation)
        return self._ask(Job(visuals=tuple, text=str, most_tokens=most, more=more), messages)

    def _ask(self, job: Job, messages: Sequence[Mapping[str, Any]] | None = None) -> Reply:
        shown: dict[str, Any]
        form = dict(self.form)
        if job.raw:
            path, shown = "completions", {"prompt": job.text()}
            # There a number, and the longer name is chat's.
            form |= {"logprobs": 1} if form.pop("logprobs", None) else {}
            length_name = _SHORTER
        else:
            messages = self.content.message(job.visuals(), job.text()) if messages is None else messages
            path, shown = "chat/completions", {"messages": list(messages)}
            length_name = self._length_name
        if self.args.thinking != "auto":
            form["chat_template_kwargs"] = {"enable_thinking": self.args.thinking == "on"}
        body = {"model": self.args.model, **shown, "temperature": 0, length_name: job.most_tokens, **form, **job.more}
        reply = self.endpoint.ask(path, body, Reply.read, self._stopped)
        if not self.answered_by:
            self.answered_by = reply.model
        asked, answered = self.args.model.casefold(), reply.model.casefold()
        if reply.model != self.answered_by or not (asked in answered or answered in asked):
            raise EndpointError(
                f"{self.endpoint.url} answers as {reply.model!r}, and {self.args.model!r} was asked", permanent=True
            )
        if job.forced and not job.raw and (reply.thinks or self._thinks):
            raise EndpointError(
                f"{self.args.model} thinks before it answers, and the paper's score is of its first tokens; give "
                "thinking=off, or run the task's _generate",
                permanent=True,
            )
        return reply

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (an asker lives as long as its run)
    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer alone, by the tokenizer that was named, else by the server's own; empty for none."""
        if self.args.answer_tokenizer:
            return tuple(self._encode(answer))
        if not self.form.get("return_token_ids"):
            return ()
        url = f"{self.endpoint.url.removesuffix('/v1')}/tokenize"
        try:
            told = self.endpoint.once(url, {"model": self.args.model, "prompt": answer, "add_special_tokens": False})
        except EndpointError as error:
            notice(f"{url} tells no tokens of an answer ({error}); answers are compared by their text", kind=url)
            return ()
        return whole_numbers(told.get("tokens")) or ()


def _generation(settings: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """lmms-eval's settings of a free answer as a server knows them: its most tokens, and further parameters."""
    given = {key: value for key, value in settings.items() if value is not None}
    if unknown := sorted(given.keys() - _HONOURED - _IGNORED):
        notice(f"generation settings that a served model is not told: {', '.join(unknown)}")
    most = int(given.get("max_new_tokens", given.get("max_gen_toks", 1024)))
    more: dict[str, Any] = {}
    temperature = float(given.get("temperature") or 0)
    if given.get("do_sample", temperature > 0):
        more = {"temperature": temperature or 1.0, **({"top_p": given["top_p"]} if "top_p" in given else {})}
    until = given.get("until")
    stop = [until] if isinstance(until, str) else list(until or [])
    return most, {**more, **({"stop": stop} if stop and stop != _NO_STOP else {})}
