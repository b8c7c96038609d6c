"""The DPO stage: preference optimisation on video frames, by TRL (LLaVA-Hound; reference section 5)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vniah.training.stages import DpoStage


def run(stage: DpoStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Train all parts against a frozen copy; the model goes to ``folder/model``.

    Raises:
        ValueError: TRL is not installed (with how to install it), or too many bad pairs.
    """
    try:
        from trl import DPOConfig, DPOTrainer
    except ImportError:
        raise ValueError("DPO needs TRL: pip install 'vniah[train]'") from None
    from datasets import Dataset
    from transformers.trainer_utils import get_last_checkpoint

    from longva_model import LongVAForConditionalGeneration, LongVAProcessor
    from vniah.prompts import get_template
    from vniah.training.align import steps_and_passes
    from vniah.training.data.preference import PreferenceCollator, read_pairs
    from vniah.training.fit import MetricsLog, check_identity, log_callback, training_arguments, write_json
    from vniah.training.loading import load_dtype, save_trained
    from vniah.training.stages import as_data

    source = resolve(stage.model_from)
    run_folder = folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    check_identity(run_folder, {"stage": as_data(stage), "seed": seed})
    pairs, manifest = read_pairs(stage.json, stage.videos, stage.max_bad_share)
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(folder / "manifest.json", manifest)
    dtype = load_dtype(stage.train)
    model = LongVAForConditionalGeneration.from_pretrained(source, dtype=dtype)
    frozen = LongVAForConditionalGeneration.from_pretrained(source, dtype=dtype).requires_grad_(False)
    processor = LongVAProcessor.from_pretrained(source)
    steps, _ = steps_and_passes(stage.train, len(pairs))
    arguments = training_arguments(
        stage.train,
        run_folder,
        seed,
        steps,
        DPOConfig,
        beta=stage.beta,
        loss_type=["sigmoid"],
        max_length=None,
        gradient_checkpointing=stage.train.checkpointing != "none",
    )
    log = MetricsLog(run_folder / "metrics.jsonl")
    last = get_last_checkpoint(str(run_folder))
    log.rewind(int(last.rsplit("-", 1)[1]) if last else 0)
    trainer = DPOTrainer(
        model=model,
        ref_model=frozen,
        args=arguments,
        data_collator=PreferenceCollator(
            processor,
            num_frames=stage.num_frames,
            max_length=stage.max_length,
            template=get_template(getattr(model.config, "chat_template_name", "qwen_1_5")),
        ),
        train_dataset=Dataset.from_list(pairs).shuffle(seed=seed),
        processing_class=processor,
        callbacks=[log_callback(log)],
    )
    result = trainer.train(resume_from_checkpoint=last)
    save_trained(trainer, processor, folder / "model")
    last_event = json.loads((run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "steps": int(result.global_step),
        "loss": log.last_loss,
        "margin": last_event.get("rewards/margins"),
        "samples": manifest["samples"],
        "num_bad": manifest["num_bad"],
    }
