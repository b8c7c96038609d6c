"""``LongVAModel``: a CLIP tower, a projector and a decoder without its head, by transformers' conventions.

Visual tokens take the places of placeholder ids in ``input_ids``. Parts, by name: ``vision_tower`` (a
``CLIPVisionModel``), ``multi_modal_projector``, ``language_model`` and ``image_newline`` (AnyRes only). The tower stops
at the hidden state that is used: the layers after it, the final norm and the pooled output are never computed.

Shapes: B prompts, L tokens, D the decoder's width, N tiles or frames, S their edge in pixels, P patches
a tile, T visual tokens, V the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from longva_model.config import LongVAConfig
from longva_model.pictures.layout import NEWLINE, UNIRES_POOL, Size, VisualLayout, anyres_order
from longva_model.pictures.levels import levels_to_pixels
from longva_model.pictures.preprocess import level_table
from longva_model.renamed import cache_keyword


class LongVAPreTrainedModel(PreTrainedModel):
    """What the bare model and the one with a head share."""

    config: LongVAConfig
    config_class = LongVAConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ("cache", "past_key_values")
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(newline := getattr(module, "image_newline", None), nn.Parameter):
            init.normal_(newline, mean=0.0, std=self.config.text_config.hidden_size**-0.5)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move or cast, but keep RoPE frequencies in fp32.

        Rounded to bf16 (``model.to(torch.bfloat16)``, or an engine that casts every buffer) a frequency is off
        by up to 2**-9, which at position 400,000 is many turns (reference section 6).
        """
        exact = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self.get_buffer(name)
            if moved.dtype != buffer.dtype and not moved.is_meta and not buffer.is_meta:
                put(self, name, buffer.to(moved.device))
        return self


@dataclass
class LongVAOutputWithPast(BaseModelOutputWithPast):
    """The decoder's output, and the visual tokens of all images and of all videos that went in, (T, D)."""

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None


