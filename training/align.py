"""The alignment stages: image-text training of a LongVA model (paper section 3.2).

Stage 1 trains the projector alone; stage 2 all parts. A LongVA is put together here from a (long-context)
decoder and a CLIP tower, or is what the stage before wrote. Nothing longer than short image sequences is seen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vniah.training.stages import AlignStage, Train

# One question after its frames, as ``vniah.prompts.NANO`` has it.
NANO_CHAT = (
    "<bos>{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for item in message.content %}{% if item.type == 'text' %}{{ '\n' + item.text.lstrip('\n') }}"
    "{% else %}<{{ item.type }}>{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
)
PARTS = {"tower": "model.vision_tower.", "projector": "model.multi_modal_projector.", "decoder": ""}


def run(stage: AlignStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Train the stage's parts and write model, tokenizer and processor to ``folder/model``."""
    from transformers import set_seed

    from vniah.training.fit import fit
    from vniah.training.loading import save_trained
    from vniah.training.losses import install_loss
    from vniah.training.stages import as_data

    set_seed(seed)
    model, tokenizer = load_or_assemble(stage, resolve, seed=seed)
    train_only(model, stage.parts)
    model.set_attn_implementation(stage.train.attention)
    aspect_ratio = model.config.image_aspect_ratio
    if stage.data.merge == "square":
        model.config.image_aspect_ratio = None
    dataset, collate, train, notes = _data(stage, model, tokenizer, seed, folder)
    install_loss(model, train.loss, without_visuals=lambda: empty_picture(model))
    steps, passes = steps_and_passes(train, len(dataset))
    if passes > 1:
        dataset.passes = passes

    def save(trainer: Any) -> None:
        model.config.image_aspect_ratio = aspect_ratio
        save_trained(trainer, processor_for(model, tokenizer, stage.data.template), folder / "model")

    report = fit(
        model,
        dataset,
        train,
        folder / "run",
        seed=seed,
        identity={"stage": as_data(stage), "seed": seed},
        collate=collate,
        steps=steps,
        save=save,
    )
    return {**report, **notes}


def empty_picture(model: Any) -> Any:
    """Zero, with a graph through tower and projector: what a batch without images adds to its loss."""
    import torch

    edge = model.config.layout.tile_size
    parameter = model.model.multi_modal_projector.linear_1.weight
    pixels = torch.zeros(1, 3, edge, edge, device=parameter.device, dtype=parameter.dtype)
    return model.model.encode_tiles(pixels).float().sum() * 0.0


def steps_and_passes(train: Train, samples: int) -> tuple[int, int]:
    """Optimizer steps, and passes over the data that they take."""
    import math
    import os

    per_step = train.batch_size * train.accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    steps = train.steps or max(1, math.ceil(samples * train.epochs / per_step))
    return steps, math.ceil(steps * per_step / samples)


def load_or_assemble(stage: AlignStage, resolve: Any, *, seed: int) -> tuple[Any, Any]:
    """A LongVA and its tokenizer: loaded whole, or made of a decoder and a tower.

    Raises:
        ValueError: a decoder without ``tower_from``.
    """
    from transformers import AutoConfig

    import longva_model  # noqa: F401 - registers LongVA with transformers' Auto classes
    from longva_model import LongVAForConditionalGeneration
    from vniah.training.loading import load_dtype, load_tokenizer

    source, dtype = resolve(stage.model_from), load_dtype(stage.train)
    tokenizer = load_tokenizer(source)
    kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    if kind == "longva":
        return LongVAForConditionalGeneration.from_pretrained(source, dtype=dtype, trust_remote_code=False), tokenizer
    if stage.tower_from is None:
        raise ValueError(f"{source} is a {kind} decoder; stage {stage.name!r} needs tower_from to make a LongVA of it")
    model = assemble(source, resolve(stage.tower_from), merge=stage.data.merge, dtype=dtype)
    if stage.data.icons:
        from vniah.training.nano.calibrate import calibrate_projector

        calibrate_projector(model, tokenizer, seed=seed)
    return model, tokenizer


def assemble(decoder: str, tower: str, *, merge: str, dtype: Any) -> Any:
    """A LongVA of a decoder's and a tower's weights, with a fresh projector.

    Args:
        decoder: folder or Hub id of a causal language model.
        tower: folder or Hub id of a CLIP model or CLIP vision model.
        merge: "unires", "anyres", or "square" (one tile an image; kept as UniRes for what follows).
        dtype: of all weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionModel

    from longva_model import LongVAConfig, LongVAForConditionalGeneration

    language = AutoModelForCausalLM.from_pretrained(decoder, dtype=dtype, trust_remote_code=False)
    vision = CLIPVisionModel.from_pretrained(tower, dtype=dtype, trust_remote_code=False)
    # Where the parts lay on this machine is nobody's business.
    language.config._name_or_path = vision.config._name_or_path = ""
    config = LongVAConfig(
        text_config=language.config,
        vision_config=vision.config,
        mm_patch_merge_type="spatial_unpad" if merge == "anyres" else "unires",
    )
    with torch.device("cpu"):
        model = LongVAForConditionalGeneration(config).to(dtype)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.generation_config = language.generation_config
    return model


def train_only(model: Any, parts: tuple[str, ...]) -> None:
    """Freeze everything but ``parts``. The decoder is all that is neither tower nor projector."""
    for name, parameter in model.named_parameters():
        part = next((part for part in ("tower", "projector") if name.startswith(PARTS[part])), "decoder")
        if name == "model.image_newline":
            part = "projector"
        parameter.requires_grad_(part in parts)


def processor_for(model: Any, tokenizer: Any, template: str) -> Any:
    """The LongVAProcessor that goes with a model; the template's name is kept in the model's config too."""
    from longva_model import LongVAProcessor

    options: dict[str, Any] = {}
    if template == "nano":
        options = {"chat_template": NANO_CHAT, "preprocess": "pad"}
        model.config.chat_template_name = template
    return LongVAProcessor.from_config(model.config, tokenizer, **options)


def _data(stage: AlignStage, model: Any, tokenizer: Any, seed: int, folder: Path) -> tuple[Any, Any, Any, Any]:
    """Dataset, collator, the settings to train by, and notes for the report."""
    if stage.data.icons:
        from vniah.training.fit import only_item

        dataset = icon_dataset(stage, model.config, tokenizer, seed)
        return dataset, only_item, dataclasses.replace(stage.train, batch_size=1), {}
    from vniah.training.data.llava import build_dataset

    return build_dataset(stage, model.config, tokenizer, seed, folder)


def icon_dataset(stage: AlignStage, config: Any, tokenizer: Any, seed: int) -> Any:
    """The nano model's image data as a dataset of whole batches."""
    from vniah.training.nano.pictures import draw_distractors, draw_icons
    from vniah.training.nano.vision_tasks import VisionTasks
    from vniah.training.text import StepDataset

    data, layout = stage.data, config.layout
    tasks = VisionTasks(
        tokenizer,
        draw_icons(data.pool_images, layout.tile_size, seed=seed + 10),
        draw_distractors(data.pool_images // 4, layout.tile_size, seed=seed + 10, film_share=data.film_share),
        layout=layout,
        placeholder=config.image_token_index,
        batch_size=stage.train.batch_size,
        max_tiles=data.max_tiles,
        max_questions=data.max_questions,
        seed=seed,
    )
    make = tasks.batch
    if data.text_share:
        from vniah.training.nano.replay import with_text

        make = with_text(make, tokenizer, share=data.text_share, length=data.text_length, seed=seed)
    return StepDataset(make, stage.train.steps * stage.train.accumulation)
