"""Run the checks of a test file in groups of real processes: ``python ring_processes.py FILE FOLDER 2,3,4``.

FILE is a Python file with ``CHECKS``, a ``Checks``, whose ``reports`` start this program. It is imported once; then
each group is forked off, so that PyTorch's import is paid once and not nine times. Each process joins a gloo group
over a file in FOLDER (no port to clash), runs every check, and writes FOLDER/WORLD-RANK.json: seconds a check took, and
the traceback of those that failed. Time-outs end processes that wait for one that is gone.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GLOO_SECONDS = 30
GROUP_SECONDS = 120
Check = Callable[[int, int], None]


class Checks(dict[str, Check]):
    """What every process runs, ``function(rank, world)`` by name; an error in one fails the test of that name."""

    def __call__(self, function: Check) -> Check:
        self[function.__name__] = function
        return function


def reports(file: str, folder: Path, worlds: Sequence[int]) -> dict[int, list[Any]]:
    """What each rank of each group wrote of the checks of ``file``."""
    command = [sys.executable, __file__, file, str(folder), ",".join(map(str, worlds))]
    log = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600).stdout
    written = {world: [folder / f"{world}-{rank}.json" for rank in range(world)] for world in worlds}
    missing = [path.stem for paths in written.values() for path in paths if not path.is_file()]
    assert not missing, f"no report of {', '.join(missing)} (processes, rank):\n{log[-3000:]}"
    return {world: [json.loads(path.read_text()) for path in paths] for world, paths in written.items()}


def assert_passed(ranks: Sequence[Any], name: str) -> None:
    """Of one group: every rank has run the check ``name``, without an error."""
    for rank, report in enumerate(ranks):
        assert name in report["seconds"]
        assert name not in report["failed"], f"rank {rank} of {len(ranks)}:\n{report['failed'][name]}"


def run_checks(checks: dict[str, Check], rank: int, world: int, folder: Path) -> None:
    """One process of a group. After a failure its partners time out, each on its own, and go on."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=GLOO_SECONDS),
    )
    failed, seconds = {}, {}
    for name, function in checks.items():
        start = time.perf_counter()
        try:
            function(rank, world)
        except Exception:
            failed[name] = traceback.format_exc()
        seconds[name] = time.perf_counter() - start
    (folder / f"{world}-{rank}.json").write_text(json.dumps({"seconds": seconds, "failed": failed}))
    dist.destroy_process_group()


def fork(work: Callable[[], None]) -> int:
    """Start ``work`` in a process of its own; it exits with 1 on an error, which is printed."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_group(checks: dict[str, Check], world: int, folder: Path) -> None:
    """Fork ``world`` processes and wait for them; end those that take too long."""

    def work(rank: int) -> None:
        signal.alarm(GROUP_SECONDS)  # ends this process should it hang outside of gloo
        run_checks(checks, rank, world, folder)

    for child in [fork(functools.partial(work, rank)) for rank in range(world)]:
        os.waitpid(child, 0)


def main(file: Path, folder: Path, worlds: list[int]) -> None:
    # Before PyTorch is imported: threads of its own would not survive the fork.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # The paths of pytest's configuration.
    sys.path[:0] = [str(Path(__file__).parents[number]) for number in (1, 0)]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for world in worlds:
        run_group(module.CHECKS, world, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(world) for world in sys.argv[3].split(",")])
