"""Random checkpoints of Qwen2.5-VL and Qwen3-VL, of any size, for benchmarks: no weights are fetched.

    write_checkpoint(folder, small("qwen2_5_vl"))

leaves what a folder of the Hub holds: weights as safetensors, config, tokenizer (a byte-level BPE that merges),
processor, chat template. Weights are drawn so that answers depend on what is shown, and a free answer is of letters,
as long as is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PADS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = (
    "Which object is shown in the frame that does not belong to the film? Answer with a single word.",
    "What is the picture in the middle of the frame? The red kite, a green boat, the blue chair and the yellow star.",
    "You are a helpful assistant. user assistant system <0.5 seconds> <1.5 seconds> Answer in a few words.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A checkpoint: ``name`` is "qwen2_5_vl" or "qwen3_vl"; ``text`` and ``vision`` are settings of its config.

    ``pixels`` bounds a frame's size for the processors, as (least, most); None leaves it to their classes.
    """

    name: str
    text: dict[str, Any]
    vision: dict[str, Any] = field(default_factory=dict)
    pixels: tuple[int, int] | None = None


def small(
    name: str = "qwen2_5_vl", *, hidden: int = 512, layers: int = 6, tower_hidden: int = 192, tower_layers: int = 3
) -> Kind:
    """A model of 64 numbers a head in which matrix products decide, of frames from one token up.

    By default a frame passes 0.37 weights of the tower for one of the decoder; in the 7B 0.39.
    """
    three = {"qwen2_5_vl": [8, 12, 12], "qwen3_vl": [12, 10, 10]}[name]
    heads = hidden // 64
    text: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "vocab_size": 1024,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": three},
    }
    vision: dict[str, Any] = {
        "depth": tower_layers,
        "hidden_size": tower_hidden,
        "intermediate_size": 3 * tower_hidden,
        "num_heads": max(1, tower_hidden // 32),
        "out_hidden_size": hidden,
    }
    if name == "qwen3_vl":
        text |= {"head_dim": 64}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        vision |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, tower_layers - 1]}
    else:
        vision |= {"fullatt_block_indexes": [tower_layers - 1], "window_size": 56}
    edge = 2 * (16 if name == "qwen3_vl" else 14)
    # One token at least, and at most as many as in a frame of 640x360 or so.
    return Kind(name=name, text=text, vision=vision, pixels=(edge**2, 1024 * edge**2))


def released(name: str) -> Kind:
    """The sizes of Qwen2.5-VL-7B-Instruct and of Qwen3-VL-8B-Instruct."""
    if name == "qwen3_vl":
        text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
        text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144}
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
        deep = {"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]}
        # The processors' own bounds for a whole video, which are not the class's.
        pixels = (4096, 25165824)
        return Kind(name=name, text={**text, "rope_parameters": rope}, vision={**vision, **deep}, pixels=pixels)
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    vision |= {"tokens_per_second": 2}
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    return Kind(name=name, text={**text, "rope_parameters": rope}, vision={**vision, **windows})


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=letters, min_frequency=1, show_progress=False)
    raw.train_from_iterator(_SENTENCES, trainer)
    raw.add_special_tokens([*SPECIAL, *PADS.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=PADS,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def processor(kind: Kind) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    bounds: dict[str, Any] = {}
    if kind.pixels is not None:
        bounds = {"size": dict(zip(("shortest_edge", "longest_edge"), kind.pixels, strict=True))}
    words = tokenizer()
    if kind.name == "qwen3_vl":
        images = Qwen2VLImageProcessor(patch_size=16, **bounds)
        return Qwen3VLProcessor(
            images, words, Qwen3VLVideoProcessor(cap_pixels_per_frame=False, **bounds), chat_template=TEMPLATE
        )
    videos = Qwen2VLVideoProcessor(cap_pixels_per_frame=False, **bounds)
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**bounds), words, videos, chat_template=TEMPLATE)


def config(kind: Kind, words: Any) -> Any:
    import transformers

    names = {f"{name}_id": token for name, token in PADS.items()}
    names |= {f"vision_{edge}_token_id": f"<|vision_{edge}|>" for edge in ("start", "end")}
    ids = {name: words.convert_tokens_to_ids(token) for name, token in names.items()}
    of_kind = {"qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig"}[kind.name]
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    return getattr(transformers, of_kind)(
        text_config={**kind.text, **ends}, vision_config=kind.vision, tie_word_embeddings=False, **ids
    )


def write_checkpoint(folder: Path, kind: Kind, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> None:
    """The files of a random checkpoint; weights are made on ``device``, in ``dtype``."""
    import torch
    from transformers import AutoModelForImageTextToText

    shown = processor(kind)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config(kind, shown.tokenizer), dtype=getattr(torch, dtype), trust_remote_code=False
        )
    draw = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Outputs of the size of the inputs: an answer then depends on every frame.
                inputs = parameter.shape[1] if "embed" in name else parameter[0].numel()
                size = 0.4 if "embed" in name else inputs**-0.5
                parameter.normal_(std=size, generator=draw)
        # Answers are of letters: none ends early, and none is blank.
        spelt = [shown.tokenizer.decode([number]).isalpha() for number in range(len(shown.tokenizer))]
        head_VD = model.get_output_embeddings().weight
        head_VD[[number for number in range(len(head_VD)) if number >= len(spelt) or not spelt[number]]] = 0
    model.generation_config.eos_token_id = shown.tokenizer.eos_token_id
    model.save_pretrained(folder)
    shown.save_pretrained(folder)
