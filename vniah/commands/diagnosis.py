"""What ``vniah doctor`` looks at: packages, devices, decoders, lmms-eval glue, caches. Facts, no printing.

Each function looks at one thing and returns findings; none raises for what it finds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

PACKAGE = "vniah"
# constraints.txt of the checkout, or its copy in an installation.
LOCK = Path(__file__).parents[1] / "constraints.txt"
# What each optional package is for; flash-attn is judged with the kernels, where a device is known.
OPTIONAL = {
    "trl": "preference training",
    "tensorboard": "training curves",
}
FLASH = "pip install 'flash-attn>=2.8' --no-build-isolation"
# Versions that lmms-eval 0.7.3 is known to break with, why, and what mends it.
BREAKS = {
    "filelock": (
        ">=4.3",
        "lmms-eval 0.7.3 imports filelock._api, gone in 4.3",
        "pip install 'filelock<4.3'",
    ),
    "av": (">=16", "lmms-eval 0.7.3 needs av<16", "pip install 'av<16'"),
}
# What only lmms-eval and its models need: without them, ``vniah run`` still works.
HARNESS = "lmms-eval"
FOR_HARNESS = (HARNESS, "decord", "decord2")
# Shown one by one; the others are summed up unless something is wrong with them.
SHOWN = ("torch", "transformers", "lmms-eval", "huggingface-hub", "datasets")
DECODED = ("h264", "hevc", "vp9", "av1")
MODEL = "lmms-lab/LongVA-7B"
LOW_DISK_GB = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact.

    Attributes:
        topic: the heading it stands under.
        state: ``ok``; ``note``, something useful is not there; ``missing``, the main job cannot run.
        text: what was found.
        fix: a command or action that mends it, if there is one.
    """

    topic: str
    state: Literal["ok", "note", "missing"]
    text: str
    fix: str = ""


def packages(required: Iterable[str] | None = None, python: str | None = None) -> Iterator[Finding]:
    """Installed versions against the bounds of our own metadata.

    Args:
        required: requirement strings; our metadata's if None.
        python: bound on Python; our metadata's if None.
    """
    from packaging.specifiers import SpecifierSet

    topic = "packages"
    try:
        required = importlib.metadata.requires(PACKAGE) or [] if required is None else required
        bound = importlib.metadata.metadata(PACKAGE)["Requires-Python"] if python is None else python
    except importlib.metadata.PackageNotFoundError:
        yield Finding(topic=topic, state="missing", text="vniah itself is not installed", fix="pip install .")
        return
    version = platform.python_version()
    fits = SpecifierSet(bound).contains(version, prereleases=True)
    yield Finding(
        topic=topic,
        state="ok" if fits else "missing",
        text=f"Python {version} (needs {bound})",
        fix="" if fits else f"make an environment with Python {bound}",
    )
    core, optional = _split(required)
    quiet = 0
    for name, needs in core:
        found = _compare(name, needs)
        if found.state == "missing" and (name in FOR_HARNESS or (name in BREAKS and not has_harness())):
            found = replace(found, state="note")
        if found.state == "ok" and name not in SHOWN:
            quiet += 1
        else:
            yield found
    yield Finding(topic=topic, state="ok", text=f"{quiet} more packages as required")
    for name, purpose in OPTIONAL.items():
        if name in optional:
            found = _compare(name, optional[name])
            text = found.text if found.state == "ok" else f"{found.text}; it is for {purpose}"
            yield Finding(topic=topic, state="ok" if found.state == "ok" else "note", text=text, fix=found.fix)


