"""Checkpoints on disk: which tensors they hold, whether those fit, and a fingerprint of their content.

Only safetensors are read. Nothing here builds a model; ``layouts.py`` knows the two layouts.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longva_model.checkpoints.layouts import to_our_key
from vniah.files import parse_json, read_json, replacing, sha256_of
from vniah.runs.journal import is_sound, sealed

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100 * 2**20  # the limit of the safetensors format
# Endings of what old checkpoints store and what models compute: positions, frequencies, causal masks. No weights.
IDLE_TENSORS = (".position_ids", "inv_freq", ".masked_bias", ".cos_cached", ".sin_cached")
_LISTED = 8  # names an error lists before it counts the rest
_DAMAGED = "{} is no safetensors file, or its header is damaged; download it again"
_TICK_SECONDS = 2  # file systems tell times at least this finely


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file: its type as safetensors names it ("BF16"), and its first and last byte + 1."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def resolve_folder(path: Any, kwargs: dict[str, Any] | None = None, *, weights: bool = True) -> str:
    """The local folder of a checkpoint, downloaded from the Hub if it is not a folder.

    Only configs, tokenizer files and safetensors are fetched, never code or pickles.

    Args:
        path: a folder, or an id on the Hub.
        kwargs: ``from_pretrained``'s; those that say where to look are taken out of it.
        weights: also fetch the weights.

    Raises:
        FileNotFoundError: neither a folder nor to be had from the Hub.
        ValueError: a JSON file of it that cannot be used, which libraries would fail at unclearly.
    """
    options = kwargs if kwargs is not None else {}
    subfolder = options.pop("subfolder", "") or ""
    if os.path.isfile(path):
        raise FileNotFoundError(f"{path} is a file; a model is a folder with config.json and safetensors, or a Hub id")
    folder = Path(path) if os.path.isdir(path) else _fetch(str(path), options, weights=weights)
    for file in sorted((folder / subfolder).glob("*.json")):
        found = file.stat()
        _check_json(file, found.st_mtime_ns, found.st_size)
    return str(folder / subfolder)


def _fetch(repo: str, options: dict[str, Any], *, weights: bool) -> Path:
    from vniah.hub import MODEL_FILES, HubUnreachableError, cached_snapshot, fetch_snapshot

    patterns = [pattern for pattern in MODEL_FILES if weights or pattern != "*.safetensors"]
    revision, cache_dir = options.pop("revision", None), options.pop("cache_dir", None)
    refresh, cached_only = bool(options.pop("force_download", False)), bool(options.pop("local_files_only", False))
    where = {"revision": revision, "allow_patterns": patterns, "cache_dir": Path(cache_dir) if cache_dir else None}
    try:
        folder = cached_snapshot(repo, **where) if cached_only else fetch_snapshot(repo, refresh=refresh, **where)
        if folder is None:
            raise HubUnreachableError("it is not in the cache, and local_files_only forbids to ask the Hub")
        return folder
    except (ValueError, OSError) as error:
        raise FileNotFoundError(f"{repo!r} is no folder here, nor to be had as a model of the Hub: {error}") from error


@functools.lru_cache(maxsize=256)
def _check_json(file: Path, mtime_ns: int, size: int) -> None:
    with file.open("rb") as opened:
        if opened.read(3) == codecs.BOM_UTF8:
            raise ValueError(
                f"{file} begins with a byte order mark, which the libraries that read checkpoints do not take; save it "
                "as UTF-8 without one"
            )
    if not isinstance(read_json(file), dict) and file.name in ("config.json", INDEX):
        raise ValueError(f"{file} holds no JSON object; download the checkpoint again")


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
        ValueError: there are only pickled weights.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        except (AttributeError, KeyError, TypeError):
            raise ValueError(f"{folder / INDEX} has no weight_map of tensors to files; download it again") from None
        if bad := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{folder / INDEX} names files outside its folder: {_some(bad)}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {len(names)} weight files are missing: {_some(missing)}. "
                "Download the checkpoint again"
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pickles := sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))):
        raise ValueError(
            f"{folder} holds pickled weights only ({_some(pickles)}), which can run any code when they are opened. "
            "If you trust them, load each with torch.load(path, weights_only=True) and write it with "
            "safetensors.torch.save_file, then load the folder again"
        )
    raise FileNotFoundError(f"{folder} holds no weights: expected {WEIGHTS}, or {INDEX} and its shards")


def raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file as it is written, and where the bytes of its tensors begin.

    Raises:
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise ValueError(_DAMAGED.format(path))
        header = parse_json(file.read(length), str(path))
    return header, 8 + length


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name; no tensor is read.

    Raises:
        ValueError: it is no safetensors file, or cut short.
    """
    try:
        header, start = raw_header(path)
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(path, info["dtype"], tuple(info["shape"]), *(start + at for at in info["data_offsets"]))
            for name, info in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(_DAMAGED.format(path)) from None
    size = path.stat().st_size
    if any(tensor.stop > size for tensor in tensors.values()):
        raise ValueError(f"{path} is cut short: {size} bytes, its tensors need more; download it again")
    return tensors


