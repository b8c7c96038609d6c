"""Rewrite a checkpoint in the other layout: the released ``llava_qwen`` one or ours.

Tensors are copied byte for byte under their other names, shard by shard; no tensor is read. Tokenizer and other
small files go along as they are. A released config is kept inside ours, so that the way back gives the same keys.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from longva_model.checkpoints import checkpoint, layouts
from longva_model.pictures.preprocess import CLIP_MEAN, CLIP_STD
from vniah.files import put_in_place, read_json

Layout = Literal["ours", "released"]
_SMALL = (".json", ".txt", ".model", ".jinja", ".md")
# Made anew, or meaningless in the released layout.
_NOT_COPIED = {"config.json", checkpoint.INDEX}
_OURS_ONLY = {"processor_config.json", "chat_template.jinja"}
_CHUNK = 16 * 2**20


def convert(source: str | Path, target: str | Path, to: Layout | None = None) -> Layout:
    """Write ``source`` in the other layout into the new folder ``target``.

    Args:
        source: a folder or Hub id, of either layout.
        target: a folder that is not there yet, or is empty.
        to: "ours" or "released"; the other one than the source's unless given.

    Returns:
        The layout that was written.

    Raises:
        FileExistsError: ``target`` has something in it.
        FileNotFoundError: no source, or a shard of it is missing.
        ValueError: the source is in that layout already, or its weights do not fit its config.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already and is not overwritten; give a new folder")
    folder = Path(checkpoint.resolve_folder(source))
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    is_released = layouts.is_released(read_json(config_file))
    wanted: Layout = to or ("ours" if is_released else "released")
    if wanted not in ("ours", "released"):
        raise ValueError(f"--to must be ours or released, got {wanted!r}")
    if (wanted == "released") == is_released:
        raise ValueError(f"{folder} has the layout {wanted} already; nothing to convert")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        draft = Path(temporary) / target.name
        draft.mkdir()
        _write(folder, draft, wanted)
        if target.exists():
            target.rmdir()  # empty, see above
        put_in_place(draft, target)
    return wanted


def _write(folder: Path, draft: Path, to: Layout) -> None:
    """Everything of the new folder."""
    import torch

    from longva_model.config import LongVAConfig
    from longva_model.modeling import LongVAForConditionalGeneration, empty_model

    config = LongVAConfig.from_pretrained(folder, trust_remote_code=False)
    with empty_model(torch.float32):
        expected = {name: tuple(t.shape) for name, t in LongVAForConditionalGeneration(config).state_dict().items()}
    tensors = checkpoint.read_tensor_index(folder)
    checkpoint.check_tensors(tensors, expected, folder, tied=config.tie_word_embeddings)
    rename = layouts.to_our_key if to == "ours" else layouts.to_released_key
    for path in checkpoint.weight_files(folder):
        _rename_tensors(path, draft / path.name, rename)
    if (folder / checkpoint.INDEX).is_file():
        index = read_json(folder / checkpoint.INDEX)
        index["weight_map"] = {rename(name): file for name, file in index["weight_map"].items()}
        _write_json(draft / checkpoint.INDEX, index)
    skip = _NOT_COPIED | (_OURS_ONLY if to == "released" else set())
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _SMALL and path.name not in skip:
            shutil.copyfile(path, draft / path.name)
    if to == "ours":
        config.architectures = ["LongVAForConditionalGeneration"]
        config.save_pretrained(draft)
        _write_processor(folder, draft)
    else:
        _write_json(draft / "config.json", layouts.write_config(config))
        _write_tower(folder, draft, config)


def _rename_tensors(source: Path, target: Path, rename: Callable[[str], str]) -> None:
    """Copy a safetensors file with other tensor names: a new header, the same bytes."""
    header, start = checkpoint.raw_header(source)
    renamed = {name if name == "__metadata__" else rename(name): info for name, info in header.items()}
    text = json.dumps(renamed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned
    with source.open("rb") as reader, target.open("wb") as writer:
        reader.seek(start)
        writer.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(reader, writer, _CHUNK)


def _write_processor(folder: Path, draft: Path) -> None:
    """Our processor's two files, where the source has a tokenizer; the tokenizer's own are copied as they are."""
    if not (folder / "tokenizer_config.json").is_file():
        return
    from longva_model.processing import LongVAProcessor

    processor = LongVAProcessor.from_pretrained(folder, trust_remote_code=False)
    processor.to_json_file(draft / "processor_config.json")
    if isinstance(processor.chat_template, str):
        (draft / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")


def _write_tower(folder: Path, draft: Path, config: Any) -> None:
    """Describe the tower beside a released checkpoint, unless what its name leads to there says the same.

    The released layout only names its tower, and a tower by that name may not be found from the new folder, or be
    another one.
    """
    name = read_json(draft / "config.json")["mm_vision_tower"]
    found = layouts.find_tower(name, draft, local_files_only=True)
    keys = layouts.own_keys(type(config.vision_config)) | {"model_type"}
    defaults, sizes = type(config.vision_config)().to_dict(), config.vision_config.to_dict()
    known = {**defaults, **(found.config or layouts.CLIP_VIT_L_14_336)}
    # Mean and deviation that pixels are normalised with, as our processor holds them.
    path = folder / "processor_config.json"
    own, told = read_json(path) if path.is_file() else {}, found.preprocessor or {}
    clip = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    pixels = {key: list(own.get(key, value)) for key, value in clip.items()}
    if all(known[key] == sizes[key] for key in keys) and pixels == {key: told.get(key, clip[key]) for key in clip}:
        return
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"mm_vision_tower is {name!r}: it leads out of the new folder; give the tower a plain name")
    (draft / name).mkdir(parents=True)
    _write_json(draft / name / "config.json", {key: sizes[key] for key in sorted(keys)})
    edge = sizes["image_size"]
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": edge},
        "crop_size": {"height": edge, "width": edge},
        "resample": 3,
        **pixels,
    }
    _write_json(draft / name / "preprocessor_config.json", preprocessor)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
