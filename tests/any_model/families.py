"""Tiny random checkpoints of transformers' video-language models: what tests of the backend for any model run on.

    FAMILIES["qwen3_vl"].build(folder, seed=0)

leaves in ``folder`` what a folder of the Hub holds (weights as safetensors, config, tokenizer, processors, chat
template), for ``AutoModelForImageTextToText`` and ``AutoProcessor`` without a network or remote code. Shapes are tiny;
what decides a model's positions, masks and state is kept: sections of multimodal rope, windowed towers, DeepStack,
sliding windows shorter than a prompt, shared key-value layers, frames merged in pairs, timestamps, left-out tokens.
Weights are random and loud, so one frame more or less shows in the log-probabilities of any answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Presentation = Literal["video", "images"]


@dataclass(frozen=True)
class Family:
    """One model type and how a clip is shown to it.

    Attributes:
        build: writes the checkpoint into a folder (made where missing), by a seed.
        presentation: a clip is one "video", or its frames are single "images" of the same message.
        notes: what is particular in it.
        requires: a package that its processor needs besides ours, or None.
        newer: what is wrong with it in the oldest transformers that we take, or None; tests run from 5.24 on.
        refused: why a tree of shared prefixes cannot be right for it, or None.
    """

    build: Callable[[Path, int], None]
    presentation: Presentation = "video"
    notes: str = ""
    requires: str | None = None
    newer: str | None = None
    refused: str | None = None


# Each is particular in another way: positions in seconds, DeepStack, one axis, a newline vector, recurrent layers,
# images that see themselves both ways. The other families' longer tests are slow ones.
CORE = ("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "qwen3_5", "gemma3")

SENTENCES = (
    "Watch the clip and answer in a few words. A street, a harbour and a meadow pass by before the night comes.",
    "What is the animal in the frame that does not belong to the clip? Answer with a single word.",
    "What does the visitor carry in the frame that does not belong to the clip? Answer with a short phrase.",
    "A brown teddy bear sits on the blue chair. The green kite is over the meadow and the red boat in the harbour.",
    "Teddy, Panda, Tiger, Boat, Kite, Chair, Harbour, Meadow, Street. Teddy Panda Tiger Boat Kite Chair. Yes. No.",
    "Frame1: Frame2: Time 0.0s: <0.5 seconds> user assistant system model User Assistant USER ASSISTANT 00:00 00:01",
)


def make_tokenizer(extra: list[str], named: dict[str, str] | None = None, **roles: str) -> Any:
    """A byte-level BPE with merges learned from ``SENTENCES``.

    Args:
        extra: the family's special tokens.
        named: attributes of the tokenizer that name some of them, such as ``image_token``; added where missing.
        roles: ``eos_token`` and ``pad_token`` where they are not <|im_end|> and <|pad|>; a ``bos_token`` is put in
            front of every text, as Llama's and Gemma's tokenizers do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    named = named or {}
    roles = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>", **roles}
    bos = roles.get("bos_token")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=letters, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(list(dict.fromkeys([*roles.values(), *extra, *named.values()])))
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=named, clean_up_tokenization_spaces=False, **roles
    )


