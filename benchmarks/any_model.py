"""A grid on any model of transformers: as one tree, as one forward a cell, and by lmms-eval's own adapter.

    python benchmarks/any_model.py                    # the three parts in turn, some five minutes of CPU time
    python benchmarks/any_model.py --part lowering    # forward, adapter or lowering alone

The model is a random Qwen2.5-VL, weights and all made here (``qwen_vl.py``): its decoder is large enough that matrix
products and attention decide, and a frame passes as many weights of its tower, for those of its decoder, as in the 7B.
Each side runs in a fork of this process.

- ``forward``: the paper's grid (15 frame counts, six depths, controls) scaled down, teacher-forced, fp32, as one tree
  and as ``scoring=plain``, which is the model's own forward of what its own processor makes of the whole prompt. Both
  read the film from memory. The tree's figure includes encoding every frame once, into an empty cache; the plain
  figure the towers and the processor of every cell. Beside it what both take in the decoder alone.
- ``adapter``: free answers to the cells of ``vniah_generate`` by lmms-eval's ``qwen2_5_vl`` and by ``hf_tree``, on the
  same checkpoint, film and grid, in bf16 (the adapter has no other), as videos and as images. Measured is
  ``generate_until`` whole: reading what is shown, processor, towers, decoder, answers. Loading is left out on both
  sides, and so is composing the videos, which are there before either begins.
- ``lowering``: the paper's whole grid (450 cells with their controls, 200 to 3,000 frames of 640x360) lowered to atoms
  by a processor of the released Qwen2.5-VL-7B's sizes: index work only, no pixel is seen.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Spent, in_processes, options, spent, table
from qwen_vl import config as model_config
from qwen_vl import processor, released, small, write_checkpoint

from vniah.contract.requests import Target
from vniah.contract.sources import HeldFrames
from vniah.haystack import open_haystack
from vniah.needles import open_needles
from vniah.runs.grid import Grid
from vniah.visual.compose import SplicedVideo
from vniah.visual.scenes import Needles

ALL_FRAMES = 10**9
# Of an operation's time in a profile: what counts as a matrix product.
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear")
ATTENTION = "attention"


class Film(HeldFrames):
    """A haystack in memory."""

    name, fps = "film", 1.0


class Parts:
    """Seconds in a model's towers and in its decoder: of this thread's CPU, or of the clock where a GPU works."""

    def __init__(self, backend: Any) -> None:
        self.seconds = {"towers": 0.0, "decoder": 0.0}
        self._on_cuda = backend.device.type == "cuda"
        self._modules = {"towers": backend.family.inner.visual, "decoder": backend.decoder}

    @contextmanager
    def watched(self) -> Iterator[Parts]:
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(functools.partial(self._begin, name)))
            handles.append(module.register_forward_hook(functools.partial(self._end, name)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        if not self._on_cuda:
            return time.thread_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def _begin(self, name: str, *_: Any) -> None:
        self.seconds[name] -= self._now()

    def _end(self, name: str, *_: Any) -> None:
        self.seconds[name] += self._now()


def prompts_of(backend: Any, film: Film, grid: Grid, count: int) -> list[Any]:
    """The teacher-forced prompts of a grid's cells and controls, asked for ``count`` needles."""
    needles = open_needles(f"icons:0:{count}")
    prompts = []
    for cell in grid.cells(needles.ids):
        needle = needles.get(cell.needle)
        inserted = Needles(needles).scene(cell, cell.length).inserted
        video = SplicedVideo(haystack=film, num_frames=cell.length, inserted=inserted)  # type: ignore[arg-type]
        leaf = Target(needle.answer)
        prompts.append(backend.question(needle.question, [video], leaf, max_frames=ALL_FRAMES))
    return prompts


def film_of(frames: int, size: str) -> Film:
    return Film(open_haystack(f"synthetic:0:{frames}:{size}").frames(0, frames), f"film-{size}")


def load(folder: Path, *, dtype: str, device: str = "cpu") -> tuple[Any, float]:
    """The backend as a run loads it, and the largest difference that its check found."""
    from longva_model.arguments import ModelArgs
    from longva_model.backends.loading import load_backend

    backend = load_backend(ModelArgs(pretrained=str(folder), dtype=dtype, device=device, generic=True))
    return backend, float(backend.about()["largest_difference_from_own_forward"])


