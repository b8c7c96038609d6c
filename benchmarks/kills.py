"""Kill runs at random moments, start them again until they end, and compare with a run that nothing happened to.

    python benchmarks/kills.py [one branch ring training sharded] [--trials 108] [--seed 0] [--csv kills.csv]

Every trial is a fresh folder and cache; its run is killed ``--kills`` times (a random signal, after a random share of
the time that the undisturbed run took; of training, two in three while or soon after a checkpoint is written), and
then left to end. Under torchrun one of its processes, or the launcher alone, is killed. Counted are: results that are
not byte for byte the undisturbed run's (dates left out), runs that do not end, and processes that outlive their run.
On the shipped nano model, on CPU. Exits with 1 where one is counted.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import options

GRID = {"FRAMES": "4,8,16", "DEPTHS": "0,50,100", "NEEDLES": "icons:0:6", "HAYSTACK": "synthetic"}
RECIPE = """
name: kills
output: {out}
stages:
  - name: text
    kind: text
    new: {{}}
    sequence_length: 64
    rope_theta: 1e4
    data: {{phases: [{{start: 0, length: 64, batch: 4}}]}}
    train: {{lr: 1e-3, steps: {steps}, precision: fp32, log_every: 1, save_every: {every}, sharding: {sharding}}}
"""
# One process alone; two that share weights, gradients and optimizer.
TRAINING = {
    "training": {"steps": 60, "every": 5, "sharding": "none"},
    "sharded": {"steps": 20, "every": 1, "sharding": "fsdp2"},
}
FSDP = Path(__file__).parents[1] / "tests" / "training" / "fsdp_on_gloo.py"
# Of one run: what says when it ran, and how fast.
DATED = {"date", "total_evaluation_time_seconds", "start_time", "end_time", "throughput"}
SHARES = {"one": 0.7, "branch": 0.1, "ring": 0.05, "training": 0.1, "sharded": 0.05}
TIMEOUT = 600.0


def main(given: Any) -> int:
    modes = given.modes or list(SHARES)
    if unknown := set(modes) - set(SHARES):
        raise SystemExit(f"no such mode: {', '.join(unknown)}; expected {', '.join(SHARES)}")
    draw = random.Random(given.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            share = SHARES[mode] / sum(SHARES[each] for each in modes)
            rows.append(run_mode(Path(folder) / mode, mode, max(1, round(share * given.trials)), given.kills, draw))
    if given.csv:
        with open(given.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    bad = sum(row["different"] + row["hung"] + row["orphans"] for row in rows)
    kills = sum(row["kills"] for row in rows)
    print(f"{kills} kills: {bad} of them with another result, a hang, or a process left behind")
    return bool(bad)


def run_mode(folder: Path, mode: str, kills: int, per_trial: int, draw: random.Random) -> dict[str, Any]:
    """``kills`` kills, ``per_trial`` of them to a run."""
    started = time.monotonic()
    whole = folder / "whole"
    if left := start(mode, whole).wait(TIMEOUT):
        raise SystemExit(f"{mode}: the undisturbed run ended with {left}: {(whole / 'log').read_text()[-2000:]}")
    seconds = time.monotonic() - started
    truth = outcome(whole)
    row: dict[str, Any] = {"mode": mode, "runs": 0, "kills": 0, "different": 0, "hung": 0, "orphans": 0}
    while row["kills"] < kills:
        place = folder / f"trial{row['runs']}"
        row["runs"] += 1
        for _ in range(min(per_trial, kills - row["kills"])):
            process = start(mode, place)
            if mode in TRAINING and (number := draw.randint(0, 2)):
                at_a_checkpoint(process, place, number, draw.uniform(0, 0.3))
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(draw.uniform(0.05, 0.6 if mode in TRAINING else 1.0) * seconds)
            if process.poll() is not None:
                break  # it ended before its moment came
            row["kills"] += 1
            kill(process, place, draw, one_of_many=mode in ("branch", "ring", "sharded"))
            row["hung"] += not ended(process, place)
            row["orphans"] += left_behind(place)
        process = start(mode, place)
        if not ended(process, place, TIMEOUT):
            row["hung"] += 1
        elif process.returncode or outcome(place) != truth:
            row["different"] += 1
            print(f"{mode}: {place.name} differs: {difference(truth, outcome(place))}", file=sys.stderr)
            print((place / "log").read_text()[-1500:], file=sys.stderr)
        print(f"{mode}: {row['kills']} of {kills} kills, {row['different']} different", flush=True)
        shutil.rmtree(place)
    row["seconds"] = round(time.monotonic() - started)
    return row


def start(mode: str, place: Path) -> subprocess.Popen[bytes]:
    """The run of a mode, in a session of its own; what it prints is in ``log``."""
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{f"VNIAH_{name}": value for name, value in GRID.items()}}
    environment |= {"VNIAH_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"  # the outer address may not answer its own machine
    port = str(29500 + os.getpid() % 99)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    parallel = [] if mode == "one" else [f"parallel={mode}"]
    arguments = ",".join(["device=cpu", *parallel])
    command = [*(torchrun if parallel else []), "-m", "vniah", "run", "vniah_nano", "--model", "nano"]
    command += ["--model-args", arguments, "-o", str(place / "out")]
    if mode in TRAINING:
        (place / "recipe.yaml").write_text(RECIPE.format(out=place / "out", **TRAINING[mode]))
        program = [*torchrun, str(FSDP)] if mode == "sharded" else ["-m", "vniah.cli"]
        command = [*program, "train", str(place / "recipe.yaml")]
    command = [sys.executable, *command]
    with (place / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def at_a_checkpoint(process: subprocess.Popen[bytes], place: Path, number: int, seconds: float) -> None:
    """Wait until the ``number``-th checkpoint from now on is begun, and so many seconds; or until the run ends."""
    seen = set(place.glob("out/*/run/checkpoint-*"))
    while process.poll() is None and number:
        new = set(place.glob("out/*/run/checkpoint-*")) - seen
        seen |= new
        number -= bool(new)
        time.sleep(0.002)
    time.sleep(seconds)


def kill(process: subprocess.Popen[bytes], place: Path, draw: random.Random, *, one_of_many: bool) -> None:
    """A signal to a run: to its process or launcher, or to one of several processes."""
    which = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    whole = draw.random() < 0.5
    with contextlib.suppress(ProcessLookupError):
        if one_of_many and not whole and (ranks := processes_of(place) - {process.pid}):
            os.kill(draw.choice(sorted(ranks)), which)
        else:
            # Of several, the launcher: killed outright, it can tell none of the others.
            os.kill(process.pid, which)


def ended(process: subprocess.Popen[bytes], place: Path, seconds: float = 90.0) -> bool:
    """Whether a run ends by itself in so many seconds; else all of it is killed."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        for one in processes_of(place):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()
        return False