def random_model(build: Callable[[], Any], seed: int, table: float = 0.4) -> Any:
    """The model that ``build`` makes, filled the same for each seed and loudly, in fp32.

    A matrix maps unit inputs to outputs of size ``gain``; queries and keys get more, so that attention is far from
    uniform. Everything is filled: Gemma 3's projector starts as zeros, which would blind the model. ``table`` is the
    size of the embeddings; small where they are the head too and scaled up, or each token would predict itself.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().float().eval()
        tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim < 2:  # norms, biases, decay rates: around what the class starts from
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                    continue
                # Experts are stacked matrices, convolutions see a whole patch.
                inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
                std = table if id(parameter) in tables else gain / inputs**0.5
                parameter.normal_(std=std)
            # Nemotron-H-Omni names its decoder's head only there.
            head = (model.get_output_embeddings() or model.language_model.get_output_embeddings()).weight
            if id(head) not in tables:
                head.mul_(2.0)
    return model


def save(folder: Path, model: Any, processor: Any, template: str) -> None:
    """The checkpoint's files; ``template`` is the chat template of processor and tokenizer."""
    processor.chat_template = processor.tokenizer.chat_template = template
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def token_ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    """Options of a config that name special tokens by id."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
# Of the towers of Qwen and GLM.
DEPTH: dict[str, Any] = {**TOWER, "depth": 3, "num_heads": 2, "out_hidden_size": 64}
# Of CLIP's and SigLIP's kind.
LAYERS: dict[str, Any] = {**TOWER, "num_hidden_layers": 3, "num_attention_heads": 2}

# ---------------------------------------------------------------- Qwen

CHATML = ["<|im_start|>", "<|im_end|>"]
QWEN_NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_VISION = ["<|vision_start|>", "<|vision_end|>"]
# Qwen's: a visual where it stands in the message, and a system turn of its own where the caller has none (2 and 2.5).
QWEN_TEMPLATE = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nTHOUGHT{% endif %}"
)
QWEN2_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\\nAnswer in a few words.<|im_end|>\\n{% endif %}"
)
# Thinking models open a thought unless told enable_thinking=False.
QWEN3_5_THOUGHT = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


def qwen_template(*, system: str = "", thought: str = "") -> str:
    return QWEN_TEMPLATE.replace("SYSTEM", system).replace("THOUGHT", thought)


def qwen_tokenizer() -> Any:
    return make_tokenizer([*CHATML, *QWEN_VISION, "<think>", "</think>"], QWEN_NAMED)


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    return token_ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def _qwen2_processors(patch: int) -> tuple[Any, Any]:
    """Image and video processor; a frame may be as small as one token, and no budget binds."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 4096 * (2 * patch) ** 2}
    video = Qwen2VLVideoProcessor(size=size, patch_size=patch, cap_pixels_per_frame=False)
    return Qwen2VLImageProcessor(size=size, patch_size=patch), video


def build_qwen2_vl(folder: Path, seed: int = 0) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = qwen_tokenizer()
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
        **qwen_ids(tokenizer),
    )
    image, video = _qwen2_processors(patch=8)
    model = random_model(lambda: Qwen2VLForConditionalGeneration(config), seed)
    save(folder, model, Qwen2VLProcessor(image, tokenizer, video), qwen_template(system=QWEN2_SYSTEM))


def build_qwen2_5_vl(folder: Path, seed: int = 0) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        # Windows of one token of 16 pixels: less than a frame, so windowed and full layers differ.
        vision_config={
            **DEPTH,
            "patch_size": 8,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        **qwen_ids(tokenizer),
    )
    image, video = _qwen2_processors(patch=8)
    model = random_model(lambda: Qwen2_5_VLForConditionalGeneration(config), seed)
    save(folder, model, Qwen2_5_VLProcessor(image, tokenizer, video), qwen_template(system=QWEN2_SYSTEM))


QWEN3_ROPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4}
QWEN3_TOWER: dict[str, Any] = {**DEPTH, "patch_size": 8, "num_position_embeddings": 36}


