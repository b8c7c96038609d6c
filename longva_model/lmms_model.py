"""The lmms-eval model ``longva_ring``; the one file of this room that knows lmms_eval.

Turns lmms-eval's requests into jobs and hands them all to one runner (``engine/runner.py``), so that
requests which share a video or a haystack share its prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from longva_model.engine.runner import Job, Runner
from longva_model.generation_args import generate_leaf
from longva_model.model_args import ModelArgs
from longva_model.prompting import Prompt, build_chat, build_prompt
from vniah.requests import Leaf, Target
from vniah.scoring import ScoredPair


class LongVARing(lmms):
    """LongVA, its baselines and text-only models, teacher-forced or generating. See ``ModelArgs``."""

    is_simple = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.args = ModelArgs.read(kwargs)
        self.runner = Runner.load(self.args)
        self.backend = self.runner.backend
        self._rank, self._world_size = self.runner.rank, self.runner.world_size
        # By task: doc_to_visual, or doc_to_messages of a chat task. Every rank has every task, so that it can
        # build a prompt of another rank's document.
        self._visuals: dict[str, Callable[..., Any] | None] = {}
        self._messages: dict[str, Callable[..., Any]] = {}

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
            self._visuals[task] = doc_to_visual
            jobs.append(_job(request, task, split, doc_id, context, Target(str(answer))))
        results = self.runner.run(jobs, self._build, self._about)
        return [
            ScoredPair(
                result.logprob,
                result.is_greedy,
                {
                    "predicted": result.text,
                    "predicted_ids": result.predicted_ids,
                    "answer_ids": result.answer_ids,
                    "answer_logprobs": result.answer_logprobs,
                    "prompt_tokens": result.prompt_tokens,
                },
            )
            for result in results
        ]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Generate an answer to each request; sampling settings of the task are honoured."""
        jobs = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            self._visuals[task] = doc_to_visual
            jobs.append(_job(request, task, split, doc_id, context, generate_leaf(settings)))
        return [result.text.strip() for result in self.runner.run(jobs, self._build, self._about)]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[Any]:
        """Rounds of questions, each told the answers before it; one list of answers a request."""
        answers: list[Any] = []
        for request in requests:
            context, settings, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            doc = self._doc(task, split, doc_id)
            visuals, text = list(doc_to_visual(doc) or []), context
            rounds: list[str] = []
            info: Any = None
            while True:
                if rounds:
                    shown, text, last, outputs, info = doc_to_text(
                        doc, previous_output=rounds, round_idx=len(rounds), previous_round_info=info
                    )
                    visuals = visuals if shown is None else list(shown)
                    if last:
                        rounds = list(outputs or rounds)
                        break
                rounds.append(self._one_round(self._prompt(text, visuals, generate_leaf(settings))))
            answers.append(rounds)
        return answers

    def _one_round(self, prompt: Prompt) -> str:
        return self.runner.run_one(prompt).text.strip()

    def _doc(self, task: str, split: str, doc_id: int) -> Mapping[str, Any]:
        doc: Mapping[str, Any] = self.task_dict[task][split][doc_id]
        return doc

    def _build(self, job: Job) -> Prompt:
        """The prompt of any rank's job, from this rank's copy of the task."""
        doc = self._doc(job.task, job.split, job.doc_id)
        if job.context is None:
            messages = self._messages[job.task](doc)
            prompt = build_chat(messages, job.leaf, self.backend.template, max_frames=self._max_frames(job))
            return replace(prompt, beyond_context=job.every_frame)
        doc_to_visual = self._visuals.get(job.task)
        visuals = list(doc_to_visual(doc) or []) if doc_to_visual is not None else []
        return self._prompt(job.context, [visual for visual in visuals if visual is not None], job.leaf, job)

    def _prompt(self, text: str, visuals: Sequence[Any], leaf: Leaf, job: Job | None = None) -> Prompt:
        for visual in visuals:
            if hasattr(visual, "bind_tokenizer"):
                visual.bind_tokenizer(self.backend.token_ids)
        frames = self._max_frames(job) if job is not None else self.args.max_frames_num
        prompt = build_prompt(text, visuals, leaf, self.backend.template, max_frames=frames)
        return replace(prompt, beyond_context=prompt.beyond_context or (job is not None and job.every_frame))

    def _max_frames(self, job: Job) -> int:
        """A V-NIAH video is shown whole: sampling it would skip the one-frame needle."""
        return 10**9 if job.every_frame else self.args.max_frames_num

    def _about(self, job: Job) -> dict[str, Any]:
        """What a journal line says of its document: its plain fields."""
        doc = self._doc(job.task, job.split, job.doc_id)
        plain = {key: value for key, value in doc.items() if isinstance(value, (str, int, float, bool, type(None)))}
        return {"task": job.task, "doc_id": job.doc_id, "doc": plain}


class LongVARingChat(LongVARing):
    """The same model for lmms-eval's chat protocol; teacher forcing and Python tasks are unchanged."""

    is_simple = False

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        jobs = []
        for request in requests:
            if not callable(request.args[1]):
                return super().generate_until(requests)
            _, doc_to_messages, settings, doc_id, task, split = request.args
            self._messages[task] = doc_to_messages
            jobs.append(_job(request, task, split, doc_id, None, generate_leaf(settings)))
        return [result.text.strip() for result in self.runner.run(jobs, self._build, self._about)]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[Any]:
        answers: list[Any] = []
        for request in requests:
            if not callable(request.args[1]):
                return super().generate_until_multi_round(requests)
            _, doc_to_messages, settings, doc_id, task, split = request.args
            doc = self._doc(task, split, doc_id)
            rounds: list[str] = []
            info: Any = None
            while True:
                turn = doc_to_messages(doc, round_idx=len(rounds), previous_output=rounds, previous_round_info=info)
                messages, last, outputs, info = turn
                if last:
                    rounds = list(outputs or rounds)
                    break
                prompt = build_chat(
                    messages, generate_leaf(settings), self.backend.template, max_frames=self.args.max_frames_num
                )
                rounds.append(self._one_round(prompt))
            answers.append(rounds)
        return answers


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
