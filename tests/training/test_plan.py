"""The memory plan against measured peaks of small models, and its longest sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vniah.flops import SHAPES, ModelShape
from vniah.training.plan import longest_sequence, memory, plan_recipe
from vniah.training.recipe import load_recipe
from vniah.training.stages import Train

SHAPE = ModelShape(layers=6, hidden=128, intermediate=352, heads=4, kv_heads=2, head_dim=32, vocab=300)


def measured_peak(checkpointing: str, tokens: int) -> int:
    """Bytes of tensors alive at the worst moment of one step, optimizer and weights included."""
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from vniah.training.losses import install_loss
    from vniah.training.offload import enable_offloaded_checkpointing

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=SHAPE.vocab,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).train()
    if checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif checkpointing == "offload":
        enable_offloaded_checkpointing(model)
    install_loss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    ids = torch.randint(0, SHAPE.vocab, (1, tokens))

    def step() -> None:
        model(input_ids=ids, labels=ids)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # AdamW makes its moments
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_planned_peak_is_near_the_measured_one(checkpointing: Any) -> None:
    tokens = 1024
    train = Train(lr=1e-3, steps=1, precision="fp32", checkpointing=checkpointing)
    trained = SHAPE.decoder_params + 2 * SHAPE.vocab * SHAPE.hidden
    planned = memory(SHAPE, train, tokens=tokens, gpus=1, trained=trained).peak
    measured = measured_peak(checkpointing, tokens)
    assert planned == pytest.approx(measured, rel=0.25), (planned, measured)


def test_offloading_the_layer_inputs_is_seen_in_the_plan() -> None:
    full = Train(lr=1e-5, steps=1, checkpointing="full", attention="ring", sharding="fsdp2", offload=True)
    offload = dataclasses.replace(full, checkpointing="offload")
    shape = SHAPES["LongVA-7B"]
    trained = 7_600_000_000
    plans = [memory(shape, train, tokens=28_000, gpus=8, trained=trained) for train in (full, offload)]
    assert plans[0].checkpoints - plans[1].checkpoints == (28 - 2) * 28_000 * 3584 * 2
    assert plans[1].parameters == plans[1].optimizer == 0


def test_the_longest_sequence_fits_and_a_longer_one_does_not() -> None:
    train = Train(lr=1e-5, steps=1, checkpointing="full", attention="ring", sharding="fsdp2")
    shape, trained, capacity = SHAPES["LongVA-7B"], 7_600_000_000, 77 << 30
    longest = longest_sequence(shape, train, gpus=8, capacity=capacity, trained=trained)
    assert longest % 16 == 0

    def peak(tokens: int) -> int:
        return memory(shape, train, tokens=tokens, gpus=8, trained=trained).peak

    assert peak(longest // 8) <= capacity < peak(longest // 8 + 16)
    assert longest_sequence(shape, train, gpus=8, capacity=1 << 30, trained=trained) == 0


def test_the_papers_recipes_are_planned() -> None:
    text = plan_recipe(load_recipe("text_extension_224k"), gpus=8, gpu_gib=80)
    row = next(line for line in text.splitlines() if line.startswith("Qwen2-7B-Instruct-224K"))
    assert "28,000" in row and " yes " in row
    assert "LongVA-7B" in plan_recipe(load_recipe("align_stage2"), gpus=8, gpu_gib=80)


def test_an_unknown_model_says_what_to_give() -> None:
    recipe = load_recipe("align_stage1", ["stage1.model_from=someone/else"])
    with pytest.raises(ValueError, match="'someone/else' is not known"):
        plan_recipe(recipe, gpus=1, gpu_gib=80)
