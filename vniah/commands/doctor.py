"""``vniah doctor``: what is installed, what is missing and how to get it.

Each check looks at one thing and yields findings; none raises for what it finds.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

PACKAGE, HARNESS = "vniah", "lmms-eval"
# constraints.txt of the checkout, or its copy in an installation.
LOCK = Path(__file__).parents[1] / "constraints.txt"
# What each optional package is for; flash-attn is judged with the kernels, where a device is known.
OPTIONAL = {"trl": "preference training", "tensorboard": "training curves"}
FLASH = "pip install 'flash-attn>=2.8' --no-build-isolation"
# Versions that lmms-eval 0.7.3 is known to break with, why, and what mends it.
BREAKS = {
    "filelock": (">=4.3", "lmms-eval 0.7.3 imports filelock._api, gone in 4.3", "pip install 'filelock<4.3'"),
    "av": (">=16", "lmms-eval 0.7.3 needs av<16", "pip install 'av<16'"),
}
# What only lmms-eval and its models need: without them, ``vniah run`` still works.
FOR_HARNESS = (HARNESS, "decord", "decord2")
# Shown one by one; the others are summed up unless something is wrong with them.
SHOWN = ("torch", "transformers", "lmms-eval", "huggingface-hub", "datasets")
DECODED = ("h264", "hevc", "vp9", "av1")
MODEL = "lmms-lab/LongVA-7B"
LOW_DISK_GB = 20
_REINSTALL = "pip install . (again)"
_MARKS = {"ok": ("ok", typer.colors.GREEN), "note": ("--", typer.colors.YELLOW), "missing": ("!!", typer.colors.RED)}


class Finding(NamedTuple):
    """One fact. "note": something useful is not there; "missing": the main job cannot run; ``fix`` mends it."""

    state: Literal["ok", "note", "missing"]
    text: str
    fix: str = ""


def command(
    online: Annotated[bool, typer.Option("--online", help="Also ask the Hub whether it answers.")] = False,
    host_model: Annotated[
        str | None, typer.Option("--host-model", help="How this model of lmms-eval is run on vniah_generate.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --host-model: as JSON.")] = False,
) -> None:
    """Say what is installed, what is missing and how to get it.

    Ends with exit code 0 if `lmms-eval --model longva_ring --tasks vniah` can run here, or without lmms-eval
    `vniah run vniah`; else 1. With --host-model, says by which arguments that model of lmms-eval is shown every frame
    of VNIAH_FRAMES: works (null: nobody has run it here), model_args, env, packages, note.
    """
    if host_model is not None:
        _host(host_model, as_json)
        return
    if as_json:
        raise ValueError("--json is for --host-model NAME; the rest of doctor is for reading")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": packages,
        "lock": locked,
        "devices": devices,
        "attention": attention,
        "decoders": decoders,
        "lmms-eval": harness,
        "caches": caches,
        "hub": lambda: hub(online=online),
    }
    findings: list[Finding] = []
    for topic, check in checks.items():
        typer.secho(topic, bold=True)
        for finding in check():
            mark, colour = _MARKS[finding.state]
            typer.echo(f"  {typer.style(mark, fg=colour)}  {finding.text}")
            findings.append(finding)
    for title, state in (("To run at all", "missing"), ("Worth having", "note")):
        # Two findings may have one cure.
        cures = dict.fromkeys(finding.fix for finding in findings if finding.state == state and finding.fix)
        if cures:
            typer.secho(f"\n{title}", bold=True)
            for cure in cures:
                typer.echo(f"  {cure}")
    missing = sum(finding.state == "missing" for finding in findings)
    if missing:
        typer.echo(f"\nThe main job cannot run: {missing} thing{'s' if missing > 1 else ''} missing (!!).")
        raise typer.Exit(1)
    if _version(HARNESS):
        typer.echo("\nThe main job can run: lmms-eval --model longva_ring --tasks vniah")
    else:
        typer.echo("\nThe core can run: vniah run vniah --model nano -o out; lmms-eval is not installed")


def _host(name: str, as_json: bool) -> None:
    import json

    from vniah.runs.open import metadata_of
    from vniah.visual.compose import composed_frames
    from vniah.visual.hosts import advise, command_line
    from vniah.visual.settings import Settings

    frames = composed_frames(Settings.read(metadata_of("vniah_generate")).grid.longest)
    advice = advise(name, frames)
    if as_json:
        typer.echo(json.dumps(advice.as_dict()))
        return
    works = {True: "shows every frame", False: "cannot", None: "not run here"}[advice.works]
    typer.secho(f"{name} on vniah_generate, videos of up to {frames} frames: {works}", bold=True)
    typer.echo(f"  {advice.note}")
    if advice.packages:
        typer.echo(f"  packages: {' '.join(advice.packages)}")
    if advice.works is not False:
        typer.echo(f"  {command_line(name, advice)}")


def packages(required: Iterable[str] | None = None, python: str | None = None) -> Iterator[Finding]:
    """Installed versions against the bounds of our own metadata, or of ``required`` and ``python``."""
    from packaging.specifiers import SpecifierSet

    try:
        core, optional = _split(importlib.metadata.requires(PACKAGE) or [] if required is None else required)
        bound = importlib.metadata.metadata(PACKAGE)["Requires-Python"] if python is None else python
    except importlib.metadata.PackageNotFoundError:
        yield Finding("missing", "vniah itself is not installed", "pip install .")
        return
    version = platform.python_version()
    text = f"Python {version} (needs {bound})"
    unfit = Finding("missing", text, f"make an environment with Python {bound}")
    yield _either(SpecifierSet(bound).contains(version, prereleases=True), text, unfit)
    quiet = 0
    for name, needs in core.items():
        found = _compare(name, needs)
        if name in FOR_HARNESS or (name in BREAKS and not _version(HARNESS)):
            found = found._replace(state="ok" if found.state == "ok" else "note")
        if found.state == "ok" and name not in SHOWN:
            quiet += 1
        else:
            yield found
    yield Finding("ok", f"{quiet} more packages as required")
    for name, purpose in OPTIONAL.items():
        if name in optional:
            found = _compare(name, optional[name])
            absent = Finding("note", f"{found.text}; it is for {purpose}", found.fix)
            yield _either(found.state == "ok", found.text, absent)


def locked(required: Iterable[str] | None = None, lock: Path | None = None) -> Iterator[Finding]:
    """Installed versions of what we require against the lock, which names the versions that our tests run with."""
    lock = lock or LOCK
    try:
        core, optional = _split(importlib.metadata.requires(PACKAGE) or [] if required is None else required)
        lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    except (importlib.metadata.PackageNotFoundError, OSError):
        yield Finding("note", f"{lock} is not readable", _REINSTALL)
        return
    tested = {name: bounds.removeprefix("==") for name, bounds in _split(lines)[0].items()}
    here = {name: _version(name) for name in (*core, *optional) if name in tested}
    # A build's own label, as in 2.14.1+cpu, is no other version.
    apart = {name: version for name, version in here.items() if version and version.split("+")[0] != tested[name]}
    if apart:
        differ = ", ".join(f"{name} {version} (tested with {tested[name]})" for name, version in apart.items())
        fix = f"pip install -c {shlex.quote(str(lock))} --upgrade {' '.join(apart)}"
        yield Finding("note", f"not as locked: {differ}", fix)
    same = sum(version is not None for version in here.values()) - len(apart)
    yield Finding("ok", f"{same} packages as locked in {lock}")


def devices() -> Iterator[Finding]:
    """CUDA devices, or the processor."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("missing", f"torch does not load: {error}", "pip install torch")
        return
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("ok", f"no CUDA device; the CPU with {cores} cores, in float32")
        return
    for index in range(torch.cuda.device_count()):
        info = torch.cuda.get_device_properties(index)
        memory = f"{info.total_memory / 2**30:.0f} GiB"
        yield Finding("ok", f"cuda:{index} {info.name}, {memory}, capability {info.major}.{info.minor}")