def run_side(side: str, backend: Any, prompts: Sequence[Any], chunk_tokens: int, threads: int) -> dict[str, Any]:
    """One side of ``forward``, whole, lowering and all: results and what it took."""
    import torch

    from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
    from longva_model.frames.embeddings import FrameEmbeddings

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, Parts(backend).watched() as parts:
        frames = FrameEmbeddings(backend, Path(folder))
        kind = PlainEngine if side == "plain" else TreeEngine
        engine = kind(backend, frames, EngineOptions(chunk_tokens=chunk_tokens))
        batches: list[Any] = []

        def work() -> list[Any]:
            batches.append(engine.lower(prompts))
            return engine.run(batches[0])

        results, took = spent(work, memory=True)
        (batch,) = batches
    return {
        "results": [result.as_dict() for result in results],
        "took": took,
        "parts": parts.seconds,
        "flops": engine.planned_flops(batch),
        "kv_bytes": engine.peak_kv_bytes,
        "units": frames.frames_encoded,
        "tokens": max(one.tokens for one in batch.lowered),
    }


def largest_difference(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], *, near: float) -> float:
    """Of the log-probabilities of two sides' results.

    Raises:
        AssertionError: another answer, or argmax, where log-probabilities are not ``near``.
    """
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        assert (a["answer_ids"], a["prompt_tokens"]) == (b["answer_ids"], b["prompt_tokens"]), (a, b)
        apart = max(abs(x - y) for x, y in zip(a["answer_logprobs"], b["answer_logprobs"], strict=True))
        assert apart <= near, (apart, a, b)
        worst = max(worst, apart)
    return worst


def report_sides(found: Mapping[str, Mapping[str, Any]], parts_of: str = "CPU s") -> None:
    """A table of what each side took, and their ratios."""
    table(
        {
            "": side, "decoder TFLOP": f"{one['flops'] / 1e12:.2f}", "wall s": f"{Spent(*one['took']).wall:.1f}",
            "CPU s": f"{Spent(*one['took']).cpu:.1f}",
            f"towers, {parts_of}": f"{one['parts']['towers']:.1f}",
            f"decoder, {parts_of}": f"{one['parts']['decoder']:.1f}",
            "KV MB": f"{one['kv_bytes'] / 1e6:.1f}", "resident MB": f"{Spent(*one['took']).peak_bytes / 1e6:+.1f}",
        }
        for side, one in found.items()
    )  # fmt: skip
    plain, tree = found["plain"], found["tree"]
    wall, cpu = (Spent(*plain["took"])[i] / Spent(*tree["took"])[i] for i in (0, 1))
    decoder = plain["parts"]["decoder"] / tree["parts"]["decoder"]
    print(f"ratio: {wall:.2f} by the wall, {cpu:.2f} by CPU seconds; decoder alone {decoder:.2f}; ", end="")
    print(f"FLOPs of the decoder {plain['flops'] / tree['flops']:.2f}", flush=True)


