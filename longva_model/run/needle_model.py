"""A checkpoint as what answers needle tasks without lmms-eval: the same jobs, through the same runner.

Its jobs are those that the lmms-eval adapter makes of the same cells, in the same order, so results are the
same to the bit and either goes on where the other's journal ends.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longva_model.arguments import ModelArgs
from vniah.contract.requests import Leaf
from vniah.runs.task import Answer, NeedleTask

if TYPE_CHECKING:
    from longva_model.prompts.prompting import Prompt
    from longva_model.run.runner import Job, Runner

# Tokens beside the frames: template, question and answer.
_TEXT_TOKENS = 256


class NeedleModel:
    """A checkpoint named as ``pretrained`` of ``ModelArgs``. Nothing is loaded before the first answer.

    Args:
        args: the model's arguments.
        name: what to call it in results; its ``pretrained`` otherwise.

    Raises:
        FileNotFoundError: no such folder or Hub model.
    """

    def __init__(self, args: ModelArgs, name: str = "") -> None:
        from longva_model.backends.loading import checkpoint_folder

        self.args = args
        self.name = name or args.pretrained
        self.folder = Path(checkpoint_folder(args))
        self.speaks = int(os.environ.get("RANK") or 0) == 0
        self._runner: Runner | None = None

    def about(self) -> dict[str, Any]:
        """The model's arguments, as lmms-eval would have been given them."""
        from longva_model.backends.loading import answers_generically

        given = {key: value for key, value in self.args.as_dict().items() if value != getattr(ModelArgs(), key)}
        given = {"pretrained": self.args.pretrained, **given}
        given.pop("generic", None)
        text = ",".join(f"{key}={value}" for key, value in given.items())
        generic = answers_generically(self.folder, self.args)
        return {"model": "hf_tree" if generic else "longva_ring", "model_args": text}

    def check(self, tasks: Sequence[NeedleTask]) -> None:
        """Raise where a run cannot end well, before any weights are read.

        Raises:
            ValueError: weights and the longest cell's KV cache are larger than the device, or the cache larger than the
                host's memory where it is kept there.
        """
        from longva_model.backends.loading import answers_generically
        from longva_model.engine.kv_blocks import refuse_too_long
        from longva_model.run import processes
        from vniah.runs.plan import is_plain_model, shape_of

        self.args.check_needles({task.name: task.describe() for task in tasks})
        if answers_generically(self.folder, self.args):
            return  # a processor decides how many tokens a frame has, and not every layer keeps keys of all tokens
        try:
            shape = shape_of(str(self.folder))
        except ValueError:
            return  # a config of another form says nothing here; loading it says what is wrong
        # How many tokens a frame has is known only to a processor, where a model has one: there weights alone tell.
        each = shape.tokens_per_frame if is_plain_model(str(self.folder)) else 0
        longest = max((_longest_tokens(task, each) for task in tasks), default=0)
        device = processes.pick_device(self.args.device)
        width = {"float32": 4, "auto": 2 if device.type == "cuda" else 4}.get(self.args.dtype, 2)
        shape = replace(shape, kv_bytes=width)
        weights = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        cache = longest * shape.kv_bytes_as(self.args.kv)
        if self.args.kv == "host":
            refuse_too_long(shape, longest, self.args.kv_block, device)
            cache = 0
        world = processes.launched_processes()
        team = world if self.args.parallel == "tensor" else self.args.tensor_parallel_size
        ring = max(1, world // team) if self.args.parallel in ("auto", "ring") and not self.args.in_blocks else 1
        devices = processes.visible_devices(device) if self.args.device_map else [device]
        room, where = sum(map(processes.total_bytes, devices)), f"{device}"
        need = weights / team + cache / (team * ring)
        if self.args.device_map:
            # What no device holds of the weights waits on the host or the disk; keys and values cannot.
            need = cache
            if len(devices) > 1:
                where = f"{len(devices)} devices together ({', '.join(map(str, devices))})"
        if need > room:
            # A CPU's memory is the host's; and a ring keeps all on the devices.
            elsewhere = device.type != "cpu" and self.args.kv != "host" and self.args.parallel != "ring"
            kept = "keep keys and values in the host's memory (--model-args kv=host), " if elsewhere else ""
            each, heads, kv = processes.total_bytes(device), math.gcd(shape.heads, shape.kv_heads), self.args.kv_given
            enough = _enough(weights, cache, each, heads, kv)
            if kv:
                # A ring does without blocks.
                enough += f"; or, without {kv}, {_enough(weights, longest * shape.kv_bytes_per_token, each, heads)}"
            raise ValueError(
                f"{self.name} does not fit {where}: weights of {weights / team / 1e9:.1f} GB and a KV cache of "
                f"{cache / (team * ring) / 1e9:.1f} GB for the longest cell ({longest:,} tokens) are "
                f"{(need - room) / 1e9:.1f} GB more than the {room / 1e9:.1f} GB there; ask for fewer frames, {kept}or "
                f"{enough}"
            )

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> list[Answer]:
        """Answer cells. Collective: every process asks for the same ones and has all answers.

        Args:
            tasks: by name.
            cells: (task, number of the row) in the order of the tasks.
        """
        from longva_model.arguments import generate_leaf
        from longva_model.run.runner import Job, Runner

        runner = self._runner = self._runner or Runner.load(self.args)
        free: dict[str, Leaf] = {
            name: generate_leaf(task.generation, runner.backend.generation_defaults)
            for name, task in tasks.items()
            if task.scoring == "generated"
        }

        def job(name: str, number: int) -> Job:
            task = tasks[name]
            row = task.rows[number]
            leaf = free.get(name) or task.leaf(row)
            assert leaf is not None, "a task is forced or free"
            whole = task.scoring == "generated" and task.unit == "frames"
            question = task.question(row)
            return Job(task=name, split="test", doc_id=number, index=0, context=question, leaf=leaf, every_frame=whole)

        def build(job: Job) -> Prompt:
            visuals = tasks[job.task].visuals(tasks[job.task].rows[job.doc_id])
            for visual in visuals:
                if hasattr(visual, "bind_tokenizer"):
                    visual.bind_tokenizer(runner.backend.token_ids)
            # A needle's film is shown whole: sampling it would skip the one-frame needle.
            frames = 10**9 if job.every_frame else self.args.max_frames_num
            system = self.args.system_text()
            prompt = runner.backend.question(job.context or "", visuals, job.leaf, max_frames=frames, system=system)
            return replace(prompt, beyond_context=prompt.beyond_context or job.every_frame)

        def about(job: Job) -> dict[str, Any]:
            row = tasks[job.task].rows[job.doc_id]
            return {"task": job.task, "model": self.name, "doc_id": job.doc_id, "doc": row}

        found: dict[tuple[str, int], Answer] = {}
        # lmms-eval asks for all forced answers in one call and for all free ones in another.
        for scoring in dict.fromkeys(tasks[name].scoring for name, _ in cells):
            mine = [(name, number) for name, number in cells if tasks[name].scoring == scoring]
            jobs = [job(name, number) for name, number in mine]
            told = {name: tasks[name].provenance() for name in dict.fromkeys(name for name, _ in mine)}
            for place, result in zip(mine, runner.run(jobs, build, about, told), strict=True):
                forced = scoring == "teacher-forced"
                found[place] = Answer(
                    text=result.text if forced else result.text.strip(),
                    is_greedy=result.is_greedy if forced else None,
                    predicted_ids=result.predicted_ids if forced else (),
                    answer_ids=result.answer_ids,
                    answer_logprobs=result.answer_logprobs,
                    prompt_tokens=result.prompt_tokens if forced else None,
                )
        return [found[place] for place in cells]

    def finished(self) -> None:
        """The journal stays: another run of the same cells has them at once."""

    def interrupted(self) -> str:
        """What continues a run that was stopped."""
        if self.args.journal == "none":
            return "journal=none keeps nothing; the same command starts over"
        path = None if self._runner is None else self._runner.journal_path
        if path is None:
            return "nothing was scored yet; the same command starts over"
        return f"what was scored is kept, the same command goes on; draw it: vniah heatmap {path} --partial"


def _longest_tokens(task: NeedleTask, tokens_per_frame: int) -> int:
    key, each = ("num_frames", tokens_per_frame) if task.unit == "frames" else ("context_length", 1)
    return max((int(row[key]) + task.adds) * each for row in task.rows) + _TEXT_TOKENS


def _enough(weights: float, cache: float, room: int, heads: int, kv: str = "") -> str:
    """The least devices of ``room`` bytes that hold a model and its cache, and how.

    Args:
        heads: can be dealt out.
        kv: arguments by which keys and values are in blocks, which no ring shares; empty where they are not.
    """
    found = [
        (team * ring, team)
        for team in range(1, heads + 1)
        if heads % team == 0 and weights / team < room
        for ring in [max(1, math.ceil(cache / team / (room - weights / team)))]
        if ring == 1 or not kv
    ]
    if not found and kv:
        return f"leave {kv} out, since no number of such devices would do with it (parallel=ring does not take it)"
    if not found:
        return "for a model larger than so many devices: device_map=auto in one process keeps weights on the host"
    count, team = min(found)
    args = "parallel=tensor" if team == count else f"parallel=ring,tensor_parallel_size={team}"
    args = "parallel=ring" if team == 1 < count else args
    args = ",".join(filter(None, [args, kv]))
    return f"use {count} such devices: torchrun --nproc_per_node {count} -m vniah run ... --model-args {args}"
