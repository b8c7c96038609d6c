"""Tensor parallelism over real gloo processes gives what one process gives, alone and with the ring across it.

One launch (``ring_processes.py``) a number of processes runs all ``CHECKS``; the tests then read what each check said
on each rank. Every rank also computes the single-process answer, with a whole model of its own.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ring_processes
import torch
from lmms_requests import picture
from ring_processes import Checks, assert_passed
from tiny_checkpoints import write_longva, write_text_model
from video_files import inserted

from longva_model.arguments import ModelArgs
from longva_model.attention import register
from longva_model.backends.loading import load_backend
from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
from longva_model.engine.ring import RingEngine
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from longva_model.run import processes as work
from longva_model.run.runner import Job, Runner
from vniah.contract.requests import Generate, Leaf, Target
from vniah.haystack import SyntheticHaystack
from vniah.visual.compose import SplicedVideo

CHECKS = check = Checks()
FAMILIES = Checks()
CROSSED = Checks()  # of four processes, two by two
LEAVES: tuple[Leaf, ...] = (Target("A red kite."), Target("Red"), Generate(max_new_tokens=4))


def write_qwen2_5_vl(folder: Path) -> Path:
    from any_model import families

    families.FAMILIES["qwen2_5_vl"].build(folder, 0)
    return folder


WRITERS: dict[str, Callable[[Path], Any]] = {
    "longva": write_longva,
    "qwen2": write_text_model,
    "llama": lambda folder: write_text_model(folder, "llama"),
    "qwen3": lambda folder: write_text_model(folder, "qwen3"),
    "opt": lambda folder: write_text_model(folder, "opt"),
    "one key-value head": lambda folder: write_longva(folder, text={"num_key_value_heads": 1}),
    "qwen2_5_vl": write_qwen2_5_vl,
}


@functools.cache
def checkpoint(kind: str) -> Path:
    """A checkpoint that the first process writes for all."""
    folder = Path(tempfile.mkdtemp(prefix="tensor-")) if work.rank_and_world()[0] == 0 else None
    with work.told_to_all():
        if folder is not None:
            WRITERS[kind](folder)
    found = work.broadcast(folder)
    assert found is not None
    return found


def arguments(kind: str, **args: Any) -> ModelArgs:
    given = {"pretrained": str(checkpoint(kind)), "dtype": "float32", "device": "cpu", "journal": "none", **args}
    return ModelArgs.read(given)


def load(kind: str, **args: Any) -> Any:
    return load_backend(arguments(kind, **args))


def asked(backend: Any, leaves: Sequence[Leaf] = LEAVES, frames: int = 6) -> list[Prompt]:
    visuals: list[list[Any]] = [[]]
    if backend.layout is not None or hasattr(backend, "processor"):
        hay = SyntheticHaystack(0, num_frames=frames, width=48, height=32)
        visuals += [
            [SplicedVideo(haystack=hay, num_frames=frames, inserted=inserted(picture(40, 40, 1), at))]
            for at in (1, frames - 2)
        ]
    return [backend.question("What is it?", shown, leaf, max_frames=99) for shown in visuals for leaf in leaves]


def answers(backend: Any, engine: type[TreeEngine] = TreeEngine, chunk_tokens: int = 24, **asking: Any) -> list[Any]:
    options = EngineOptions(chunk_tokens=chunk_tokens)
    return engine(backend, FrameEmbeddings(backend), options).run(asked(backend, **asking))


def assert_same(found: Sequence[Any], wanted: Sequence[Any], atol: float = 1e-4) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.text, one.predicted_ids) == (other.text, other.predicted_ids)
        assert one.answer_logprobs == pytest.approx(other.answer_logprobs, abs=atol)


def assert_all_have(found: Sequence[Any]) -> None:
    """The same results on every process, to the bit."""
    assert all(other == list(found) for other in work.gather(list(found)))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def scores(rank: int, world: int, *, kind: str) -> None:
    backend, whole = load(kind, parallel="tensor"), load(kind)
    for engine in (TreeEngine, PlainEngine):
        found = answers(backend, engine)
        assert_same(found, answers(whole, engine))
        assert_all_have(found)


for _kind in ("longva", "qwen2", "llama", "qwen3", "qwen2_5_vl"):
    _checks = CHECKS if _kind == "longva" else FAMILIES
    _checks[f"scores_of_{_kind}"] = functools.partial(scores, kind=_kind)


@check
def every_process_has_its_part_alone(rank: int, world: int) -> None:
    backend, whole = load("longva", parallel="tensor"), load("longva")
    layer, other = (one.decoder.layers[1] for one in (backend, whole))
    for name, dim in (("self_attn.k_proj", 0), ("self_attn.o_proj", 1), ("mlp.up_proj", 0), ("mlp.down_proj", 1)):
        part = layer.get_submodule(name).weight.to_local()
        assert part.equal(other.get_submodule(name).weight.chunk(world, dim)[rank])
    head = backend.model.lm_head.weight
    if hasattr(head, "to_local"):  # not of 99 words before transformers 5.24
        assert head.to_local().equal(whole.model.lm_head.weight.chunk(world)[rank])
    engines = [TreeEngine(one, FrameEmbeddings(one)) for one in (backend, whole)]
    for engine in engines:
        engine.run(asked(engine.backend))
    assert engines[0].peak_kv_bytes * world == engines[1].peak_kv_bytes > 0


@check
def frames_are_encoded_by_one_process_each(rank: int, world: int) -> None:
    backend = load("longva", parallel="tensor")
    frames = FrameEmbeddings(backend)
    TreeEngine(backend, frames).run(asked(backend, frames=20))
    # The needle too, which both cells show.
    assert sum(work.gather(frames.frames_encoded)) == 20 + 1


@check
def a_head_in_bf16_gives_logits_in_fp32(rank: int, world: int) -> None:
    backend, whole = load("longva", parallel="tensor", dtype="bfloat16"), load("longva", dtype="bfloat16")
    hidden_TD = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        found, wanted = backend.logits(hidden_TD), whole.logits(hidden_TD)
    assert found.dtype == torch.float32 and torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


@check
def processes_that_round_otherwise_do_not_part(rank: int, world: int) -> None:
    backend = load("qwen2", parallel="tensor")
    own = backend.logits
    backend.logits = lambda hidden_TD: own(hidden_TD).roll(rank, -1)  # other argmaxes on every rank
    found = answers(backend, leaves=(Generate(max_new_tokens=5), Target("Red")))
    assert_all_have(found)
    del backend.logits
    assert_same(found, answers(backend, leaves=(Generate(max_new_tokens=5), Target("Red"))))


@check
def what_cannot_be_dealt_out_is_refused_by_name(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="the model has 1 key-value heads, which 2 processes do not divide"):
        load("one key-value head", parallel="tensor")
    with pytest.raises(ValueError, match=r"\(opt\) is refused: transformers has no tensor-parallel plan"):
        load("opt", parallel="tensor")
    with pytest.raises(ValueError, match="tensor_parallel_size=3 does not divide the 2 processes"):
        load("longva", tensor_parallel_size=3)
    with pytest.raises(ValueError, match="leave one out"):
        load("longva", tensor_parallel_size=3, parallel="tensor")
    backend = load("qwen2", parallel="tensor")
    with pytest.raises(ValueError, match=r"num_beams=2 is not to be had of .* over several processes"):
        answers(backend, leaves=(Generate(max_new_tokens=2, num_beams=2),))
    with pytest.raises(ValueError, match="multi-round tasks do not run with several processes to a model"):
        Runner(backend, arguments("qwen2", parallel="tensor")).run_one(asked(backend)[0])


@check
def a_plan_that_changes_what_the_model_computes_is_refused(rank: int, world: int) -> None:
    """A planted fault that no shape shows: attention's parts are not summed."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES, RowwiseParallel

    from longva_model.backends.tensor_parallel import shard

    class Unsummed(RowwiseParallel):
        def transform_output_post_forward(self, module: Any, output: Any, mesh: Any) -> Any:
            return output

    ALL_PARALLEL_STYLES.register("unsummed", Unsummed())
    team, _ = work.grid_of_groups(world)
    assert team is not None
    for rule, said in (("self_attn.o_proj", "its first layers give other values"), ("", "")):
        model = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2")).eval()
        if rule:
            model.tp_plan = {**model.tp_plan, f"model.layers.*.{rule}": "unsummed"}
            with pytest.raises(ValueError, match=said):
                shard(model, model.model, team, torch.device("cpu"), "planted")
        else:
            shard(model, model.model, team, torch.device("cpu"), "sound")


