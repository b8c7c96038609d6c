"""What a CUDA device makes of this package, in so many minutes: one command, one table.

    python benchmarks/gpu_session.py --minutes 10                 # the paper's sizes, random weights, bf16
    python benchmarks/gpu_session.py --parts prefill,train        # some parts alone, in this order
    python benchmarks/gpu_session.py --small                      # tiny sizes on the CPU, to try the program out

Nothing is fetched: weights are drawn on the device. The minutes are those of the whole program. They are shared over
the parts, of which the most telling come first; each is given its share of what is left by its weight, so that what one
leaves is the others'. A part runs in a process of its own, writes what it found as it goes, and is killed at its limit:
what it found until then is kept, and an error, a lack of memory, a crash or a hang of one part costs the others
nothing. So does Ctrl-C cost nothing that was found.

Beside a measurement stands its estimate, made before it. Results are a JSON file (``--out``, by default
gpu_session.json in ``$OUT`` or here), which is written anew after each part, and tables in Markdown beside it and on
standard output. Progress goes to standard error.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import cell, markdown
from harness import options

# Of each part's share, kept for ending by itself: the last table is written, the process goes.
_TO_END = 0.04
# Of the whole, for the last report.
_TO_REPORT = 3.0
_NO_DEVICE = 3  # exit code
_BEGUN = time.monotonic()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class SkippedError(Exception):
    """A part has nothing to measure here, and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is measured in one process.

    Attributes:
        name: of ``--parts``.
        weight: seconds that it is expected to take on an H200; shares of time go by it.
        work: "module:function", called with a ``Run``.
    """

    name: str
    weight: float
    work: str


# The most telling first; later ones use what earlier ones found where it is there.
PARTS = (
    Part(name="device", weight=12, work="gpu_device:device"),
    Part(name="prefill", weight=150, work="gpu_decoder:prefill"),
    Part(name="kernels", weight=30, work="gpu_device:kernel_table"),
    Part(name="tree", weight=45, work="gpu_decoder:tree_against_plain"),
    Part(name="tower", weight=15, work="gpu_device:tower"),
    Part(name="ring", weight=20, work="gpu_decoder:ring"),
    Part(name="longest", weight=50, work="gpu_decoder:longest"),
    Part(name="qwen2_5_vl", weight=110, work="gpu_models:qwen2_5_vl"),
    Part(name="train", weight=70, work="gpu_training:extension_step"),
    Part(name="qwen3_vl", weight=90, work="gpu_models:qwen3_vl"),
)


class Run:
    """A part's side of the session: what to measure, how much time there is, and where results go.

    Attributes:
        small: tiny sizes on the CPU.
        threads: of the CPU.
        found: tables of the parts before it, by part and table.
    """

    def __init__(self, lines: Path, limit: float, small: bool, threads: int, found: Mapping[str, Any]) -> None:
        self._lines, self._until = lines, time.monotonic() + limit * (1 - _TO_END)
        self.small, self.threads, self.found = small, threads, found

    def left(self) -> float:
        """Seconds that are left to this part."""
        return self._until - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Whether so much time is left; where not, it is noted that ``what`` was left out."""
        if seconds <= self.left():
            return True
        self.note(f"{what} was left out: it would take about {seconds:.0f} s and {max(0, self.left()):.0f} s are left")
        return False

    def put(self, table: str, **row: Any) -> None:
        """One row of a table; kept from here on, whatever happens."""
        self._write({"table": table, "row": row})
        say(f"  {table}: {', '.join(f'{key} {cell(key, value)}' for key, value in row.items())}")

    def note(self, text: str) -> None:
        self._write({"note": text})
        say(f"  {text}")

    def end(self, status: str, why: str = "") -> None:
        self._write({"status": status, "why": why})

    def last(self, part: str, table: str, **like: Any) -> Mapping[str, Any]:
        """The last row of an earlier part's table whose values are ``like`` these; empty where there is none."""
        rows = self.found.get(part, {}).get(table, [])
        return next((row for row in reversed(rows) if all(row.get(key) == value for key, value in like.items())), {})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def session(
    parts: Sequence[Part],
    out: Path,
    *,
    minutes: float,
    small: bool = False,
    threads: int = 1,
    begun: float | None = None,
    start: str = "fork",
) -> dict[str, Any]:
    """Run parts one after the other; returns what stands in ``out``.

    Args:
        out: a .json file; its .md beside it.
        minutes: of all parts together, from ``begun`` on (by ``time.monotonic()``; now unless given).
        start: how ``multiprocessing`` starts a part's process.
    """
    end = (time.monotonic() if begun is None else begun) + 60 * minutes - _TO_REPORT
    told: dict[str, Any] = {
        "program": "benchmarks/gpu_session.py", "at": time.strftime("%Y-%m-%d %H:%M:%S %z"), "minutes": minutes,
        "small": small, "interrupted": False,
        "parts": [{"part": part.name, "status": "not run", "why": "", "expected s": part.weight} for part in parts],
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-session-") as folder:
        # A checkpoint that is drawn for this session is nothing to remember.
        os.environ["VNIAH_CACHE"] = str(Path(folder) / "cache")
        lines = Path(folder) / "lines"
        try:
            for number, (part, row) in enumerate(zip(parts, told["parts"], strict=True)):
                left = end - time.monotonic()
                limit = left * part.weight / sum(one.weight for one in parts[number:])
                if limit < 1:
                    row["why"] = "no time was left"
                    continue
                say(f"{part.name}: {limit:.0f} of the {left:.0f} s that are left")
                lines.unlink(missing_ok=True)
                row |= {"limit s": round(limit, 1), "status": "interrupted"}
                found = {one["part"]: one.get("tables", {}) for one in told["parts"]}
                since = time.monotonic()
                try:
                    ended = _run_part(part, lines, limit, small, threads, found, start)
                finally:
                    row |= {"s": round(time.monotonic() - since, 1), **_read(lines)}
                if row["status"] == "interrupted":  # the part did not say how it ended
                    row |= ended
                say(f"{part.name}: {row['status']} after {row['s']} s {row['why']}")
                _write(told, out)
        except KeyboardInterrupt:
            told["interrupted"] = True
            say("interrupted: what was found until here is kept")
    _write(told, out)
    return told


def _run_part(
    part: Part, lines: Path, limit: float, small: bool, threads: int, found: Mapping[str, Any], start: str
) -> dict[str, str]:
    """One part in a process of its own, which is gone when this returns; how it ended, should it not say so itself."""
    run = Run(lines, limit, small, threads, found)
    process: Any = multiprocessing.get_context(start).Process(target=_child, args=(part, run, limit))  # type: ignore[attr-defined]
    process.start()
    try:
        process.join(limit)
        hung = process.exitcode is None
    finally:
        # With all that it started: the processes of a ring outlive the one that waits for them.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if hung:
        return {"status": "killed", "why": f"at its limit of {limit:.0f} s"}
    code = process.exitcode
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return {"status": "crashed", "why": f"its process ended {how}"}


def _child(part: Part, run: Run, limit: float) -> None:
    os.setsid()  # so that it can be ended with what it starts, and Ctrl-C is its parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(math.ceil(limit) + 5)  # should nobody be there to end it
    os.dup2(2, 1)
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(limit - 0.5, 0.1))
    try:
        module, _, name = part.work.partition(":")
        getattr(importlib.import_module(module), name)(run)
        run.end("done")
    except SkippedError as why:
        run.end("skipped", str(why))
    except BaseException as error:
        traceback.print_exc()
        run.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if notices := sys.modules.get("vniah.notices"):
        for text in notices.recorded():
            run.note(text)
    sys.stderr.flush()
    os._exit(0)  # whatever threads are left