class LongVAModel(LongVAPreTrainedModel):
    """Tower, projector and decoder, without the head; ``vision_batch_size`` tiles or frames are encoded at once."""

    def __init__(self, config: LongVAConfig) -> None:
        from transformers import AutoModel  # at the top it would import modeling.py, which needs this class

        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.multi_modal_projector = LongVAProjector(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.image_newline: nn.Parameter | None = None
        if config.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.vision_batch_size = 32
        self.post_init()

    def encode_tiles(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Tower and projector, no pooling: (N, 3, S, S) on any device to (N, P, D), all patches row-major.

        Here and in what follows tiles may also be 8-bit levels, (N, S, S, 3), which CLIP's mean and deviation
        normalise on their device, to the same values.
        """
        return self._in_batches(pixels_NCHW, lambda features: features)

    def encode_frames(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Tower, projector and pool: (N, 3, S, S) on any device to (N, tokens_per_frame, D), 144 tokens for LongVA.

        Each frame is encoded for itself, so frames may be encoded in any company.

        Raises:
            ValueError: the config does not say how frames are pooled.
        """
        stride, mode = self.config.layout.require_pooling()
        return self._in_batches(pixels_NCHW, lambda features: pool_tokens(features, stride, mode))

    def encode_images(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | list) -> list[torch.Tensor]:
        """Each image's visual tokens, (T, D), in the decoder's order.

        Args:
            pixel_values: (images, tiles, 3, S, S), short lists of tiles padded at the end, or all tiles of
                all images one after another, (N, 3, S, S). The first tile of an image is the whole of it.
            image_sizes: (images, 2), height and width in pixels.

        Raises:
            ValueError: fewer tiles than the sizes ask for.
        """
        layout = self.config.layout
        sizes = [(int(width), int(height)) for height, width in image_sizes]
        starts = _tile_starts(pixel_values, [layout.num_tiles(size) for size in sizes])
        flat_NCHW = pixel_values.flatten(0, 1) if pixel_values.dim() == 5 else pixel_values
        # Rows of flat_NCHW that each image uses, in its order; and every row once, to be encoded.
        rows = [layout.tile_sources(size) + start for size, start in zip(sizes, starts, strict=True)]
        needed, place = np.unique(np.concatenate(rows), return_inverse=True)

        def finish(features: torch.Tensor) -> torch.Tensor:
            return pool_tokens(features, UNIRES_POOL, "average") if layout.pools_tiles else features

        encoded_NTD = self._in_batches(flat_NCHW, finish, torch.from_numpy(needed))
        places = np.split(place, np.cumsum([len(image) for image in rows])[:-1])
        return [
            merge_tiles(encoded_NTD[own.tolist()], size, layout, self.image_newline)
            for own, size in zip(places, sizes, strict=True)
        ]

    def encode_videos(
        self, pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | list | None = None
    ) -> list[torch.Tensor]:
        """Each video's visual tokens, (T, D), in the decoder's order.

        Args:
            pixel_values_videos: (videos, frames, 3, S, S), short videos padded at the end; or one video
                as (frames, 3, S, S).
            video_num_frames: frames of each video; all of them unless given.
        """
        videos = pixel_values_videos[None] if pixel_values_videos.dim() == 4 else pixel_values_videos
        counts = [videos.shape[1]] * len(videos) if video_num_frames is None else [int(n) for n in video_num_frames]
        out = []
        for frames_NCHW, count in zip(videos, counts, strict=True):
            tokens_TD = self.encode_frames(frames_NCHW[:count]).flatten(0, 1)
            if self.image_newline is not None:
                tokens_TD = torch.cat([tokens_TD, self.image_newline[None].to(tokens_TD)])
            out.append(tokens_TD)
        return out

    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | list, **_: Any
    ) -> torch.Tensor:
        """Visual tokens of all images, one image after another, in the decoder's order: (T, D)."""
        return torch.cat(self.encode_images(pixel_values, image_sizes))

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | list | None = None, **_: Any
    ) -> torch.Tensor:
        """Visual tokens of all videos, one video after another, in the decoder's order: (T, D)."""
        return torch.cat(self.encode_videos(pixel_values_videos, video_num_frames))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Token embeddings with visual tokens in their places, (B, L, D), and those of images and of videos, (T, D).

        Raises:
            ValueError: placeholders and visual tokens that do not match in number.
        """
        images = videos = None
        if pixel_values is not None:
            if image_sizes is None:
                raise ValueError("pixel_values came without image_sizes; pass on all that the processor returned")
            images = self.get_image_features(pixel_values, image_sizes)
        if pixel_values_videos is not None:
            videos = self.get_video_features(pixel_values_videos, video_num_frames)
        is_image, is_video = input_ids == self.config.image_token_index, input_ids == self.config.video_token_index
        embeds_BLD = self.get_input_embeddings()(input_ids.masked_fill(is_image | is_video, 0))
        for what, mask_BL, tokens_TD in (("image", is_image, images), ("video", is_video, videos)):
            given = 0 if tokens_TD is None else len(tokens_TD)
            if (wanted := int(mask_BL.sum())) != given:
                raise ValueError(
                    f"the prompt has {wanted} {what} placeholder tokens, but the {what}s given make {given} visual "
                    "tokens; pass on all that the processor returned, to the model whose processor it was"
                )
            if tokens_TD is not None:
                places_BL1 = mask_BL[..., None].to(embeds_BLD.device)
                embeds_BLD = embeds_BLD.masked_scatter(places_BL1, tokens_TD.to(embeds_BLD))
        return embeds_BLD, images, videos

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
        use_cache: bool | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> LongVAOutputWithPast:
        """Run the decoder over a prompt.

        Args:
            input_ids: (B, L), with placeholders where visual tokens go.
            pixel_values: see ``encode_images``.
            image_sizes: (images, 2), height and width in pixels.
            pixel_values_videos: see ``encode_videos``.
            video_num_frames: (videos,), where they differ.
            attention_mask: (B, past + L), 0 for padding; prompts of a batch are padded on the left.
            position_ids: (B, L); counted from the mask unless given.
            cache: keys and values of what came before.
            inputs_embeds: (B, L, D) instead of ``input_ids``.
            mm_token_type_ids: not needed; taken because processors are asked for them.
            past_key_values: ``cache`` by the name that older releases of transformers call it.

        Raises:
            ValueError: neither or both of ids and embeddings; placeholders and visual tokens that do not
                match in number; more tokens than the context holds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        images = videos = None
        if input_ids is not None:
            inputs_embeds, images, videos = self.embed(
                input_ids, pixel_values, image_sizes, pixel_values_videos, video_num_frames
            )
        elif pixel_values is not None or pixel_values_videos is not None:
            raise ValueError("visuals cannot be placed in inputs_embeds; give input_ids with placeholders")
        assert inputs_embeds is not None
        length = inputs_embeds.shape[1]
        if position_ids is None and isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        cache = past_key_values if cache is None else cache
        past = cache.get_seq_length() if cache is not None else 0
        self.check_length(past, length, position_ids)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{cache_keyword(self.language_model): cache},
            **kwargs,
        )
        return LongVAOutputWithPast(**outputs, image_hidden_states=images, video_hidden_states=videos)

    def check_length(self, past: int, length: int, position_ids: torch.Tensor | None = None) -> None:
        """Refuse a prompt that the context does not hold with a ``ValueError``; nothing is ever cut.

        One new token at a time passes, so that generation may end where it ends.
        """
        limit = self.config.context_length
        total = past + length
        if length == 1 or total <= limit:
            return
        if position_ids is not None:  # padding does not count
            total = int(position_ids.max()) + 1
        if total > limit:
            raise ValueError(
                f"the prompt is {total} tokens long, but the model's context holds {limit} "
                "(max_position_embeddings). Give fewer frames or smaller images; or, to measure beyond the "
                f"context, load with max_position_embeddings={total} or more"
            )

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters that no output depends on; distributed training that waits for every gradient freezes them."""
        layers = self.vision_tower.encoder.layers
        used = self.config.vision_feature_layer % (len(layers) + 1)
        return [*layers[used:].parameters(), *self.vision_tower.post_layernorm.parameters()]

    def _in_batches(
        self,
        pixels_NCHW: torch.Tensor,
        finish: Callable[[torch.Tensor], torch.Tensor],
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``finish(projector(tower(...)))`` of all tiles, or of ``rows`` of them, a bounded number at a time."""
        is_levels = pixels_NCHW.dtype == torch.uint8
        parameter = self.multi_modal_projector.linear_1.weight
        tower = next(self.vision_tower.parameters())
        rows = (torch.arange(len(pixels_NCHW)) if rows is None else rows).to(pixels_NCHW.device)
        out = []
        for part in rows.split(self.vision_batch_size):
            pixels = pixels_NCHW[part]
            pixels = like(levels_to_pixels(pixels, level_table()) if is_levels else pixels, tower)
            features = tower_features(self.vision_tower, pixels, self.config)
            out.append(finish(self.multi_modal_projector(like(features, parameter))))
        return torch.cat(out)


