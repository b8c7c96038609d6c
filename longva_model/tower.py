"""Where the sizes and the preprocessing of a released checkpoint's vision tower are found.

A released config names its tower ("openai/clip-vit-large-patch14-336") and carries the tower's tuned weights.
Only ``config.json`` and ``preprocessor_config.json`` are read from what the name points to, never weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vniah.files import is_hub_id, read_json

logger = logging.getLogger(__name__)

_FILES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Tower:
    """What was found. ``config`` or ``preprocessor`` is None where nothing was; ``source`` says where."""

    config: dict[str, Any] | None
    preprocessor: dict[str, Any] | None
    source: str


def find_tower(name: str | None, checkpoint: Path, *, local_files_only: bool = False) -> Tower:
    """Look a tower up: working directory, the checkpoint's folder, its parent, the Hub cache, the Hub.

    Args:
        name: the config's ``mm_vision_tower``: a folder or a Hub id.
        checkpoint: the checkpoint's folder (or Hub id: then only the working directory counts).
        local_files_only: stop before the Hub.

    Returns:
        What was found; with nothing found both parts are None and the known values of CLIP ViT-L/14-336
        are meant.

    Raises:
        ValueError: a config.json was found that is not a CLIP vision tower's.
    """
    if not name:
        return Tower(None, None, "known values of CLIP ViT-L/14-336")
    for base in (Path(), checkpoint, checkpoint.parent):
        folder = base / name
        if (folder / "config.json").is_file():
            return _read(folder, str(folder))
    if is_hub_id(name) and (found := _from_hub(name, local_files_only=local_files_only)) is not None:
        return _read(found, f"{name} on the Hub")
    logger.info(
        "the vision tower %s is neither here nor on the Hub; taking the known values of CLIP ViT-L/14-336", name
    )
    return Tower(None, None, "known values of CLIP ViT-L/14-336")


def _from_hub(repo: str, *, local_files_only: bool) -> Path | None:
    """The folder with a Hub repository's config, from the cache or the Hub, or None where it cannot be had."""
    from vniah.hub import cached_snapshot, fetch_snapshot

    folder = cached_snapshot(repo, allow_patterns=_FILES)
    if folder is None and not local_files_only:
        try:
            folder = fetch_snapshot(repo, allow_patterns=_FILES, progress=False)
        except (OSError, ValueError) as error:
            logger.debug("no config of %s from the Hub: %s", repo, error)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _read(folder: Path, source: str) -> Tower:
    """Parse the two files; a whole CLIP model's config counts by its vision part."""
    paths = [folder / file for file in _FILES]
    parts = [read_json(path) if path.is_file() else None for path in paths]
    config = parts[0]
    assert isinstance(config, dict)
    if config.get("model_type") == "clip":
        config = {"model_type": "clip_vision_model", **(config.get("vision_config") or {})}
    if config.get("model_type") != "clip_vision_model":
        raise ValueError(
            f"{source} is no CLIP vision tower: its config.json has model_type {config.get('model_type')!r}"
        )
    drop = ("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
    return Tower({key: value for key, value in config.items() if key not in drop}, parts[1], source)
