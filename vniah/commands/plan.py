"""``vniah plan``: what a grid costs before running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vniah.requests import Request
    from vniah.text import TextSettings


def command(
    model: Annotated[str, typer.Option(help="A known shape (LongVA-7B, ...) or a checkpoint folder.")] = "LongVA-7B",
    frames: Annotated[str, typer.Option(help="Frame counts, as VNIAH_FRAMES.")] = "200-3000:200",
    depths: Annotated[str, typer.Option(help="Depths in percent, as VNIAH_DEPTHS.")] = "0-100:20",
    needles: Annotated[int, typer.Option(help="Number of needles.", min=1)] = 5,
    gpu: Annotated[str, typer.Option(help="GPU to estimate time for.")] = "A100-80GB",
    gpus: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    chunk_tokens: Annotated[int, typer.Option(help="Prefill chunk, as the model argument.", min=1)] = 8192,
    text: Annotated[str, typer.Option(help="Plan text NIAH at these lengths instead, as TEXT_NIAH_LENGTHS.")] = "",
    samples: Annotated[int, typer.Option(help="Text NIAH: numbers a cell.", min=1)] = 5,
    distractors: Annotated[int, typer.Option(help="Text NIAH: distractors a prompt.", min=0, max=6)] = 0,
    shared_distractors: Annotated[
        bool, typer.Option("--shared-distractors", help="Text NIAH: one set of distractors a length.")
    ] = False,
) -> None:
    """Show cells, tokens, FLOPs, memory and time of a grid before running it.

    The tree computes each shared prefix once; the figures beside it are one forward a cell.
    """
    from vniah.gpus import UTILISATION, get_gpu
    from vniah.grid import Grid
    from vniah.planning import grid_requests, make_plan, shape_of
    from vniah.text import TextSettings

    shape, device = shape_of(model), get_gpu(gpu)
    if text:
        settings = TextSettings(
            lengths=text,
            depths=depths,
            samples=samples,
            haystack="builtin",
            num_distractors=distractors,
            shared_distractors=shared_distractors,
        )
        cells, controls = _text_requests(settings)
        what = f"text NIAH {text} tokens, {distractors} distractors"
    else:
        grid = Grid.parse(frames, depths)
        question = "\nFind the frame of the needle. What is it?\nAnswer the question using a single word or phrase."
        cells, controls = grid_requests(grid, [(f"needle{n}", f"{question} ({n})", "Panda") for n in range(needles)])
        what = f"V-NIAH {frames} frames, depths {depths} %, {needles} needles"
    plan = make_plan(cells, controls, shape, chunk_tokens=chunk_tokens)
    gb = 1e9
    rows = [
        ("cells (and controls)", f"{plan.cells:,} ({plan.controls:,})"),
        ("longest prompt", f"{plan.longest_tokens:,} tokens"),
        ("all cells' prompts", f"{plan.prompt_tokens:,} tokens"),
        ("FLOPs, one forward a cell", f"{plan.plain_flops:.3e}"),
        ("FLOPs, tree", f"{plan.tree_flops:.3e} ({plan.plain_flops / plan.tree_flops:.2f}x fewer)"),
        ("KV cache of the longest", f"{plan.kv_bytes / gb:.1f} GB ({shape.kv_bytes_per_token:,} bytes a token)"),
        ("weights", f"{plan.weight_bytes / gb:.1f} GB"),
        ("one prefill chunk", f"{plan.chunk_bytes / gb:.1f} GB"),
        ("peak memory, about", f"{plan.peak_bytes / gb:.1f} GB"),
        ("logits never made", f"{plan.logits_bytes_plain / gb:.1f} GB (fp32, full vocabulary, longest prompt)"),
        (f"time, tree, {gpus} x {gpu}", _clock(plan.seconds(device, plan.tree_flops) / gpus)),
        (f"time, plain, {gpus} x {gpu}", _clock(plan.seconds(device, plan.plain_flops) / gpus)),
    ]
    print(f"{model}: {what}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    fits = plan.peak_bytes <= device.memory_gb * gb
    ring = -(-plan.kv_bytes // max(1, int(device.memory_gb * gb * 0.9 - plan.weight_bytes - plan.chunk_bytes)))
    if fits:
        advice = "it fits one device: parallel=branch shares the subtrees over several"
    elif plan.weight_bytes + plan.chunk_bytes < device.memory_gb * gb * 0.9:
        advice = f"it does not fit one device: parallel=ring over at least {ring} of them shards the KV cache"
    else:
        advice = "the weights and a chunk alone do not fit the device: choose a larger one, or smaller chunks"
    print(f"  on a {gpu} of {device.memory_gb:.0f} GB {advice}")
    print(
        f"  times assume {UTILISATION:.0%} of the maker's {device.tflops:.0f} dense bf16 TFLOP/s; "
        "the vision tower is in no figure"
    )


def _text_requests(settings: TextSettings) -> tuple[list[Request], list[Request]]:
    """The task's own prompts over built-in prose, with lengths estimated: the sharing is that of a run."""
    from vniah.text import TextBook

    book = TextBook(settings)
    pairs = list(zip(book.cells, book.requests(), strict=True))
    return [one for cell, one in pairs if not cell.is_control], [one for cell, one in pairs if cell.is_control]


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