def left_behind(place: Path) -> int:
    """Processes of a run that outlive it by ten seconds; they are killed."""
    until = time.monotonic() + 10
    while (left := processes_of(place)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(left)


def processes_of(place: Path) -> set[int]:
    """The living processes of a run (Linux): those with its cache. torchrun gives each a session of its own."""
    mark = f"VNIAH_CACHE={place / 'cache'}".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and mark in (path / "environ").read_bytes().split(b"\0"):
                found.add(int(path.name))
    return found


def outcome(place: Path) -> Any:
    """What a run gave, all but its dates."""
    out = place / "out"
    if not out.exists():
        return None
    if (out / "recipe.json").exists():
        model = out / "text" / "model" / "model.safetensors"
        metrics = out / "text" / "run" / "metrics.jsonl"
        return [hashlib.sha256(model.read_bytes()).hexdigest(), [undated(json.loads(line)) for line in metrics.open()]]
    # A run that was killed behind its last write has left its results, and the one after it writes them again.
    samples = {path.read_text() for path in out.glob("*/*_samples_*.jsonl")}
    results = {json.dumps(undated(json.loads(path.read_text())), indent=1) for path in out.glob("*/*_results.json")}
    return [sorted(samples), sorted(results)]


def difference(whole: Any, other: Any) -> str:
    """The first line in which two outcomes differ."""
    pair = [json.dumps(one, indent=1).replace("\\n", "\n").splitlines() for one in (whole, other)]
    return next((f"{mine!r}, not {its!r}" for its, mine in zip(*pair, strict=False) if mine != its), "one is longer")


def undated(value: Any) -> Any:
    """Results without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: undated(one) for key, one in value.items() if key not in DATED and not key.endswith("_per_second")}
    return [undated(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(options(__doc__, "modes", trials=108, kills=6, seed=0, csv="")))
