"""lmms-eval's own models under ``vniah_generate``: the arguments by which each is shown every frame, and the traps.

What was run is a table (hosts.yaml), kept true by tests/tasks/test_hosts.py. Of other models the source is read: what
its frame argument is called, and which packages are not here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import yaml

from vniah.lmms_plugin import host_classes
from vniah.notices import did_you_mean

_IMAGES = {"VNIAH_PRESENTATION": "images"}
_OTHER_WAY = (
    "lmms-eval's --model hf_tree, or `vniah run --model`, shows every frame to a video-language checkpoint of "
    "transformers"
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
    """One model of lmms-eval."""

    works: bool | None = True  # every frame is shown; None: nobody has run it here
    model_args: str = ""  # for --model_args beside the checkpoint; {frames} is the longest composed video
    env: Mapping[str, str] = field(default_factory=dict)  # variables that it needs
    packages: tuple[str, ...] = ()  # what it imports, as pip knows it
    note: str = ""  # what was run, and the traps
    most_frames: int | None = None  # of a video; longer ones lose frames, and are shown as images
    as_video: str = ""  # arguments that show every frame of a video too, where images are the simpler way
    # Of a batch of videos, the frames of the first decide for all: the others lose theirs, silently.
    one_by_one: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("works", "model_args", "env", "packages", "note")}


def _table() -> dict[str, Host]:
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {name: Host(**{**row, "packages": tuple(row.get("packages", ()))}) for name, row in rows.items()}


HOSTS: Mapping[str, Host] = _table()


def advise(name: str, frames: int) -> Host:
    """What is known of a model, for its longest video and on this machine.

    Args:
        name: as ``lmms-eval --model`` takes it, which knows some models by several names.
        frames: of the longest composed video.

    Raises:
        ValueError: lmms-eval has no such model (names the nearest), or is not installed.
    """
    classes = host_classes()
    if name not in classes:
        near = did_you_mean(name, classes) or "; `lmms-eval models` lists them"
        raise ValueError(f"lmms-eval has no model {name!r}{near}")
    own_name, class_path = classes[name]
    host = HOSTS.get(own_name) or _read(class_path.rpartition(".")[0])
    works, note = host.works, host.note.replace("{frames}", str(frames))
    if lacking := [one for one in host.packages if not _installed(one)]:
        works, note = False, f"not installed here: {', '.join(lacking)}; {note}"
    if not works:
        note = f"{note}. Another way: {_OTHER_WAY}"
    too_long = host.most_frames is not None and frames > host.most_frames
    return replace(
        host,
        works=works,
        model_args="" if too_long else host.model_args.replace("{frames}", str(frames)),
        env=_IMAGES if too_long else host.env,
        note=note,
        as_video=host.as_video.replace("{frames}", str(frames)),
    )


def warning(name: str, given: str, frames: int, presentation: str, batch_size: str = "1") -> str:
    """Why a model would miss the one-frame needle as it is called, and what to pass; "" where nothing says so.

    Args:
        name, given, batch_size: lmms-eval's ``--model``, ``--model_args`` and ``--batch_size``.
        frames: of the longest composed video.
        presentation: "video" or "images".
    """
    try:
        host = advise(name, frames)
    except ValueError:
        return ""  # lmms-eval says so itself
    if host.works is False:
        return f"the model {name!r} is not known to show every frame: {host.note}"
    if presentation == "images":
        return ""
    as_images = "VNIAH_PRESENTATION" in host.env
    have, want = _arguments(given), _arguments(host.as_video if as_images else host.model_args)
    odd = [f"{key}={have[key]}" for key in (*FRAME_ARGUMENTS, *_RATES) if key in have and not _fits(key, have, want)]
    missing = [key for key in want if key not in have]
    lost = f"the model {name!r} may leave frames out, and the needle with them"
    if host.one_by_one and batch_size != "1":
        return f"{lost}: batch_size={batch_size} is given; leave it at 1, and pass {host.model_args} ({host.note})"
    if want and not odd and not missing:
        return ""
    if as_images:
        also = f" and pass {host.model_args}" if host.model_args else ""
        return f"{lost}; set VNIAH_PRESENTATION=images{also} ({host.note})"
    if not want:
        return f"{lost}: what it samples is not known here; set VNIAH_PRESENTATION=images to show every frame"
    why = f"{', '.join(odd)} is given" if odd else f"{', '.join(missing)} is not given"
    return f"{lost}: {why}; pass {host.model_args} (the longest video has {frames} frames)"


def command_line(name: str, host: Host, environ: Mapping[str, str] | None = None) -> str:
    """What to type, the checkpoint left open."""
    environ = os.environ if environ is None else environ
    env = "".join(f"{key}={value} " for key, value in host.env.items() if environ.get(key) != value)
    args = ",".join(one for one in ("pretrained=CHECKPOINT", host.model_args) if one)
    return f"{env}lmms-eval --model {name} --model_args {args} --tasks vniah_generate --log_samples --output_path out"


def _arguments(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^|,)\s*(\w+)\s*=\s*([^,]*)", text))


def _fits(key: str, have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether a frame argument is what was run, or a larger limit."""
    if key not in want:
        return False
    try:
        found, needed = float(have[key]), float(want[key])
    except ValueError:
        return have[key] == want[key]
    return found == needed if key in _RATES else found >= needed


