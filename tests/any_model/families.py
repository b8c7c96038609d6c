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
        refused: why a tree of shared prefixes cannot be right for it, or None.
    """

    build: Callable[[Path, int], None]
    presentation: Presentation = "video"
    notes: str = ""
    requires: str | None = None
    refused: str | None = None


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
        roles: ``eos_token``, ``bos_token``, ``pad_token`` where the family has other ones than <|im_end|> and <|pad|>.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    named = named or {}
    roles = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>", **roles}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=letters, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(list(dict.fromkeys([*roles.values(), *extra, *named.values()])))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=named, clean_up_tokenization_spaces=False, **roles
    )


def random_model(build: Callable[[], Any], seed: int) -> Any:
    """The model that ``build`` makes, filled the same for each seed and loudly, in fp32.

    A matrix maps unit inputs to outputs of size ``gain``; queries and keys get more, so that attention is far from
    uniform. Everything is filled: Gemma 3's projector starts as zeros, which would blind the model.
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
                gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.2
                std = 0.4 if id(parameter) in tables else gain / inputs**0.5
                parameter.normal_(std=std)
            head = model.get_output_embeddings().weight
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
QWEN2_SYSTEM = "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nAnswer in a few words.<|im_end|>\n{% endif %}"
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


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(build_qwen2_vl, notes="pairs of frames, one run of placeholders, three axes"),
    "qwen2_5_vl": Family(build_qwen2_5_vl, notes="as qwen2_vl; windowed tower, time axis in seconds"),
    "qwen3_vl": Family(build_qwen3_vl, notes="timestamps between pairs of frames, interleaved axes, DeepStack"),
    "qwen3_vl_moe": Family(build_qwen3_vl_moe, notes="as qwen3_vl, with experts"),
    "qwen3_5": Family(build_qwen3_5, notes="linear and full attention by turns; the prompt opens a thought"),
}