def _qwen3_processor(tokenizer: Any) -> Any:
    """Samples frames unless told not to, as the Hub's do."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16 * 4096}
    video = Qwen3VLVideoProcessor(size=size, patch_size=8, max_frames=6, cap_pixels_per_frame=False)
    return Qwen3VLProcessor(Qwen2VLImageProcessor(size=size, patch_size=8), tokenizer, video)


def build_qwen3_vl(folder: Path, seed: int = 0) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "vocab_size": len(tokenizer), "rope_parameters": QWEN3_ROPE},
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
        **qwen_ids(tokenizer),
    )
    model = random_model(lambda: Qwen3VLForConditionalGeneration(config), seed)
    save(folder, model, _qwen3_processor(tokenizer), qwen_template())


def build_qwen3_vl_moe(folder: Path, seed: int = 0) -> None:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    tokenizer = qwen_tokenizer()
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
    config = Qwen3VLMoeConfig(
        text_config={
            **TEXT,
            **experts,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "rope_parameters": QWEN3_ROPE,
            "tie_word_embeddings": False,
        },
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
        **qwen_ids(tokenizer),
    )
    model = random_model(lambda: Qwen3VLMoeForConditionalGeneration(config), seed)
    save(folder, model, _qwen3_processor(tokenizer), qwen_template())


def build_qwen3_5(folder: Path, seed: int = 0) -> None:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    tokenizer = qwen_tokenizer()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    config = Qwen3_5Config(
        text_config={
            **TEXT,
            **heads,
            **linear,
            "linear_value_head_dim": 16,
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {**QWEN3_ROPE, "partial_rotary_factor": 0.25},
        },
        vision_config=QWEN3_TOWER,
        **qwen_ids(tokenizer),
    )
    model = random_model(lambda: Qwen3_5ForConditionalGeneration(config), seed)
    save(folder, model, _qwen3_processor(tokenizer), qwen_template(thought=QWEN3_5_THOUGHT))


# ---------------------------------------------------------------- InternVL, LLaVA, VideoLLaMA3

QWEN2: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": False, **TEXT}
LLAMA: dict[str, Any] = {"model_type": "llama", **TEXT}
INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# LLaVA's: all visuals of a message before its text, wherever they stood.
LLAVA_PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}BEFORE{{ part['text'] }}{% endif %}{% endfor %}"
)
LLAVA_ONEVISION_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    + LLAVA_PARTS.replace("BEFORE", "\n")
    + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() }}: {% endif %}"
    + LLAVA_PARTS.replace("BEFORE", "")
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
VIDEO_LLAMA_3_TEMPLATE = (
    qwen_template(system=QWEN2_SYSTEM).replace("<|vision_start|>", "").replace("<|vision_end|>", "\n")
)


def build_internvl(folder: Path, seed: int = 0) -> None:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = make_tokenizer(CHATML, named)
    config = InternVLConfig(
        text_config={**QWEN2, "vocab_size": len(tokenizer)},
        vision_config={**LAYERS, "image_size": [32, 32], "patch_size": [8, 8]},
        image_seq_length=4,
        tie_word_embeddings=False,
        **token_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    size = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size), tokenizer, InternVLVideoProcessor(size=size), image_seq_length=4
    )
    save(folder, random_model(lambda: InternVLForConditionalGeneration(config), seed), processor, INTERNVL_TEMPLATE)


def build_llava_onevision(folder: Path, seed: int = 0, text: dict[str, Any] = QWEN2) -> None:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = make_tokenizer(CHATML, {"image_token": "<image>", "video_token": "<video>"})
    grids = [[40, 80], [80, 40], [80, 80]]
    config = LlavaOnevisionConfig(
        text_config={**text, "vocab_size": len(tokenizer)},
        # 5 x 5 patches: an odd side, so pooling to 3 x 3 rounds up.
        vision_config={
            **LAYERS,
            "model_type": "siglip_vision_model",
            "image_size": 40,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_grid_pinpoints=grids,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    size = {"height": 40, "width": 40}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
    )
    model = random_model(lambda: LlavaOnevisionForConditionalGeneration(config), seed)
    save(folder, model, processor, LLAVA_ONEVISION_TEMPLATE)


def _vicuna_tokenizer() -> Any:
    named = {"image_token": "<image>", "video_token": "<video>"}
    return make_tokenizer([], named, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


CLIP: dict[str, Any] = {**LAYERS, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
CLIP_SIZE: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def build_llava_next_video(folder: Path, seed: int = 0) -> None:
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokenizer = _vicuna_tokenizer()
    grids = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextVideoConfig(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config=CLIP,
        image_grid_pinpoints=grids,
        image_seq_length=16,
        video_seq_length=4,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**CLIP_SIZE),
        LlavaNextImageProcessor(**CLIP_SIZE, image_grid_pinpoints=grids),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = random_model(lambda: LlavaNextVideoForConditionalGeneration(config), seed)
    save(folder, model, processor, VICUNA_TEMPLATE)


def build_video_llava(folder: Path, seed: int = 0) -> None:
    from transformers import (
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    tokenizer = _vicuna_tokenizer()
    config = VideoLlavaConfig(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config=CLIP,
        image_seq_length=16,
        video_seq_length=136,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**CLIP_SIZE), VideoLlavaVideoProcessor(**CLIP_SIZE), tokenizer, patch_size=8
    )
    save(folder, random_model(lambda: VideoLlavaForConditionalGeneration(config), seed), processor, VICUNA_TEMPLATE)


def build_video_llama_3(folder: Path, seed: int = 0, compressed: bool = True) -> None:
    from transformers import (
        VideoLlama3Config,
        VideoLlama3ForConditionalGeneration,
        VideoLlama3ImageProcessor,
        VideoLlama3Processor,
        VideoLlama3VideoProcessor,
    )

    tokenizer = make_tokenizer(CHATML, QWEN_NAMED)
    config = VideoLlama3Config(
        text_config={**QWEN2, "vocab_size": len(tokenizer)},
        vision_config={**LAYERS, "patch_size": 8},
        **token_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16 * 4096}
    processor = VideoLlama3Processor(
        VideoLlama3ImageProcessor(size=size, patch_size=8),
        tokenizer,
        VideoLlama3VideoProcessor(size=size, patch_size=8, use_token_compression=compressed),
    )
    model = random_model(lambda: VideoLlama3ForConditionalGeneration(config), seed)
    save(folder, model, processor, VIDEO_LLAMA_3_TEMPLATE)


def build_video_llama_3_whole(folder: Path, seed: int = 0) -> None:
    build_video_llama_3(folder, seed, compressed=False)


# ---------------------------------------------------------------- GLM

GLM_TOKENS = [
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
]
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% elif part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>\n{% endif %}{% endif %}"
)
GLM_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5, "rope_theta": 1e4}
GLM_TOWER: dict[str, Any] = {**DEPTH, "patch_size": 8, "image_size": 48}


def _glm_parts() -> tuple[Any, dict[str, int]]:
    """(processor, the config's token ids)."""
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = make_tokenizer([*GLM_TOKENS, "<think>", "</think>"], named, eos_token="<|endoftext|>")
    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 16 * 4096}
    processor = Glm4vProcessor(
        Glm4vImageProcessor(size=size, patch_size=8), tokenizer, Glm4vVideoProcessor(size=size, patch_size=8)
    )
    ids = token_ids(
        tokenizer,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    return processor, ids


def build_glm4v(folder: Path, seed: int = 0) -> None:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    processor, ids = _glm_parts()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Glm4vConfig(
        text_config={**TEXT, **heads, "vocab_size": len(processor.tokenizer), "rope_parameters": GLM_ROPE},
        vision_config=GLM_TOWER,
        **ids,
    )
    save(folder, random_model(lambda: Glm4vForConditionalGeneration(config), seed), processor, GLM_TEMPLATE)


def build_glm4v_moe(folder: Path, seed: int = 0) -> None:
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    processor, ids = _glm_parts()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    config = Glm4vMoeConfig(
        text_config={
            **TEXT,
            **heads,
            **experts,
            "vocab_size": len(processor.tokenizer),
            "rope_parameters": GLM_ROPE,
        },
        vision_config=GLM_TOWER,
        **ids,
    )
    save(folder, random_model(lambda: Glm4vMoeForConditionalGeneration(config), seed), processor, GLM_TEMPLATE)


# ---------------------------------------------------------------- Gemma

GEMMA_3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA_4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}\n\n<|image|>\n\n"
    "{% elif part['type'] == 'video' %}\n\n<|video|>\n\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
