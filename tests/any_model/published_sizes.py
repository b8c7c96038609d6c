"""Folders with the config and processor of models as they are published, and no weights: sizes are the real ones, the
tokenizer is a small one.

    qwen2_5_vl_7b(folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from any_model.families import qwen_ids, qwen_template, qwen_tokenizer

QWEN2_5_VL_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
QWEN3_VL_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
        "rope_theta": 5e6,
    },
}


def qwen2_5_vl_7b(folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = qwen_tokenizer()
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    vision |= {"fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "window_size": 112}
    config = Qwen2_5_VLConfig(text_config=QWEN2_5_VL_7B, vision_config=vision, **qwen_ids(tokenizer))
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    image = Qwen2VLImageProcessor(size=size)
    video = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)
    _write(folder, config, Qwen2_5_VLProcessor(image, tokenizer, video))


def qwen3_vl_8b(folder: Path) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    tokenizer = qwen_tokenizer()
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304}
    config = Qwen3VLConfig(text_config=QWEN3_VL_8B, vision_config=vision, **qwen_ids(tokenizer))
    image = Qwen2VLImageProcessor(size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16)
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, patch_size=16)
    _write(folder, config, Qwen3VLProcessor(image, tokenizer, video))


def _write(folder: Path, config: Any, processor: Any) -> None:
    processor.chat_template = processor.tokenizer.chat_template = qwen_template()
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