def share_of_products(backend: Any, prompt: Any, threads: int) -> dict[str, float]:
    """Of one plain forward's CPU time, the shares of matrix products and of attention."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(threads)
    ids = backend.token_ids(prompt.request.leaf.text)
    backend.reference(prompt, ids)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        backend.reference(prompt, ids)
    # Operations only: Python's own time, and the processor's, is not in a profile.
    own = {one.key: one.self_cpu_time_total for one in found.key_averages() if one.key.startswith("aten::")}
    whole = sum(own.values())
    return {
        "products": sum(own.get(name, 0) for name in PRODUCTS) / whole,
        "attention": sum(value for name, value in own.items() if ATTENTION in name) / whole,
    }


def forward(folder: Path, given: Any) -> None:
    """The tree against one forward a cell."""
    grid = Grid.parse(given.frames, given.depths)
    backend, checked = load(folder, dtype="float32")
    film = film_of(grid.longest, given.size)
    prompts = prompts_of(backend, film, grid, given.needles)
    print(f"\nforward: {len(prompts)} cells and controls, {grid.longest} frames of {given.size} at most")
    print(backend.shape)
    (shares,) = in_processes(functools.partial(share_of_products, backend, prompts[-1], given.threads))
    told = ", ".join(f"{what} {share:.0%}" for what, share in shares.items())
    print(f"checked when loaded: within {checked:.1e}; one plain forward: {told}", flush=True)
    for number in range(given.rounds):
        found: dict[str, Any] = {}
        for side in ("plain", "tree"):
            work = functools.partial(run_side, side, backend, prompts, given.chunk_tokens, given.threads)
            (found[side],) = in_processes(work)
        worst = largest_difference(found["tree"]["results"], found["plain"]["results"], near=1e-3)
        print(f"\nround {number + 1}: {found['tree']['units']} units encoded by the tree, ", end="")
        print(f"{found['tree']['tokens']:,} tokens in the longest prompt")
        report_sides(found)
        print(f"results: log-probabilities within {worst:.1e}", flush=True)


def run_adapter(
    name: str, arguments: str, environment: Mapping[str, str], given: Any, task: str = "vniah_generate"
) -> dict[str, Any]:
    """A grid by a model of lmms-eval; its answers, and what ``generate_until`` or ``loglikelihood`` took."""
    os.environ.update(environment)
    import torch
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model

    torch.set_num_threads(given.threads)
    model = get_model(name).create_from_arg_string(arguments, {"batch_size": 1})
    method = "generate_until" if task == "vniah_generate" else "loglikelihood"
    answer, told = getattr(model, method), []

    def timed(requests: Any) -> Any:
        told.append(spent(lambda: answer(requests), memory=True))
        return told[-1][0]

    setattr(model, method, timed)
    bound = f"max_new_tokens={given.answer_tokens}" if task == "vniah_generate" else None
    simple_evaluate(model=model, tasks=[task], gen_kwargs=bound, bootstrap_iters=0, verbosity="ERROR")
    ((answers, took),) = told
    return {"answers": [str(getattr(one, "text", one)) for one in answers], "took": took}


def adapter(folder: Path, given: Any) -> None:
    """lmms-eval's own adapter against hf_tree, on the same videos or images."""
    from vniah.visual.compose import composed_frames
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask

    frames = composed_frames(Grid.parse(given.adapter_frames, given.depths).longest)
    film = f"synthetic:0:{frames}:{given.size}"
    least, most = small().pixels or (0, 0)
    sides = {
        "qwen2_5_vl": f"max_num_frames={frames},min_pixels={least},max_pixels={most},device=cpu,device_map=cpu",
        "hf_tree": "dtype=bfloat16,device=cpu,journal=none",
    }
    for presentation in given.presentations.split(","):
        cache = folder.parent / f"cache-{presentation}"
        settings = Settings(
            frames=given.adapter_frames, depths=given.depths, haystack=film, needles=f"icons:0:{given.needles}",
            presentation=presentation, cache=str(cache),
        )  # fmt: skip
        asked = {"frames", "depths", "haystack", "needles", "presentation", "cache"}
        environment = {f"VNIAH_{name.upper()}": str(getattr(settings, name)) for name in sorted(asked)}
        environment |= {"HF_DATASETS_CACHE": str(folder.parent / "datasets"), "TQDM_DISABLE": "1"}
        task = VisualTask("vniah_generate", "generated", settings)
        if presentation == "video":
            for row in task.rows:
                task.visuals(row)
        print(f"\nadapter: {len(task.rows)} cells and controls as {presentation}, {frames} frames at most, ", end="")
        print(f"answers of {given.answer_tokens} tokens", flush=True)
        found = {}
        for name, arguments in sides.items():
            work = functools.partial(run_adapter, name, f"pretrained={folder},{arguments}", environment, given)
            (found[name],) = in_processes(work)
        assert all(len(one["answers"]) == len(task.rows) and all(one["answers"]) for one in found.values())
        host, ours = (Spent(*found[name]["took"]) for name in sides)
        table(
            {
                "": name, "wall s": f"{took.wall:.1f}", "CPU s": f"{took.cpu:.1f}",
                "resident MB": f"{took.peak_bytes / 1e6:+.1f}",
            }
            for name, took in zip(sides, (host, ours), strict=True)
        )  # fmt: skip
        same = statistics.mean(a == b for a, b in zip(*(one["answers"] for one in found.values()), strict=True))
        print(f"as {presentation}: ratio {host.wall / ours.wall:.2f} by the wall, ", end="")
        print(f"{host.cpu / ours.cpu:.2f} by CPU seconds; {same:.0%} of the answers equal", flush=True)
        if presentation == "video":
            arguments = f"pretrained={folder},{sides['hf_tree']}"
            (scored,) = in_processes(functools.partial(run_adapter, "hf_tree", arguments, environment, given, "vniah"))
            assert len(scored["answers"]) == len(task.rows)
            forced = Spent(*scored["took"])
            print(
                f"the same cells teacher-forced by hf_tree: {forced.cpu:.1f} CPU s, {forced.wall:.1f} s by the wall; "
            )
            print(f"ratio {host.cpu / forced.cpu:.2f} by CPU seconds", flush=True)