# Shorter than any prompt with frames.
WINDOW = 24


def build_gemma3(folder: Path, seed: int = 0) -> None:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = make_tokenizer(turns, named, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    config = Gemma3Config(
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "vocab_size": len(tokenizer),
            **token_ids(tokenizer, bos_token_id="<bos>", eos_token_id="<eos>", pad_token_id="<pad>"),
        },
        vision_config={**LAYERS, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        **token_ids(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    image = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = Gemma3Processor(image, tokenizer, image_seq_length=4)
    save(
        folder,
        random_model(lambda: Gemma3ForConditionalGeneration(config), seed, table=0.1),
        processor,
        GEMMA_3_TEMPLATE,
    )


def build_gemma4(folder: Path, seed: int = 0) -> None:
    """Its frames have 63 tokens each: the processors allow 70 at least."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    turns = ["<|turn>", "<turn|>", "<|video|>"]
    tokenizer = make_tokenizer(turns, named, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    config = Gemma4Config(
        text_config={
            **TEXT,
            # The last three layers read the keys and values of the second and third.
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 3,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": len(tokenizer),
            "use_bidirectional_attention": "vision",
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
            "vocab_size": len(tokenizer),
            **token_ids(tokenizer, bos_token_id="<bos>", eos_token_id="<eos>", pad_token_id="<pad>"),
        },
        vision_config={
            **LAYERS,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        **token_ids(
            tokenizer,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            audio_token_id="<|audio|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
        ),
    )
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer,
        Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2, num_frames=6),
        image_seq_length=70,
    )
    save(
        folder,
        random_model(lambda: Gemma4ForConditionalGeneration(config), seed, table=0.1),
        processor,
        GEMMA_4_TEMPLATE,
    )


# ---------------------------------------------------------------- SmolVLM, PerceptionLM, Mistral

# SmolVLM's processor brings the same for videos; nothing stands behind "Assistant:".
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}<video>{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAMA_3_TURNS = ["<|start_header_id|>", "<|end_header_id|>"]
PERCEPTION_LM_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% elif part['type'] == 'video' %}<|video|>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_3_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "[SYSTEM_PROMPT]Answer in a few words.[/SYSTEM_PROMPT]{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}[IMG]{% endif %}{% endfor %}"
    "{% endif %}[/INST]{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
    "{% else %}[SYSTEM_PROMPT]{{ message['content'] }}[/SYSTEM_PROMPT]{% endif %}{% endfor %}"
)


def build_smolvlm(folder: Path, seed: int = 0) -> None:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    named = {
        "image_token": "<image>",
        "video_token": "<video>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = make_tokenizer(["<|im_start|>"], named, eos_token="<end_of_utterance>")
    config = SmolVLMConfig(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        **token_ids(tokenizer, image_token_id="<image>"),
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor(**sizes), image_seq_len=4
    )
    save(folder, random_model(lambda: SmolVLMForConditionalGeneration(config), seed), processor, SMOLVLM_TEMPLATE)


def build_idefics3(folder: Path, seed: int = 0) -> None:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = make_tokenizer(["<|im_start|>"], named, eos_token="<end_of_utterance>")
    config = Idefics3Config(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **token_ids(tokenizer, image_token_id="<image>"),
    )
    image = Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(image, tokenizer, image_seq_len=4)
    save(folder, random_model(lambda: Idefics3ForConditionalGeneration(config), seed), processor, SMOLVLM_TEMPLATE)


def build_perception_lm(folder: Path, seed: int = 0) -> None:
    """With CLIP's tower for its own, which timm holds; both have a class token that the model drops."""
    from transformers import (
        PerceptionLMConfig,
        PerceptionLMForConditionalGeneration,
        PerceptionLMImageProcessor,
        PerceptionLMProcessor,
        PerceptionLMVideoProcessor,
    )

    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = make_tokenizer(
        LLAMA_3_TURNS, named, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>"
    )
    config = PerceptionLMConfig(
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        vision_config={**CLIP, "model_args": {"embed_dim": CLIP["hidden_size"]}},
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        tie_word_embeddings=False,
        **token_ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size={"height": 32, "width": 32}),
        PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer,
        patch_size=8,
        pooling_ratio=2,
    )
    model = random_model(lambda: PerceptionLMForConditionalGeneration(config), seed)
    save(folder, model, processor, PERCEPTION_LM_TEMPLATE)


def build_mistral3(folder: Path, seed: int = 0) -> None:
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
    )

    tokens = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = make_tokenizer(tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = Mistral3Config(
        text_config={
            **TEXT,
            "model_type": "mistral",
            "head_dim": 16,
            "sliding_window": None,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": False,
        },
        vision_config={**LAYERS, "model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 16},
        spatial_merge_size=2,
        tie_word_embeddings=False,
        **token_ids(tokenizer, image_token_index="[IMG]"),
    )
    image = PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = PixtralProcessor(image, tokenizer, patch_size=8, spatial_merge_size=2)
    save(folder, random_model(lambda: Mistral3ForConditionalGeneration(config), seed), processor, MISTRAL_3_TEMPLATE)


# ---------------------------------------------------------------- what a tree of prefixes cannot be right for

MOLMO_2_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% elif part['type'] == 'video' %}<|video|>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOLMO_2_TOKENS = [
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
]
NEMOTRON_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'video' %}<video>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
# Phi-3's long rope: other frequencies beyond 64 positions.
LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}


