"""A decoder of transformers under the ring, over real gloo processes, equals the same decoder in one process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ring_processes
import torch
from ring_processes import Checks, assert_passed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from longva_model.attention import (
    RingContext,
    local_lengths,
    pad_to_multiple,
    register,
    ring_context,
    zigzag_positions,
    zigzag_shard,
)
from longva_model.renamed import cache_keyword, enable_checkpointing

WORLDS = (2, pytest.param(3, marks=pytest.mark.slow))
CHECKS = check = Checks()


def decoder(attention: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same small random weights on every rank and for each ``attention``."""
    register()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()


def tokens(length: int) -> Tensor:
    return torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(length))


def summed_gradients(model: nn.Module) -> list[Tensor]:
    """Each rank has the loss of its own tokens; the loss of all is their sum, and so is its gradient."""
    grads = [parameter.grad for parameter in model.parameters()]
    for grad in grads:
        torch.distributed.all_reduce(grad)
    return grads


def train_step(rank: int, world: int, length: int, padded: bool, checkpointing: bool) -> None:
    ids = tokens(length)
    labels = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], 1)  # shifted before sharding
    alone = decoder("eager")
    logits = alone(ids, use_cache=False).logits
    cross_entropy(logits[0], labels[0], reduction="sum").backward()

    model = decoder("longva_ring")
    positions = torch.arange(length)[None]
    if padded:
        ids, labels, positions = (
            pad_to_multiple(x, 2 * world, 1, fill) for x, fill in ((ids, 0), (labels, -100), (positions, 0))
        )
    if checkpointing:
        enable_checkpointing(model)
        model.train()
    mine, my_labels, my_positions = (zigzag_shard(x, rank, world, 1) for x in (ids, labels, positions))
    ring = RingContext(valid_length=length)
    local = model(mine, position_ids=my_positions, ring_context=ring, use_cache=False).logits
    cross_entropy(local[0], my_labels[0], reduction="sum").backward()
    real = local_lengths(length, world)[rank]
    torch.testing.assert_close(local[:, :real], zigzag_shard(logits, rank, world, 1), atol=2e-5, rtol=1e-4)
    for got, parameter in zip(summed_gradients(model), alone.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-4, rtol=1e-3)


@check
def training_equals_one_process(rank: int, world: int) -> None:
    train_step(rank, world, 2 * world * 11, padded=False, checkpointing=False)
    train_step(rank, world, 2 * world * 5 + 3, padded=False, checkpointing=False)
    train_step(rank, world, 2 * world * 5 + 3, padded=True, checkpointing=False)


@check
def training_with_gradient_checkpointing_equals_one_process(rank: int, world: int) -> None:
    train_step(rank, world, 2 * world * 5 + 3, padded=False, checkpointing=True)


@check
def prefill_question_and_generation_equal_one_process(rank: int, world: int) -> None:
    """Chunks sharded over the ranks, a replicated question, a branch back, then greedy tokens."""
    chunks, question = [2 * world * 4, 2 * world + 3, world], tokens(6)
    context = tokens(sum(chunks))
    model, alone = decoder("longva_ring"), decoder("eager")
    whole = torch.cat([context, question], 1)
    cache = DynamicCache(config=model.config)
    held, start = [0] * world, 0
    with torch.no_grad():
        want = alone(whole, use_cache=False).logits
        expected = alone.generate(whole, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, -5:]
        for length in chunks:
            chunk = context[:, start : start + length]
            positions = zigzag_positions(length, rank, world, offset=start)[None]
            with ring_context(valid_length=length, past_lengths=held if start else None):
                mine = zigzag_shard(chunk, rank, world, 1)
                got = model(mine, position_ids=positions, use_cache=True, **{cache_keyword(model): cache}).logits
            torch.testing.assert_close(
                got, zigzag_shard(want[:, start : start + length], rank, world, 1), atol=2e-5, rtol=1e-4
            )
            held = [a + b for a, b in zip(held, local_lengths(length, world), strict=True)]
            start += length

        def replicated(ids: Tensor, at: int, keeper: int) -> Tensor:
            positions = torch.arange(at, at + ids.shape[1])[None]
            with ring_context(layout="replicated", new_on=keeper):
                logits = model(ids, position_ids=positions, use_cache=True, **{cache_keyword(model): cache}).logits
            if rank != keeper:
                cache.crop(-ids.shape[1])
            return logits

        trunk = cache.get_seq_length()
        for keeper in (0, world - 1):  # the second time after going back to the trunk
            if cache.get_seq_length() > trunk:
                cache.crop(trunk - cache.get_seq_length())
            logits = replicated(question, start, keeper)
            torch.testing.assert_close(logits, want[:, start:], atol=2e-5, rtol=1e-4)
        generated, at = [], whole.shape[1]
        for step in range(5):
            generated.append(logits[:, -1:].argmax(-1))
            logits = replicated(generated[-1], at, step % world)
            at += 1
        assert torch.equal(torch.cat(generated, 1)[0], expected)


@check
def a_ring_that_knows_no_layout_is_an_error(rank: int, world: int) -> None:
    try:
        decoder("longva_ring")(tokens(8))
    except ValueError as error:
        assert f"runs on {world} ranks and does not know how the sequence lies on them" in str(error)
    else:
        raise AssertionError("ranks computed on without knowing the layout")


@functools.cache
def reports(world: int) -> list[Any]:
    """What each rank of ``world`` wrote; one launch for all tests."""
    with tempfile.TemporaryDirectory(prefix="ring-decoder") as folder:
        return ring_processes.reports(__file__, Path(folder), [world])[world]


@pytest.mark.parametrize("name", list(CHECKS))
@pytest.mark.parametrize("world", WORLDS)
def test_decoder_under_the_ring(world: int, name: str) -> None:
    assert_passed(reports(world), name)
