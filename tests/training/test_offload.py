"""Offloaded checkpointing and tiles give the gradients of the plain backward pass."""

from __future__ import annotations

import pytest
import torch
from training_models import tiny_qwen2

from vniah.training.activations import enable_offloaded_checkpointing, enable_tiling
from vniah.training.losses import install_loss


@pytest.mark.parametrize("frozen_embeddings", [False, True])
def test_same_gradients(frozen_embeddings: bool) -> None:
    ids = torch.arange(14).view(2, 7)
    grads = []
    for offload in (False, True):
        model = tiny_qwen2(3).train()
        model.model.embed_tokens.requires_grad_(not frozen_embeddings)
        if offload:
            enable_offloaded_checkpointing(model)
        install_loss(model)
        loss = model(input_ids=ids, labels=ids)["loss"]
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 30
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_under_autocast_the_backward_pass_repeats_what_the_forward_pass_did() -> None:
    ids = torch.arange(14).view(2, 7)
    grads = []
    for offload in (False, True):
        model = tiny_qwen2(3).train()
        if offload:
            enable_offloaded_checkpointing(model)
        install_loss(model)
        dtypes = []
        model.model.layers[1].mlp.gate_proj.register_forward_hook(lambda *a, seen=dtypes: seen.append(a[-1].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids)["loss"]
        loss.backward()
        assert dtypes == [torch.bfloat16] * (2 if offload else 1)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grads[1][name], grad), name


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("tokens", [3, 7])
def test_in_tiles_the_loss_and_gradients_are_the_same(tokens: int, offload: bool) -> None:
    ids = torch.arange(14).view(2, 7)
    results = []
    for tile in (0, tokens):
        model = tiny_qwen2(3).train()
        model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
        if tile:
            enable_tiling(model, tile)
        if tile and offload:
            enable_offloaded_checkpointing(model)
        install_loss(model)
        loss = model(input_ids=ids, labels=ids)["loss"]
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert results[1][1].keys() == results[0][1].keys()
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, msg=name)


def test_tiles_keep_less_for_the_backward_pass() -> None:
    """Of MLP and norms only the input is kept, whatever their width."""
    kept = []
    for tile in (0, 2):
        model = tiny_qwen2(3).train()
        if tile:
            enable_tiling(model, tile)
        install_loss(model)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(input_ids=torch.arange(14).view(2, 7), labels=torch.arange(14).view(2, 7))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_a_model_without_such_layers() -> None:
    with pytest.raises(ValueError, match="no layers"):
        enable_offloaded_checkpointing(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no decoder layers"):
        enable_tiling(torch.nn.Linear(2, 2), 4)