def attention() -> Iterator[Finding]:
    """The fused kernel that block attention takes here, found by trying it."""
    try:
        import torch

        from longva_model.attention.blockwise import usable_kernels
    except (ImportError, OSError) as error:
        yield Finding("missing", f"longva_model does not load: {error}", "pip install .")
        return
    on_cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_cuda else torch.float32
    # 1,024 queries: some kernels are taken for long blocks only.
    q_BHTD = torch.zeros(1, 1, 1024, 128, dtype=dtype, device="cuda" if on_cuda else "cpu")
    try:
        names = [kernel.name for kernel in usable_kernels(q_BHTD, 2**18)]
    except RuntimeError as error:
        yield Finding("missing", f"no attention kernel runs: {error}")
        return
    rest = f" (then {', '.join(names[1:])})" if names[1:] else ""
    where = f"{dtype}".removeprefix("torch.") + (" on CUDA" if on_cuda else " on the CPU")
    yield Finding("ok", f"{names[0]}{rest} for {where}")
    if names[0] == "plain":
        yield Finding("note", "no fused kernel works here: long grids will be slow")
    if on_cuda and torch.cuda.get_device_capability() >= (9, 0) and not {"FA3", "FA4"} & set(names):
        yield Finding("note", "flash-attn-4 is not usable; it may be faster", "pip install 'vniah[fa4]'")
    elif on_cuda and not {"FA3", "FA4", "flash_attn"} & set(names):
        yield Finding("note", "flash-attn is not usable; it may be faster", FLASH)


