"""The alignment stages: image-text training of a LongVA model (paper section 3.2).

Stage 1 trains the projector alone; stage 2 all parts. A LongVA is put together here from a (long-context)
decoder and a CLIP tower, or is what the stage before wrote. Nothing longer than short image sequences is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vniah.training.fit import fit, steps_and_passes
from vniah.training.load import assemble, has_weights, load, load_tokenizer, save_trained, without_weights
from vniah.training.stages import AlignStage, CalibrateStage

# What a parameter belongs to by the beginning of its name; the decoder is all that is neither tower nor projector.
PARTS = (
    ("model.vision_tower.", "tower"),
    ("model.multi_modal_projector.", "projector"),
    ("model.image_newline", "projector"),
    ("", "decoder"),
)


def run(stage: AlignStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Train the stage's parts and write model, tokenizer and processor to ``folder/model``."""
    from transformers import set_seed

    from vniah.training.losses import install_loss

    set_seed(seed)
    model, tokenizer = load_or_assemble(stage, resolve, seed=seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(next((part for start, part in PARTS if name.startswith(start))) in stage.parts)
    model.set_attn_implementation(stage.train.attention)
    aspect_ratio = model.config.image_aspect_ratio
    if stage.data.merge == "square":
        model.config.image_aspect_ratio = None
    if stage.data.icons:
        from vniah.training.nano.pictures import icon_dataset

        dataset, collate, notes = icon_dataset(stage, model.config, tokenizer, seed), None, {}
    else:
        from vniah.training.data.llava import build_dataset

        dataset, collate, notes = build_dataset(stage, model.config, tokenizer, seed, folder, resolve)
    install_loss(model, without_visuals=lambda: empty_picture(model))
    steps = stage.train.steps
    if collate is not None:
        steps, dataset.passes = steps_and_passes(stage.train, len(dataset))

    def save(trainer: Any) -> None:
        model.config.image_aspect_ratio = aspect_ratio
        save_trained(trainer, processor_for(model, tokenizer, stage.data.template), folder / "model", stage.train)

    report = fit(model, dataset, stage, folder / "run", seed=seed, steps=steps, collate=collate, save=save)
    return {**report, **notes}


def empty_picture(model: Any) -> Any:
    """Zero, with a graph through tower and projector: what a batch without images adds to its loss."""
    import torch

    edge = model.config.layout.tile_size
    parameter = model.model.multi_modal_projector.linear_1.weight
    pixels = torch.zeros(1, 3, edge, edge, device=parameter.device, dtype=parameter.dtype)
    return model.model.encode_tiles(pixels).float().sum() * 0.0


def load_or_assemble(
    stage: AlignStage | CalibrateStage, resolve: Callable[[str], str], *, seed: int
) -> tuple[Any, Any]:
    """A LongVA and its tokenizer: loaded whole, or made of a decoder and a tower with a fresh projector."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    # Also registers LongVA with transformers' Auto classes.
    from longva_model import LongVAConfig, LongVAForConditionalGeneration

    source = resolve(stage.model_from)
    tokenizer = load_tokenizer(source)
    text_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if text_config.model_type == "longva":
        return load(LongVAForConditionalGeneration, source, stage.train), tokenizer
    if stage.tower_from is None:
        kind = text_config.model_type
        raise ValueError(f"{source} is a {kind} decoder; stage {stage.name!r} needs tower_from to make a LongVA of it")
    tower = resolve(stage.tower_from)
    vision_config = CLIPVisionConfig.from_pretrained(tower, trust_remote_code=False)
    # Where the parts lay on this machine is nobody's business.
    text_config._name_or_path = vision_config._name_or_path = ""
    # "square" is one tile an image; it is kept as UniRes for what follows.
    merge = "spatial_unpad" if stage.data.merge == "anyres" else "unires"
    config = LongVAConfig(text_config=text_config, vision_config=vision_config, mm_patch_merge_type=merge)
    if not has_weights(stage.train):
        return without_weights(LongVAForConditionalGeneration, config, torch.float32), tokenizer
    language = load(AutoModelForCausalLM, source, stage.train)
    model = assemble(config, language, load(CLIPVisionModel, tower, stage.train))
    if stage.data.icons:
        from vniah.training.nano.tower import scale_projector

        scale_projector(model, seed=seed)
    return model, tokenizer


def processor_for(model: Any, tokenizer: Any, template: str) -> Any:
    """The LongVAProcessor that goes with a model; the template's name is kept in the model's config too."""
    from longva_model import LongVAProcessor
    from longva_model.prompts.chat_templates import CHAT_TEMPLATES
    from vniah.training.nano.vocabulary import CHAT_TEMPLATE

    options: dict[str, Any] = {}
    if template == "nano":
        options = {"chat_template": CHAT_TEMPLATE, "preprocess": "pad"}
    elif template != "plain":  # captions alone, which nobody asks for: the decoder's own is kept
        options = {"chat_template": CHAT_TEMPLATES[template]}
    if options:
        model.config.chat_template_name = template
    return LongVAProcessor.from_config(model.config, tokenizer, **options)