def lowering(given: Any) -> None:
    """The paper's grid as atoms, by a processor of the 7B's sizes."""
    (told,) = in_processes(functools.partial(lower_paper, given.lowering_frames))
    print(f"\nlowering: {told['cells']} cells and controls of {told['tokens']:,} tokens in all, to ", end="")
    print(f"{told['longest']:,} in one")
    took = Spent(*told["took"])
    print(f"lowered and merged in {took.cpu:.1f} CPU s ({took.wall:.1f} s), {took.peak_bytes / 1e6:+.0f} MB; ", end="")
    print(f"the tree feeds {told['fed'] / told['tokens']:.0%} of the tokens", flush=True)


def lower_paper(frames: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForImageTextToText

    from longva_model.backends.lowering import Lowering
    from longva_model.backends.rendering import Renderer
    from longva_model.engine.atoms import AtomTable, PrefixTree
    from longva_model.engine.steps import steps
    from longva_model.prompts.prompting import build_question

    kind, grid = released("qwen2_5_vl"), Grid.parse(frames, "0-100:20")
    shown = processor(kind)
    config = model_config(kind, shown.tokenizer)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    haystack: Any = open_haystack(f"synthetic:0:{grid.longest}:640x360")
    build = type("Asks", (), {"question": staticmethod(build_question)})
    prompts = prompts_of(build, haystack, grid, 5)

    def work() -> tuple[list[Any], Any]:
        table = AtomTable()
        lowerer = Lowering(Renderer(shown, config, model.model.get_rope_index))
        found = [lowerer.lower(one.request.segments, one.media, table) for one in prompts]
        return found, PrefixTree(found)

    (found, tree), took = spent(work, memory=True)
    return {
        "took": took, "cells": len(found), "tokens": sum(one.tokens for one in found),
        "longest": max(one.tokens for one in found), "fed": sum(step.new for step in steps(tree)),
    }  # fmt: skip


def main(given: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    torch.set_num_threads(1)  # threads of this process would not survive the forks
    print(f"{given.threads} thread(s), {os.cpu_count()} cores, other work {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if given.part != "lowering":
            sizes = {name: getattr(given, name) for name in ("hidden", "layers", "tower_hidden", "tower_layers")}
            kind = small(**sizes)
            in_processes(functools.partial(write_checkpoint, folder, kind))
        works: dict[str, Callable[[], None]] = {
            "forward": functools.partial(forward, folder, given),
            "adapter": functools.partial(adapter, folder, given),
            "lowering": functools.partial(lowering, given),
        }
        for name, work in works.items():
            if given.part in ("all", name):
                work()


if __name__ == "__main__":
    parts = ("all", "forward", "adapter", "lowering")
    grids = {"frames": "8-120:8", "adapter_frames": "7-63:8", "lowering_frames": "200-3000:200", "depths": "0-100:20"}
    sizes: dict[str, Any] = {
        "hidden": 512,
        "layers": 6,
        "tower_hidden": 192,
        "tower_layers": 3,
        "size": "112x112",
        "chunk_tokens": 8192,
    }
    asked: dict[str, Any] = {"needles": 1, "answer_tokens": 4, "presentations": "video,images"}
    main(options(__doc__, part=parts, **grids, **sizes, **asked, threads=1, rounds=1))
