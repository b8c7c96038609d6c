"""Checkpoints of a training run: sealed with each file's hash once they are whole, verified before one is resumed.

The Trainer writes trainer_state.json last; behind it, when all ranks have written, stands ``hashes.json``.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vniah.files import read_json
from vniah.notices import notice
from vniah.training.identity import write_json
from vniah.training.ranks import rank, world_size

SEAL = "hashes.json"
_PIECE = 8 << 20


def seal_callback() -> Any:
    """A callback of the Trainer that seals each checkpoint behind its last write."""
    from transformers import TrainerCallback

    class Sealed(TrainerCallback):
        """Writes hashes.json into a checkpoint, on the first rank."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _meet()  # every rank writes a part of it
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Sealed()


def seal(checkpoint: Path) -> None:
    """Write the hash of every file of a checkpoint beside them."""
    names = _files(checkpoint)
    hashes = dict(zip(names, _hashes(checkpoint, names), strict=True))
    write_json(checkpoint / SEAL, {"files": hashes, "check": _digest_of(hashes)})


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a run that is as it was written; ``None`` where there is none. Collective.

    One that is not is told, and set aside under another name. One that was stopped before it was sealed is taken only
    where no sealed one is, which is told too.
    """
    found = _search(folder) if rank() == 0 else None
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            box = [found]
            dist.broadcast_object_list(box, src=0)
            return box[0]
        return _search(folder)
    return found


def _search(folder: Path) -> str | None:
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    newest_first = sorted((path for path in steps if steps[path].isdigit()), key=lambda path: -int(steps[path]))
    problems: list[tuple[Path, str]] = []
    unsealed: Path | None = None
    taken: Path | None = None
    for path in newest_first:
        if not _is_whole(path):
            continue  # cut off by a kill or a full disk; the Trainer writes it anew
        if not (path / SEAL).exists():
            unsealed = unsealed or path
            continue
        problem = _problem(path)
        if problem is None:
            taken = path
            break
        problems.append((path, problem))
    if taken is None and unsealed is not None:
        taken = unsealed
        notice(f"{taken} was not sealed with hashes before the run ended; it is resumed without being verified")
    goes_on = f"training goes on from {taken.name}" if taken else "training starts over"
    for path, problem in problems:
        aside = _set_aside(path)
        notice(f"{path} is damaged ({problem}); it is kept as {aside.name}, and {goes_on}")
    if taken is not None and unsealed is not None and taken != unsealed and newest_first.index(unsealed) == 0:
        notice(f"{unsealed} was not sealed with hashes before the run ended; {goes_on}")
    return None if taken is None else str(taken)


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        # Without one it was cut off; with a damaged one and a seal it was damaged later.
        return (checkpoint / SEAL).exists()
    return True


def _problem(checkpoint: Path) -> str | None:
    """The first file of a sealed checkpoint that is not as it was written."""
    try:
        told = read_json(checkpoint / SEAL)
        hashes = dict(told["files"])
        if told["check"] != _digest_of(hashes):
            return f"{SEAL} does not match its own checksum"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} cannot be read"
    missing = sorted(set(hashes) - set(_files(checkpoint)))
    if missing:
        return f"{missing[0]} is missing"
    names = sorted(hashes)
    wrong = [name for name, one in zip(names, _hashes(checkpoint, names), strict=True) if one != hashes[name]]
    return f"{wrong[0]} does not match its hash" if wrong else None


def _set_aside(checkpoint: Path) -> Path:
    number = 0
    while True:
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}" + (f"-{number}" if number else ""))
        if not aside.exists():
            os.replace(checkpoint, aside)
            return aside
        number += 1


def _files(checkpoint: Path) -> list[str]:
    return sorted(
        path.relative_to(checkpoint).as_posix()
        for path in checkpoint.rglob("*")
        if path.is_file() and path != checkpoint / SEAL
    )


def _hashes(checkpoint: Path, names: list[str]) -> list[str]:
    # Hashing leaves the interpreter's lock: several files are read at the disk's speed.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: _hash(checkpoint / name), names))


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _digest_of(hashes: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()


def _meet() -> None:
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier()
