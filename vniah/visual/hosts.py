"""lmms-eval's own models under ``vniah_generate``: the arguments by which each is shown every frame, and the traps.

What was run is a table (``HOSTS``), kept true by tests/tasks/test_hosts.py. Of other models the source is read: what
its frame argument is called, and which packages are not here. Shapes: none.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vniah.lmms_plugin import host_classes
from vniah.notices import did_you_mean

_IMAGES = MappingProxyType({"VNIAH_PRESENTATION": "images"})
_OTHER_WAY = (
    "`vniah run --model` loads LongVA and LLaVA-NeXT-Video checkpoints; for others of the Hub the model hf_tree is to "
    "come, which is not in this release"
)
# What models call the number of frames that they sample, or its limit.
FRAME_ARGUMENTS = (
    "max_num_frames",
    "max_frames_num",
    "max_frame_num",
    "max_frames",
    "num_frames",
    "nframes",
    "num_frame",
    "num_segments",
    "video_max_frames",
    "num_video_frames",
)
_RATES = ("fps", "video_fps")
_HOST_ROOMS = ("lmms_eval.models.simple.", "lmms_eval.models.chat.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One model of lmms-eval.

    Attributes:
        works: every frame is shown. ``None``: nobody has run it here.
        model_args: for ``--model_args`` beside the checkpoint; ``{frames}`` is the longest composed video.
        env: variables that it needs.
        packages: what it imports, as pip knows it.
        note: what was run, and the traps.
        most_frames: of a video; longer ones lose frames, and are shown as images.
        as_video: arguments that show every frame of a video too, where images are the simpler way.
        one_by_one: of a batch of videos, the frames of the first decide for all: the others lose theirs, silently.
    """

    works: bool | None = True
    model_args: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    note: str = ""
    most_frames: int | None = None
    as_video: str = ""
    one_by_one: bool = False