def locked(required: Iterable[str] | None = None, lock: Path | None = None) -> Iterator[Finding]:
    """Installed versions of what we require against the lock, which names the versions that our tests run with.

    Args:
        required: requirement strings; our metadata's if None.
        lock: a file of constraints; the one that comes with the package if None.
    """
    topic = "lock"
    lock = LOCK if lock is None else lock
    try:
        required = importlib.metadata.requires(PACKAGE) or [] if required is None else required
        pinned, _ = _split(line for line in lock.read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", ""))
    except (importlib.metadata.PackageNotFoundError, OSError):
        yield Finding(topic=topic, state="note", text=f"{lock} is not readable", fix="pip install . (again)")
        return
    here = {name: bounds.removeprefix("==") for name, bounds in pinned}
    core, optional = _split(required)
    apart = []
    same = 0
    for name in dict.fromkeys([name for name, _ in core] + list(optional)):
        version = _version(name)
        # A build's own label, as in 2.14.1+cpu, is no other version.
        if name in here and version is not None and version.split("+")[0] != here[name]:
            apart.append((name, version))
        else:
            same += version is not None and name in here
    if apart:
        differ = ", ".join(f"{name} {version} (tested with {here[name]})" for name, version in apart)
        fix = f"pip install -c {shlex.quote(str(lock))} --upgrade {' '.join(name for name, _ in apart)}"
        yield Finding(topic=topic, state="note", text=f"not as locked: {differ}", fix=fix)
    yield Finding(topic=topic, state="ok", text=f"{same} packages as locked in {lock}")


def has_harness() -> bool:
    """Whether lmms-eval is installed."""
    return _version(HARNESS) is not None


def devices() -> Iterator[Finding]:
    """CUDA devices, or the processor."""
    topic = "devices"
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(topic=topic, state="missing", text=f"torch does not load: {error}", fix="pip install torch")
        return
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding(topic=topic, state="ok", text=f"no CUDA device; the CPU with {cores} cores, in float32")
        return
    for index in range(torch.cuda.device_count()):
        info = torch.cuda.get_device_properties(index)
        text = f"cuda:{index} {info.name}, {info.total_memory / 2**30:.0f} GiB, capability {info.major}.{info.minor}"
        yield Finding(topic=topic, state="ok", text=text)


def attention() -> Iterator[Finding]:
    """The fused kernel that block attention takes here, found by trying it."""
    topic = "attention"
    try:
        import torch

        from longva_model.attention.blockwise import usable_kernels
    except (ImportError, OSError) as error:
        yield Finding(topic=topic, state="missing", text=f"longva_model does not load: {error}", fix="pip install .")
        return
    on_cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_cuda else torch.float32
    # 1,024 queries: some kernels are taken for long blocks only.
    q_BHTD = torch.zeros(1, 1, 1024, 128, dtype=dtype, device="cuda" if on_cuda else "cpu")
    try:
        names = [kernel.name for kernel in usable_kernels(q_BHTD)]
    except RuntimeError as error:
        yield Finding(topic=topic, state="missing", text=f"no attention kernel runs: {error}")
        return
    rest = f" (then {', '.join(names[1:])})" if names[1:] else ""
    where = f"{dtype}".removeprefix("torch.") + (" on CUDA" if on_cuda else " on the CPU")
    yield Finding(topic=topic, state="ok", text=f"{names[0]}{rest} for {where}")
    if names[0] == "plain":
        yield Finding(topic=topic, state="note", text="no fused kernel works here: long grids will be slow")
    if on_cuda and "flash_attn" not in names:
        yield Finding(topic=topic, state="note", text="flash-attn is not usable; it may be faster", fix=FLASH)


def decoders() -> Iterator[Finding]:
    """Video decoders and the formats they read."""
    topic = "decoders"
    try:
        import av
        from av.codec import Codec
    except (ImportError, OSError) as error:
        yield Finding(topic=topic, state="missing", text=f"PyAV does not load: {error}", fix="pip install av")
    else:
        known = []
        for name in DECODED:
            try:
                Codec(name, "r")
                known.append(name)
            except Exception:  # PyAV has an exception type of its own for an unknown codec
                continue
        lacking = [name for name in DECODED if name not in known]
        text = f"PyAV {av.__version__}: {', '.join(known)}" + (f"; not {', '.join(lacking)}" if lacking else "")
        yield Finding(topic=topic, state="ok" if "h264" in known else "note", text=text)
    if importlib.util.find_spec("decord") is not None:
        yield Finding(topic=topic, state="ok", text="decord (VNIAH_DECODER=decord)")


def harness() -> Iterator[Finding]:
    """Whether lmms-eval finds our model and our tasks."""
    topic = "lmms-eval"
    reinstall = "pip install . (again)"
    if not has_harness():
        text = "lmms-eval is not installed: vniah run works, lmms-eval's models and tasks do not"
        yield Finding(topic=topic, state="note", text=text, fix="pip install 'lmms-eval>=0.7.3,<0.8'")
        return
    entries = [e for e in importlib.metadata.entry_points(group="lmms_eval.models") if e.name == PACKAGE]
    if not entries:
        text = "the entry point 'vniah' of group lmms_eval.models is not registered"
        yield Finding(topic=topic, state="missing", text=text, fix=reinstall)
        return
    try:
        models = [manifest.model_id for manifest in entries[0].load()()]
        yield Finding(topic=topic, state="ok", text=f"models: {', '.join(models)}")
    except Exception as error:  # whatever keeps it from loading keeps lmms-eval from finding us
        yield Finding(topic=topic, state="missing", text=f"our entry point does not load: {error}", fix=reinstall)
        return
    from vniah.lmms_plugin import tasks_dir
    from vniah.runs.open import read_index

    try:
        folder = tasks_dir()
        index = read_index(folder)
    except (ValueError, OSError) as error:
        yield Finding(topic=topic, state="missing", text=f"our tasks are not readable: {error}", fix=reinstall)
        return
    if "vniah" not in index:
        yield Finding(topic=topic, state="missing", text=f"no task 'vniah' in {folder}", fix=reinstall)
        return
    tasks = sum(not members for members in index.values())
    yield Finding(topic=topic, state="ok", text=f"{tasks} tasks and {len(index) - tasks} groups in {folder}")


def caches() -> Iterator[Finding]:
    """The Hub cache and ours: where, whether they can be written to, and how much room is left."""
    from vniah.hub import hub_cache_dir
    from vniah.visual.settings import cache_dir

    places = (("Hub cache", hub_cache_dir(), "HF_HOME"), ("our cache", cache_dir(), "VNIAH_CACHE"))
    for name, folder, variable in places:
        # It is made when first used: what counts is the nearest folder that is there.
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            text = f"{name} {folder}: cannot be written to"
            yield Finding(topic="caches", state="missing", text=text, fix=f"export {variable}=/a/folder/of/yours")
            continue
        free = shutil.disk_usage(there).free / 1e9
        low = free < LOW_DISK_GB
        text = f"{name} {folder}: {free:.0f} GB free" + (f"; a 7B model takes {LOW_DISK_GB} GB" if low else "")
        fix = f"make room, or export {variable}=/a/larger/disk" if low else ""
        yield Finding(topic="caches", state="note" if low else "ok", text=text, fix=fix)


def hub(*, online: bool = False, timeout: float = 5.0) -> Iterator[Finding]:
    """The Hub's address, what of it is cached, and with ``online`` whether it answers."""
    from vniah.hub import MODEL_FILES, cached_snapshot, hub_endpoint, is_offline
    from vniah.needles.sources import PATTERNS
    from vniah.visual.settings import DEFAULT_NEEDLES

    topic = "hub"
    if is_offline():
        text = "offline mode (HF_HUB_OFFLINE): only what is cached can be used"
        yield Finding(topic=topic, state="note", text=text, fix="unset HF_HUB_OFFLINE")
    elif online:
        yield _answer(hub_endpoint(), timeout)
    else:
        yield Finding(topic=topic, state="ok", text=f"{hub_endpoint()} (not asked; --online asks)")
    if cached_snapshot(DEFAULT_NEEDLES, "dataset", allow_patterns=PATTERNS):
        yield Finding(topic=topic, state="ok", text=f"needles {DEFAULT_NEEDLES}: cached")
    else:
        text = f"needles {DEFAULT_NEEDLES}: not cached; without a network the built-in ones are used"
        yield Finding(topic=topic, state="note", text=text, fix="vniah download needles")
    if cached_snapshot(MODEL, "model", allow_patterns=MODEL_FILES):
        yield Finding(topic=topic, state="ok", text=f"model {MODEL}: cached")
    else:
        yield Finding(topic=topic, state="note", text=f"model {MODEL}: not cached", fix=f"vniah download {MODEL}")
    if _nano_weights():
        yield Finding(topic=topic, state="ok", text="model nano: comes with the package (pretrained=nano)")
    else:
        yield Finding(topic=topic, state="note", text="model nano: its weights are not in this installation")


def _answer(endpoint: str, timeout: float) -> Finding:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout):
            pass
    except urllib.error.HTTPError as error:
        # It answered: a server may well refuse a HEAD of its front page.
        if error.code >= 500:
            return Finding(topic="hub", state="note", text=f"{endpoint} answers with error {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fix = "check the network, or set HF_ENDPOINT to a mirror"
        return Finding(topic="hub", state="note", text=f"{endpoint} does not answer: {reason}", fix=fix)
    return Finding(topic="hub", state="ok", text=f"{endpoint} answers")


def _nano_weights() -> bool:
    spec = importlib.util.find_spec("longva_model")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(any((Path(place) / "nano").glob("*.safetensors")) for place in places)


def _split(required: Iterable[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Requirement strings as (name, bounds): what is always needed here, and what belongs to an extra."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    core: list[tuple[str, str]] = []
    optional: dict[str, str] = {}
    for text in required:
        requirement = Requirement(text)
        name, bounds = str(canonicalize_name(requirement.name)), str(requirement.specifier)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            core.append((name, bounds))
        else:
            optional.setdefault(name, bounds)
    return core, optional


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compare(name: str, needs: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    wanted = f"{name} (needs {needs})" if needs else name
    fix = f"pip install '{name}{needs}'"
    version = _version(name)
    if version is None:
        return Finding(topic="packages", state="missing", text=f"{wanted}: not installed", fix=fix)
    if name in BREAKS and has_harness():
        broken, why, mend = BREAKS[name]
        if SpecifierSet(broken).contains(version, prereleases=True):
            return Finding(
                topic="packages", state="missing", text=f"{name} {version} is installed, but {why}", fix=mend
            )
    if not SpecifierSet(needs).contains(version, prereleases=True):
        return Finding(topic="packages", state="missing", text=f"{wanted}: {version} is installed", fix=fix)
    return Finding(topic="packages", state="ok", text=f"{name} {version}" + (f" (needs {needs})" if needs else ""))