# The runner


def jobs() -> list[Job]:
    return [
        Job(task="grid", split="test", doc_id=number, index=0, context="", leaf=LEAVES[number % 3])
        for number in range(6)
    ]


def run_share(rank: int, world: int, args: ModelArgs) -> Runner:
    """Run this rank's documents and compare their results with those of one process."""
    runner, whole = Runner(load_backend(args), args), load("longva")

    def built(backend: Any) -> Callable[[Job], Prompt]:
        hay = SyntheticHaystack(0, num_frames=30, width=48, height=32)

        def build(job: Job) -> Prompt:
            frames = 24 + job.doc_id
            shown = SplicedVideo(haystack=hay, num_frames=frames, inserted=inserted(picture(40, 40, 1), job.doc_id))
            return backend.question("What?", [shown], job.leaf, max_frames=99)  # type: ignore[no-any-return]

        return build

    mine = jobs()[rank::world]
    found = runner.run(mine, built(runner.backend), lambda job: {"doc_id": job.doc_id})
    engine = TreeEngine(whole, FrameEmbeddings(whole), EngineOptions(chunk_tokens=512))
    assert_same(found, engine.run([built(whole)(job) for job in mine]))
    return runner


def the_runner(rank: int, world: int, *, free: int | None = None, attention: str, **args: Any) -> None:
    folder = Path(work.broadcast(tempfile.mkdtemp(prefix="tensor-run-")))
    with environment(VNIAH_CACHE=str(folder / "cache")):
        free_bytes = work.free_bytes
        if free is not None:
            work.free_bytes = lambda device: free
        try:
            given = arguments("longva", **args, journal=str(folder / "j"), chunk_tokens=64)
            runner = run_share(rank, world, given)
            assert runner.backend.decoder.config._attn_implementation == attention
            assert sum(work.gather(runner.frames.frames_encoded)) <= 30 + (world // runner.team.size)
            assert runner.identity()["tensor_parallel_size"] == 2
            lines = [json.loads(line) for line in (folder / "j").read_text().splitlines()]
            assert sorted(line["doc_id"] for line in lines) == list(range(6))
            # Only those that lead keep a journal.
            kept = [path for path in folder.glob("j.rank*") if path.suffix != ".lock" and path.stat().st_size]
            assert {path.name for path in kept} <= {f"j.rank{lead}" for lead in range(2, world, 2)}
            # Again: everything is known, and nothing is computed.
            work.gather(None)
            Runner.engine, engine = None, Runner.engine  # type: ignore[assignment, method-assign]
            try:
                run_share(rank, world, given)
            finally:
                Runner.engine = engine  # type: ignore[method-assign]
        finally:
            work.free_bytes = free_bytes


CHECKS["the_runner_in_tensor"] = functools.partial(the_runner, attention="longva_blockwise", parallel="tensor")
CHECKS["the_runner_by_size"] = functools.partial(the_runner, attention="longva_blockwise", tensor_parallel_size=2)


class PlantedError(Exception):
    """Of one process alone, as running out of memory is."""


@check
def an_error_of_one_process_ends_all_that_hold_the_model(rank: int, world: int) -> None:
    """The last of its launch, since one process leaves the others: nobody waits for who waits to tell it."""
    args = arguments("longva", parallel="tensor")
    runner = Runner(load_backend(args), args)
    forward, calls = runner.backend.forward, iter(range(99))

    def fails(*given: Any) -> torch.Tensor:
        if rank == 1 and next(calls) == 1:
            raise PlantedError
        return forward(*given)

    runner.backend.forward = fails
    begun = time.monotonic()
    # Whoever waits for process 1 finds its connection closed: it has ended.
    with pytest.raises(PlantedError if rank == 1 else RuntimeError):
        runner.run(jobs()[rank::world], lambda job: asked(runner.backend)[job.doc_id], lambda job: {})
    assert rank == 0 or time.monotonic() - begun < ring_processes.GLOO_SECONDS


# Two by two


@CROSSED
def the_ring_crosses_tensor_parallelism(rank: int, world: int) -> None:
    register()
    backend, whole = load("longva", parallel="ring", tensor_parallel_size=2), load("longva")
    assert backend.tensor_group.ranks == ((0, 1), (2, 3))[rank // 2]
    assert backend.ring_group.ranks == ((0, 2), (1, 3))[rank % 2]
    asking: dict[str, Any] = {"frames": 24, "leaves": LEAVES[::2]}
    wanted = answers(whole, **asking)
    # Chunks (of so many tokens for each of two) that are dealt out, and others that are not.
    for chunk_tokens in (24, 40):
        engine = RingEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk_tokens))
        found = engine.run(asked(backend, **asking))
        assert_same(found, wanted)
        assert_all_have(found)
        assert sum(work.gather(engine.shared_frames.frames.frames_encoded)) == 24 + 1


