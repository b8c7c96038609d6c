"""The lmms-eval model ``longva_ring``; the one file of this room that knows lmms_eval.

Turns lmms-eval's requests into jobs and hands them all to one runner (``run/runner.py``), so that
requests which share a video or a haystack share its prefix.
"""

from __future__ import annotations

import atexit
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from longva_model.arguments import ModelArgs, generate_leaf
from longva_model.prompts.prompting import Prompt
from longva_model.run.runner import Job, Order, Runner
from vniah.contract.requests import Generate, Leaf, Target
from vniah.runs import profiling
from vniah.runs.scoring import ScoredPair


class LongVARing(lmms):
    """LongVA, its baselines and text-only models, teacher-forced or generating. See ``ModelArgs``."""

    is_simple = True
    generic = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.args = replace(ModelArgs.read(kwargs), generic=self.generic)
        self._system = self.args.system_text()
        if self.args.profile:
            profiling.start(whole=True)
            atexit.register(profiling.say)  # lmms-eval scores and writes behind the model's back
        self.runner = Runner.load(self.args)
        self.backend = self.runner.backend
        self._rank, self._world_size = self.runner.rank, self.runner.world_size
        # By task: doc_to_visual, or doc_to_messages of a chat task. Every rank has every task, so that it can
        # build a prompt of another rank's document.
        self._showing: dict[str, Callable[..., Any] | None] = {}

    @property
    def device(self) -> Any:
        return self.runner.device

    @property
    def tokenizer(self) -> Any:
        return self.backend.tokenizer

    @property
    def max_length(self) -> int:
        return self.backend.max_length

    @property
    def batch_size(self) -> int:
        return self.args.batch_size

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Score each answer by teacher forcing.

        Returns:
            Pairs (log-probability, every token is the argmax), counted after visual tokens are in place; a
            ``ScoredPair`` carries predicted ids and log-probabilities behind it.
        """
        jobs = []
        for request in requests:
            context, target, doc_to_visual, doc_id, task, split = request.args
            answer = target if isinstance(target, str) else target(self._doc(task, split, doc_id))
            self._showing[task] = doc_to_visual
            jobs.append(_job(request, task, split, doc_id, context, Target(str(answer))))
        pairs: list[tuple[float, bool]] = []
        for result in self.runner.run(jobs, self._build, self._about, self._measured(jobs)):
            names = ("predicted_ids", "answer_ids", "answer_logprobs", "prompt_tokens")
            details = {"predicted": result.text, **{name: getattr(result, name) for name in names}}
            pairs.append(ScoredPair(result.logprob, result.is_greedy, details))
        return pairs

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Generate an answer to each request; sampling settings of the task are honoured.

        Requests of chat tasks and of others may come together. A request that comes several times (``--repeats``)
        is answered once if greedy, and with a seed for each time if sampled.
        """
        jobs = []
        for request in requests:
            if callable(request.args[1]):
                _, show, settings, doc_id, task, split = request.args
                context = None
            else:
                context, settings, show, doc_id, task, split = request.args
            self._showing[task] = show
            jobs.append(_job(request, task, split, doc_id, context, self._leaf(settings)))
        jobs = numbered_samples(jobs)
        results = self.runner.run(jobs, self._build, self._about, self._measured(jobs))
        return [result.text.strip() for result in results]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Rounds of questions, each told the answers before it; one list of answers a request."""
        return [self._rounds(request) for request in requests]

    def _rounds(self, request: Instance) -> list[str]:
        """lmms-eval asks for what comes next, whether to stop, the answers so far, and what to tell it next time.

        What comes next is visuals and text; of a chat task messages, which stand alone in the first round, and in
        every round of a task that has one.
        """
        is_chat = callable(request.args[1])
        if is_chat:
            _, ask, settings, doc_id, task, split = request.args
        else:
            context, settings, doc_to_visual, ask, doc_id, task, split = request.args
        doc, leaf, frames = self._doc(task, split, doc_id), self._leaf(settings), self.args.max_frames_num
        visuals = None if is_chat or doc_to_visual is None else doc_to_visual(doc)
        shown = [ask(doc)] if is_chat else [visuals, context]
        answers: list[str] = []
        told: Any = None
        while True:
            answers.append(self.runner.run_one(self._prompt(shown, leaf, frames)).text.strip())
            turn = ask(doc, previous_output=list(answers), round_idx=len(answers), previous_round_info=told)
            if is_chat and not (isinstance(turn, tuple) and len(turn) == 4):
                return answers
            *shown, stop, so_far, told = turn
            answers = list(answers if so_far is None else so_far)
            if stop:
                return answers

    def _leaf(self, settings: Mapping[str, Any] | None) -> Generate:
        return generate_leaf(settings or {}, self.backend.generation_defaults)

    def _doc(self, task: str, split: str, doc_id: int) -> Mapping[str, Any]:
        doc: Mapping[str, Any] = self.task_dict[task][split][doc_id]
        return doc

    def _build(self, job: Job) -> Prompt:
        """The prompt of any rank's job, from this rank's copy of the task.

        Raises:
            ValueError: this rank was given no document of the task, and so does not know how its prompts look.
        """
        if job.task not in self._showing:
            raise ValueError(
                f"process {self._rank} of {self._world_size} was given no document of {job.task}; "
                "a task needs a document for each process, so use fewer processes or raise --limit"
            )
        show = self._showing[job.task]
        shown = [show(self._doc(job.task, job.split, job.doc_id)) if show is not None else None]
        if job.context is not None and _is_chat(shown[0]):
            job = replace(job, context=None)  # a forced answer to messages, beside which the text is said again
        # A V-NIAH video is shown whole: sampling it would skip the one-frame needle.
        frames = 10**9 if job.every_frame else self.args.max_frames_num
        prompt = self._prompt(shown if job.context is None else [*shown, job.context], job.leaf, frames)
        return replace(prompt, beyond_context=prompt.beyond_context or job.every_frame)

    def _prompt(self, shown: Sequence[Any], leaf: Leaf, max_frames: int) -> Prompt:
        """The prompt of a chat task's messages, or of visuals and a text."""
        given: dict[str, Any] = {"max_frames": max_frames, "system": self._system}
        if len(shown) == 1:
            return self.backend.chat(shown[0], leaf, **given)
        visuals, text = shown
        # Some tasks return one visual, or nothing, or holes.
        several = visuals if isinstance(visuals, (list, tuple)) else [visuals]
        visuals = [visual for visual in several if visual is not None]
        for visual in visuals:
            if hasattr(visual, "bind_tokenizer"):
                visual.bind_tokenizer(self.backend.token_ids)
        return self.backend.question(text, visuals, leaf, **given)

    def _measured(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """What the needle tasks among the jobs' are to measure; their documents say it."""
        first = {job.task: job for job in reversed(jobs)}
        told = {task: self._doc(task, job.split, job.doc_id).get("provenance") for task, job in first.items()}
        measured = {task: json.loads(value) for task, value in told.items() if value}
        self.args.check_needles(measured)
        return measured

    def _about(self, job: Job) -> dict[str, Any]:
        """What a journal line says of its document: its plain fields, what holds for the whole run left out."""
        doc = self._doc(job.task, job.split, job.doc_id)
        plain = {
            key: value
            for key, value in doc.items()
            if isinstance(value, (str, int, float, bool, type(None))) and key not in ("provenance", "seed")
        }
        return {"task": job.task, "model": self.args.pretrained, "doc_id": job.doc_id, "doc": plain}


class LongVARingChat(LongVARing):
    """The same model for lmms-eval's chat protocol; teacher forcing and Python tasks are unchanged."""

    is_simple = False


class HfTree(LongVARing):
    """Any image-text-to-text model of transformers by its own chat template and processor: the model ``hf_tree``."""

    generic = True


class HfTreeChat(HfTree):
    """The same model for lmms-eval's chat protocol."""

    is_simple = False


def numbered_samples(jobs: Sequence[Job]) -> list[Job]:
    """Give jobs that are the same prompt, sampled, a number and a seed of their own."""
    seen: Counter[Order] = Counter()
    numbered = []
    for job in jobs:
        number = seen[job.order]
        seen[job.order] += 1
        if number and isinstance(job.leaf, Generate) and job.leaf.temperature > 0:
            job = replace(job, sample=number, leaf=replace(job.leaf, seed=job.leaf.seed + number))
        numbered.append(job)
    return numbered


def _is_chat(shown: Any) -> bool:
    return isinstance(shown, list) and bool(shown) and isinstance(shown[0], Mapping) and "role" in shown[0]


def _job(request: Instance, task: str, split: str, doc_id: int, context: Any, leaf: Leaf) -> Job:
    return Job(
        task=task,
        split=split,
        doc_id=int(doc_id),
        index=int(request.idx),
        context=context[0] if isinstance(context, list) else context,
        leaf=leaf,
        every_frame=bool((request.metadata or {}).get("every_frame")),
    )
