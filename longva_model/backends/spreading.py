"""A model whose weights lie on several devices, the host and the disk (``device_map``), as accelerate places them.

accelerate hooks into the modules: inputs are moved to where a module computes, and weights that stay on the host or
the disk are brought there for the time of its forward. What has no forward (a look at a weight, a device to put a
prompt on) asks here.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from longva_model.arguments import ModelArgs
from longva_model.run import processes
from vniah.files import lock
from vniah.notices import notice
from vniah.visual.settings import Settings

# Where weights wait that no device holds.
_ASIDE = {"cpu": "the host", "disk": "the disk"}
# Locks of this process's folders of weights on the disk.
_held: dict[str, BinaryIO | None] = {}


def place_of(module: nn.Module) -> torch.device:
    """Where ``module`` computes: on its weights' device, or on the one that they are brought to for it."""
    for part in module.modules():
        for weight in part.parameters(recurse=False):
            if not weight.is_meta:
                return weight.device
            if (hooked := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
                return torch.device("cuda", hooked) if isinstance(hooked, int) else torch.device(hooked)
    return torch.device("cpu")


def spreading(args: ModelArgs, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is told of where weights go.

    Raises:
        ValueError: ``max_memory`` is no size.
    """
    if processes.tensor_parallel_size(args) > 1:
        # To be dealt out from the file as transformers maps it; our own loader, which takes no such option, copies.
        return {"device_map": "cpu", "offload_buffers": False}
    if args.device_map is None:
        # The CPU needs no telling.
        return {"device_map": None if device.type == "cpu" else str(device)}
    if args.max_memory is None and device.type != "cpu":
        return {"device_map": args.device_map, "offload_folder": _offload_folder()}
    from accelerate.utils import convert_file_size_to_int, get_max_memory

    rooms = {place: room for place, room in get_max_memory().items() if device.type != "cpu" or place == "cpu"}
    if args.max_memory is not None:
        try:
            limit = convert_file_size_to_int(args.max_memory)
        except ValueError as error:
            raise ValueError(f"max_memory={args.max_memory!r}: expected a size, such as 40GB or 512MiB") from error
        # The host only waits, where there are devices.
        computing = [place for place in rooms if place != "cpu"] or ["cpu"]
        rooms |= {place: min(limit, rooms[place]) for place in computing}
    return {"device_map": args.device_map, "max_memory": rooms, "offload_folder": _offload_folder()}


def _offload_folder() -> str:
    """For weights that are not on the disk as they are asked for (of another type); empty otherwise.

    Its process holds a lock beside it; folders of processes that were killed are removed.
    """
    parent = Settings.read().cache_dir
    parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), lock(parent / "offload.lock", wait=True) or contextlib.nullcontext():
        for left in parent.glob("offload-*.lock"):
            if (unheld := lock(left)) is not None:
                with unheld:
                    shutil.rmtree(left.with_suffix(""), ignore_errors=True)
                    left.unlink()
        folder = tempfile.mkdtemp(prefix="offload-", dir=parent)
        _held[folder] = lock(Path(f"{folder}.lock"))
        return folder
    return tempfile.mkdtemp(prefix="offload-", dir=parent)  # not every file system locks


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if (held := _held.pop(folder, None)) is not None:
        with held:
            Path(held.name).unlink(missing_ok=True)


def settle_spread(model: Any, told: Mapping[str, Any], name: str) -> None:
    """After loading: say which parts no device holds; what was put on the disk goes with the model.

    Args:
        told: of ``spreading``.
        name: the model's, for messages.

    Raises:
        ValueError: devices that hold next to nothing.
    """
    if folder := told.get("offload_folder"):
        weakref.finalize(model, _remove, folder)
    spread: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    devices = {str(place) for place in spread.values()} - _ASIDE.keys()
    # Vectors that no module's forward reads; they are placed first, so that any device has room for them.
    lost = [path for path, weight in model.named_parameters() if weight.is_meta and path.endswith("image_newline")]
    if lost:
        raise ValueError(
            f"device_map={told['device_map']}: the devices have no room even for {lost[0]} of {name}; raise max_memory "
            "or free them"
        )
    for place, where in _ASIDE.items():
        if place == "cpu" and not devices:
            continue  # there the CPU is the device
        parts = [part for part, found in spread.items() if str(found) == place]
        if parts:
            notice(
                f"device_map={told['device_map']}: {len(parts)} of {len(spread)} parts of {name} do not fit the "
                f"devices and wait on {where} (such as {parts[0] or 'all of it'}). They are brought in for each "
                "forward: scores are the same, a larger chunk_tokens makes fewer forwards of a prompt"
            )


def check_room(backend: Any, tokens: int) -> None:
    """Refuse a prompt whose keys and values do not fit beside the weights of a model that is spread over devices.

    Args:
        tokens: of the longest prompt with its answer.

    Raises:
        ValueError: naming the device, what is needed and what is missing.
    """
    layers = getattr(backend.decoder, "layers", None)
    if len(getattr(backend.model, "hf_device_map", None) or ()) < 2 or layers is None:
        return
    if backend.kv == "host":
        return  # refused where the host's memory is short (``Backend.new_state``)
    each = tokens * backend.shape.kv_bytes_as(backend.kv) / backend.shape.layers
    for device, count in Counter(place_of(layer) for layer in layers).items():
        missing = count * each - processes.free_bytes(device)
        if missing > 0:
            raise ValueError(
                f"the longest prompt ({tokens:,} tokens) does not fit: {count} layers of {backend.name} on {device} "
                f"need {count * each / 1e9:.3g} GB for its keys and values, {missing / 1e9:.3g} GB more than are free "
                "there; ask for fewer frames, use more devices, or leave more room beside the weights "
                "(max_memory=40GB: of weights on each device)"
            )
