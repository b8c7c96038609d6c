"""LLaVA-NeXT-Video by transformers' own class: the baseline of the paper's Figure 4 (iii) and (iv).

Shapes: N frames, t visual tokens a frame, T visual tokens, D hidden size, S edge of a tile in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from longva_model.backends.backend import HubModel, building, described, load_args, load_transformers
from longva_model.lmms.arguments import ModelArgs
from longva_model.pictures.layout import VisualLayout


class LlavaNextVideoBackend(HubModel):
    """A checkpoint such as ``llava-hf/LLaVA-NeXT-Video-7B-32K-hf``.

    Its frames are pooled before the projector, LongVA's after it. An image is seen as AnyRes: the whole image,
    then its tiles, a newline after each row.
    """

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

        with building(folder):
            config = LlavaNextVideoConfig.from_pretrained(folder, trust_remote_code=False)
            model = load_transformers(
                LlavaNextVideoForConditionalGeneration, folder, config, args, **load_args(args, device, dtype)
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        vision = config.vision_config
        self.size, stride = int(vision.image_size), int(config.spatial_pool_stride)
        self.layout = VisualLayout(
            merge_type="spatial_unpad",
            tile_size=self.size,
            patch_size=int(vision.patch_size),
            pool_stride=stride,
            # Theirs are (height, width).
            pinpoints=tuple((int(width), int(height)) for height, width in config.image_grid_pinpoints),
        )
        self.tokens_per_frame = (self.size // int(vision.patch_size) // stride) ** 2
        self._finish(folder, args, model, model.model.language_model, model.lm_head, tokenizer)

    def _visual_settings(self) -> str:
        config = self.model.config
        features = (config.vision_feature_layer, config.vision_feature_select_strategy, config.spatial_pool_mode)
        return f"{self.layout} {features} {described(config.vision_config)} {config.projector_hidden_act}"

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        from longva_model.pictures.preprocess import fit_frames

        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, self.size))  # type: ignore[arg-type]

    @torch.inference_mode()
    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        from longva_model.pictures.preprocess import level_table

        config = self.model.config
        out = self.model.model.get_video_features(
            # By place: older transformers name it otherwise.
            self._levels(pixels_NHWC, level_table())[None],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            output_hidden_states=True,
        )
        tokens_TD: torch.Tensor = _pooled(out)
        return tokens_TD.reshape(len(pixels_NHWC), -1, tokens_TD.shape[-1])

    @torch.inference_mode()
    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        from longva_model.pictures.preprocess import level_table
        from vniah.haystack.pictures import to_rgb

        config, upright = self.model.config, to_rgb(image)
        tiles_NCSS = self._levels(torch.from_numpy(self.layout.tiles(upright)), level_table())
        out = self.model.model.get_image_features(
            pixel_values=tiles_NCSS[None],
            image_sizes=torch.tensor([(upright.height, upright.width)]),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            output_hidden_states=True,
        )
        return _pooled(out)

    def image_tokens(self, size: tuple[int, int]) -> int:
        return int(self.layout.num_image_tokens(size))

    def video_suffix(self) -> torch.Tensor | None:
        return None


def _pooled(out: Any) -> torch.Tensor:
    """Visual tokens, (T, D), of what transformers returns: of one video, or of a list of one image."""
    found = out.pooler_output if hasattr(out, "pooler_output") else out
    if isinstance(found, (list, tuple)):
        return torch.cat(list(found))
    tokens_TD: torch.Tensor = found.flatten(0, -2)
    return tokens_TD
