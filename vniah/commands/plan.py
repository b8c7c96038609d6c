"""``vniah plan``: what a grid costs before running it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from longva_model.backends.planning import ColumnPlan, PlannedCell
    from vniah.contract.cost import ModelShape
    from vniah.contract.requests import Request
    from vniah.needles import NeedleSet
    from vniah.runs.grid import Grid
    from vniah.runs.plan import Gpu, KVPlan, Plan
    from vniah.served.arguments import Prices
    from vniah.text.measure import Encode
    from vniah.text.settings import TextSettings
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask


def command(
    model: Annotated[
        str, typer.Option(help="A known shape (LongVA-7B, ...), a checkpoint folder, or a Hub id of a video model.")
    ] = "LongVA-7B",
    frames: Annotated[str, typer.Option(help="Frame counts, as VNIAH_FRAMES, which is the default.")] = "",
    depths: Annotated[str, typer.Option(help="Depths in percent, as VNIAH_DEPTHS or TEXT_NIAH_DEPTHS.")] = "",
    needles: Annotated[str, typer.Option(help="A needle set, as VNIAH_NEEDLES, or how many needles.")] = "",
    task: Annotated[
        str,
        typer.Option(help="A task or group on film, as its YAML and the environment set it: vniah_d, vruler."),
    ] = "",
    gpu: Annotated[str, typer.Option(help="GPU to estimate time for.")] = "A100-80GB",
    gpus: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    chunk_tokens: Annotated[int, typer.Option(help="Prefill chunk, as the model argument.", min=1)] = 8192,
    host_memory: Annotated[
        float | None, typer.Option(help="The host's memory in GB, for the longest prompt with kv=host.", min=0)
    ] = None,
    haystack: Annotated[str, typer.Option(help="Film whose frames' size is planned for, as VNIAH_HAYSTACK.")] = "",
    frame_size: Annotated[str, typer.Option(help="That size, as WIDTHxHEIGHT; 640x360 without a film.")] = "",
    presentation: Annotated[str, typer.Option(help="video or images, as the model argument.")] = "auto",
    served: Annotated[
        bool, typer.Option("--served", help="Plan what a server is asked: requests, tokens, its cache, and money.")
    ] = False,
    frame_tokens: Annotated[int | None, typer.Option(help="Served: tokens of a frame there.", min=1)] = None,
    cache_tokens: Annotated[int | None, typer.Option(help="Served: tokens that its cache holds.", min=1)] = None,
    price_in: Annotated[float, typer.Option(help="Served: money for a million tokens of prompts.", min=0)] = 0.0,
    price_out: Annotated[float, typer.Option(help="Served: of answers.", min=0)] = 0.0,
    price_cached: Annotated[float | None, typer.Option(help="Served: of prompts in its cache.", min=0)] = None,
    text: Annotated[str, typer.Option(help="Plan text NIAH at these lengths instead, as TEXT_NIAH_LENGTHS.")] = "",
    samples: Annotated[
        int | None, typer.Option(help="Draws at each place, as TEXT_NIAH_SAMPLES or VNIAH_SAMPLES.", min=1)
    ] = None,
    distractors: Annotated[int, typer.Option(help="Text NIAH: distractors a prompt.", min=0, max=6)] = 0,
    shared_distractors: Annotated[
        bool, typer.Option("--shared-distractors", help="Text NIAH: one set of distractors a length.")
    ] = False,
    power: Annotated[
        float | None, typer.Option(help="How many needles a difference of so much between two runs needs, and no more.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="With --power: a RUN whose mean and intra-needle correlation are taken.")
    ] = None,
) -> None:
    """Show cells, tokens, FLOPs, memory and time of a grid before running it.

    The tree computes each shared prefix once; the figures beside it are one forward a cell. What is not given is
    read from the environment, as a run reads it. A checkpoint folder's tokenizer counts the text. Any video model of
    transformers is planned by its config and processor; nothing of its weights is read or fetched.
    """
    from dataclasses import replace

    from vniah.runs.grid import check_columns
    from vniah.runs.plan import checkpoint_tokens, get_gpu, grid_requests, is_plain_model, make_plan, shape_of
    from vniah.served.arguments import Prices
    from vniah.text.settings import TextSettings
    from vniah.visual.settings import Settings

    if like is not None and power is None:
        raise ValueError("--like RUN goes with --power: it says how alike the answers of a needle are")
    if power is not None:
        print(_needed(power, _asked(task, text, {"frames": frames, "depths": depths, "haystack": haystack}), like))
        return
    if served:
        if text:
            raise ValueError("--served plans tasks on film; leave --text out")
        inputs = {"frames": frames, "depths": depths, "needles": needles, "haystack": haystack}
        prices = Prices(price_in, price_out, price_in if price_cached is None else price_cached)
        _plan_served(
            task or "vniah", {key: one for key, one in inputs.items() if one}, frame_tokens, cache_tokens, prices
        )
        return
    device, is_plain = get_gpu(gpu), is_plain_model(model)
    on = _Where(device, gpus, chunk_tokens, host_memory)
    if task and text:
        raise ValueError("--task plans tasks on film and --text plans text NIAH; give one of them")
    if task:
        wanted = {"frames": frames, "depths": depths, "needles": needles, "haystack": haystack}
        wanted["samples"] = str(samples or "")
        tasks = film_tasks(task, {key: value for key, value in wanted.items() if value})
        if is_plain:
            _plan_tasks(model, task, tasks, on)
        else:
            shown = _frame_size(frame_size, tasks[0].settings)
            _plan_video_model(model, _called(task, tasks), lambda: _task_cells(tasks), presentation, shown, on)
        return
    if not text:
        asked = Settings.read(given={"frames": frames, "depths": depths, "needles": needles, "haystack": haystack})
        check_columns(asked.frames, asked.grid.lengths, "frames")
        found, told = plan_needles(asked.needles)
        check_cells(asked.grid, len(found))
        what = f"V-NIAH {asked.frames} frames, depths {asked.depths} %, {told}"
        if not is_plain:
            shown = _frame_size(frame_size, asked)
            _plan_video_model(model, what, lambda: _needle_cells(asked.grid, found), presentation, shown, on)
            return
    shape = shape_of(model)
    encode = checkpoint_tokens(model)
    if text:
        given = {
            "lengths": text,
            "depths": depths,
            "samples": samples,
            "shared_distractors": shared_distractors or None,
        }
        settings = replace(TextSettings.read(given=given), haystack="builtin", num_distractors=distractors)
        cells, controls = _text_requests(settings, encode)
        what = f"text NIAH {text} tokens, depths {settings.depths} %, {distractors} distractors"
    else:
        cells, controls = grid_requests(asked.grid, found)
    plan = make_plan(cells, controls, shape, chunk_tokens=chunk_tokens, encode=encode)
    print(f"{model}: {what}")
    _print_plan(model, plan, shape, on, frames=not text, counted=encode is not None)


def _print_plan(model: str, plan: Plan, shape: ModelShape, on: _Where, *, frames: bool, counted: bool) -> None:
    _print_costs(plan, on.device, on.gpus, f"{shape.kv_bytes_per_token:,} bytes a token")
    kept = _kept(plan, shape, on)
    _print_kept(kept, shape, on, frames=frames)
    _print_advice(plan, on.device, kept)
    print(f"  text is counted {'by the tokenizer in ' + model if counted else 'as one token for 4 characters'}")


def _plan_served(
    name: str, given: Mapping[str, str], frame_tokens: int | None, room: int | None, prices: Prices
) -> None:
    from vniah.served.plan import plan_served

    if frame_tokens is None:
        raise ValueError(
            "what a frame costs is the server's to say: give --frame-tokens, the prompt's tokens by its frames of "
            "`vniah run ... --limit 1`"
        )
    tasks = film_tasks(name, given)
    plan = plan_served(tasks, frame_tokens, room)
    rows = {
        "requests": f"{plan.requests:,}",
        "longest prompt": f"{plan.longest_tokens:,} tokens",
        "all prompts": f"{plan.prompt_tokens:,} tokens",
        "of these in the server's cache": f"{plan.reused_tokens:,} tokens, in the order of the tree, one at a time",
        "all answers": f"{plan.answer_tokens:,} tokens at most",
    }
    if any(prices):
        rows["money"] = f"{plan.money(prices):,.2f}, and {plan.money(prices, cached=False):,.2f} without its cache"
    print(f"served: {_called(name, tasks)}")
    width = max(map(len, rows))
    for title, value in rows.items():
        print(f"  {title:<{width}}  {value}")
    held = "of no bound" if room is None else f"of {room:,} tokens"
    print(f"  a cache {held} (--cache-tokens); text is counted as one token for 4 characters")


def film_tasks(name: str, given: Mapping[str, str]) -> list[VisualTask]:
    """The tasks of a name, opened as a run opens them.

    Raises:
        ValueError: a task that is not on film, or is answered freely; and what opening them raises.
    """
    from vniah.runs.open import open_tasks
    from vniah.visual.task import VisualTask

    found: list[VisualTask] = []
    for one in open_tasks([name], given):
        if not isinstance(one, VisualTask):
            raise ValueError(f"{one.name} is not on film; plan text NIAH by --text LENGTHS")
        if one.scoring == "generated":
            raise ValueError(
                f"{one.name} is answered freely, and what an answer takes is known when it ends; plan "
                f"{one.name.removesuffix('_generate')}, whose prompts are the same but for a frame"
            )
        found.append(one)
    return found


def _called(name: str, tasks: Sequence[VisualTask]) -> str:
    settings = tasks[0].settings
    film = tasks[0].haystack.name
    return f"{name}, {settings.frames} frames, depths {settings.depths} %, {film}"


def _needle_cells(grid: Grid, needles: Sequence[tuple[str, str, str]]) -> Sequence[PlannedCell]:
    from longva_model.backends.planning import needle_cells

    return needle_cells(grid, needles)


def _task_cells(tasks: Sequence[VisualTask]) -> Sequence[PlannedCell]:
    from longva_model.backends.planning import task_cells

    return task_cells(tasks)


def _plan_tasks(model: str, name: str, tasks: Sequence[VisualTask], on: _Where) -> None:
    """Each task alone, and all of them in one run, which share what of the film their prompts begin with."""
    from vniah.runs.plan import checkpoint_template, checkpoint_tokens, make_plan, shape_of

    shape, encode = shape_of(model), checkpoint_tokens(model)
    every: tuple[list[Request], list[Request]] = ([], [])
    plans = {}
    for task in tasks:
        mine: tuple[list[Request], list[Request]] = ([], [])
        for cell, request in zip(task.cells, task.requests(checkpoint_template(model)), strict=True):
            mine[cell.is_control].append(request)
            every[cell.is_control].append(request)
        plans[task.name] = make_plan(*mine, shape, chunk_tokens=on.chunk_tokens, encode=encode)
    together = make_plan(*every, shape, chunk_tokens=on.chunk_tokens, encode=encode)
    print(f"{model}: {_called(name, tasks)}")
    if len(tasks) > 1:
        _print_tasks({**plans, "all in one run": together})
    _print_plan(model, together, shape, on, frames=True, counted=encode is not None)


def _print_tasks(plans: Mapping[str, Plan]) -> None:
    head = ("task", "cells", "controls", "tokens, each alone", "tokens, tree", "shared", "FLOPs, tree", "FLOPs, plain")
    rows = [head]
    for name, one in plans.items():
        tokens = (f"{one.every_token:,}", f"{one.tree_tokens:,}", f"{one.shared:.1%}")
        rows.append(
            (name, str(one.cells), str(one.controls), *tokens, f"{one.tree_flops:.3e}", f"{one.plain_flops:.3e}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        rest = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        print("    " + "  ".join((f"{row[0]:<{widths[0]}}", *rest)))


class _Where(NamedTuple):
    """On what is planned."""

    device: Gpu
    gpus: int
    chunk_tokens: int
    host_memory: float | None


def _plan_video_model(
    model: str,
    what: str,
    cells_of: Callable[[], Sequence[PlannedCell]],
    presentation: str,
    frames_are: tuple[tuple[int, int], str],
    on: _Where,
) -> None:
    """A model by its own processor: frames of the size that it chooses, and held at that of the longest column."""
    # Before transformers is imported, which alone takes seconds.
    print(f"vniah: reading the config and processor of {model}; no weights", file=sys.stderr, flush=True)
    from longva_model.backends.planning import Planner

    cells, ((width, height), whence) = cells_of(), frames_are
    planner = Planner(model, presentation)
    print(f"{model}: {what}, frames of {width}x{height} ({whence})")
    free = planner.choice("auto", cells, (height, width), on.chunk_tokens)
    choices = [free]
    if len({column.fitted for column in free.columns}) > 1:
        choices.append(planner.choice("column", cells, (height, width), on.chunk_tokens))
    kept = f"{planner.shape.kv_bytes_per_token:,} bytes a token"
    if planner.shape.state_bytes:
        kept += f", and {_size(planner.shape.state_bytes)} of recurrent states at each mark of the walk"
    for choice in choices:
        if len(choices) == 1:
            how = "of one size in all columns by the processor's own rule: auto and column are the same"
        else:
            how = "held at the size of the longest column" if choice.held else "shrunk with their number"
        print(f"  frame_tokens={choice.frame_tokens}, shown as {choice.presentation}: frames are {how}")
        _print_columns(choice.columns)
        _print_costs(choice.costs, on.device, on.gpus, kept)
        ways = _kept(choice.costs, planner.shape, on)
        if planner.no_blocks:
            print(f"  kv=host and kv=fp8 are not for it: {planner.no_blocks}")
        else:
            _print_kept(ways, planner.shape, on, frames=False)
        _print_advice(choice.costs, on.device, ways[:1] if planner.no_blocks else ways)
    for note in free.notes:
        print(f"  {note}")
    print(f"  text is counted by the model's tokenizer; weights are {planner.shape.weights:,} of two bytes each")


def _print_columns(columns: Sequence[ColumnPlan]) -> None:
    head = ("frames", "fitted to", "tokens a unit", "frames a unit", "tokens a frame", "longest prompt, no answer")
    rows = [head]
    for one in columns:
        fitted, each = f"{one.fitted[0]}x{one.fitted[1]}", f"{one.tokens_a_unit / one.frames_a_unit:g}"
        counts = (f"{one.tokens_a_unit:,}", str(one.frames_a_unit), each, f"{one.prompt_tokens:,}")
        rows.append((f"{one.frames:,}", fitted, *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("    " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def _print_costs(plan: Plan, device: Gpu, gpus: int, kept: str) -> None:
    rows = {
        "cells (and controls)": f"{plan.cells:,} ({plan.controls:,})",
        "longest prompt": f"{plan.longest_tokens:,} tokens with its answer",
        "all cells' prompts": f"{plan.prompt_tokens:,} tokens",
        "tokens that the tree feeds": f"{plan.tree_tokens:,} ({plan.shared:.1%} fewer than by a forward each)",
        "FLOPs, one forward a cell": f"{plan.plain_flops:.3e} (no controls)",
        "FLOPs, tree": f"{plan.tree_flops:.3e} ({_ratio(plan)})",
        "KV cache of the longest": f"{_size(plan.kv_bytes)} ({kept})",
        "weights": _size(plan.weight_bytes),
        "one prefill chunk": _size(plan.chunk_bytes),
        "peak memory, about": _size(plan.peak_bytes),
        "logits never made": f"{_size(plan.logits_bytes_plain)} (fp32, full vocabulary, longest prompt)",
        f"time, tree, {gpus} x {device.name}": _clock(plan.seconds(device, plan.tree_flops) / gpus),
        f"time, plain, {gpus} x {device.name}": _clock(plan.seconds(device, plan.plain_flops) / gpus),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def _kept(plan: Plan, shape: ModelShape, on: _Where) -> list[KVPlan]:
    from vniah.runs.plan import kv_plans

    return kv_plans(plan, shape, on.device, chunk_tokens=on.chunk_tokens, host_gb=on.host_memory)


def _ratio(plan: Plan) -> str:
    """The tree by one forward a cell. Only the tree has the controls, which may cost more than a small grid shares."""
    if plan.tree_flops <= plan.plain_flops:
        return f"{plan.plain_flops / plan.tree_flops:.2f}x fewer"
    return f"{plan.tree_flops / plan.plain_flops:.2f}x more, for it has the controls too"


def _print_kept(kept: Sequence[KVPlan], shape: ModelShape, on: _Where, *, frames: bool) -> None:
    """Each way of keeping keys and values: where, how much, up to which length, and what it moves."""
    from vniah.runs.plan import FILLED

    rows = [("kv", "kept in", "bytes a token", "of the longest", "longest that fits")]
    for one in kept:
        memory = f"{on.device.name} of {on.device.memory_gb:.0f} GB"
        if one.kv == "host":
            memory = "host's memory" + (f" of {on.host_memory:g} GB" if on.host_memory is not None else "")
        fits = "as the host's memory (--host-memory)"
        if one.fits_tokens is not None:
            fits = f"{one.fits_tokens:,} tokens"
            fits += f", {one.fits_tokens // shape.tokens_per_frame:,} frames" if frames else ""
        rows.append((one.kv, memory, f"{one.token_bytes:,}", _size(one.longest_bytes), fits))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"  keys and values on one device, of whose memory {FILLED:.0%} may be filled, beside weights and a chunk:")
    for row in rows:
        print("    " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for one in kept:
        if one.layer_bytes:
            print(
                f"    kv={one.kv} brings {_size(one.layer_bytes)} to the device for each layer of the longest prompt's "
                f"last chunk, or of a token behind it, and {_size(one.prompt_bytes)} in all for that prompt; kv=fp8 is "
                "an approximation"
            )


def _print_advice(plan: Plan, device: Gpu, kept: Sequence[KVPlan]) -> None:
    """By the same figures that ``_print_kept`` shows; ``kept`` has what the model can have."""
    from vniah.runs.plan import FILLED, UTILISATION

    room = device.memory_gb * FILLED * 1e9 - plan.weight_bytes - plan.chunk_bytes
    fits = {one.kv: one.fits_tokens is None or one.fits_tokens >= plan.longest_tokens for one in kept}
    if fits["device"]:
        advice = "the longest prompt fits: parallel=branch shares the subtrees over several"
    elif room > 0:
        ring = max(2, -(-plan.kv_bytes // max(1, int(room))))
        advice = f"the longest prompt does not fit: parallel=ring over at least {ring} of them shards the KV cache"
        ways = []
        for one in kept:
            if one.kv != "device" and fits[one.kv]:
                needs = f" with {_size(one.longest_bytes / FILLED)} of the host's memory" if one.kv == "host" else ""
                ways.append(f"kv={one.kv}{needs}")
        advice += f", and {' or '.join(ways)} would do with one" if ways else ""
    else:
        advice = "the weights and a chunk alone do not fit: choose a larger device, or smaller chunks"
    print(f"  on one {device.name} of {device.memory_gb:.0f} GB {advice}")
    print(
        f"  times assume {UTILISATION:.0%} of the maker's {device.tflops:.0f} dense bf16 TFLOP/s; "
        "the vision tower is in no figure of time or FLOPs"
    )


def _frame_size(given: str, asked: Settings) -> tuple[tuple[int, int], str]:
    """(width, height) of the haystack's frames, and whence it is known.

    Raises:
        ValueError: a size that is none; or a haystack that cannot be opened.
    """
    from dataclasses import fields

    from vniah.haystack import open_haystack

    if given:
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", given.strip())
        if found is None:
            raise ValueError(f"--frame-size {given!r} is no size of a frame; give WIDTHxHEIGHT, such as 640x360")
        return (int(found[1]), int(found[2])), "as given"
    default = next(one.default for one in fields(asked) if one.name == "haystack")
    if asked.haystack == default:
        return (640, 360), "assumed: no haystack is named; --frame-size or --haystack tells another"
    film = open_haystack(asked.haystack, decoder=asked.decoder)
    return (film.size[1], film.size[0]), f"of {film.name}"


def plan_needles(spec: str) -> tuple[list[tuple[str, str, str]], str]:
    """(id, question, answer) of each needle of a set or of so many of the paper's length, and how to call them.

    Nothing is fetched: for a Hub dataset that is not in the cache, five stand in.

    Raises:
        ValueError, OSError: no such needle set; or no needles.
    """
    from vniah.visual.settings import DEFAULT_NEEDLES

    if spec.strip().isdecimal():
        number, told = int(spec), f"{int(spec):,} needle{'s' if int(spec) > 1 else ''}"
        if number < 1:
            raise ValueError(f"--needles {spec} leaves nothing to plan; give 1 or more, or a needle set")
    elif found := _on_this_machine(spec):
        texts = [(needle.id, needle.question, needle.answer) for needle in found]
        return texts, f"{len(found):,} needles of {found.name}"
    else:
        hint = "; `vniah download needles` fetches it" if spec == DEFAULT_NEEDLES else ""
        number, told = 5, f"5 needles (assumed: {spec} is not in the cache{hint})"
    question = "\nFind the frame of the needle. What is it?\nAnswer the question using a single word or phrase."
    return [(f"needle{n}", f"{question} ({n})", "Panda") for n in range(number)], told


def _on_this_machine(spec: str) -> NeedleSet | None:
    """The needle set, unless it is a Hub dataset that is not in the cache."""
    from vniah.files import is_hub_id
    from vniah.hub import cached_snapshot
    from vniah.needles import open_needles
    from vniah.needles.sources import PATTERNS, read_snapshot

    if not is_hub_id(spec) or Path(spec).is_dir():
        return open_needles(spec)
    snapshot = cached_snapshot(spec, "dataset", allow_patterns=PATTERNS, known_whole=False)
    return None if snapshot is None else read_snapshot(snapshot, spec, links_within=snapshot.parent.parent)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What ``--power`` is asked of: places of a grid, repetitions of it, and the variable that sets how many draws
    stand at each place; ``None`` where needles do, the same at every place."""

    places: int
    seeds: int = 1
    draws: str | None = None


