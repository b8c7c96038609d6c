"""The text stage: next-token training of the language model alone, from nothing or at a larger RoPE base.

Context extension is this stage with a longer ``sequence_length`` and a larger ``rope_theta`` (paper
section 3.1). With ``attention: ring`` every sequence is sharded over all ranks, or ``ring`` of them, in zigzag order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vniah.files import read_json
from vniah.notices import notice
from vniah.training.data.shards import MANIFEST
from vniah.training.fit import StepDataset, fit, steps_and_passes
from vniah.training.load import load, load_tokenizer, save_trained
from vniah.training.processes import world_size
from vniah.training.stages import TextStage
from vniah.training.watch import TextWatch, text_probes


def run(stage: TextStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Train and write the model and tokenizer to ``folder/model``; checkpoints go to ``folder/run``.

    As every stage's ``run``: ``seed`` is that of weights and data, and ``resolve`` maps a stage's name, a folder or a
    Hub id to what ``from_pretrained`` takes.

    Raises:
        ValueError: more steps than the prepared sequences give.
    """
    from transformers import set_seed

    from vniah.training.losses import install_loss

    set_seed(seed)
    model, tokenizer = load_or_create(stage, resolve)
    data, steps = stage.data, stage.train.steps
    dataset: Any
    if data.phases:
        from vniah.training.nano.text_tasks import TextTasks

        shares = {"repeat_share": data.repeat_share, "number_share": data.number_share}
        tasks = TextTasks(tokenizer, data.phases, seed=seed, **shares)
        dataset, collate = StepDataset(tasks.batch, steps * stage.train.accumulation), None
    else:
        dataset, steps, collate = *_prepared(stage, seed, resolve), together
    install_loss(model, ring=stage.train.ring_of(world_size()) if stage.train.attention == "ring" else 0)

    def save(trainer: Any) -> None:
        save_trained(trainer, tokenizer, folder / "model", stage.train)

    watch = None
    if data.shards and read_json(Path(resolve(data.shards)) / MANIFEST).get("held_out"):
        probes = text_probes(Path(resolve(data.shards)), tokenizer, stage.sequence_length, seed=seed)
        watch = TextWatch(*probes, stage.train.ring_of(world_size()))
    run_folder = folder / "run"
    return fit(model, dataset, stage, run_folder, seed=seed, steps=steps, collate=collate, save=save, watch=watch)


def load_or_create(stage: TextStage, resolve: Callable[[str], str]) -> tuple[Any, Any]:
    """The model and tokenizer a text stage starts from, at its RoPE base."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = stage.train.attention
    if attention == "ring":
        from longva_model.attention import register

        register()
        attention = "longva_ring"
    if stage.model_from is None:
        from vniah.training.nano.vocabulary import build_tokenizer

        tokenizer = build_tokenizer()
        model = new_decoder(stage, tokenizer)
    else:
        source = resolve(stage.model_from)
        tokenizer = load_tokenizer(source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if stage.max_positions is not None:
            config.max_position_embeddings = stage.max_positions
        if stage.rope_theta is not None:
            set_rope_theta(config, stage.rope_theta)
        model = load(AutoModelForCausalLM, source, stage.train, config=config)
    model.set_attn_implementation(attention)
    return model, tokenizer


def set_rope_theta(config: Any, rope_theta: float) -> None:
    """Give a decoder's config a RoPE base, and no scaling: a larger base takes its place, which is said.

    Raises:
        ValueError: layers of different kinds have RoPE bases of their own.
    """
    before = config.rope_parameters
    if "rope_theta" not in before:
        raise ValueError(f"{config.model_type} has a RoPE base for each kind of layer ({', '.join(before)}), not one")
    if (kind := before.get("rope_type", "default")) != "default":
        notice(f"the decoder's RoPE scaling {kind!r} is left out: the base {rope_theta:g} takes its place")
    kept = {key: before[key] for key in ("partial_rotary_factor",) if key in before}
    config.rope_parameters = {"rope_type": "default", "rope_theta": rope_theta, **kept}


def new_decoder(stage: TextStage, tokenizer: Any) -> Any:
    """A Qwen2ForCausalLM of random weights, of the shape that the stage says."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    assert stage.new is not None
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        **stage.new.decoder,
        max_position_embeddings=stage.max_positions or stage.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": stage.rope_theta or 1e4},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def _prepared(stage: TextStage, seed: int, resolve: Callable[[str], str]) -> tuple[Any, int]:
    """Prepared sequences and the steps to take over them. Only ``epochs`` reads a sequence twice."""
    from vniah.training.data.shards import RingSequences

    assert stage.data.shards is not None
    train, per_step = stage.train, stage.sequences_per_step(world_size())
    dataset = RingSequences(
        resolve(stage.data.shards),
        stage.sequence_length,
        seed=seed,
        ring=train.attention == "ring",
        world_size=train.ring_of(world_size()),
    )
    there = dataset.num_sequences
    if train.steps * per_step > there:
        raise ValueError(
            f"{train.steps} steps take {train.steps * per_step} sequences, but {dataset.folder} holds {there}; prepare "
            f"more tokens, or give epochs in place of steps to read them more than once"
        )
    steps, dataset.passes = steps_and_passes(train, there)
    return dataset, steps


def together(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batches of one sequence each to one batch."""
    import torch

    return {key: torch.cat([item[key] for item in items]) for key in items[0]}
