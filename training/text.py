"""The text stage: next-token training of the language model alone, from nothing or at a larger RoPE base.

Context extension is this stage with a longer ``sequence_length`` and a larger ``rope_theta`` (paper
section 3.1). With ``attention: ring`` every sequence is sharded over all ranks in zigzag order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vniah.training.ranks import world_size
from vniah.training.stages import NanoSize, TextStage


def run(stage: TextStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Train and write the model and tokenizer to ``folder``.

    Args:
        stage: what to do.
        folder: the stage's own folder; checkpoints go to ``folder/run``.
        seed: of weights and data.
        resolve: maps a stage name, folder or Hub id to what ``from_pretrained`` takes.

    Raises:
        ValueError: more steps than the prepared sequences give.
    """
    from transformers import set_seed

    from vniah.training.fit import fit, only_item
    from vniah.training.loading import save_trained
    from vniah.training.losses import install_loss
    from vniah.training.stages import as_data

    set_seed(seed)
    model, tokenizer = load_or_create(stage, resolve)
    if stage.data.phases:
        dataset, steps, collate = _synthetic(stage, tokenizer, seed), stage.train.steps, only_item
    else:
        dataset, steps, collate = *_prepared(stage, seed, resolve), together
    install_loss(model, stage.train.loss, ring=stage.train.attention == "ring")
    report = fit(
        model,
        dataset,
        stage.train,
        folder / "run",
        seed=seed,
        identity={"stage": as_data(stage), "seed": seed},
        collate=collate,
        steps=steps,
        save=lambda trainer: save_trained(trainer, tokenizer, folder / "model"),
    )
    return report


def load_or_create(stage: TextStage, resolve: Any) -> tuple[Any, Any]:
    """The model and tokenizer a text stage starts from, at its RoPE base."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from vniah.training.loading import load_dtype, load_tokenizer

    if stage.train.attention == "ring":
        from longva_model.attention import register

        register()
    if stage.new is not None:
        from vniah.training.nano.vocabulary import build_tokenizer

        tokenizer = build_tokenizer()
        model = new_decoder(stage.new, tokenizer, stage)
    else:
        source = resolve(stage.model_from)
        tokenizer = load_tokenizer(source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        set_rope_theta(config, stage.rope_theta, stage.max_positions)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=load_dtype(stage.train), trust_remote_code=False
        )
    model.set_attn_implementation("longva_ring" if stage.train.attention == "ring" else stage.train.attention)
    return model, tokenizer


def new_decoder(size: NanoSize, tokenizer: Any, stage: TextStage) -> Any:
    """A Qwen2ForCausalLM of random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        max_position_embeddings=stage.max_positions or stage.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": stage.rope_theta or 1e4},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def set_rope_theta(config: Any, rope_theta: float | None, max_positions: int | None) -> None:
    """Enlarge the RoPE base, and the declared length, of a decoder's config before its weights are loaded."""
    if max_positions is not None:
        config.max_position_embeddings = max_positions
    if rope_theta is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_type": "default", "rope_theta": float(rope_theta)}


def _synthetic(stage: TextStage, tokenizer: Any, seed: int) -> Any:
    from vniah.training.nano.text_tasks import LengthPhase, TextTasks

    phases = [LengthPhase(start=p.start, length=p.length, batch=p.batch) for p in stage.data.phases]
    data = stage.data
    tasks = TextTasks(tokenizer, phases, seed=seed, repeat_share=data.repeat_share, number_share=data.number_share)
    return StepDataset(tasks.batch, stage.train.steps * stage.train.accumulation)


def _prepared(stage: TextStage, seed: int, resolve: Any) -> tuple[Any, int]:
    """Prepared sequences and the steps to take over them.

    Raises:
        ValueError: more ``steps`` than there are sequences for; only ``epochs`` reads a sequence twice.
    """
    import math

    from vniah.training.data.shards import RingSequences

    train, ring = stage.train, stage.train.attention == "ring"
    dataset = RingSequences(resolve(stage.data.shards), stage.sequence_length, seed=seed, ring=ring)
    per_step = sequences_per_step(stage, world_size())
    there = dataset.num_sequences
    if train.steps * per_step > there:
        raise ValueError(
            f"{train.steps} steps take {train.steps * per_step} sequences, but {dataset.folder} holds {there}; prepare "
            f"more tokens, or give epochs in place of steps to read them more than once"
        )
    steps = train.steps or max(1, math.ceil(there * train.epochs / per_step))
    dataset.passes = math.ceil(steps * per_step / there)
    return dataset, steps


def sequences_per_step(stage: TextStage, ranks: int) -> int:
    """Whole sequences that an optimizer step takes: under ``ring`` all ranks share each."""
    share = 1 if stage.train.attention == "ring" else ranks
    return stage.train.batch_size * stage.train.accumulation * share


def together(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batches of one sequence each to one batch."""
    import torch

    return {key: torch.cat([item[key] for item in items]) for key in items[0]}


class StepDataset:
    """A map-style dataset of whole batches: item i is ``make(i)`` as tensors."""

    def __init__(self, make: Any, length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> dict[str, Any]:
        import torch

        if not 0 <= step < self._length:
            raise IndexError(step)
        return {key: torch.from_numpy(value) for key, value in self._make(step).items()}
