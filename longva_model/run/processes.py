"""Sharing work between processes: ranks, devices, messages, and the journal of each. The plumbing of ``runner.py``."""

from __future__ import annotations

import contextlib
import datetime
import glob
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from longva_model.arguments import ModelArgs
from vniah.files import lock
from vniah.notices import notice
from vniah.runs.journal import Journal
from vniah.runs.launcher import end_with_launcher
from vniah.runs.profiling import part
from vniah.visual.settings import Settings

T = TypeVar("T")
_JOURNALS_BYTES = 2 << 30
# One process may have much more to do than another before they meet; torch's own 30 minutes are for training steps.
_PATIENCE = datetime.timedelta(days=7)
# They come to their first meeting together, but for what one has to download and another has.
_MEETING = datetime.timedelta(minutes=30)
_SAID_AFTER = 60.0  # seconds of waiting
# Where a container is told its memory.
_CONTAINER = Path("/sys/fs/cgroup")
# Where torchrun, accelerate, Slurm, Open MPI, Intel MPI and MVAPICH number the processes of a machine.
_LOCAL_RANKS = (
    "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK",
)  # fmt: skip
_AGAIN = "see what the missing ones say, end what is left of an earlier run, and start all of them again"
_beside: dist.ProcessGroup | None = None


def rank_and_world() -> tuple[int, int]:
    """This process's rank and their number; (0, 1) outside torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def join_processes(device: str) -> None:
    """Join the process group that torchrun or accelerate set up in the environment, if any, and end with them.

    Raises:
        ConnectionError: not every process came in time, or they do not reach each other.
    """
    end_with_launcher()
    if launched_processes() < 2 or dist.is_initialized():
        return
    cuda = torch.cuda.is_available() and device != "cpu"
    store, rank, world = _meet()
    if cuda:
        torch.cuda.set_device(local_rank())
    try:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank} of {world} does not reach the others ({_first_line(error)}); name the network device that "
            "they share, as GLOO_SOCKET_IFNAME=eth0, or lo on one machine (and NCCL_SOCKET_IFNAME for GPUs)"
        ) from error
    if cuda:
        _say_shared(gather(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)))


def _say_shared(devices: Sequence[str]) -> None:
    """Say which processes have one device, of each process's device by its own name: slow, and no ring for NCCL."""
    for device in sorted({device for device in devices if devices.count(device) > 1}):
        ranks = ", ".join(str(rank) for rank, other in enumerate(devices) if other == device)
        notice(
            f"processes {ranks} have one device, {device}: start as many processes as a machine has devices, and have "
            "the launcher say by LOCAL_RANK which is whose"
        )


def _meet() -> tuple[Any, int, int]:
    """The store of the group, this process's rank, and their number, once all have said there that they have come.

    Before the group is joined, which waits for one that does not come as long as for one that computes.

    Raises:
        ConnectionError: see ``join_processes``.
    """
    from torch.distributed.rendezvous import rendezvous

    part_of: Any = dist.PrefixStore  # type: ignore[attr-defined]
    world, begun, said = launched_processes(), time.monotonic(), False
    try:
        store, rank, world = next(rendezvous("env://", timeout=_MEETING))
        came = part_of("vniah/came", store)
        came.set(str(rank), socket.gethostname())
        while not came.check([str(one) for one in range(world)]):
            waited = time.monotonic() - begun
            if waited > _MEETING.total_seconds():
                raise ConnectionError(f"{_who_came(came, world)} within {_MEETING}; {_AGAIN}")
            if waited > _SAID_AFTER and rank == 0 and not said:
                print(f"vniah: {_who_came(came, world)} so far; waiting up to {_MEETING}", file=sys.stderr)
                said = True
            time.sleep(min(1.0, 0.01 + waited / 10))
    except RuntimeError as error:
        raise ConnectionError(f"the {world} processes do not meet ({_first_line(error)}); {_AGAIN}") from error
    store.set_timeout(_PATIENCE)
    _number_here([came.get(str(one)).decode() for one in range(world)], rank)
    return part_of("vniah/group", store), rank, world


def _number_here(hosts: Sequence[str], rank: int) -> None:
    """Number the processes of each machine where the launcher has not, whatever order it dealt ranks in.

    Said as launchers say it, since accelerate and NCCL read it too.
    """
    if not any(os.environ.get(name) for name in _LOCAL_RANKS):
        os.environ["LOCAL_RANK"] = str(hosts[:rank].count(hosts[rank]))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(hosts.count(hosts[rank])))