def build_long_rope(folder: Path, seed: int = 0) -> None:
    """LLaVA-OneVision on a Phi-3 decoder."""
    phi = {"model_type": "phi3", "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    build_llava_onevision(folder, seed, {**TEXT, **phi, **tokens})


def build_molmo2(folder: Path, seed: int = 0) -> None:
    from transformers import (
        Molmo2Config,
        Molmo2ForConditionalGeneration,
        Molmo2ImageProcessor,
        Molmo2Processor,
        Molmo2VideoProcessor,
    )

    tokenizer = make_tokenizer(
        [*CHATML, *MOLMO_2_TOKENS], {"image_token": "<|image|>", "video_token": "<|video|>"}, eos_token="<|endoftext|>"
    )
    tower = {**LAYERS, "num_key_value_heads": 2, "head_dim": 16}
    config = Molmo2Config(
        text_config={
            **TEXT,
            "head_dim": 16,
            "vocab_size": len(tokenizer),
            "additional_vocab_size": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={**tower, "image_size": [32, 32], "patch_size": 8},
        adapter_config={
            "vision_feature_layer": [2, 1],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "text_hidden_size": TEXT["hidden_size"],
        },
        **token_ids(
            tokenizer,
            image_start_token_id="<im_start>",
            low_res_image_start_token_id="<low_res_im_start>",
            image_end_token_id="<im_end>",
            image_patch_id="<im_patch>",
            frame_start_token_id="<frame_start>",
            frame_end_token_id="<frame_end>",
        ),
    )
    size = {"height": 32, "width": 32}
    processor = Molmo2Processor(
        Molmo2ImageProcessor(size=size, patch_size=8, overlap_margins=[1, 1]),
        Molmo2VideoProcessor(size=size, patch_size=8, pooling_size=[2, 2], num_frames=6),
        tokenizer,
    )
    save(folder, random_model(lambda: Molmo2ForConditionalGeneration(config), seed), processor, MOLMO_2_TEMPLATE)


def build_nemotron_h_omni(folder: Path, seed: int = 0, pruned: float = 0.0) -> None:
    """``pruned`` is the share of a video's tokens that the model leaves out."""
    from transformers import (
        NemotronH_Omni_Reasoning_V3,
        NemotronH_Omni_Reasoning_V3_Config,
        NemotronH_Omni_Reasoning_V3ImageProcessor,
        NemotronH_Omni_Reasoning_V3Processor,
        NemotronH_Omni_Reasoning_V3VideoProcessor,
        ParakeetFeatureExtractor,
    )

    named = {
        "image_token": "<image>",
        "video_token": "<video>",
        "image_start_token": "<img>",
        "image_end_token": "</img>",
        "audio_token": "<so_embedding>",
    }
    tokenizer = make_tokenizer([*CHATML, "<so_start>", "<so_end>", "<think>", "</think>"], named)
    statistics = {"norm_mean": [0.48, 0.46, 0.41], "norm_std": [0.27, 0.26, 0.28]}
    config = NemotronH_Omni_Reasoning_V3_Config(
        text_config={
            "model_type": "nemotron_h",
            "hidden_size": 64,
            "intermediate_size": 96,
            "layer_types": ["linear_attention", "moe", "full_attention", "linear_attention", "mlp"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "ssm_state_size": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "max_position_embeddings": 8192,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            "model_type": "radio",
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
            "patch_size": 8,
            "image_size": 32,
            "max_img_size": 128,
            "num_cls_tokens": 3,
            "num_registers": 1,
            "video_temporal_patch_size": 2,
        },
        audio_config=None,
        vision_hidden_size=32,
        projector_hidden_size=64,
        video_pruning_rate=pruned,
        **token_ids(tokenizer, image_token_id="<image>", video_token_id="<video>", audio_token_id="<so_embedding>"),
    )
    processor = NemotronH_Omni_Reasoning_V3Processor(
        NemotronH_Omni_Reasoning_V3ImageProcessor(
            **statistics, patch_size=8, min_num_patches=16, max_num_patches=64, downsample_ratio=0.5
        ),
        NemotronH_Omni_Reasoning_V3VideoProcessor(**statistics, patch_size=8, video_target_num_patches=24),
        tokenizer,
        ParakeetFeatureExtractor(),
    )
    save(folder, random_model(lambda: NemotronH_Omni_Reasoning_V3(config), seed), processor, NEMOTRON_TEMPLATE)


def build_nemotron_h_omni_pruned(folder: Path, seed: int = 0) -> None:
    build_nemotron_h_omni(folder, seed, pruned=0.5)


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(build_qwen2_vl, notes="pairs of frames, one run of placeholders, three axes"),
    "qwen2_5_vl": Family(build_qwen2_5_vl, notes="as qwen2_vl; windowed tower, time axis in seconds"),
    "qwen3_vl": Family(build_qwen3_vl, notes="timestamps between pairs of frames, interleaved axes, DeepStack"),
    "qwen3_vl_moe": Family(build_qwen3_vl_moe, notes="as qwen3_vl, with experts"),
    "qwen3_5": Family(build_qwen3_5, notes="linear and full attention by turns; the prompt opens a thought"),
    "internvl": Family(build_internvl, notes="a line with its number before each frame"),
    "llava_onevision": Family(build_llava_onevision, notes="frames pooled, one newline vector behind the last"),
    "llava_next_video": Family(build_llava_next_video, notes="frames pooled, one run of placeholders"),
    "video_llava": Family(build_video_llava, notes="one run of placeholders, the tower's class token among them"),
    "video_llama_3": Family(build_video_llama_3, notes="a frame's tokens that resemble the frame before are left out"),
    "video_llama_3_whole": Family(build_video_llama_3_whole, notes="as video_llama_3, with all of its tokens"),
    "glm4v": Family(
        build_glm4v, notes="pairs of frames with a whole second behind, the image's placeholder in a video"
    ),
    "glm4v_moe": Family(build_glm4v_moe, notes="as glm4v, with experts"),
    "gemma3": Family(build_gemma3, "images", notes="both ways within an image, windows, zero projector filled"),
    "gemma4": Family(
        build_gemma4, notes="shared key-value layers, embeddings for each layer, windows, both ways in a frame"
    ),
    "smolvlm": Family(
        build_smolvlm,
        notes="frame count and duration stand before the frames, timestamps between",
        requires="num2words",
        newer="its processor counts frames as videos",
    ),
    "idefics3": Family(build_idefics3, "images", notes="its processor asks at which letters tokens stand"),
    "perception_lm": Family(
        build_perception_lm, notes="frames pooled, one run of placeholders", newer="its tower is timm's alone"
    ),
    "mistral3": Family(build_mistral3, "images", notes="a row of an image ends in a token of its own"),
    "nemotron_h_omni": Family(
        build_nemotron_h_omni,
        notes="pairs of frames, Mamba and attention layers by turns",
        refused="its processor tells no pixels of single frames",
    ),
    "nemotron_h_omni_pruned": Family(
        build_nemotron_h_omni_pruned,
        notes="logits are fewer than the prompt's tokens",
        refused="which tokens stay is decided over the whole video",
    ),
    "molmo2": Family(build_molmo2, refused="all frames' tokens of a prompt see each other, both ways"),
    "long_rope": Family(build_long_rope, refused="rope's frequencies follow the longest position of a call"),
}
