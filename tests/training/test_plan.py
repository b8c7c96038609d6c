"""The memory plan against measured peaks of small models, and its longest sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vniah.contract.cost import SHAPES, ModelShape
from vniah.training.plan import TowerShape, longest_sequence, memory, plan_recipe, tower_memory
from vniah.training.recipe import load_recipe
from vniah.training.stages import Train

SHAPE = ModelShape(layers=6, hidden=128, intermediate=352, heads=4, kv_heads=2, head_dim=32, vocab=300)


def peak_of_a_step(model: Any, batch: dict[str, Any], bf16: bool) -> int:
    """Bytes of tensors alive at the worst moment of one step, optimizer and weights included."""
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # AdamW makes its moments
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def decoder_config(hidden: int = SHAPE.hidden) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=SHAPE.vocab,
        hidden_size=hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        tie_word_embeddings=False,
    )


def on_host(pin_memory: bool) -> Any:
    """``save_on_cpu`` that keeps tensors where the tracker does not see them: here host and device are one memory."""
    import torch

    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (tensor.detach().float().numpy().copy(), tensor.dtype),
        lambda kept: torch.from_numpy(kept[0]).to(kept[1]),
    )


@pytest.mark.parametrize(
    ("checkpointing", "tile", "precision"),
    [
        ("none", 0, "fp32"),
        pytest.param("full", 0, "fp32", marks=pytest.mark.slow),
        pytest.param("full", 0, "bf16", marks=pytest.mark.slow),
        ("offload", 0, "fp32"),
        pytest.param("offload", 64, "bf16", marks=pytest.mark.slow),
    ],
)
def test_planned_peak_is_near_the_measured_one(
    checkpointing: Any, tile: int, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from vniah.training import activations
    from vniah.training.activations import reduce_activations
    from vniah.training.losses import install_loss

    monkeypatch.setattr(activations, "save_on_cpu", on_host)
    tokens = 1024
    train = Train(lr=1e-3, steps=1, precision=precision, checkpointing=checkpointing, tile_tokens=tile)
    trained = SHAPE.decoder_params + 2 * SHAPE.vocab * SHAPE.hidden
    planned = memory(SHAPE, train, tokens=tokens, gpus=1, trained=trained).peak
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(decoder_config()).train()
    reduce_activations(model, train)
    ids = torch.randint(0, SHAPE.vocab, (1, tokens))
    measured = peak_of_a_step(install_loss(model), {"input_ids": ids, "labels": ids}, precision == "bf16")
    assert planned == pytest.approx(measured, rel=0.25), (planned, measured)


@pytest.mark.parametrize("checkpointing", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_planned_peak_with_images_is_near_the_measured_one(checkpointing: Any) -> None:
    import torch
    from transformers import CLIPVisionConfig

    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from vniah.training.activations import reduce_activations
    from vniah.training.losses import install_loss

    tiles, side = 24, 4
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=7, num_attention_heads=4, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = LongVAForConditionalGeneration(LongVAConfig(text_config=decoder_config(), vision_config=vision)).train()
    train = Train(lr=1e-3, steps=1, precision="fp32", checkpointing=checkpointing)
    reduce_activations(model, train)
    tokens = tiles * (side // 2) ** 2
    ids = torch.full((1, tokens + 8), model.config.image_token_index)
    ids[:, tokens:] = 5
    labels = ids.masked_fill(ids != 5, -100)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(tiles + 1, 3, 32, 32)}  # and the whole
    batch["image_sizes"] = torch.tensor([[32 * 4, 32 * 6]])
    measured = peak_of_a_step(install_loss(model), batch, bf16=False)
    sizes = {"width": 96, "intermediate": 384, "patches": side**2, "patch_size": 8, "hidden": SHAPE.hidden}
    tower = TowerShape(layers=6, **sizes, params=sum(p.numel() for p in model.model.vision_tower.parameters()))
    vision_bytes = tower_memory(tower, tiles=tiles, b=4, trained=True, checkpointing=checkpointing)
    trained = sum(p.numel() for p in model.parameters())
    planned = memory(
        SHAPE,
        train,
        tokens=tokens + 8,
        gpus=1,
        trained=trained,
        learnt_tokens=8,
        vision=vision_bytes,
    ).peak
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


def test_in_tiles_half_a_million_tokens_are_planned_on_one_device() -> None:
    """What others report for a model of this size on one 80 GB device, with the same means."""
    train = Train(
        lr=1e-5, steps=1, checkpointing="offload", attention="ring", sharding="fsdp2", offload=True, tile_tokens=16_384
    )
    trained = {"gpus": 1, "capacity": 77 << 30, "trained": 7_600_000_000}
    shape = SHAPES["LongVA-7B"]
    tiled = longest_sequence(shape, train, **trained)
    assert tiled > 500_000 > 2 * longest_sequence(shape, dataclasses.replace(train, tile_tokens=0), **trained)


def test_no_gpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one GPU"):
        plan_recipe(load_recipe("dpo"), gpus=0, gpu_gib=80)


def test_the_papers_recipes_are_planned() -> None:
    text = plan_recipe(load_recipe("text_extension_224k"), gpus=8, gpu_gib=80)
    row = next(line for line in text.splitlines() if line.startswith("Qwen2-7B-Instruct-224K"))
    assert "28,000" in row and " yes " in row
    assert "LongVA-7B" in plan_recipe(load_recipe("align_stage2"), gpus=8, gpu_gib=80)


def test_what_is_on_the_host_is_not_shown_as_nothing() -> None:
    text = plan_recipe(
        load_recipe("text_extension_224k", ["Qwen2-7B-Instruct-224K.train.offload=true"]), gpus=8, gpu_gib=80
    )
    row = next(line for line in text.splitlines() if line.startswith("Qwen2-7B-Instruct-224K"))
    assert "on the host" in row and " 0.00" not in row
    # fp32 weights, gradients and two moments of 7.6e9 parameters.
    assert "take 113.48 GiB of the host in all" in text
    head, row = text.splitlines()[1:3]
    assert len(head) == len(row), "the columns stand under their heads"
    nano = plan_recipe(load_recipe("nano"), gpus=1, gpu_gib=8)
    assert "on the host" not in nano and nano.splitlines()[2].split()[2:5] == ["<0.01"] * 3


def test_an_unknown_model_says_what_to_give() -> None:
    recipe = load_recipe("align_stage1", ["stage1.model_from=someone/else"])
    with pytest.raises(ValueError, match="'someone/else' is not known"):
        plan_recipe(recipe, gpus=1, gpu_gib=80)
