"""A small run that can be cut off anywhere: ``python fault_run.py FOLDER MODE...``. What ``test_faults.py`` starts.

One program imports PyTorch once and forks the runs, so that twenty killed ones cost seconds. Each mode has a folder
of its name in FOLDER. Runs are slowed where
a kill is to land: between leaves, in the middle of a journal line and in the middle of a block of embeddings.
Prints one JSON object of what each mode gives.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before PyTorch is imported: threads of its own would not survive the fork.
os.environ["OMP_NUM_THREADS"] = "1"

# The paths of pytest's configuration, for a program that is started without it.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import tiny_backends as tiny
import torch
from ring_processes import fork

from longva_model.arguments import ModelArgs
from longva_model.frames import block_store
from longva_model.prompts.prompting import Prompt
from longva_model.run.runner import Job, Runner
from vniah.contract.requests import Frames, Image, Request, Segment, Target, Text
from vniah.runs.journal import Journal

KILLS = 20
LEAVES = 96
HAY = tiny.NoiseFrames(200)
NEEDLES = {f"needle{number}": tiny.needle_image(number) for number in range(2)}
JOBS = [
    Job(task="grid", split="test", doc_id=number, index=0, context="", leaf=Target("abc"[: 1 + number % 3]))
    for number in range(LEAVES)
]


def build(job: Job) -> Prompt:
    """Eight frame counts, six depths, two needles."""
    frames, depth, needle = 25 * (1 + job.doc_id // 12), job.doc_id % 12 // 2, job.doc_id % 2
    index = frames * depth // 5
    segments: list[Segment] = [Text("system")]
    segments += [Frames(HAY.fingerprint, 0, index)] if index else []
    segments += [Image(f"needle{needle}")]
    segments += [Frames(HAY.fingerprint, index, frames)] if index < frames else []
    media = {HAY.fingerprint: HAY, f"needle{needle}": NEEDLES[f"needle{needle}"]}
    request = Request((*segments, Text(f"what is {needle}?")), job.leaf)
    return Prompt(request=request, media=media, preprocess=dict.fromkeys(media, "pad"))


def run(folder: Path, log: Callable[[str], None] = lambda _: None) -> None:
    """All jobs, and their results to ``results.json``. ``log`` is told of each leaf and batch before it is kept."""
    os.environ["VNIAH_CACHE"] = str(folder / "cache")
    backend = tiny.TinyBackend("qwen2", tokens_per_frame=1)
    encode = backend.encode_pixels

    def encode_pixels(pixels: torch.Tensor) -> torch.Tensor:
        log(f"frames {len(pixels)}")
        encoded: torch.Tensor = encode(pixels)
        return encoded

    backend.encode_pixels = encode_pixels
    runner = Runner(backend, ModelArgs(journal=str(folder / "journal.jsonl"), chunk_tokens=64, frame_batch=64))
    tiny.watch_leaves(runner, lambda index: log(f"leaf {index}"))
    results = runner.run(JOBS, build, lambda job: {"doc_id": job.doc_id})
    part = folder / "results.part"
    part.write_text(json.dumps([result.as_dict() for result in results]))
    part.rename(folder / "results.json")


class SlowFile:
    """A journal's file on a disk that takes a line in two pieces."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        time.sleep(0.01)
        return int(self._file.write(data[: max(150, len(data) // 2)]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def slow_down() -> None:
    """Make this process's writes slow, so that kills land in them."""
    from safetensors.torch import save

    def slow_save(tensors: dict[str, torch.Tensor], path: Any, metadata: dict[str, str]) -> None:
        data = save(tensors, metadata)
        with open(path, "wb", buffering=0) as file:
            for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
                file.write(piece)
                time.sleep(0.05)

    block_store.save_file = slow_save  # type: ignore
    put = Journal.put

    def slow_put(self: Journal, *args: Any, **about: Any) -> None:
        if not isinstance(self._file, SlowFile):
            self._file = SlowFile(self._file)  # type: ignore[assignment]
        time.sleep(0.02)
        put(self, *args, **about)

    Journal.put = slow_put  # type: ignore[method-assign]


def succeeds(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def start_slow(folder: Path, log: Path) -> int:
    """A slow run that writes to ``log`` what it computes; returns once it has begun."""
    reader, writer = os.pipe()

    def work() -> None:
        os.close(reader)
        slow_down()
        with open(log, "ab", buffering=0) as file:
            os.write(writer, b"!")

            def write(line: str) -> None:
                file.write(f"{line}\n".encode())

            run(folder, write)

    child = fork(work)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def journal_rows(folder: Path) -> list[int]:
    """Documents with a whole line in the journal."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["doc_id"] for line in lines]


def frames_kept(folder: Path) -> int:
    """Frames in finished blocks; a block that is not full has its rows in its name."""
    names = [path.stem for path in folder.glob("cache/embeddings/*/*.safetensors")]
    return sum(int(name.partition("-")[2] or block_store.BLOCK) for name in names)


def kills(folder: Path) -> dict[str, Any]:
    """Kill ``KILLS`` runs at random moments, then let one end; tells what each began with and computed.

    A moment is so many leaves and batches of frames, and a little: time alone would depend on the machine.
    """
    draw = random.Random(0)
    runs = []
    for number in range(KILLS + 1):
        log = folder / f"log{number}"
        had = journal_rows(folder), frames_kept(folder)
        child = start_slow(folder, log)
        if number < KILLS:
            done, more = draw.randrange(6), draw.uniform(0, 0.06)
            while log.read_bytes().count(b"\n") < done and not os.waitid(
                os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                time.sleep(0.001)
            time.sleep(more)
            os.kill(child, signal.SIGKILL)
            ended = os.WIFEXITED(os.waitpid(child, 0)[1])
        else:
            ended = succeeds(child)
        lines = [line.split() for line in log.read_text().splitlines()]
        runs.append(
            {
                "ended": ended,
                "known": had[0],
                "frames_kept": had[1],
                "leaves": [int(value) for kind, value in lines if kind == "leaf"],
                "frames": sum(int(value) for kind, value in lines if kind == "frames"),
            }
        )
    return {"runs": runs}


def two(folder: Path) -> dict[str, Any]:
    """A second process on the journal of a run: what it is told."""
    child = start_slow(folder, folder / "log")
    while not (folder / "journal.jsonl").exists():
        time.sleep(0.01)
    try:
        run(folder)
        told = "nothing"
    except ValueError as error:
        told = str(error)
    return {"told": told, "first_succeeds": succeeds(child)}


def full(folder: Path) -> dict[str, Any]:
    """A disk that is full after some lines of the journal, again and again, and then has room."""
    told = []
    for limit in (600, 601, 1500, 4000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        told.append(_error(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = len(journal_rows(folder))
    return {"told": told, "before": before, "last": _error(folder)}


def undisturbed(folder: Path) -> dict[str, Any]:
    """One run that nothing happens to."""
    return {"told": _error(folder), "rows": len(journal_rows(folder))}


def disk(folder: Path) -> dict[str, Any]:
    """A disk of 128 KiB, mounted at the folder, most of it taken: too small for the frames and the whole journal."""
    filler = folder / "filler"
    filler.write_bytes(b"x" * 90_000)
    first = {"told": _error(folder), "rows": len(journal_rows(folder)), "ended": (folder / "results.json").exists()}
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True, capture_output=True)
    last = {"told": _error(folder), "rows": len(journal_rows(folder))}
    return {"first": first, "last": last, "results": (folder / "results.json").read_text()}


def _error(folder: Path) -> str:
    try:
        run(folder)
    except OSError as error:
        return str(error)
    return ""


def main(folder: Path, modes: list[str]) -> None:
    torch.set_num_threads(1)
    told = {}
    for mode in modes:
        (folder / mode).mkdir(exist_ok=True)
        told[mode] = {function.__name__: function for function in (undisturbed, kills, two, full, disk)}[mode](
            folder / mode
        )
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
