"""``LongVAForConditionalGeneration``: ``LongVAModel`` with a language head, loading, saving and generation.

Weights go from disk straight to their device and type, one shard at a time. transformers' own loader keeps every shard
mapped until the last one is read, so a process that converts or moves weights shows the whole checkpoint as its own
memory on top of the model. Here a shard is unmapped before the next is opened: the host holds the part of the model
that lives there, and one shard.

Shapes: B prompts, L tokens, D the decoder's width, N tiles or frames, S their edge in pixels, T visual tokens.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from longva_model.attention import register as register_attention
from longva_model.backbone import LongVAModel, LongVAPreTrainedModel, put
from longva_model.checkpoints import checkpoint, layouts
from longva_model.checkpoints.checkpoint import TensorInfo
from longva_model.checkpoints.layouts import to_our_key
from longva_model.config import LongVAConfig
from longva_model.renamed import cache_keyword

VISUAL_INPUTS = ("pixel_values", "image_sizes", "pixel_values_videos", "video_num_frames")


@dataclass
class LongVACausalLMOutputWithPast(CausalLMOutputWithPast):
    """Loss and logits, and the visual tokens that went in, (T, D)."""

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None


class LongVAForConditionalGeneration(LongVAPreTrainedModel, GenerationMixin):
    """``LongVAModel`` with a language head."""

    # Beside the decoder's own plan, for tensor parallelism.
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LongVAConfig) -> None:
        super().__init__(config)
        self.model = LongVAModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @property
    def language_model(self) -> PreTrainedModel:
        """The decoder, without the head."""
        return self.model.language_model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.model.vision_tower

    def encode_frames(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """See ``LongVAModel.encode_frames``: (N, 3, S, S) to (N, tokens_per_frame, D)."""
        return self.model.encode_frames(pixels_NCHW)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | list, **_: Any
    ) -> torch.Tensor:
        """See ``LongVAModel.get_image_features``: (T, D)."""
        return self.model.get_image_features(pixel_values, image_sizes)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | list | None = None, **_: Any
    ) -> torch.Tensor:
        """See ``LongVAModel.get_video_features``: (T, D)."""
        return self.model.get_video_features(pixel_values_videos, video_num_frames)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> LongVACausalLMOutputWithPast:
        """Logits, and the loss where there are labels. Other arguments: see ``LongVAModel.forward``.

        Args:
            labels: (B, L), -100 where nothing is learnt; shifted inside, as everywhere in transformers.
            logits_to_keep: only the last so many positions get logits (0: all), or those of an index tensor.
                A whole vocabulary at every position of a long prompt does not fit any memory.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            pixel_values_videos=pixel_values_videos,
            video_num_frames=video_num_frames,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        # By name, because the cache's name in an output is transformers' to choose.
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return LongVACausalLMOutputWithPast(loss=loss, logits=logits, **rest)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' ``generate``, with visuals encoded once before it.

        Placeholders are put back into the prompt part of what is returned. Inside, they are replaced by a token
        of the prompt, so that repetition penalties and the like meet vocabulary ids only, and beams share one
        encoding. Visuals that ``cache`` holds already need not be given again.

        Args:
            inputs: (B, L) ids, unless given as ``input_ids``.
            kwargs: what the processor returned, and any of transformers' generation arguments.
        """
        ids_BL = kwargs.pop("input_ids", None) if inputs is None else inputs
        old_name, cache = kwargs.pop("past_key_values", None), kwargs.pop("cache", None)
        if (cache := old_name if cache is None else cache) is not None:
            kwargs[cache_keyword(self.language_model)] = cache
        visuals = {name: kwargs.pop(name) for name in VISUAL_INPUTS if kwargs.get(name) is not None}
        if ids_BL is None or kwargs.get("inputs_embeds") is not None:
            return super().generate(inputs=ids_BL, **kwargs)
        ids_BL = ids_BL.to(self.device)
        special = (ids_BL == self.config.image_token_index) | (ids_BL == self.config.video_token_index)
        mask = kwargs.get("attention_mask")
        self.model.check_length(0, ids_BL.shape[1] if mask is None else int(mask.sum(-1).max()))
        if not visuals and not special.any():
            return super().generate(inputs=ids_BL, **kwargs)
        past = int(cache.get_seq_length()) if cache is not None else 0
        if visuals or special[:, past:].any():
            kwargs["inputs_embeds"] = self.model.embed(ids_BL, **visuals)[0]
        stand_in = torch.stack(
            [row[~skip][0] if (~skip).any() else row.new_zeros(()) for row, skip in zip(ids_BL, special, strict=True)]
        )
        safe_BL = torch.where(special, stand_in[:, None], ids_BL)
        out = super().generate(inputs=safe_BL, **kwargs)
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        length = ids_BL.shape[1]
        sequences[:, :length] = ids_BL.repeat_interleave(len(sequences) // len(ids_BL), dim=0)
        return out

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``from_pretrained``, for the released ``llava_qwen`` layout as well as ours.

        Args:
            pretrained_model_name_or_path: a folder, or an id on the Hub.
            kwargs: as for any model of transformers (``dtype``, ``device_map``, ``attn_implementation``, ...).
                Any key of the configuration may be given, those of the decoder included: ``rope_theta=1e8``,
                ``max_position_embeddings=500_000``, ``mm_spatial_pool_mode="average"``.

        Raises:
            FileNotFoundError: no weights, or a shard that the index names is missing.
            ValueError: weights as a pickle; tensors missing, left over or of another shape, listed; a released
                config that does not say how video frames are pooled.
        """
        if kwargs.get("state_dict") is not None or pretrained_model_name_or_path is None:
            kwargs.pop("trust_remote_code", None)
            return super().from_pretrained(pretrained_model_name_or_path, *args, trust_remote_code=False, **kwargs)
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, kwargs)
        kwargs = _meant(kwargs)
        asked_dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        config = copy.deepcopy(kwargs.pop("config", None))
        if not isinstance(config, LongVAConfig):
            config, kwargs = LongVAConfig.from_pretrained(
                config or folder, return_unused_kwargs=True, trust_remote_code=False, **kwargs
            )
        if config.released_config is not None:
            config.layout.require_pooling()
        if "attn_implementation" in kwargs:
            config._attn_implementation = kwargs["attn_implementation"]
        tensors = checkpoint.read_tensor_index(folder)
        dtype = _resolve_dtype(asked_dtype, config, tensors)
        with empty_model(dtype):
            model = cls(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        checkpoint.check_tensors(tensors, expected, folder, tied=config.tie_word_embeddings)
        device = _single_device(kwargs.get("device_map"))
        if args or device is None or kwargs.keys() - _PLAIN_OPTIONS or _is_sharded_training():
            kwargs |= {"config": config, "dtype": dtype, "key_mapping": layouts.KEY_MAPPING}
            return super().from_pretrained(folder, *args, trust_remote_code=False, **kwargs)
        _load_weights(model, tensors, dtype, device)
        if (Path(folder) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, trust_remote_code=False)
        model.config.name_or_path = str(pretrained_model_name_or_path)
        for part in (model.config, model.config.text_config, model.config.vision_config):
            part.dtype = dtype
        return model.eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """transformers' own, always in our layout; ``vniah convert`` writes the released one."""
        # Else transformers undoes the renaming of tensors that were loaded from the released layout.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)


register_attention()  # so that attn_implementation="longva_blockwise" and "longva_ring" are known
AutoModel.register(LongVAConfig, LongVAModel, exist_ok=True)
AutoModelForImageTextToText.register(LongVAConfig, LongVAForConditionalGeneration, exist_ok=True)

# What a plain load may be asked for; with anything else (quantisation, several devices, ...) transformers loads.
_PLAIN_OPTIONS = frozenset({"device_map", "attn_implementation", "use_safetensors"})
# No code is ever run from a checkpoint, and memory is low anyway.
_NO_MATTER = frozenset({"_from_auto", "trust_remote_code", "code_revision", "_commit_hash", "low_cpu_mem_usage"})


def _meant(options: dict[str, Any]) -> dict[str, Any]:
    """Options that say something: not those that matter nowhere, nor ``None`` unless it is a value of the config."""
    config_keys = {field.name for field in dataclasses.fields(LongVAConfig)} | {"rope_scaling"}
    return {
        name: value
        for name, value in options.items()
        if name not in _NO_MATTER and (value is not None or name in config_keys - {"dtype"})
    }


def _single_device(device_map: Any) -> torch.device | None:
    """The one device that a ``device_map`` means, or None where it means several or a choice."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None:
        return torch.get_default_device()
    several = isinstance(device_map, dict) or device_map in ("auto", "balanced", "balanced_low_0", "sequential", "disk")
    return None if several else torch.device(device_map)


def _is_sharded_training() -> bool:
    """True where DeepSpeed ZeRO-3 or FSDP spreads the weights while they are loaded."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_enabled

    return bool(is_deepspeed_zero3_enabled() or is_fsdp_enabled())


def _resolve_dtype(dtype: Any, config: Any, tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The type to load in: as asked; else ("auto") the config's; else that of the weights.

    Raises:
        ValueError: a name that torch does not know as a floating type.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype {dtype!r} is unknown; expected auto, float32, bfloat16 or float16")
        return found
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    kinds = {info.dtype for info in tensors.values()}
    return torch.float32 if "F32" in kinds or not kinds else torch.bfloat16 if "BF16" in kinds else torch.float16


def _load_weights(
    model: PreTrainedModel, tensors: Mapping[str, TensorInfo], dtype: torch.dtype, device: torch.device
) -> None:
    """Fill a model that was built without memory (``empty_model``) with checked tensors, named as on disk."""
    wanted = dict(model.named_parameters(remove_duplicate=False))
    for path, part in groupby(tensors.items(), key=lambda item: item[1].path):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name, _ in part:
                if (ours := to_our_key(name)) in wanted:  # unlike position indices of old checkpoints
                    # Without a copy the parameter would be a view into the file, alive as long as the model.
                    tensor = file.get_tensor(name).to(dtype, copy=device.type == "cpu")
                    put(model, ours, nn.Parameter(tensor))
                    del tensor
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        put(model, name, buffer.to(device))


@contextlib.contextmanager
def empty_model(dtype: torch.dtype) -> Iterator[None]:
    """Models built inside have parameters without memory, of this type, and real buffers."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(before)