def _read(module: str) -> Host:
    """What a model's source says of itself, and that of the models it builds on."""
    needed: list[str] = []
    wanted: list[str] = []
    arguments: list[tuple[str, str]] = []  # that number frames, with their defaults
    waiting = [module]
    for name in waiting:  # which grows meanwhile
        path = _source(name)
        if path is None or path.suffix != ".py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = list(_imported(tree.body))
        needed += imported
        waiting += [one for one in imported if one.startswith(_HOST_ROOMS) and one not in waiting]
        # What it imports if it can, in one of lmms-eval's two ways.
        for node in tree.body:
            wanted += _imported(node.body) if isinstance(node, ast.Try) else ()
        for found in ast.walk(tree):
            if isinstance(found, ast.Call) and ast.unparse(found.func) == "optional_import":
                wanted += (str(one.value) for one in found.args[:1] if isinstance(one, ast.Constant))
            elif isinstance(found, ast.FunctionDef) and found.name == "__init__":
                given = zip(found.args.args[::-1], found.args.defaults[::-1], strict=False)
                named = {one.arg: ast.unparse(default) for one, default in given}
                arguments += ((key, named[key]) for key in FRAME_ARGUMENTS if key in named)
    said, model_args = "its source names no number of frames", ""
    if arguments:
        argument, default = arguments[0]
        said, model_args = (
            f"its source takes {argument} frames of a video, {default} unless told",
            f"{argument}={{frames}}",
        )
    if lacking := _lacking(wanted):
        said += f"; it may need {', '.join(lacking)}, not installed here"
    return Host(
        works=None,
        model_args=model_args,
        packages=_lacking(needed),
        note=f"nobody has run it here; {said}; VNIAH_PRESENTATION=images shows all where it takes several images",
    )


def _imported(statements: Iterable[ast.stmt]) -> Iterator[str]:
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _lacking(modules: Iterable[str]) -> tuple[str, ...]:
    """The packages among them that are not here."""
    packages = dict.fromkeys(name.partition(".")[0] for name in modules)
    return tuple(one for one in packages if _spec(one) is None)


def _installed(package: str) -> bool:
    """By pip's name or by the module's; decord2 is decord where that has no wheel."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _spec(package.replace("-", "_")) is not None
    return True


def _spec(module: str) -> ModuleSpec | None:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(module)
    return None


def _source(module: str) -> Path | None:
    spec = _spec(module)
    return Path(spec.origin) if spec is not None and spec.origin else None
