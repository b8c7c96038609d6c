"""The DPO stage: preference optimisation on video frames, by TRL (LLaVA-Hound; reference section 5)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from vniah.files import read_json
from vniah.training.stages import DpoStage

_TRL = "1.16"


def run(stage: DpoStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Train all parts against a frozen copy; the model goes to ``folder/model``.

    Raises:
        ValueError: TRL is not installed (with how to install it), or too many bad pairs.
        OSError: no room for the checkpoints.
    """
    check_trl()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from longva_model import LongVAForConditionalGeneration, LongVAProcessor
    from longva_model.renamed import checkpointing_keyword
    from vniah.prompts import get_template
    from vniah.training.align import steps_and_passes
    from vniah.training.checkpoints import last_checkpoint, seal_callback
    from vniah.training.data.preference import PreferenceCollator
    from vniah.training.fit import check_room, require_sharding
    from vniah.training.fit import training_arguments as arguments_for
    from vniah.training.identity import check_identity
    from vniah.training.loading import load_dtype, save_trained
    from vniah.training.metrics import METRICS, MetricsLog, last_event, log_callback
    from vniah.training.ranks import forget_deepspeed, prepare_model
    from vniah.training.stages import as_data

    source, dtype = resolve(stage.model_from), load_dtype(stage.train)
    run_folder = folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    check_identity(run_folder, {"stage": as_data(stage), "seed": seed})
    options = {"dtype": dtype, "attn_implementation": stage.train.attention}
    model = LongVAForConditionalGeneration.from_pretrained(source, trust_remote_code=False, **options)
    frozen = LongVAForConditionalGeneration.from_pretrained(source, trust_remote_code=False, **options)
    prepare_model(model)
    prepare_model(frozen.requires_grad_(False))
    check_room(model, stage.train, run_folder)
    processor = LongVAProcessor.from_pretrained(source, trust_remote_code=False)
    collator = PreferenceCollator(
        processor,
        num_frames=stage.num_frames,
        max_length=stage.max_length,
        template=get_template(getattr(model.config, "chat_template_name", "qwen_1_5")),
    )
    pairs, manifest = pairs_of(stage, folder, collator)
    steps, passes = steps_and_passes(stage.train, len(pairs))
    order = [pair for epoch in range(passes) for pair in Dataset.from_list(pairs).shuffle(seed=seed + epoch)]
    arguments = arguments_for(
        stage.train,
        run_folder,
        seed,
        steps,
        DPOConfig,
        beta=stage.beta,
        loss_type=["sigmoid"],
        max_length=None,
        **{checkpointing_keyword(DPOConfig): stage.train.checkpointing != "none"},
    )
    log = MetricsLog(run_folder / METRICS)
    trainer = DPOTrainer(
        model=model,
        ref_model=frozen,
        args=arguments,
        data_collator=collator,
        train_dataset=Dataset.from_list(order),
        processing_class=processor,
        callbacks=[log_callback(log), seal_callback()],
    )
    require_sharding(trainer, stage.train)
    last = last_checkpoint(run_folder)
    if trainer.is_world_process_zero():
        log.rewind(last)
    result = trainer.train(resume_from_checkpoint=last)
    save_trained(trainer, processor, folder / "model")
    if stage.train.deepspeed:
        forget_deepspeed()
    return {
        "steps": int(result.global_step),
        "loss": log.last_loss,
        "margin": (last_event(run_folder / METRICS) or {}).get("rewards/margins"),
        "samples": manifest["samples"],
        "num_bad": manifest["num_bad"],
    }


def check_trl() -> None:
    """Raise ValueError, saying what to install, where TRL is not there or does not hand all of a batch to the model.

    Before 1.16 it hands on the inputs that it knows by name, videos not among them, and looks up the log-probability
    of placeholder ids.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    try:
        found = version("trl")
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(_TRL):
        there = f"{found} is installed" if found else "none is installed"
        python = ", which needs Python 3.11 or newer" if sys.version_info < (3, 11) else ""
        raise ValueError(f"DPO needs TRL {_TRL} or newer{python}; {there}: pip install 'vniah[train]'")


def pairs_of(stage: DpoStage, folder: Path, collator: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The good pairs and their manifest: looked at by the first rank, read by the others.

    Looked at anew whenever the stage starts: a video that went bad since is left out no more silently than before.
    """
    from vniah.training.data.preference import read_pairs
    from vniah.training.identity import check_identity, write_json
    from vniah.training.ranks import rank, wait_for

    listed, manifest_path = folder / "pairs.json", folder / "manifest.json"
    if rank() == 0:
        pairs, manifest = read_pairs(stage.json, stage.videos, stage.max_bad_share, collator, stage.train.workers)
        digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
        check_identity(listed.with_name("pairs"), {"pairs": digest})
        write_json(listed, pairs)
        write_json(manifest_path, manifest)
        return pairs, manifest
    wait_for(manifest_path)
    return read_json(listed), read_json(manifest_path)