_QWEN = ("decord", "qwen-vl-utils")
_RAN = "a whole grid with controls was run on a tiny random checkpoint, every frame counted"
_SERVED = "a whole grid with controls was run against a server on loopback, every frame counted"
_NO_AUDIO = (
    "it hands every processor empty lists of what there is none of, and sound by a name that is gone; transformers 5 "
    "takes neither"
)
_SEGMENTS = Host(
    works=None,
    env=_IMAGES,
    note="nobody has run it here; of a video it takes the middles of equal parts, and of as many parts as frames one "
    "frame is lost",
)
HOSTS: Mapping[str, Host] = MappingProxyType(
    {
        "qwen2_vl": Host(
            model_args="max_num_frames={frames}",
            packages=_QWEN,
            note=f"{_RAN}; of a video it reads 768 frames at most, and longer ones are to be shown as images",
            most_frames=768,
        ),
        "qwen2_5_vl": Host(
            model_args="max_num_frames={frames}",
            packages=_QWEN,
            note=f"{_RAN}; leave batch_size at 1, since the frames of a batch's first video decide for all",
            one_by_one=True,
        ),
        "qwen3_vl": Host(
            model_args="fps=1,max_num_frames={frames}",
            packages=_QWEN,
            note=f"{_RAN}; without fps=1, max_num_frames is asked of every video, and a shorter one ends the run",
        ),
        "qwen3_5": Host(
            model_args="fps=1,max_num_frames={frames},enable_thinking=false",
            packages=_QWEN,
            note=f"{_RAN}; while it thinks, which is its default, 16 tokens end before the answer and leave it empty",
        ),
        "internvl_hf": Host(
            model_args="max_patches=1",
            env=_IMAGES,
            note=f"{_RAN}, as images: one num_frames holds for all videos of a run and must not exceed the shortest, "
            "so that of videos only one length can be shown in full; an error while it answers leaves an empty answer",
        ),
        "llava_hf": Host(
            env=_IMAGES,
            note=f"{_RAN}, as images: a video ends in an IndexError; each frame is cut into tiles of the checkpoint's "
            "image size, thousands of tokens for LLaVA-OneVision, so that few fit its context; an error leaves an "
            "empty answer",
        ),
        "gemma3": Host(
            model_args="max_num_frames={frames}",
            packages=("decord",),
            note=f"{_RAN}; a video that it cannot read is left out and the question asked without it: see its log",
        ),
        "huggingface": Host(works=False, note=_NO_AUDIO),
        "async_hf_model": Host(works=False, note=_NO_AUDIO),
        "openai": Host(env=_IMAGES, note=f"{_SERVED}; servers limit the images of a request"),
        "async_openai": Host(
            env=_IMAGES,
            note=f"{_SERVED}; servers limit the images of a request",
            as_video="fps=1,max_frames={frames}",
        ),
        "litellm": Host(works=None, env=_IMAGES, note="nobody has run it here; it is built on openai, which was"),
        "gpt4v": Host(env=_IMAGES, note=f"{_SERVED}; as videos it repeats frames of those shorter than max_frames_num"),
        "vllm": Host(
            works=None,
            env=_IMAGES,
            packages=("vllm",),
            note="needs a GPU and was not run here; its requests were built and every frame counted, each an image in "
            "either presentation; vLLM limits images by limit_mm_per_prompt; for is_qwen3_vl=true, which writes the "
            "seconds between the frames of a video, show videos with fps=1,max_frame_num={frames}",
            as_video="fps=1,max_frame_num={frames}",
        ),
        "sglang": Host(
            works=None,
            env=_IMAGES,
            packages=("sglang",),
            note="needs a GPU and was not run here; the engine samples videos by itself, whatever nframes and fps say, "
            "and is handed images as they are",
        ),
        "internvl2": _SEGMENTS,
        "internvl3": _SEGMENTS,
        "internvl3_5": _SEGMENTS,
        "internvideo2_5": _SEGMENTS,
        "video_llava": Host(works=False, note="it takes 8 frames of any video"),
        "longva_ring": Host(note="ours: it reads a composed video at its own rate, every frame"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How a model is run on a grid: a ``Host`` for its longest video, on this machine."""

    works: bool | None
    model_args: str
    env: Mapping[str, str]
    packages: tuple[str, ...]
    note: str
    as_video: str = ""
    one_by_one: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "works": self.works,
            "model_args": self.model_args,
            "env": dict(self.env),
            "packages": list(self.packages),
            "note": self.note,
        }


def advise(name: str, frames: int) -> Advice:
    """What is known of a model.

    Args:
        name: as ``lmms-eval --model`` takes it.
        frames: of the longest composed video.

    Raises:
        ValueError: lmms-eval has no such model, or is not installed.
    """
    name, source = _find(name)
    host = HOSTS.get(name) or _read(source)
    lacking = [one for one in host.packages if not _installed(one)]
    works, note = host.works, host.note.replace("{frames}", str(frames))
    if lacking:
        works, note = False, f"not installed here: {', '.join(lacking)}; {note}"
    if not works:
        note = f"{note}. Another way: {_OTHER_WAY}"
    too_long = host.most_frames is not None and frames > host.most_frames
    return Advice(
        works=works,
        model_args="" if too_long else host.model_args.replace("{frames}", str(frames)),
        env=_IMAGES if too_long else host.env,
        packages=host.packages,
        note=note,
        as_video=host.as_video.replace("{frames}", str(frames)),
        one_by_one=host.one_by_one,
    )


def warning(name: str, given: str, frames: int, presentation: str, batch_size: str = "1") -> str:
    """Why a model would miss the one-frame needle as it is called, and what to pass; "" where nothing says so.

    Args:
        name: lmms-eval's ``--model``.
        given: its ``--model_args``.
        frames: of the longest composed video.
        presentation: "video" or "images".
        batch_size: its ``--batch_size``.
    """
    try:
        advice = advise(name, frames)
    except ValueError:
        return ""  # lmms-eval says so itself
    if advice.works is False:
        return f"the model {name!r} is not known to show every frame: {advice.note}"
    if presentation == "images":
        return ""
    have = _arguments(given)
    as_images = "VNIAH_PRESENTATION" in advice.env
    want = _arguments(advice.as_video if as_images else advice.model_args)
    odd = [f"{key}={have[key]}" for key in (*FRAME_ARGUMENTS, *_RATES) if key in have and not _fits(key, have, want)]
    missing = [key for key in want if key not in have]
    lost = f"the model {name!r} may leave frames out, and the needle with them"
    if advice.one_by_one and batch_size != "1":
        return f"{lost}: batch_size={batch_size} is given; leave it at 1, and pass {advice.model_args} ({advice.note})"
    if want and not odd and not missing:
        return ""
    if as_images:
        return f"{lost}; set VNIAH_PRESENTATION=images{_and_pass(advice.model_args)} ({advice.note})"
    if not want:
        return f"{lost}: what it samples is not known here; set VNIAH_PRESENTATION=images to show every frame"
    why = f"{', '.join(odd)} is given" if odd else f"{', '.join(missing)} is not given"
    return f"{lost}: {why}; pass {advice.model_args} (the longest video has {frames} frames)"


def _and_pass(model_args: str) -> str:
    return f" and pass {model_args}" if model_args else ""


def _fits(key: str, have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether a frame argument is what was run, or a larger limit."""
    if key not in want:
        return False
    try:
        found, needed = float(have[key]), float(want[key])
    except ValueError:
        return have[key] == want[key]
    return found == needed if key in _RATES else found >= needed


def _arguments(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|,)\s*(\w+)\s*=\s*([^,]*)", text))


def _find(name: str) -> tuple[str, str]:
    """A model's own name, of which it may have several, and the module of its class.

    Raises:
        ValueError: names the nearest.
    """
    classes = host_classes()
    if name not in classes:
        near = did_you_mean(name, classes) or "; `lmms-eval models` lists them"
        raise ValueError(f"lmms-eval has no model {name!r}{near}")
    own, path = classes[name]
    return own, path.rpartition(".")[0]


def _read(module: str) -> Host:
    """What a model's source says of itself, and that of the models it builds on."""
    trees = list(_trees(module))
    needed = _lacking(one for tree in trees for one in _modules(tree.body))
    wanted = _lacking(one for tree in trees for one in _tried(tree))
    argument, default = next((one for tree in trees for one in _frame_arguments(tree)), ("", ""))
    if argument:
        said = f"its source takes {argument} frames of a video, {default} unless told"
    else:
        said = "its source names no number of frames"
    if wanted:
        said += f"; it may need {', '.join(wanted)}, not installed here"
    return Host(
        works=None,
        model_args=f"{argument}={{frames}}" if argument else "",
        packages=needed,
        note=f"nobody has run it here; {said}; VNIAH_PRESENTATION=images shows all where it takes several images",
    )


def _trees(module: str) -> Iterator[ast.Module]:
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop(0)
        path = None if name in seen else _source(name)
        seen.add(name)
        if path is not None and path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield tree
            waiting += [one for one in _modules(tree.body) if one.startswith(_HOST_ROOMS)]


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _modules(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """What these statements import."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _tried(tree: ast.Module) -> Iterator[str]:
    """What a module imports if it can, in one of lmms-eval's two ways."""
    for node in tree.body:
        if isinstance(node, ast.Try):
            yield from _modules(node.body)
    for found in ast.walk(tree):
        if isinstance(found, ast.Call) and ast.unparse(found.func) == "optional_import" and found.args:
            module = found.args[0]
            yield from (str(module.value),) if isinstance(module, ast.Constant) else ()


def _lacking(modules: Iterable[str]) -> tuple[str, ...]:
    """The packages among them that are not here."""
    packages = dict.fromkeys(name.partition(".")[0] for name in modules)
    return tuple(one for one in packages if not _importable(one))


def _frame_arguments(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given: Sequence[ast.arg] = node.args.args[-len(node.args.defaults) :] if node.args.defaults else ()
            named = {one.arg: ast.unparse(value) for one, value in zip(given, node.args.defaults, strict=True)}
            yield from ((key, named[key]) for key in FRAME_ARGUMENTS if key in named)


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _installed(package: str) -> bool:
    """By pip's name or by the module's; decord2 is decord where that has no wheel."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _importable(package.replace("-", "_"))
    return True


def command_line(name: str, advice: Advice, environ: Mapping[str, str] | None = None) -> str:
    """What to type, the checkpoint left open."""
    environ = os.environ if environ is None else environ
    env = "".join(f"{key}={value} " for key, value in advice.env.items() if environ.get(key) != value)
    args = ",".join(one for one in ("pretrained=CHECKPOINT", advice.model_args) if one)
    return f"{env}lmms-eval --model {name} --model_args {args} --tasks vniah_generate --log_samples --output_path out"