def _who_came(came: Any, world: int) -> str:
    missing = [str(one) for one in range(world) if not came.check([str(one)])]
    return f"{world - len(missing)} of {world} processes came to share this run, not {', '.join(missing)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def local_rank() -> int:
    """Which of the devices that this process sees is its own: as the launcher says, else they are dealt in turn.

    One that sees a single device has that one, whatever its number on the machine: launchers may show each its own.
    """
    number = next((os.environ[name] for name in _LOCAL_RANKS if os.environ.get(name)), None)
    seen = torch.cuda.device_count()
    if number is None or seen == 1:
        return int(number or os.environ.get("RANK") or 0) % max(1, seen)
    return int(number)


def pick_device(device: str) -> torch.device:
    """The device that ``auto`` means here; under torchrun each process takes its own.

    Raises:
        ValueError: a CUDA device where there is none, or a name that torch does not know.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a device; expected auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r}, but torch sees no CUDA device; use device=cpu")
        if chosen.index is None or rank_and_world()[1] > 1:
            chosen = torch.device("cuda", local_rank())
    return chosen


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, with what PyTorch holds and does not use; for the CPU a quarter of the host's."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return total_bytes(device) // 4


def free_host_bytes() -> int:
    """Memory of the host that is free for this process: its share of what the host, or its container, has left.

    Pinned memory that PyTorch holds and does not use is free.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit, used = (int((_CONTAINER / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        with contextlib.suppress(OSError, ValueError, StopIteration):
            # What was read of files (weights, films) counts as used, and is let go of when memory is short.
            lines = (_CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
            used -= next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, limit - used)
    held = torch.cuda.host_memory_stats() if torch.cuda.is_available() and torch.cuda.is_initialized() else {}
    idle = int(held.get("allocated_bytes.current", 0)) - int(held.get("active_bytes.current", 0))
    return free // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) + idle


def total_bytes(device: torch.device) -> int:
    """Memory of the device, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def visible_devices(device: torch.device) -> list[torch.device]:
    """All devices of a kind that this process may use."""
    if device.type != "cuda":
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def launched_processes() -> int:
    """How many processes torchrun started, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some of the processes, this one among them, that work together.

    Attributes:
        ranks: their ranks among all processes, in the group's order.
        tensors: the process group that tensors travel in.
        objects: the one of Python objects.
    """

    ranks: tuple[int, ...]
    tensors: Any
    objects: Any

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """This process's place in it."""
        return self.ranks.index(rank_and_world()[0])


def tensor_parallel_size(args: ModelArgs) -> int:
    """How many processes share each layer.

    Raises:
        ValueError: the processes are not to be cut into groups of so many.
    """
    _, world = rank_and_world()
    size = args.tensor_parallel_size
    if args.parallel == "tensor":
        if size not in (1, world):
            raise ValueError(
                f"parallel=tensor shares each layer over all processes ({world}), and tensor_parallel_size={size} over "
                "groups of them: leave one out"
            )
        return world
    if world % size:
        raise ValueError(
            f"tensor_parallel_size={size} does not divide the number of processes that were started, {world}; start a "
            f"multiple of {size} (torchrun --nproc_per_node)"
        )
    return size


def grid_of_groups(tensor: int) -> tuple[Group | None, Group | None]:
    """This process's tensor-parallel group, and the ring of those that hold the same part of the model. Collective.

    Neighbours share layers: they meet many times a layer, and are on one machine. ``None`` is every process for itself,
    and all of them.
    """
    rank, world = rank_and_world()
    if tensor == 1:
        return None, None
    rows = [list(range(start, start + tensor)) for start in range(0, world, tensor)]
    columns = [[row[place] for row in rows] for place in range(tensor)]
    return _own_group(rows, rank), _own_group(columns, rank)


def _own_group(parts: list[list[int]], rank: int) -> Group:
    tensors, _ = dist.new_subgroups_by_enumeration(parts, timeout=_PATIENCE)
    objects, _ = dist.new_subgroups_by_enumeration(parts, timeout=_PATIENCE, backend="gloo")
    own = next(ranks for ranks in parts if rank in ranks)
    return Group(ranks=tuple(own), tensors=tensors, objects=objects)


def gather(value: T, group: Group | None = None) -> list[T]:
    """Every process's value, in rank order, on every process (of ``group``, else of all)."""
    size = rank_and_world()[1] if group is None else group.size
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    with part("waiting for processes"):
        dist.all_gather_object(values, value, group=objects_group() if group is None else group.objects)
    return values


def broadcast(value: T, group: Group | None = None, source: int = 0) -> T:
    """The first process's value on every process (of ``group``, else of all), or that of another place in it."""
    size = rank_and_world()[1] if group is None else group.size
    if size == 1:
        return value
    box: list[Any] = [value]
    rank = source if group is None else group.ranks[source]
    with part("waiting for processes"):
        dist.broadcast_object_list(box, src=rank, group=objects_group() if group is None else group.objects)
    result: T = box[0]
    return result


def objects_group() -> dist.ProcessGroup | None:
    """The group that Python objects travel in: the processes' own where it has the CPU, else one of gloo beside it.

    accelerate's, under lmms-eval, is of nccl alone, where waiting for an object occupies the device. Collective when
    called first.
    """
    global _beside
    if "gloo" in str(dist.get_backend_config()) or "mpi" in str(dist.get_backend_config()):
        return None
    if _beside is None:
        _beside = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_PATIENCE))
    return _beside


@contextlib.contextmanager
def told_to_all() -> Iterator[None]:
    """What one process raises inside, all raise at the end, where they meet. Collective, with none inside.

    Without it the others would wait at their next meeting, for hours at lmms-eval's timeout.

    Raises:
        ValueError: another process's problem, as text.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    told = gather(None if problem is None else f"process {rank_and_world()[0]}: {problem}")
    if problem is not None:
        raise problem
    for text in told:
        if text is not None:
            raise ValueError(text)


def contiguous_share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """A rank's contiguous run of ``items``: neighbours share prefixes, so they stay together."""
    start, stop = len(items) * rank // world_size, len(items) * (rank + 1) // world_size
    return list(items[start:stop])


def open_journal(args: ModelArgs, run_key: str) -> AbstractContextManager[Journal | None]:
    """The journal of this run: at ``journal=PATH``, in the cache for ``auto``, nothing for ``none``.

    Several processes write one file each (``PATH`` and ``PATH.rank1`` ...) and read all of them, those of a run
    with another number of processes included. Collective: where one process is refused, all are.

    Raises:
        ValueError: another process holds it, or it is damaged.
        OSError: its folder cannot be written.
    """
    rank, _ = rank_and_world()
    if args.journal == "none":
        return contextlib.nullcontext(None)
    if args.journal == "auto":
        folder = Settings.read().cache_dir / "journals"
        path = folder / f"{run_key}.jsonl"
        if rank == 0:
            _forget_oldest(folder, path)
    else:
        path = Path(args.journal).expanduser()
    own = path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
    journal, problem = None, None
    try:
        others = [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}.rank*"))]
        readable = [other for other in others if other != own and other.suffix != ".lock" and other.is_file()]
        journal = Journal(own, also=readable)
    except (ValueError, OSError) as error:
        problem = error
    problems = [other for other in gather(problem) if other is not None]
    if problems:
        if journal is not None:
            journal.close()
        raise problem or problems[0]
    return cast(AbstractContextManager["Journal | None"], journal)


def _forget_oldest(folder: Path, wanted: Path) -> None:
    """Remove the automatic journals longest untouched, past ``_JOURNALS_BYTES`` in all; never ``wanted`` or one in use.

    By size and not by age: a clock that jumps must not cost a run what it has scored.
    """
    runs: dict[str, list[tuple[float, int, Path]]] = {}
    for path in folder.glob("*.jsonl*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if path.suffix != ".lock":
                stat = path.stat()
                runs.setdefault(path.name.partition(".")[0], []).append((stat.st_mtime, stat.st_size, path))
    left = sum(size for files in runs.values() for _, size, _ in files)
    runs.pop(wanted.stem, None)
    for files in sorted(runs.values(), key=lambda files: max(files)[0]):
        if left <= _JOURNALS_BYTES:
            return
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            locks = [lock(path.with_name(f"{path.name}.lock")) for _, _, path in files]
            for one in locks:
                held.enter_context(one or contextlib.nullcontext())
            if None in locks:
                continue
            for _, size, path in files:
                path.unlink(missing_ok=True)
                left -= size
