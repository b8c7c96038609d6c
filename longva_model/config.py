"""``LongVAConfig``: a decoder, a CLIP tower, and how images and videos become visual tokens.

The decoder is whatever ``text_config`` says (Qwen2 for LongVA; Llama and Mistral for the baselines), with its
RoPE base and scaling. ``from_pretrained`` reads the released ``llava_qwen`` layout as well as ours.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from longva_model.checkpoints import layouts
from longva_model.pictures.layout import VisualLayout

# Far above any vocabulary, so that a placeholder is never a token, not even after the vocabulary grows,
# and below 2**31, so that tokenizers skip it when they decode.
IMAGE_TOKEN_INDEX = 2**30
VIDEO_TOKEN_INDEX = 2**30 + 1


class LongVAConfig(PreTrainedConfig):
    """Configuration of ``LongVAForConditionalGeneration``.

    Any key of the decoder, ``rope_theta`` and ``rope_scaling`` included, may be given to ``from_pretrained``
    and reaches ``text_config``: ``from_pretrained(path, rope_theta=1e8, max_position_embeddings=500_000)``.

    Raises:
        ValueError: an unknown merge type, pool mode or feature strategy, a resampler, or canvases that are
            not made of whole tiles.
    """

    model_type = "longva"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 - transformers' own form
    attribute_map = {"image_token_id": "image_token_index", "video_token_id": "video_token_index"}  # noqa: RUF012

    # Both are a dict before __post_init__, a PreTrainedConfig after it.
    text_config: Any = None  # of the decoder (qwen2, llama, mistral, ...)
    vision_config: Any = None  # of the tower (clip_vision_model); its image_size is the edge of a tile in pixels
    image_token_index: int = IMAGE_TOKEN_INDEX  # placeholder id in input_ids, outside any vocabulary
    video_token_index: int = VIDEO_TOKEN_INDEX
    projector_hidden_act: str = "gelu"  # between the projector's two linear layers
    vision_feature_layer: int = -2  # which hidden state of the tower is used: the one before the last
    vision_feature_select_strategy: str = "patch"  # the class token is dropped
    # The next five: see VisualLayout.
    mm_patch_merge_type: str = "unires"
    image_aspect_ratio: str | None = "anyres"
    image_grid_pinpoints: list | None = None
    mm_spatial_pool_stride: int | None = 2
    mm_spatial_pool_mode: str | None = "average"
    mm_resampler_type: str | None = None  # must be None: the released "spatial_pool" would pool a frame twice
    tokenizer_model_max_length: int | None = None  # carried over; it limits nothing here
    # config.json of the released layout this came from, word for word, so that converting back gives the same keys.
    released_config: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _sub_config(self.text_config, "qwen2", {})
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model", layouts.CLIP_VIT_L_14_336)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        # What would run and be wrong is refused.
        if self.mm_resampler_type is not None:
            raise ValueError(
                f"mm_resampler_type is {self.mm_resampler_type!r}: the tower's output would be pooled before the "
                "projector and each video frame once more after it. LongVA has no resampler; load with "
                "mm_resampler_type=None if that is what the weights were trained with"
            )
        if self.vision_config.model_type != "clip_vision_model":
            raise ValueError(f"the vision tower must be a clip_vision_model, got {self.vision_config.model_type!r}")
        if self.vision_feature_select_strategy not in ("patch", "default"):
            raise ValueError(
                "vision_feature_select_strategy (mm_vision_select_feature) must be 'patch': visual tokens are laid "
                f"out as a square and the class token is none; got {self.vision_feature_select_strategy!r}"
            )
        self.image_grid_pinpoints = [list(size) for size in self.layout.pinpoints]
        super().__post_init__(**kwargs)

    @property
    def layout(self) -> VisualLayout:
        """How images and videos become visual tokens, and how many."""
        return VisualLayout(
            merge_type=self.mm_patch_merge_type,
            aspect_ratio=self.image_aspect_ratio,
            tile_size=int(self.vision_config.image_size),
            patch_size=int(self.vision_config.patch_size),
            pool_stride=self.mm_spatial_pool_stride,
            pool_mode=self.mm_spatial_pool_mode,
            pinpoints=tuple(self.image_grid_pinpoints or ()),
        )

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens: ``max_position_embeddings``, stretched by RoPE scaling where there is one."""
        limit = int(self.text_config.max_position_embeddings)
        rope = self.text_config.rope_parameters or {}
        factor = rope.get("factor")
        if not factor or rope.get("rope_type") == "default":
            return limit
        return max(limit, int(factor * rope.get("original_max_position_embeddings", limit)))

    @property
    def rope_theta(self) -> float:
        """The decoder's RoPE base."""
        return float(self.text_config.rope_parameters["rope_theta"])

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """transformers' own, with a released config turned into ours (the tower's sizes are looked up)."""
        cached_only = bool(kwargs.get("local_files_only"))
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if layouts.is_released(config_dict):
            given = {key: kwargs[key] for key in kwargs.keys() & cls.__dataclass_fields__.keys()}
            ours = layouts.read_config(config_dict, pretrained_model_name_or_path, local_files_only=cached_only)
            config_dict = {**ours, **given}
        elif config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {config_dict['model_type']!r} model and no LongVA: expected "
                f"model_type {cls.model_type!r}, or {', '.join(layouts.TEXT_TYPES)} (released). A text-only model is "
                "loaded by transformers' AutoModelForCausalLM"
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' own; keys of the decoder among ``kwargs`` reach ``text_config``."""
        if isinstance(text := config_dict.get("text_config"), dict):
            decoder = CONFIG_MAPPING[text.get("model_type", "qwen2")]
            names = (layouts.own_keys(decoder) - layouts.own_keys(cls)) | {"rope_theta", "rope_scaling"}
            given = {key: kwargs.pop(key) for key in names & kwargs.keys()}
            config_dict = {**config_dict, "text_config": layouts.override_text(text, given)}
        return super().from_dict(config_dict, **kwargs)


def _sub_config(value: Any, default_type: str, defaults: dict[str, Any]) -> PreTrainedConfig:
    """A sub-configuration from a dict, an instance or nothing."""
    if isinstance(value, PreTrainedConfig):
        return value
    given = dict(defaults if value is None else value)
    model_type = given.pop("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers has no model_type {model_type!r} (in text_config or vision_config)")
    return CONFIG_MAPPING[model_type](**given)


AutoConfig.register(LongVAConfig.model_type, LongVAConfig, exist_ok=True)
