"""What a run keeps on disk: which run it is, and checkpoints that are verified before one is resumed.

The Trainer writes trainer_state.json last; behind it, when all ranks have written, stands ``hashes.json``: the
checkpoint is sealed with each file's hash.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vniah.files import read_json, replacing, sha256_of
from vniah.notices import notice
from vniah.training.processes import rank
from vniah.training.stages import WITHOUT_EFFECT

SEAL = "hashes.json"


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Write identity.json, or compare with the one there. Keys that move no weight may differ.

    Raises:
        ValueError: naming the keys that differ.
    """
    path = folder / "identity.json"
    plain = json.loads(json.dumps(identity, default=str))
    if not path.is_file():
        write_json(path, plain)
        return
    before = read_json(path)
    different = sorted(_differences(before, plain))
    if different == ["ranks"]:
        raise ValueError(
            f"{folder} holds a run of {before.get('ranks')} ranks, and here there are {plain.get('ranks')}, which "
            "would take other batches; launch as many, choose another output, or remove that folder to start anew"
        )
    if different:
        raise ValueError(
            f"{folder} holds a run of another recipe (differs in {', '.join(different)}); "
            "choose another output, or remove that folder to start anew"
        )


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Dotted keys in which plain data differ, leaving out what moves no weight. Lists of stages go by their names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}.keys() - WITHOUT_EFFECT:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif _named(old) and _named(new):
        before, now = ({stage["name"]: stage for stage in stages} for stages in (old, new))
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}")
    elif old != new:
        yield where


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "name" in item for item in value)


def seal(checkpoint: Path) -> None:
    """Write the hash of every file of a checkpoint beside them."""
    hashes = _hashes(checkpoint, _files(checkpoint))
    write_json(checkpoint / SEAL, {"files": hashes, "check": _digest_of(hashes)})


def sealed_steps(folder: Path) -> list[int]:
    """The steps of a run's sealed checkpoints, by their names alone."""
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in folder.glob(f"checkpoint-*/{SEAL}"))


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a run that is as it was written; ``None`` where there is none. Collective.

    One that is not is told, and set aside under another name. One that was stopped before it was sealed is taken only
    where no sealed one is, which is told too.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return _search(folder)
    box = [_search(folder) if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _search(folder: Path) -> str | None:
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    newest_first = sorted((path for path in steps if steps[path].isdigit()), key=lambda path: -int(steps[path]))
    whole = [path for path in newest_first if _is_whole(path)]  # the Trainer writes one that was cut off anew
    unsealed = next((path for path in whole if not (path / SEAL).exists()), None)
    problems: dict[Path, str] = {}
    taken: Path | None = None
    for path in whole:
        if (path / SEAL).exists():
            if not (problem := _problem(path)):
                taken = path
                break
            problems[path] = problem
    if taken is None and unsealed is not None:
        taken = unsealed
        notice(f"{taken} was not sealed with hashes before the run ended; it is resumed without being verified")
    goes_on = f"training goes on from {taken.name}" if taken else "training starts over"
    for path, problem in problems.items():
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(1)))
        asides = (path.with_name(f"damaged-{path.name}{ending}") for ending in endings)
        aside = next(one for one in asides if not one.exists())
        os.replace(path, aside)
        notice(f"{path} is damaged ({problem}); it is kept as {aside.name}, and {goes_on}")
    if taken is not None and taken != unsealed and unsealed == newest_first[0]:
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
    if missing := sorted(set(hashes) - set(_files(checkpoint))):
        return f"{missing[0]} is missing"
    found = _hashes(checkpoint, sorted(hashes))
    return next((f"{name} does not match its hash" for name in found if found[name] != hashes[name]), None)


def _files(checkpoint: Path) -> list[str]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / SEAL)
    return sorted(path.relative_to(checkpoint).as_posix() for path in files)


def _hashes(checkpoint: Path, names: list[str]) -> dict[str, str]:
    # Hashing leaves the interpreter's lock: several files are read at the disk's speed.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of(checkpoint / name), names), strict=True))


def _digest_of(hashes: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()