def _read(lines: Path) -> dict[str, Any]:
    """What a part wrote; a line that it was killed in is left out."""
    told: dict[str, Any] = {"tables": {}, "notes": []}
    with suppress(FileNotFoundError):
        for text in lines.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                if "table" in line:
                    told["tables"].setdefault(line["table"], []).append(line["row"])
                elif "note" in line:
                    told["notes"].append(line["note"])
                else:
                    told |= line
    return told


def _write(told: Mapping[str, Any], out: Path) -> None:
    from vniah.files import replacing

    for path, text in ((out, json.dumps(told, indent=1) + "\n"), (out.with_suffix(".md"), markdown(told))):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


def chosen(names: str) -> list[Part]:
    """Parts by their names, all unless any is named; always the first, which says where it was.

    Raises:
        SystemExit: a name that there is not.
    """
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"no part {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys([PARTS[0].name, *wanted])]


def prepare(small: bool) -> str:
    """Import once what all parts share; returns how a part's process starts: by a fork, which has that already.

    Raises:
        SystemExit: there is no CUDA device.
    """
    # Else asking whether there is a device begins with CUDA here, and no fork can use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for part in PARTS:
        importlib.import_module(part.work.partition(":")[0])
    if small:
        return "fork"
    probe: Any = multiprocessing.get_context("fork").Process(target=_probe)
    probe.start()
    probe.join()
    if probe.exitcode == _NO_DEVICE:
        raise SystemExit("torch sees no CUDA device; try --small, which runs on the CPU")
    return "fork" if probe.exitcode == 0 else "spawn"


def _probe() -> None:
    """Exit with 0 where CUDA works in a fork, ``_NO_DEVICE`` without a device, and anything else where it does not."""
    import torch

    if not torch.cuda.is_available():
        os._exit(_NO_DEVICE)
    torch.ones(1, device="cuda").cpu()
    os._exit(0)


def main(given: Any) -> int:
    parts = chosen(given.parts)
    if given.minutes <= 0:
        raise SystemExit(f"--minutes must be positive, got {given.minutes:g}")
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = Path(given.out) if given.out else Path(os.environ.get("OUT", ".")) / "gpu_session.json"
    settings = {"minutes": given.minutes, "small": given.small, "threads": given.threads, "begun": _BEGUN}
    told = session(parts, out, start=prepare(given.small), **settings)
    print(markdown(told))
    print(f"in {out} and {out.with_suffix('.md')}", file=sys.stderr)
    if told["interrupted"]:
        return 130
    return int(any(row["status"] not in ("done", "skipped") for row in told["parts"]))


if __name__ == "__main__":
    # Parts import this module by its name.
    import gpu_session

    sys.exit(gpu_session.main(options(__doc__, minutes=10.0, small=False, parts="", out="", threads=4)))