def read_tensor_index(folder: str | Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint, by their name on disk.

    Raises:
        FileNotFoundError: no weights, or a missing shard.
        ValueError: pickled weights, a damaged file, or a tensor that two shards hold.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in weight_files(folder):
        found = read_header(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise ValueError(f"{path.name} holds tensors that another shard holds too: {_some(twice)}")
        tensors |= found
    return tensors


def check_tensors(
    tensors: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    folder: str | Path,
    *,
    tied: bool = False,
) -> None:
    """Compare a checkpoint's tensors, by name in either layout, with the shapes that its config asks for, by ours.

    Args:
        tied: the head shares the embedding's weights and need not be there.

    Raises:
        ValueError: listing tensors that are missing, left over, or of another shape than the config says.
    """
    found = {to_our_key(name): info.shape for name, info in tensors.items()}
    parts = []
    if wrong := sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name]):
        shapes = [f"{name} is {list(found[name])}, the config says {list(expected[name])}" for name in wrong]
        parts.append(f"{len(wrong)} of another shape: {_some(shapes, '; ')}")
    if missing := sorted(expected.keys() - found.keys() - ({"lm_head.weight"} if tied else set())):
        parts.append(f"{len(missing)} missing: {_some(missing)}")
    if extra := sorted(name for name in found.keys() - expected.keys() if not name.endswith(IDLE_TENSORS)):
        parts.append(f"{len(extra)} left over: {_some(extra)}")
    if not parts:
        return
    advice = "check that config.json belongs to these weights"
    if all(name.startswith("model.vision_tower.") for name in (*wrong, *missing, *extra)):
        advice = (
            "they are all the vision tower's: mm_vision_tower names a tower of another size. Put the right "
            "tower's config.json in a folder of that name beside the checkpoint"
        )
    raise ValueError(f"the weights in {folder} do not fit the model: {'. '.join(parts)}. What to do: {advice}")


def weights_fingerprint(folder: str | Path, memory: Path | None = None) -> str:
    """A hash of a checkpoint's weights, 32 hex digits: the same for either layout and any sharding.

    Covers each tensor's name in our layout, type, shape and every byte. A file's hashes are remembered under what the
    file system says of it (device, inode, size, times of change), so that weights are read for this once.

    Args:
        folder: the checkpoint.
        memory: where hashes are remembered; ``None``: ``fingerprints`` in the cache folder.

    Raises:
        FileNotFoundError: no weights, or a missing shard.
        ValueError: pickled weights, a damaged file, or one that changes while it is read.
    """
    if memory is None:
        from vniah.visual.settings import Settings

        memory = Settings.read().cache_dir / "fingerprints"
    tensors = read_tensor_index(folder)
    hashes = {name: one for path in weight_files(folder) for name, one in _tensor_hashes(path, memory).items()}
    digest = hashlib.sha256()
    for name in sorted(tensors, key=to_our_key):
        info = tensors[name]
        digest.update(f"{to_our_key(name)}|{info.dtype}|{info.shape}|{hashes[name]}|".encode())
    return digest.hexdigest()[:32]


def _tensor_hashes(path: Path, memory: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, by name on disk; remembered in ``memory``."""
    before = _identity(path)
    key = hashlib.sha256(repr(before).encode()).hexdigest()[:32]
    note = memory / f"{key}.json"
    with contextlib.suppress(OSError):
        line = note.read_bytes()
        told = json.loads(line) if is_sound(line) else {}
        # A note that was copied from another file's is whole as well.
        if told.get("key") == key and told["result"].keys() == read_header(path).keys():
            return dict(told["result"])
    hashes = _hash_tensors(path)
    if _identity(path) != before:
        raise ValueError(f"{path} changes while it is read; wait until it is written, then start again")
    # Two changes within one tick of the file system's clock look the same, so what is as young is not remembered.
    if max(before[-2:]) < (time.time() - _TICK_SECONDS) * 1e9:
        with contextlib.suppress(OSError):  # a cache that may only be read
            memory.mkdir(parents=True, exist_ok=True)
            with replacing(note) as part:
                part.write_bytes(sealed({"key": key, "file": str(path), "result": hashes}))
    return hashes


def _identity(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    # The time of the inode's change too: that of the content can be set to anything.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_tensors(path: Path) -> dict[str, str]:
    from vniah.runs.progress import Bar

    tensors = read_header(path)
    sizes = [info.stop - info.start for info in tensors.values()]
    bar = Bar(total=sum(sizes), unit="B", unit_scale=True, desc=f"fingerprint {path.name}", delay=2, leave=False)
    hashes = []
    # Hashing leaves the interpreter's lock, so that threads read a checkpoint at the disk's speed.
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda info: sha256_of(path, info.start, info.stop), tensors.values())
        for size, digest in zip(sizes, found, strict=True):
            hashes.append(digest)
            bar.update(size)
    return dict(zip(tensors, hashes, strict=True))


def _some(names: list[str], joint: str = ", ") -> str:
    """A list for an error: the first few, and how many more."""
    rest = len(names) - _LISTED
    return joint.join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