def _tile_starts(pixel_values: torch.Tensor, tiles: list[int]) -> list[int]:
    """Where each image's tiles start among all tiles, where there are as many as the images need."""
    if pixel_values.dim() == 5:
        images, room = pixel_values.shape[:2]
        if images != len(tiles) or max(tiles, default=0) > room:
            raise ValueError(
                f"pixel_values hold {images} images of up to {room} tiles, but image_sizes ask for "
                f"{len(tiles)} images of {tiles} tiles"
            )
        return [i * room for i in range(images)]
    if pixel_values.dim() != 4 or len(pixel_values) != sum(tiles):
        raise ValueError(
            f"pixel_values of shape {tuple(pixel_values.shape)} do not hold the {sum(tiles)} tiles that image_sizes "
            f"ask for ({tiles} an image)"
        )
    return [sum(tiles[:i]) for i in range(len(tiles))]


class LongVAProjector(nn.Module):
    """Linear, activation, linear: the tower's width to the decoder's."""

    def __init__(self, config: LongVAConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features_NPV: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features_NPV)))


def tower_features(tower: Any, pixels_NCHW: torch.Tensor, config: LongVAConfig) -> torch.Tensor:
    """Hidden state ``config.vision_feature_layer`` of a ``CLIPVisionModel``, (N, P, V), without the class token."""
    layers = tower.encoder.layers
    # The list of hidden states starts with the embeddings, so it is one longer than the list of layers.
    wanted = config.vision_feature_layer % (len(layers) + 1)
    hidden = tower.pre_layrnorm(tower.embeddings(pixels_NCHW))
    for layer in layers[:wanted]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


def pool_tokens(features_NPD: torch.Tensor, stride: int, mode: str) -> torch.Tensor:
    """Pool each square map of patches: (N, side**2, D) to (N, (side // stride)**2, D), row-major."""
    count, patches, dim = features_NPD.shape
    side = round(patches**0.5)
    maps_NDYX = features_NPD.reshape(count, side, side, dim).permute(0, 3, 1, 2)
    pool = nn.functional.avg_pool2d if mode == "average" else nn.functional.max_pool2d
    return pool(maps_NDYX, stride).flatten(2).transpose(1, 2)


def merge_tiles(
    tiles_NPD: torch.Tensor, image_wh: Size, layout: VisualLayout, newline_D: torch.Tensor | None
) -> torch.Tensor:
    """One image's visual tokens in the decoder's order, (T, D).

    Args:
        tiles_NPD: tiles as ``layout.tile_sources`` lists them, pooled already where ``layout.pools_tiles``.
        image_wh: the image's size in pixels.
        newline_D: the learnt newline of AnyRes, None elsewhere.
    """
    flat_TD = tiles_NPD.flatten(0, 1)
    if newline_D is None:
        return flat_TD
    with_newline = torch.cat([flat_TD, newline_D[None].to(flat_TD)])
    grid = layout.grid(image_wh)
    if grid is None:
        return with_newline
    assert NEWLINE == -1  # so that it picks the last row
    return with_newline[torch.from_numpy(anyres_order(grid, layout.patches_per_side)).to(flat_TD.device)]


def like(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``tensor`` in a weight's type and on its device; of one that waits elsewhere, accelerate knows the device."""
    return tensor.to(weight.dtype) if weight.is_meta else tensor.to(weight)


def put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter or buffer by its dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)
