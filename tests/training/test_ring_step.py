"""One training step sharded by the ring over gloo processes equals one step on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ring_processes
import torch
import torch.distributed as dist
from ring_processes import Checks, assert_passed

from vniah.training.stages import Train

LENGTH = 24


def tiny(attention: str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=31, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def sequence(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 31, (1, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[:, 5:8] = -100
    return {"input_ids": ids[:, :-1], "shift_labels": labels, "position_ids": torch.arange(LENGTH)[None]}


def one_step(checkpointing: str) -> None:
    from longva_model.attention import register, zigzag_shard
    from longva_model.renamed import enable_checkpointing
    from vniah.training.activations import enable_offloaded_checkpointing
    from vniah.training.losses import install_loss

    rank, world = dist.get_rank(), dist.get_world_size()
    register()
    batch = sequence()
    count = (batch["shift_labels"] != -100).sum()
    plain = install_loss(tiny("sdpa"))
    wanted = plain(**batch, num_items_in_batch=count)["loss"]
    wanted.backward()
    model = tiny("longva_ring").train()
    if checkpointing == "full":
        enable_checkpointing(model)
    elif checkpointing == "offload":
        enable_offloaded_checkpointing(model)
    install_loss(model, ring=world)
    shard = {key: zigzag_shard(value, rank, world, dim=1) for key, value in batch.items()}
    loss = model(**shard, num_items_in_batch=count)["loss"]
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, wanted.detach(), rtol=1e-5, atol=1e-6)
    for (name, mine), (_, whole) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert mine.grad is not None and whole.grad is not None
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-4, atol=1e-6, msg=name)


def one_step_on_a_mesh() -> None:
    """Two rings of two: each takes a sequence of its own, and all gradients together are those of both."""
    from longva_model.attention import register
    from vniah.training.data.shards import ring_shard
    from vniah.training.losses import install_loss

    rank, world = dist.get_rank(), dist.get_world_size()
    register()
    batches = [sequence(seed) for seed in (3, 4)]
    count = sum((batch["shift_labels"] != -100).sum() for batch in batches)
    plain = install_loss(tiny("sdpa"))
    for batch in batches:
        plain(**batch, num_items_in_batch=count)["loss"].backward()
    model = install_loss(tiny("longva_ring").train(), ring=2)
    model(**ring_shard(batches[rank // 2], rank % 2, 2), num_items_in_batch=count)["loss"].backward()
    for (name, mine), (_, whole) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert mine.grad is not None and whole.grad is not None and world == 4
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad, whole.grad, rtol=1e-4, atol=1e-6, msg=name)


CHECKS = Checks(
    step=lambda rank, world: one_step("none") if world == 2 else None,
    step_full_checkpointing=lambda rank, world: one_step("full") if world == 2 else None,
    step_offloaded_checkpointing=lambda rank, world: one_step("offload") if world == 2 else None,
    mesh=lambda rank, world: one_step_on_a_mesh() if world == 4 else None,
)


def test_sharded_step_equals_the_whole(tmp_path: Path) -> None:
    ranks = ring_processes.reports(__file__, tmp_path, [2])[2]
    for name in CHECKS:
        assert_passed(ranks, name)
    assert all(len(report["seconds"]) == 4 for report in ranks)


@pytest.mark.slow
def test_two_rings_of_two_take_two_sequences(tmp_path: Path) -> None:
    assert_passed(ring_processes.reports(__file__, tmp_path, [4])[4], "mesh")


def test_rings_that_do_not_divide_the_ranks_are_refused() -> None:
    train = Train(lr=1.0, steps=1, attention="ring", ring=4)
    assert [train.ring_of(ranks) for ranks in (4, 8)] == [4, 4] and Train(lr=1.0, steps=1).ring_of(8) == 1
    with pytest.raises(ValueError, match="6 ranks are no whole number of rings of 4"):
        train.ring_of(6)
    with pytest.raises(ValueError, match="ring: 4 goes with attention: ring"):
        Train(lr=1.0, steps=1, ring=4)
