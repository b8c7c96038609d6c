"""The runner: jobs in, results out, whatever is between: journal, sharing of prefixes, several processes.

Every process holds every task, so jobs travel between processes as names and each process builds the
prompts it needs. With several processes the jobs of all are put together, and either dealt out in runs of
about equal cost that share prefixes ("branch") or computed by all together ("ring").
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import Backend
from longva_model.backends.spreading import check_room
from longva_model.engine.atoms import AtomTable
from longva_model.engine.engine import Batch, EngineOptions, OnResult, PlainEngine, TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.frames.embeddings import FrameEmbeddings, block_range
from longva_model.prompts.prompting import Prompt
from longva_model.run import processes
from longva_model.run.batches import Costs, Planned, shared_sources, windows
from longva_model.run.sharing import Block, encode_together
from vniah import __version__
from vniah.contract.cost import answer_tokens
from vniah.contract.requests import Frames, Image, Leaf, Request
from vniah.contract.sources import FrameSource
from vniah.notices import identify, notice
from vniah.runs.journal import Journal, content_key
from vniah.runs.profiling import part
from vniah.runs.progress import Bar
from vniah.visual.settings import Settings

T = TypeVar("T")
# Runs below so many FLOPs are over before a bar is read.
_WORTH_SHOWING = 1e9
# How jobs are sorted and told apart: task, document, request of the document, sample.
Order = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request by name: what another process needs to build the same prompt.

    ``context`` is ``None`` for a chat task, whose messages hold the text. ``sample`` tells several samples of
    one prompt apart.
    """

    task: str
    split: str
    doc_id: int
    index: int
    context: str | None
    leaf: Leaf
    every_frame: bool = False
    sample: int = 0

    @property
    def order(self) -> Order:
        return (self.task, self.doc_id, self.index, self.sample)


Build = Callable[[Job], Prompt]
About = Callable[[Job], dict[str, Any]]


