"""Tiny random checkpoints of the kinds that lmms-eval's own models load: what shows that a host runs `vniah_generate`.

Each is a few hundred kB: model, tokenizer, processor, chat template. Their answers mean nothing; that one comes for
every cell, and of how many frames, is what is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_checkpoints import TEXT as COMMON

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL = [*ENDS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# One placeholder a visual, in front of the text.
PLACEHOLDERS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for item in message.content if item.type == 'image' %}<IMG_CONTEXT>\n{% endfor %}"
    "{% for item in message.content if item.type == 'video' %}<video>\n{% endfor %}"
    "{% for item in message.content if item.type == 'text' %}{{ item.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {name: size for name, size in COMMON.items() if name != "vocab_size"}
TEXT["max_position_embeddings"] = 32768
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
VISION: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}


def tiny_tokenizer(special: list[str], template: str, **more: Any) -> Any:
    """Bytes as tokens, and ``special`` ones behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    known = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **more}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **known)
    tokenizer.chat_template = template
    return tokenizer


def made_to_spell(model: Any, tokenizer: Any) -> Any:
    """The model, its words made letters, so that no random answer is blank."""
    import torch

    head = model.get_output_embeddings().weight
    assert head is not model.get_input_embeddings().weight
    spelt = [tokenizer.decode([number]).isalpha() for number in range(len(tokenizer))]
    with torch.no_grad():
        head[[number for number in range(len(head)) if number >= len(spelt) or not spelt[number]]] = 0
    return model


def _save(folder: Path, model: Any, processor: Any) -> None:
    made_to_spell(model, processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def _write_qwen(
    folder: Path, kind: str, text: dict[str, Any], vision: dict[str, Any], rope: dict[str, Any], *, patch: int = 14
) -> None:
    """A model of ``kind`` with a processor of frames in patches of ``patch`` pixels."""
    import torch
    import transformers

    tokenizer = tiny_tokenizer(SPECIAL, CHAT)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ends = dict(zip(("bos_token_id", "eos_token_id"), (tokenizer.pad_token_id, tokenizer.eos_token_id), strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e6, **rope}
    config = getattr(transformers, f"{kind}Config")(
        text_config={
            "vocab_size": len(tokenizer) + 1,
            "rope_parameters": rope,
            **(ends if kind == "Qwen2_5_VL" else {}),
            **text,
            **TEXT,
        },
        vision_config=vision,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    torch.manual_seed(0)
    images = transformers.Qwen2VLImageProcessor(patch_size=patch)
    videos = transformers.Qwen3VLVideoProcessor() if patch == 16 else transformers.Qwen2VLVideoProcessor()
    of_kind = transformers.Qwen3VLProcessor if patch == 16 else getattr(transformers, f"{kind}Processor")
    processor = of_kind(images, tokenizer, videos, chat_template=CHAT)
    _save(folder, getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor)


def write_tiny_qwen2_vl(folder: Path) -> None:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    _write_qwen(folder, "Qwen2VL", {}, vision, {"mrope_section": [1, 1, 2]})


def write_tiny_qwen2_5_vl(folder: Path) -> None:
    _write_qwen(folder, "Qwen2_5_VL", {}, {**VISION, "fullatt_block_indexes": [0]}, {"mrope_section": [1, 1, 2]})


def write_tiny_qwen3_vl(folder: Path) -> None:
    vision = {**VISION, "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    rope = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    _write_qwen(folder, "Qwen3VL", {"head_dim": 8}, vision, rope, patch=16)


def write_tiny_qwen3_5(folder: Path) -> None:
    text = {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
    }
    vision = {**VISION, "patch_size": 16, "num_position_embeddings": 16}
    rope = {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    _write_qwen(folder, "Qwen3_5", text, vision, rope, patch=16)


def write_tiny_internvl(folder: Path) -> None:
    import torch
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    named |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = tiny_tokenizer([*ENDS, *named.values()], PLACEHOLDERS, extra_special_tokens=named)
    config = InternVLConfig(
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), "tie_word_embeddings": False, **TEXT},
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    size = {"height": 56, "width": 56}
    images, videos = GotOcr2ImageProcessor(size=size), InternVLVideoProcessor(size=size)
    processor = InternVLProcessor(images, tokenizer, videos, image_seq_length=4, chat_template=PLACEHOLDERS)
    _save(folder, InternVLForConditionalGeneration(config), processor)


def write_tiny_llava_onevision(folder: Path) -> None:
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    named = {"image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    special = [*ENDS, *named.values()]
    tokenizer = tiny_tokenizer(special, PLACEHOLDERS, extra_special_tokens=named)
    vision = {**TOWER, "image_size": 70, "patch_size": 14, "vision_use_head": False}
    tiles = [[70, 70], [70, 140], [140, 70]]
    config = LlavaOnevisionConfig(
        vision_config={**vision, "model_type": "siglip_vision_model"},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), "tie_word_embeddings": False, **TEXT},
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tiles,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    size = {"height": 70, "width": 70}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=tiles),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=PLACEHOLDERS,
    )
    _save(folder, LlavaOnevisionForConditionalGeneration(config), processor)


def write_tiny_gemma3(folder: Path) -> None:
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = [*ENDS, "<bos>", *named.values()]
    template = PLACEHOLDERS.replace("<IMG_CONTEXT>", "<start_of_image>")
    tokenizer = tiny_tokenizer(special, template, bos_token="<bos>", extra_special_tokens=named)
    layers = ["sliding_attention", "full_attention"]
    attention = {"head_dim": 8, "sliding_window": 512, "layer_types": layers}
    config = Gemma3Config(
        text_config={"vocab_size": len(tokenizer), "tie_word_embeddings": False, **attention, **TEXT},
        vision_config={**TOWER, "image_size": 56, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    _save(folder, Gemma3ForConditionalGeneration(config), processor)


# By lmms-eval's name of the model that loads it.
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "qwen2_vl": write_tiny_qwen2_vl,
    "qwen2_5_vl": write_tiny_qwen2_5_vl,
    "qwen3_vl": write_tiny_qwen3_vl,
    "qwen3_5": write_tiny_qwen3_5,
    "internvl_hf": write_tiny_internvl,
    "llava_hf": write_tiny_llava_onevision,
    "gemma3": write_tiny_gemma3,
}
