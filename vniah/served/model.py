"""A model behind a server as what answers needle tasks (``runs/measure.py`` ``Model``)."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vniah.notices import identify, notice
from vniah.runs.journal import Journal, content_key, remove_journal, what_continues
from vniah.runs.measure import CellError, place_of
from vniah.runs.progress import Bar
from vniah.runs.task import Answer, NeedleTask
from vniah.served.arguments import ServedArgs
from vniah.served.asking import Asker, BudgetSpentError, Job
from vniah.served.endpoint import EndpointError
from vniah.served.plan import cell_request
from vniah.served.reply import Reply
from vniah.served.reuse import tree_order

_KEPT = ("text", "is_greedy", "predicted_ids", "answer_ids", "answer_logprobs", "prompt_tokens")


class ServedModel:
    """Teacher-forced tasks are scored by greedy decoding (``reply.py`` says how), free ones as they are.

    Args:
        args: the model's arguments.
        name: what to call it in results; the server's name of it otherwise.
        folder: where a journal keeps the answers of a run that does not end; ``None`` keeps none.
    """

    speaks = True

    def __init__(self, args: ServedArgs, name: str = "", folder: Path | None = None) -> None:
        self.args, self.name, self.folder = args, name or args.model, folder
        self.asker = Asker(args)
        self.presentation = args.presentation
        if self.presentation == "auto":
            self.presentation = os.environ.get("VNIAH_PRESENTATION") or "images"
        self.journal: Path | None = None
        self._whole = True

    def about(self) -> dict[str, Any]:
        """The model's arguments as lmms-eval would have been given them."""
        return {"model": "served", "model_args": self.args.about()}

    def check(self, tasks: Sequence[NeedleTask]) -> None:
        """Tell the tasks how they are shown, and raise for a server that cannot answer."""
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ValueError("a served model is asked by one process; run this without torchrun")
        for task in tasks:
            task.show_as(self.presentation, timestamps=self.args.timestamps)
        self.asker.check()

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> list[Answer | None]:
        """Answers in the order of the cells; ``None`` where the server refused or wrote nothing.

        Raises:
            CellError: the server failed at a cell, or the budget is spent; what was scored is in the journal too.
        """
        args, asker = self.args, self.asker
        names = list(dict.fromkeys(name for name, _ in cells))
        decides = [self.name, args.endpoint().url, self.presentation, args.timestamps, args.image_format]
        decides += [args.thinking, args.answer_tokenizer]
        found: dict[int, Answer] = {}
        compared: Counter[str] = Counter()
        unanswered: Counter[str] = Counter()
        with contextlib.ExitStack() as stack:
            journal = None
            if self.folder is not None:
                measured = content_key(decides, [tasks[name].provenance_key for name in names])
                self.journal = self.folder / f"journal-{measured[:12]}.jsonl"
                journal = stack.enter_context(Journal(self.journal))
                for name in names:
                    journal.describe({"task": name, "measured": tasks[name].provenance(), "model": self.about()})
            keys = [content_key(decides, tasks[name].provenance_key, number) for name, number in cells]
            for index, key in enumerate(keys):
                if journal is not None and (result := journal.get(key)):
                    found[index] = Answer(**{one: result[one] for one in _KEPT})
                    compared.update([result["compared"]] if result["compared"] else [])
                    asker.spent += float(result["cost"])
                    asker.learn(float(result["cost"]), _units(tasks[cells[index][0]], cells[index][1]))
            asked = [index for index in range(len(cells)) if index not in found]
            requests = [cell_request(tasks[cells[one][0]], cells[one][1]) for one in asked]
            order = [asked[one] for one in tree_order(requests)]
            jobs = [self._job(tasks[cells[index][0]], cells[index][1]) for index in order]
            failed: tuple[int, Exception] | None = None
            try:
                if jobs:
                    asker.greet()
                bar = stack.enter_context(Bar(total=len(cells), initial=len(found), desc="vniah", unit="cells"))
                for place, outcome in asker.ask_all(jobs):
                    index = order[place]
                    name, number = cells[index]
                    if not isinstance(outcome, Reply):
                        failed = failed or (index, outcome)
                        continue
                    answer, by = self._read(tasks[name], number, outcome)
                    bar.update()
                    if answer.unanswered:
                        unanswered[answer.unanswered] += 1
                        continue
                    found[index] = answer
                    compared.update([by] if by else [])
                    if journal is not None:
                        kept = {one: getattr(answer, one) for one in _KEPT}
                        kept |= {"compared": by, "cost": asker.cost(outcome), "cached_tokens": outcome.cached_tokens}
                        row = tasks[name].rows[number]
                        journal.put(keys[index], kept, task=name, model=self.name, doc_id=number, doc=row)
            except BudgetSpentError:
                self._stop(
                    f"the budget of {args.budget:g} is all but spent ({asker.spent:.4g}), and the next request might "
                    "cost more than is left; a larger budget goes on",
                    found,
                    cells,
                )
            finally:
                identify(self._told(compared, tasks, found, cells))
        if failed is not None:
            index, error = failed
            name, number = cells[index]
            if not isinstance(error, EndpointError):
                error = EndpointError(f"{type(error).__name__}: {error}")
            self._stop(f"at the cell {place_of(tasks[name], number)}: {error}", found, cells)
        if unanswered:
            self._whole = False
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(unanswered.items()))
            notice(
                f"{sum(unanswered.values())} of {len(cells)} cells have no answer and are not scored ({told}); the "
                "same command asks them again"
            )
            if not found:
                raise ValueError(f"{self.name} answered none of {len(cells)} cells: {told}")
        return [found.get(index) for index in range(len(cells))]

    def _stop(self, message: str, found: Mapping[int, Answer], cells: Sequence[Any]) -> None:
        kept = f"; what was answered is in {self.journal}, and the same command goes on" if self.journal else ""
        raise CellError(f"{message}{kept}", [found.get(index) for index in range(len(cells))]) from None

    def _job(self, task: NeedleTask, number: int) -> Job:
        row = task.rows[number]
        target = task.target(row) if task.scoring == "teacher-forced" else None
        return self.asker.job(
            lambda: task.shown(row),
            lambda: task.prompt(row),
            target=target,
            generation=task.generation,
            # Text NIAH has no chat template (reference section 4).
            raw=target is not None and task.unit == "tokens",
            units=_units(task, number),
        )

    def _read(self, task: NeedleTask, number: int, reply: Reply) -> tuple[Answer, str]:
        if task.scoring == "teacher-forced":
            target = task.target(task.rows[number])
            return self.asker.forced(reply, target)
        return Answer(text=reply.said, prompt_tokens=reply.prompt_tokens, unanswered=reply.failure), ""

    def _told(
        self,
        compared: Mapping[str, int],
        tasks: Mapping[str, NeedleTask],
        found: Mapping[int, Answer],
        cells: Sequence[tuple[str, int]],
    ) -> dict[str, Any]:
        """What results say of the server: who answered, how it was shown, and what it says that it did."""
        self._say_sampled(tasks, found, cells)
        told = {"presentation": self.presentation, "compared_by": dict(compared)}
        return {**self.asker.told(), **{key: value for key, value in told.items() if value}}

    def _say_sampled(
        self, tasks: Mapping[str, NeedleTask], found: Mapping[int, Answer], cells: Sequence[tuple[str, int]]
    ) -> None:
        """Say so where one question behind more frames is as long a prompt: not all of them were read."""
        lengths: dict[tuple[str, str, int], set[int]] = {}
        for index, answer in found.items():
            name, number = cells[index]
            row = tasks[name].rows[number]
            if answer.prompt_tokens and tasks[name].unit == "frames" and not row["control"]:
                prompt = (name, str(row["question"]), answer.prompt_tokens)
                lengths.setdefault(prompt, set()).add(int(row["num_frames"]))
        alike = next((prompt for prompt, several in lengths.items() if len(several) > 1), None)
        if alike is not None:
            told = ", ".join(map(str, sorted(lengths[alike])))
            notice(
                f"{self.name} reads prompts of {told} frames as equally many tokens ({alike[-1]:,}): the server "
                "samples frames, and needles are lost; show images, or have it read every frame (docs/serving.md)",
                kind="the server samples frames",
            )

    def finished(self) -> None:
        """The results are written: what is asked after this is asked anew, unless some cells have no answer."""
        if self.journal is not None and self._whole:
            remove_journal(self.journal)

    def interrupted(self) -> str:
        """What continues a run that was stopped."""
        return what_continues(self.journal)


def _units(task: NeedleTask, number: int) -> int:
    """How much a cell shows: frames, or tokens of text."""
    return int(task.rows[number][task.length_key]) + 1
