"""The released ``llava_qwen`` layout and ours: which config key and which tensor is which, and where a tower is.

The released layout keeps the decoder's keys at the top of config.json beside ``mm_*`` keys, names the vision
tower instead of describing it ("openai/clip-vit-large-patch14-336"), and nests the tower's tensors under
``model.vision_tower.vision_tower``. Of what the tower's name leads to only ``config.json`` and
``preprocessor_config.json`` are read, never weights. No torch. Source: reference sections 1 and 2.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vniah.files import is_hub_id, read_json

logger = logging.getLogger(__name__)

# What the released model's tower is: openai/clip-vit-large-patch14-336.
CLIP_VIT_L_14_336: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}

TEXT_TYPES = {"llava_qwen": "qwen2", "llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}
# By the decoder's type: the released model_type and architecture.
_RELEASED_AS = {
    "qwen2": ("llava_qwen", "LlavaQwenForCausalLM"),
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}

# Our key -> the released one, where both hold the same value.
_SHARED_KEYS = {
    "mm_patch_merge_type": "mm_patch_merge_type",
    "image_aspect_ratio": "image_aspect_ratio",
    "image_grid_pinpoints": "image_grid_pinpoints",
    "mm_spatial_pool_stride": "mm_spatial_pool_stride",
    "mm_spatial_pool_mode": "mm_spatial_pool_mode",
    "mm_resampler_type": "mm_resampler_type",
    "vision_feature_layer": "mm_vision_select_layer",
    "vision_feature_select_strategy": "mm_vision_select_feature",
    "tokenizer_model_max_length": "tokenizer_model_max_length",
}
# Absent from a released config, these mean something else than absent from ours.
_ABSENT_MEANS = {
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": None,
    "mm_spatial_pool_stride": None,
    "mm_spatial_pool_mode": None,
}

_TOWER_FILES = ("config.json", "preprocessor_config.json")

# How tensors' names begin, in our layout and in the released one; the decoder's have nothing in front there.
_PREFIXES = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
}
# Released -> ours, as transformers' ``key_mapping`` takes it. Names of ours match none.
KEY_MAPPING = {f"^{re.escape(theirs)}": ours for ours, theirs in _PREFIXES.items()}
KEY_MAPPING[r"^model\.(?=(?:embed_tokens|layers|norm)\.)"] = "model.language_model."


def is_released(config_dict: dict[str, Any]) -> bool:
    """True for a config.json of the released layout."""
    return config_dict.get("model_type") in TEXT_TYPES and "text_config" not in config_dict


def to_our_key(name: str) -> str:
    """A tensor's name in our layout; a name that is already ours is returned as it is."""
    for pattern, ours in KEY_MAPPING.items():
        name = re.sub(pattern, ours, name)
    return name


def to_released_key(name: str) -> str:
    """A tensor's name in the released layout, from its name in ours."""
    for ours, theirs in (*_PREFIXES.items(), ("model.language_model.", "model.")):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def read_config(config_dict: dict[str, Any], path: Any, *, local_files_only: bool = False) -> dict[str, Any]:
    """A released config as the dict ``LongVAConfig`` is made from.

    Args:
        path: the checkpoint's folder or Hub id; the tower named in the config is looked for around it.
        local_files_only: do not ask the Hub for the tower's config.

    Raises:
        ValueError: a projector that is not two linear layers, or a tower of another width than ``mm_hidden_size``.
    """
    projector = config_dict.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type {projector!r} is not supported; LongVA's is 'mlp2x_gelu'")
    tower = find_tower(config_dict.get("mm_vision_tower"), Path(str(path)), local_files_only=local_files_only)
    vision = {"model_type": "clip_vision_model", **(CLIP_VIT_L_14_336 if tower.config is None else tower.config)}
    width = config_dict.get("mm_hidden_size", vision["hidden_size"])
    if width != vision["hidden_size"]:
        raise ValueError(
            f"the vision tower's config ({tower.source}) has hidden_size {vision['hidden_size']}, but the checkpoint "
            f"says mm_hidden_size {width}: it is another tower. Put the right one's config.json in a folder "
            f"named {config_dict.get('mm_vision_tower')!r} beside the checkpoint"
        )
    # Word for word, but for what transformers adds when it reads the file.
    kept = {key: value for key, value in config_dict.items() if key != "_commit_hash"}
    ours = {**_without_tower(config_dict), "vision_config": vision, "released_config": kept}
    if (dtype := config_dict.get("torch_dtype", config_dict.get("dtype"))) is not None:
        ours["dtype"] = dtype
    return ours


def write_config(config: Any) -> dict[str, Any]:
    """The released config.json of a ``LongVAConfig``; what was read of one is word for word, unless changed since."""
    now = _derive(config)
    if not config.released_config:
        return now
    then = _derive(type(config)(**_without_tower(config.released_config), vision_config=config.vision_config))
    changed = {key: value for key, value in now.items() if key not in then or then[key] != value}
    return {**config.released_config, **changed}