class Runner:
    """Runs jobs on a backend.

    Args:
        backend: the model.
        args: how (see ``ModelArgs``).
    """

    def __init__(self, backend: Backend, args: ModelArgs) -> None:
        self.backend = backend
        self.args = args
        self.rank, self.world_size = processes.rank_and_world()
        # Processes that hold the model together are one as seen from here: they are given the same work.
        self.team = backend.tensor_group
        size = 1 if self.team is None else self.team.size
        self.teams, self.number = self.world_size // size, self.rank // size
        self.leads = self.team is None or self.team.rank == 0
        self.device = backend.device
        self._attention = backend.decoder.config._attn_implementation
        cache = Settings.read()
        self.frames = FrameEmbeddings(
            backend, cache.cache_dir / "embeddings", cache.cache_bytes, args.frame_batch, show=self.rank == 0
        )
        self.options = EngineOptions(chunk_tokens=args.chunk_tokens, preprocess=args.preprocess)
        self._noun = "answers"
        self._ring_checked = False
        self.journal_path: Path | None = None
        # How prompts were dealt out to several processes ("branch", "ring"), and how keys and values were kept for the
        # answers that a journal had.
        self._dealt: dict[str, None] = {}
        self._kept: dict[Order, str] = {}

    @classmethod
    def load(cls, args: ModelArgs) -> Runner:
        """Load the model that ``args`` name, and join the other processes, if any.

        Raises:
            ValueError, FileNotFoundError: an unknown model, or one that does not load.
        """
        from longva_model.backends.loading import load_backend

        processes.join_processes(args.device)
        with part("load"):
            return cls(load_backend(args), args)

    def run(
        self, jobs: Sequence[Job], build: Build, about: About, measured: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[LeafResult]:
        """Run this process's ``jobs``; results in their order.

        With several processes this is a collective call: each hands in its own jobs.

        Args:
            measured: what each needle task among them is to measure (``NeedleTask.provenance``), for the journal.
        """
        everyone = processes.gather(list(jobs))
        by_order = {job.order: job for jobs_of_rank in everyone for job in jobs_of_rank}
        union = [by_order[order] for order in sorted(by_order)]
        if not union:
            return []
        if measured or self.args.frame_tokens == "column":
            with processes.told_to_all():
                self.backend.expect(build(job) for job in union)
        self._kept.clear()
        run_key = content_key(self.settings_key(), [[*job.order, job.context, job.leaf] for job in union])
        with processes.open_journal(self.args, run_key) as journal:
            self._noun = "cells" if measured else "answers"
            self.journal_path = None if journal is None else journal.path
            identify(self.identity())
            if journal is not None:
                for task, provenance in (measured or {}).items():
                    journal.describe({"task": task, "measured": dict(provenance), "model": self.identity()})
            if self.world_size > 1:
                found = self._run_together(union, build, about, journal)
            else:
                found = self._run_here(union, build, about, journal, ring=False)
            # Of prompts that nobody expected, the model knows how they are shown only now.
            identify({**self.identity(), **self._computed()})
            self._say_kept_otherwise(union)
        return [found[job.order] for job in jobs]

    def _run_together(
        self, union: Sequence[Job], build: Build, about: About, journal: Journal | None
    ) -> dict[Order, LeafResult]:
        """Run the jobs of all processes, computing none that any journal holds; every process gets all results."""
        plan = self._plan(union, build, journal)
        found = {order: self._known(order, planned.line) for order, planned in plan.items() if planned.line is not None}
        longest = max(planned.tokens for planned in plan.values())
        if len(found) == len(union):
            # Results that are written again are the same, whether or not a journal had all of them.
            with contextlib.suppress(ValueError):
                self._dealt[self._mode(longest)] = None
        else:
            # Dealt out whatever is known, so that a run that goes on gives each process what it had.
            requests = [plan[job.order].request for job in union]
            sizes = {source: tokens for planned in plan.values() for source, tokens in planned.image_tokens.items()}
            costs = Costs(self.backend, sizes, shared=self.args.scoring == "tree")
            mode = self._mode(longest)
            self._dealt[mode] = None
            if mode == "ring":
                # Every process has every result, so one of them keeps the journal.
                found = self._run_here(union, build, about, journal if self.rank == 0 else None, ring=True)
            else:
                # Processes may know other columns of a model as yet, and so count other costs.
                shares = processes.broadcast(costs.deal_out(requests, self.teams))
                self._encode_shared(union, requests, shares, build)
                share = [union[index] for index in shares[self.number]]
                # Those that hold a model together meet inside: one that raised there and waited to tell them would wait
                # for ever, as they for it. So it ends, as in a ring, and its launcher ends the others.
                with processes.told_to_all() if self.team is None else contextlib.nullcontext():
                    mine = self._run_here(share, build, about, journal if self.leads else None, ring=False)
                for theirs in processes.gather(mine):
                    found.update(theirs)
        with processes.told_to_all():
            # The first journal ends whole, however many processes there were: it is the one that is read later.
            for job in union if self.rank == 0 else ():
                if journal is not None and not journal.holds(plan[job.order].key):
                    self._put(journal, plan[job.order].key, found[job.order], job, about)
        return found

    def _plan(self, union: Sequence[Job], build: Build, journal: Journal | None) -> dict[Order, Planned]:
        """What every process must know of every job; each looks at its part of them."""
        mine: dict[Order, Planned] = {}
        with processes.told_to_all():
            for job in processes.contiguous_share(union, self.rank, self.world_size):
                prompt = build(job)
                key = self._key(job, prompt)
                images = {
                    segment.source: self.backend.image_tokens(prompt.media[segment.source].size)
                    for segment in prompt.request.segments
                    if isinstance(segment, Image) and not segment.as_frame
                }
                line = journal.line(key) if journal is not None else None
                tokens = self.backend.lower(prompt, AtomTable(), self.args.preprocess).tokens
                tokens += answer_tokens(job.leaf, lambda text: len(self.backend.token_ids(text)))
                mine[job.order] = Planned(
                    key=key, line=line, request=prompt.request, image_tokens=images, tokens=tokens
                )
        return {order: planned for part in processes.gather(mine) for order, planned in part.items()}

    def _encode_shared(
        self, jobs: Sequence[Job], requests: Sequence[Request], shares: Sequence[Sequence[int]], build: Build
    ) -> None:
        """Encode the frames that several processes will need, each block by one of them. Collective."""
        shared = shared_sources(requests, shares, self.number)
        wanted: dict[Block, Any] = {}
        for index in shares[self.number]:
            if not any(isinstance(item, Frames) and item.source in shared for item in requests[index].segments):
                continue
            table = AtomTable()
            lowered = self.backend.lower(build(jobs[index]), table, self.args.preprocess)
            for series, start, stop in table.runs(lowered.atoms_A):
                if isinstance(series.source, FrameSource):
                    blocks = block_range(start, stop)
                    wanted |= {Block(series.name, series.fitted, block): series.source for block in blocks}
        encode_together(self.frames, wanted)

    def _key(self, job: Job, prompt: Prompt) -> str:
        """The journal key: all that decides the result, up to rounding."""
        fitted = [sorted(prompt.preprocess.items()), sorted(prompt.videos)]
        return content_key(self.settings_key(), list(prompt.request.segments), fitted, job.leaf)

    def _put(self, journal: Journal, key: str, result: LeafResult, job: Job, about: About) -> None:
        """A line of the journal. ``settings`` tells runs apart that share a file, for whoever draws it."""
        kept = self._kept.get(job.order, self.backend.kv)
        kv = {} if kept == "device" else {"kv": kept}
        with part("journal"):
            journal.put(key, result.as_dict(), settings=content_key(self.settings_key())[:8], **kv, **about(job))

    def _known(self, order: Order, line: Mapping[str, Any]) -> LeafResult:
        """An answer that a journal's line has."""
        self._kept[order] = line.get("kv", "device")
        return LeafResult(**line["result"])

    def _say_kept_otherwise(self, union: Sequence[Job]) -> None:
        """Say how many answers were computed with keys and values kept in another way than this run's."""
        ways = [self._kept[job.order] for job in union if self._kept.get(job.order, self.backend.kv) != self.backend.kv]
        if ways:
            notice(
                f"{len(ways):,} of {len(union):,} answers are from a journal where they were computed with "
                f"{' and '.join(f'kv={one}' for one in dict.fromkeys(ways))}, and not with this run's "
                f"kv={self.backend.kv}: alike up to rounding. journal=none computes them anew"
            )

    def run_one(self, prompt: Prompt) -> LeafResult:
        """Run a single prompt in this process, outside any journal.

        Raises:
            ValueError: several processes share one sequence or one model (a prompt of one rank only cannot be run).
        """
        if self.world_size > 1 and (self.args.parallel == "ring" or self.team is not None):
            how = "parallel=ring" if self.team is None else "several processes to a model"
            raise ValueError(f"multi-round tasks do not run with {how}; use parallel=branch")
        self.backend.expect([prompt])
        return self.engine(ring=False).run([prompt])[0]

    def identity(self) -> dict[str, Any]:
        """The model and how it is run, for whoever reads the results."""
        kernels = None
        if str(self._attention).startswith("longva_"):
            from longva_model.attention.blockwise import kernel_names

            kernels = kernel_names(self.device, self.backend.dtype, self.backend.shape.head_dim)
        found = {
            "pretrained": self.args.pretrained,
            "revision": self.args.revision,
            "fingerprint": self.backend.fingerprint,
            "dtype": str(self.backend.dtype).removeprefix("torch."),
            "scoring": self.args.scoring,
            "tensor_parallel_size": None if self.team is None else self.team.size,
            "preprocess": self.args.preprocess,
            "rope_theta": self.args.rope_theta,
            "template": self.backend.template.name,
            **self.backend.about(),
            "attention": str(self._attention),
            "kernels": kernels,
            "kv": self.backend.kv,
            "kv_block": self.backend.kv_block,
            "kv_difference_from_own_forward": self.backend.kv_difference,
            "settings": content_key(self.settings_key())[:8],
        }
        return {key: value for key, value in found.items() if value is not None}

    def _computed(self) -> dict[str, Any]:
        """How many processes there were and how they shared the work, for whoever reads the results."""
        if self.world_size == 1:
            return {"processes": 1}
        found: dict[str, Any] = {"processes": self.world_size}
        if self._dealt:
            found |= {"parallel": ", ".join(self._dealt), "parallel_size": self.teams}
        if "ring" in self._dealt:
            found["attention"] = "longva_ring" if len(self._dealt) == 1 else f"{self._attention}, longva_ring"
        return found

    def settings_key(self) -> list[Any]:
        """What besides a request decides its result, up to rounding."""
        return [
            __version__,
            self.backend.fingerprint,
            self.args.scoring,
            str(self.backend.dtype),
            self.args.preprocess,
            self.args.rope_theta,
            self.backend.template.name,
            self.backend.eos_ids,
            # In 8 bits results are other ones; in the host's memory they are the same.
            *(["kv=fp8"] if self.backend.kv == "fp8" else []),
            *self.backend.settings(),
        ]

    def _mode(self, longest: int) -> str:
        """ "branch" or "ring": as asked, or by whether the longest prompt's KV fits beside the weights.

        Raises:
            ValueError: it does not fit all devices together; names how many would do.
        """
        if self.args.parallel != "auto":
            return "ring" if self.args.parallel == "ring" else "branch"
        # The plain way is for one device, and so are blocks.
        if self.args.scoring == "plain" or self.backend.in_blocks:
            return "branch"
        size = 1 if self.team is None else self.team.size
        need = longest * self.backend.shape.kv_bytes_per_token / size  # of each that holds the model with others
        room = 0.7 * min(processes.gather(processes.free_bytes(self.device)))
        if need < room:
            return "branch"
        if need >= self.teams * room:
            devices = math.ceil((need + 1) / max(room, 1)) * size
            # A CPU's memory is the host's.
            kept = "" if self.device.type == "cpu" else ", or keep keys and values in the host's memory (kv=host)"
            raise ValueError(
                f"the longest prompt ({longest:,} tokens) needs a KV cache of {need * size / 1e9:.1f} GB, and "
                f"{self.world_size} devices have room for {room / 1e9:.1f} GB each beside the weights: start {devices} "
                f"processes (torchrun --nproc_per_node) or ask for fewer frames{kept}; parallel=ring tries it all the "
                "same"
            )
        return "ring"

    def engine(self, *, ring: bool) -> TreeEngine:
        """A new engine: plain or tree as ``args.scoring`` says, or over all processes.

        Raises:
            ValueError: ``scoring=plain`` with the ring; or a ring that does not give the model's own logits.
        """
        if ring:
            from longva_model.engine.ring import RingEngine
            from longva_model.engine.self_check import check_ring

            if self.args.scoring == "plain":
                raise ValueError("scoring=plain runs on one device; use scoring=tree with parallel=ring")
            engine = RingEngine(self.backend, self.frames, self.options)
            if not self._ring_checked:
                check_ring(engine)
                self._ring_checked = True
            return engine
        # A ring before this one has switched the decoder to its own.
        self.backend.decoder.set_attn_implementation(self._attention)
        kind = PlainEngine if self.args.scoring == "plain" else TreeEngine
        return kind(self.backend, self.frames, self.options)

    def _run_here(
        self, jobs: Sequence[Job], build: Build, about: About, journal: Journal | None, *, ring: bool
    ) -> dict[Order, LeafResult]:
        """Run ``jobs`` in this process (those that compute together the same ones), window by window.

        Windows hold what is known already too: a run that goes on computes what the first one would have.
        """
        found: dict[Order, LeafResult] = {}
        coming = windows(jobs, build)
        while window := _next(coming):
            with part("prompts"):
                keys = {job.order: self._key(job, prompt) for job, prompt in window}
            known: dict[int, LeafResult] = {}
            for index, (job, _) in enumerate(window):
                line = journal.line(keys[job.order]) if journal is not None else None
                if line is None or journal is None:
                    continue
                known[index] = found[job.order] = self._known(job.order, line)
                if not journal.holds(keys[job.order]):
                    self._put(journal, keys[job.order], found[job.order], job, about)
            if known and journal is not None and self.rank == 0:
                print(f"vniah: {len(known)} of {len(window)} answers are in {journal.path}", file=sys.stderr)

            def done(index: int, result: LeafResult, window: Any = window, keys: Any = keys) -> None:
                job, problem = window[index][0], None
                found[job.order] = result
                try:
                    if journal is not None:
                        self._put(journal, keys[job.order], result, job, about)
                except OSError as error:
                    problem = error
                # One of those that compute together keeps the journal; the others must not wait for it in vain.
                problem = self._first(problem, ring=ring)
                if problem is not None:
                    raise problem

            known = self._first(known, ring=ring)
            found.update({window[index][0].order: result for index, result in known.items()})
            if len(known) < len(window):
                prompts = [prompt for _, prompt in window]
                self._run_window(prompts, known, done, answered=len(found), of=len(jobs), ring=ring)
        return found

    def _first(self, value: T, *, ring: bool) -> T:
        """The value of the first process of those that compute together: all in a ring, else those of one model."""
        if ring:
            return processes.broadcast(value)
        return value if self.team is None else processes.broadcast(value, self.team)

    def _run_window(
        self,
        prompts: Sequence[Prompt],
        known: dict[int, LeafResult],
        on_result: OnResult,
        *,
        answered: int,
        of: int,
        ring: bool,
    ) -> None:
        """Run the prompts of a window; ``answered`` ``of`` all are there already."""
        engine = self.engine(ring=ring)
        with part("prompts"):
            batch = engine.lower(prompts)
            self._check_room(batch)
            flops = engine.planned_flops(batch, known)
        with Progress(flops, done=answered, of=of, noun=self._noun, show=self.rank == 0) as progress:

            def told(index: int, result: LeafResult) -> None:
                on_result(index, result)
                progress.answered()

            engine.run(batch, on_result=told, on_flops=progress.computed, known=known)

    def _check_room(self, batch: Batch) -> None:
        """Of a model that is spread over devices: refuse what does not fit them (see ``spreading.check_room``)."""
        answers = (answer_tokens(leaf, lambda text: len(self.backend.token_ids(text))) for leaf in batch.leaves)
        lengths = (one.tokens + answer for one, answer in zip(batch.lowered, answers, strict=True))
        check_room(self.backend, max(lengths, default=0))


def _next(coming: Iterator[T]) -> T | None:
    with part("prompts"):
        return next(coming, None)


class Progress(Bar):
    """The bar of a run: cells done of all, and the time left by the FLOPs that are left.

    Args:
        total: FLOPs of the bar.
        done: cells that are scored already, ``of`` how many in all.
        noun: what is counted, "cells" or "answers".
    """

    def __init__(self, total: int, *, done: int, of: int, noun: str, show: bool) -> None:
        form = "{desc} |{bar}| {percentage:3.0f} % of the work [{elapsed}<{remaining}]"
        super().__init__(total=total, bar_format=form, disable=not show or total < _WORTH_SHOWING)
        self._work, self._done, self._of, self._noun = total, done - 1, of, noun
        self._begun = self.disable
        self.answered()

    def answered(self) -> None:
        """One more cell is scored."""
        self._done += 1
        self.set_description_str(f"vniah: {self._done:,} of {self._of:,} {self._noun}", refresh=False)

    def computed(self, flops: int) -> None:
        """So many more FLOPs are done."""
        if self._begun:
            self.update(flops)
            return
        # Frames are encoded in the first step and are no FLOPs of the bar: its rate counts from here.
        self._begun = True
        self.reset(self._work)
        self.initial = self.n = self.last_print_n = flops
        self.refresh()