def decoders() -> Iterator[Finding]:
    """Video decoders and the formats they read."""
    try:
        import av
        from av.codec import Codec
    except (ImportError, OSError) as error:
        yield Finding("missing", f"PyAV does not load: {error}", "pip install av")
    else:
        known = []
        for name in DECODED:
            with contextlib.suppress(Exception):  # PyAV has an exception type of its own for an unknown codec
                known.append(Codec(name, "r").name)
        lacking = ", ".join(name for name in DECODED if name not in known)
        text = f"PyAV {av.__version__}: {', '.join(known)}" + (f"; not {lacking}" if lacking else "")
        yield Finding("ok" if "h264" in known else "note", text)
    if importlib.util.find_spec("decord") is not None:
        yield Finding("ok", "decord (VNIAH_DECODER=decord)")


def harness() -> Iterator[Finding]:
    """Whether lmms-eval finds our model and our tasks."""
    if not _version(HARNESS):
        text = "lmms-eval is not installed: vniah run works, lmms-eval's models and tasks do not"
        yield Finding("note", text, "pip install 'lmms-eval>=0.7.3,<0.8'")
        return
    entries = [e for e in importlib.metadata.entry_points(group="lmms_eval.models") if e.name == PACKAGE]
    if not entries:
        yield Finding("missing", "the entry point 'vniah' of group lmms_eval.models is not registered", _REINSTALL)
        return
    try:
        models = [manifest.model_id for manifest in entries[0].load()()]
    except Exception as error:  # whatever keeps it from loading keeps lmms-eval from finding us
        yield Finding("missing", f"our entry point does not load: {error}", _REINSTALL)
        return
    yield Finding("ok", f"models: {', '.join(models)}")
    from vniah.lmms_plugin import tasks_dir
    from vniah.runs.open import read_index

    try:
        folder = tasks_dir()
        index = read_index(folder)
    except (ValueError, OSError) as error:
        yield Finding("missing", f"our tasks are not readable: {error}", _REINSTALL)
        return
    if "vniah" not in index:
        yield Finding("missing", f"no task 'vniah' in {folder}", _REINSTALL)
        return
    tasks = sum(not members for members in index.values())
    yield Finding("ok", f"{tasks} tasks and {len(index) - tasks} groups in {folder}")