def _asked(task: str, text: str, given: dict[str, str]) -> _Asked:
    from vniah.runs.open import open_tasks
    from vniah.text.settings import TextSettings
    from vniah.visual.settings import Settings

    if task and text:
        raise ValueError("--task plans tasks on film and --text plans text NIAH; give one of them")
    if text:
        grid = TextSettings.read(given={"lengths": text, "depths": given["depths"]}).grid
        return _Asked(len(grid.lengths) * len(grid.depths), draws="TEXT_NIAH_SAMPLES")
    settings = Settings.read(given=given)
    places = len(settings.grid.lengths) * len(settings.grid.depths)
    if not task:
        return _Asked(places, settings.seeds)
    one = open_tasks([task], {key: value for key, value in given.items() if value})[0]
    cells = {(cell.length, cell.depth_percent) for cell in one.cells if not cell.is_control}
    drawn = f"{one.family.upper()}_SAMPLES" if "sample" in one.rows[0] else None
    return _Asked(len(cells), one.seeds, drawn)


def _needed(difference: float, asked: _Asked, like: str | None) -> str:
    """The lines of ``--power``."""
    from vniah.runs import power
    from vniah.runs.read import read_run
    from vniah.runs.scoring import grid_mean

    what = (
        f"a difference of {power.check_difference(difference):g} between two runs (80 % power, 5 % two-sided, the same "
    )
    cells = None if like is None else read_run(like, partial=True).cells
    mean = power.ASSUMED_MEAN if cells is None else grid_mean(cells)
    if cells is not None and bool(cells["sample"].notna().all()) != (asked.draws is not None):
        raise ValueError(
            f"{like} has {'needles' if asked.draws else 'draws'}, and what is planned has not; plan its own task, by "
            "--task, or by --text and its lengths"
        )
    if asked.draws is not None:
        # Each cell is a draw of its own, so that none is like another.
        draws = power.needles_for(difference, 1, mean=mean, correlation=0.0)
        each = math.ceil(draws / (asked.places * asked.seeds))
        by = f"of {like}" if like else "is assumed"
        repeated = f" in {asked.seeds} repetitions" if asked.seeds > 1 else ""
        return (
            f"{what}draws, none assumed to be easy for both) needs {draws:,} draws: {asked.draws}={each} at "
            f"{asked.places:,} places{repeated} (a mean of {mean:.3g} {by})"
        )
    places = asked.places * asked.seeds
    repeated = f" in each of {asked.seeds} repetitions" if asked.seeds > 1 else ""
    what += f"needles at {asked.places:,} places{repeated}, none assumed to be easy for both) needs"
    if cells is not None:
        found = power.intra_needle_correlation(cells)
        needles = power.needles_for(difference, places, mean=mean, correlation=found)
        return (
            f"{what} {needles:,} needles (mean {mean:.3f} and intra-needle correlation {found:.2f} of {like}, roughly: "
            f"it has {cells.loc[~cells['control'], 'cluster'].nunique()})"
        )
    lines = [f"{what}, by the intra-needle correlation (--like RUN; a mean of {mean:g} is assumed):"]
    for one in power.ASSUMED:
        lines.append(f"  correlation {one}: {power.needles_for(difference, places, correlation=one):,} needles")
    return "\n".join(lines)


def check_cells(grid: Grid, needles: int) -> None:
    """Raise ValueError unless a grid is of a size that a run would take."""
    from vniah.runs.task import MOST_CELLS

    cells = len(grid.lengths) * (len(grid.depths) + 1) * needles
    if cells > MOST_CELLS:
        raise ValueError(
            f"{len(grid.lengths):,} frame counts by {len(grid.depths)} depths and a control, with {needles:,} needles, "
            f"are {cells:,} cells, and at most {MOST_CELLS:,} are scored in a run; give larger steps or fewer needles"
        )


def _text_requests(settings: TextSettings, encode: Encode | None) -> tuple[list[Request], list[Request]]:
    """The task's own prompts over built-in prose: the sharing is that of a run."""
    from vniah.text.haystack import open_text_haystack
    from vniah.text.measure import MeasuredHaystack
    from vniah.text.task import TextTask

    source = MeasuredHaystack(open_text_haystack(settings.haystack), encode)
    task = TextTask("text NIAH", "teacher-forced", settings, source)
    pairs = list(zip(task.cells, task.requests(), strict=True))
    return [one for cell, one in pairs if not cell.is_control], [one for cell, one in pairs if cell.is_control]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _clock(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
