"""LLaVA-NeXT-Video by transformers' own class: the baseline of the paper's Figure 4 (iii) and (iv).

Shapes: N frames, t visual tokens a frame, T visual tokens, D hidden size, S edge of a tile in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image as PILImage

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import HubModel, building, described, load_transformers
from longva_model.pictures.layout import VisualLayout
from longva_model.pictures.preprocess import level_table
from vniah.haystack.pictures import to_rgb


class LlavaNextVideoBackend(HubModel):
    """A checkpoint such as ``llava-hf/LLaVA-NeXT-Video-7B-32K-hf``.

    Its frames are pooled before the projector, LongVA's after it. An image is seen as AnyRes: the whole image,
    then its tiles, a newline after each row.
    """

    layout: VisualLayout

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

        with building(folder):
            config = LlavaNextVideoConfig.from_pretrained(folder, trust_remote_code=False)
            model = load_transformers(LlavaNextVideoForConditionalGeneration, folder, config, args, device, dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.layout = VisualLayout(
            merge_type="spatial_unpad",
            tile_size=int(config.vision_config.image_size),
            patch_size=int(config.vision_config.patch_size),
            pool_stride=int(config.spatial_pool_stride),
            # Theirs are (height, width).
            pinpoints=tuple((int(width), int(height)) for height, width in config.image_grid_pinpoints),
        )
        self._features = {
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "output_hidden_states": True,
        }
        self._finish(folder, args, model, model.model.language_model, model.lm_head, tokenizer)

    def _visual_settings(self) -> str:
        config = self.model.config
        features = (config.vision_feature_layer, config.vision_feature_select_strategy, config.spatial_pool_mode)
        return f"{self.layout} {features} {described(config.vision_config)} {config.projector_hidden_act}"

    @torch.inference_mode()
    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        # By place: older transformers name it otherwise.
        out = self.model.model.get_video_features(self._levels(pixels_NHWC, level_table())[None], **self._features)
        tokens_TD = _pooled(out)
        return tokens_TD.reshape(len(pixels_NHWC), -1, tokens_TD.shape[-1])

    @torch.inference_mode()
    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        upright = to_rgb(image)
        tiles_NCSS = self._levels(torch.from_numpy(self.layout.tiles(upright)), level_table())
        sizes = torch.tensor([(upright.height, upright.width)])
        out = self.model.model.get_image_features(pixel_values=tiles_NCSS[None], image_sizes=sizes, **self._features)
        return _pooled(out)


def _pooled(out: Any) -> torch.Tensor:
    """Visual tokens, (T, D), of what transformers returns: of one video, or of a list of one image."""
    found = out.pooler_output if hasattr(out, "pooler_output") else out
    tokens_TD: torch.Tensor = torch.cat(list(found)) if isinstance(found, (list, tuple)) else found.flatten(0, -2)
    return tokens_TD