def caches() -> Iterator[Finding]:
    """The Hub cache and ours: where, whether they can be written to, and how much room is left."""
    from vniah.hub import hub_cache_dir
    from vniah.visual.settings import cache_dir

    places = {"HF_HOME": ("Hub cache", hub_cache_dir()), "VNIAH_CACHE": ("our cache", cache_dir())}
    for variable, (name, folder) in places.items():
        # It is made when first used: what counts is the nearest folder that is there.
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding("missing", f"{name} {folder}: cannot be written to", f"export {variable}=/a/folder/of/yours")
            continue
        free = shutil.disk_usage(there).free / 1e9
        text = f"{name} {folder}: {free:.0f} GB free"
        fix = f"make room, or export {variable}=/a/larger/disk"
        low = Finding("note", f"{text}; a 7B model takes {LOW_DISK_GB} GB", fix)
        yield _either(free >= LOW_DISK_GB, text, low)


def hub(*, online: bool = False, timeout: float = 5.0) -> Iterator[Finding]:
    """The Hub's address, what of it is cached, and with ``online`` whether it answers."""
    from vniah.hub import MODEL_FILES, cached_snapshot, hub_endpoint, is_offline
    from vniah.needles.sources import PATTERNS
    from vniah.visual.settings import DEFAULT_NEEDLES

    if is_offline():
        yield Finding("note", "offline mode (HF_HUB_OFFLINE): only what is cached can be used", "unset HF_HUB_OFFLINE")
    elif online:
        yield _answer(hub_endpoint(), timeout)
    else:
        yield Finding("ok", f"{hub_endpoint()} (not asked; --online asks)")
    needles, model = f"needles {DEFAULT_NEEDLES}", f"model {MODEL}"
    none = Finding(
        "note", f"{needles}: not cached; without a network the built-in ones are used", "vniah download needles"
    )
    yield _either(cached_snapshot(DEFAULT_NEEDLES, "dataset", allow_patterns=PATTERNS), f"{needles}: cached", none)
    none = Finding("note", f"{model}: not cached", f"vniah download {MODEL}")
    yield _either(cached_snapshot(MODEL, "model", allow_patterns=MODEL_FILES), f"{model}: cached", none)
    spec = importlib.util.find_spec("longva_model")
    places = (spec.submodule_search_locations or []) if spec else []
    weights = [file for place in places for file in Path(place, "nano").glob("*.safetensors")]
    none = Finding("note", "model nano: its weights are not in this installation")
    yield _either(weights, "model nano: comes with the package (pretrained=nano)", none)


def _answer(endpoint: str, timeout: float) -> Finding:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=timeout).status_code
    except Exception as error:  # the HTTP library, and its errors, differ between versions of the Hub's
        fix = "check the network, or set HF_ENDPOINT to a mirror"
        return Finding("note", f"{endpoint} does not answer: {error}", fix)
    # A refusal is an answer too: a server may well refuse a HEAD of its front page.
    return _either(status < 500, f"{endpoint} answers", Finding("note", f"{endpoint} answers with error {status}"))


def _either(good: object, text: str, otherwise: Finding) -> Finding:
    return Finding("ok", text) if good else otherwise


def _split(required: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Requirement strings as {name: bounds}: what is always needed here, and what belongs to an extra."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    core: dict[str, str] = {}
    optional: dict[str, str] = {}
    for requirement in map(Requirement, required):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        (core if always else optional).setdefault(canonicalize_name(requirement.name), str(requirement.specifier))
    return core, optional


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compare(name: str, needs: str) -> Finding:
    """An installed package against its bounds, and against what lmms-eval breaks with."""
    from packaging.specifiers import SpecifierSet

    version = _version(name)
    wanted, fix = f"{name} (needs {needs})" if needs else name, f"pip install '{name}{needs}'"
    if version is None:
        return Finding("missing", f"{wanted}: not installed", fix)
    if name in BREAKS and _version(HARNESS):
        broken, why, mend = BREAKS[name]
        if SpecifierSet(broken).contains(version, prereleases=True):
            return Finding("missing", f"{name} {version} is installed, but {why}", mend)
    if not SpecifierSet(needs).contains(version, prereleases=True):
        return Finding("missing", f"{wanted}: {version} is installed", fix)
    return Finding("ok", f"{name} {version}" + (f" (needs {needs})" if needs else ""))