def override_text(text: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A text config's dict with ``given`` keys put in; ``rope_theta`` and ``rope_scaling`` become RoPE parameters.

    Scaling replaces the former scaling and keeps the base; ``rope_scaling=None`` turns scaling off.
    """
    text, given = dict(text), dict(given)
    if "rope_theta" in given or "rope_scaling" in given:
        rope = dict(text.pop("rope_parameters", None) or text.pop("rope_scaling", None) or {})
        base = given.pop("rope_theta", rope.get("rope_theta", text.get("rope_theta", 10_000.0)))
        if "rope_scaling" in given:
            rope = dict(given.pop("rope_scaling") or {"rope_type": "default"})
        text.pop("rope_theta", None), text.pop("rope_scaling", None)
        text["rope_parameters"] = {**rope, "rope_theta": float(base)}
    return {**text, **given}


def own_keys(config_class: Any) -> set[str]:
    """The keys that a kind of configuration has besides those of all."""
    from transformers import PreTrainedConfig

    own, every = ({field.name for field in dataclasses.fields(kind)} for kind in (config_class, PreTrainedConfig))
    return own - every


def _without_tower(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Our keys of a released config, but for the tower's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    text_type = TEXT_TYPES[config_dict["model_type"]]
    names = own_keys(CONFIG_MAPPING[text_type]) | {"rope_theta", "rope_scaling", "partial_rotary_factor"}
    shared = {
        ours: config_dict.get(theirs, _ABSENT_MEANS.get(ours))
        for ours, theirs in _SHARED_KEYS.items()
        if theirs in config_dict or ours in _ABSENT_MEANS
    }
    text = {key: value for key, value in config_dict.items() if key in names}
    return {"text_config": {"model_type": text_type, **text}, **shared}


def _derive(config: Any) -> dict[str, Any]:
    """Released keys computed from our config."""
    text = config.text_config
    model_type, architecture = _RELEASED_AS.get(text.model_type, (f"llava_{text.model_type}", _RELEASED_AS["qwen2"][1]))
    rope = dict(text.rope_parameters or {})
    theta = rope.pop("rope_theta", 10_000.0)
    fields = own_keys(type(text)) - {"rope_parameters", "layer_types"}
    keys: dict[str, Any] = {key: value for key, value in text.to_dict().items() if key in fields}
    keys |= {
        "architectures": [architecture],
        "model_type": model_type,
        "rope_theta": theta,
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "vision_tower",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
    }
    if config.dtype is not None:
        keys["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    return keys | {theirs: getattr(config, ours) for ours, theirs in _SHARED_KEYS.items()}


@dataclass(frozen=True, slots=True)
class Tower:
    """What was found, and where; both None: the known values of CLIP ViT-L/14-336 are meant."""

    config: dict[str, Any] | None
    preprocessor: dict[str, Any] | None
    source: str


def find_tower(name: str | None, checkpoint: Path, *, local_files_only: bool = False) -> Tower:
    """Look a tower up: working directory, the checkpoint's folder, its parent, the Hub cache, the Hub.

    Args:
        name: the config's ``mm_vision_tower``: a folder or a Hub id.
        checkpoint: the checkpoint's folder (or Hub id: then only the working directory counts).
        local_files_only: stop before the Hub.

    Raises:
        ValueError: a config.json was found that is not a CLIP vision tower's.
    """
    unknown = Tower(None, None, "known values of CLIP ViT-L/14-336")
    if not name:
        return unknown
    for base in (Path(), checkpoint, checkpoint.parent):
        if (base / name / "config.json").is_file():
            return _read_tower(base / name, str(base / name))
    folder = _tower_from_hub(name, local_files_only=local_files_only) if is_hub_id(name) else None
    if folder is None or not (folder / "config.json").is_file():
        logger.info("the vision tower %s is neither here nor on the Hub; taking the %s", name, unknown.source)
        return unknown
    return _read_tower(folder, f"{name} on the Hub")


def _tower_from_hub(repo: str, *, local_files_only: bool) -> Path | None:
    """The folder with a Hub repository's configs, from the cache or the Hub, or None where it cannot be had."""
    from vniah.hub import cached_snapshot, fetch_snapshot

    if local_files_only:
        return cached_snapshot(repo, allow_patterns=_TOWER_FILES)
    try:
        return fetch_snapshot(repo, allow_patterns=_TOWER_FILES, progress=False)
    except (OSError, ValueError) as error:
        logger.debug("no config of %s from the Hub: %s", repo, error)
        return None


def _read_tower(folder: Path, source: str) -> Tower:
    """Parse the two files; a whole CLIP model's config counts by its vision part."""
    config = read_json(folder / "config.json")
    path = folder / "preprocessor_config.json"
    preprocessor = read_json(path) if path.is_file() else None
    if config.get("model_type") == "clip":
        config = {"model_type": "clip_vision_model", **(config.get("vision_config") or {})}
    if config.get("model_type") != "clip_vision_model":
        raise ValueError(
            f"{source} is no CLIP vision tower: its config.json has model_type {config.get('model_type')!r}"
        )
    drop = ("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
    return Tower({key: value for key, value in config.items() if key not in drop}, preprocessor, source)