@CROSSED
def perplexity_crosses_too(rank: int, world: int) -> None:
    from longva_model.engine.perplexity import measure

    backend, whole = load("qwen2", parallel="ring", tensor_parallel_size=2), load("qwen2")
    ids = [5 + 7 * number % 83 for number in range(300)]
    engine = RingEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=100))
    wanted = measure(TreeEngine(whole, FrameEmbeddings(whole)), [ids], 300).nll
    assert measure(engine, [ids], 300).nll == pytest.approx(wanted, rel=1e-5)


for _name, _args, _free, _attention in (
    ("ring", {"parallel": "ring"}, None, "longva_ring"),
    ("branch", {"parallel": "branch"}, None, "longva_blockwise"),
    # The longest cell's cache is some 22 KB on each of two processes, and 70 % of what is free is for it.
    ("auto_with_room", {}, 100_000, "longva_blockwise"),
    ("auto_without_room", {}, 25_000, "longva_ring"),
):
    CROSSED[f"the_runner_in_{_name}"] = functools.partial(
        the_runner, free=_free, attention=_attention, tensor_parallel_size=2, **_args
    )


@CROSSED
def auto_names_the_devices_that_would_do(rank: int, world: int) -> None:
    free_bytes, work.free_bytes = work.free_bytes, lambda device: 5_000
    try:
        with pytest.raises(ValueError, match=r"4 devices have room .* start (8|1[0-9]) processes"):
            run_share(rank, world, arguments("longva", tensor_parallel_size=2))
    finally:
        work.free_bytes = free_bytes


# One launch for the tests of each; the variable tells the launched program which.
LAUNCHES = {"two": (2, CHECKS), "families": (2, FAMILIES), "crossed": (4, CROSSED)}
if "TENSOR_LAUNCH" in os.environ:
    CHECKS = LAUNCHES[os.environ["TENSOR_LAUNCH"]][1]


@functools.cache
def reports(launch: str) -> list[Any]:
    """What each rank of a launch wrote."""
    world, _ = LAUNCHES[launch]
    with tempfile.TemporaryDirectory(prefix="tensor") as folder, environment(TENSOR_LAUNCH=launch):
        return ring_processes.reports(__file__, Path(folder), [world])[world]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CHECKS))
def test_tensor_parallel(name: str) -> None:
    assert_passed(reports("two"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_families(name: str) -> None:
    assert_passed(reports("families"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CROSSED))
def test_with_the_ring_across(name: str) -> None:
    assert_passed(reports("crossed"), name)
