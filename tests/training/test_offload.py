"""Offloaded checkpointing gives the gradients of the plain backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vniah.training.losses import install_loss
from vniah.training.offload import enable_offloaded_checkpointing


def tiny() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Qwen2ForCausalLM(config).train()


@pytest.mark.parametrize("frozen_embeddings", [False, True])
def test_same_gradients(frozen_embeddings: bool) -> None:
    ids = torch.arange(14).view(2, 7)
    grads = []
    for offload in (False, True):
        model = tiny()
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


def test_a_model_without_such_layers() -> None:
    with pytest.raises(ValueError, match="no layers"):
        enable_offloaded_checkpointing(torch.nn.Linear(2, 2))
