"""The chunked loss against the plain one in fp32, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_models import tiny_qwen2

from vniah.training import losses
from vniah.training.losses import install_loss, linear_cross_entropy

VOCABULARY, HIDDEN = 37, 16


def plain(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(hidden_ND.float() @ weight_VD.float().t(), labels_N, ignore_index=-100, reduction="sum")


def case(rows: int, masked: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < masked] = -100
    return hidden, weight, labels


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows a chunk, so that lengths that do not divide are the rule."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 7 * VOCABULARY)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 50])
@pytest.mark.parametrize("masked", [0.0, 0.6])
def test_equals_the_plain_loss(rows: int, masked: float) -> None:
    hidden, weight, labels = case(rows, masked)
    wanted = plain(hidden, weight, labels)
    wanted_grads = torch.autograd.grad(wanted, (hidden, weight))
    got = linear_cross_entropy(hidden, weight, labels)
    (got * 2).backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(hidden.grad, 2 * wanted_grads[0])
    torch.testing.assert_close(weight.grad, 2 * wanted_grads[1])


def test_bf16_is_no_worse_than_the_plain_loss_in_bf16() -> None:
    hidden, weight, labels = case(200, 0.3, torch.bfloat16)
    exact = torch.autograd.grad(plain(hidden, weight, labels), (hidden, weight))
    logits = hidden @ weight.t()
    rough = torch.autograd.grad(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), (hidden, weight))
    linear_cross_entropy(hidden, weight, labels).backward()
    for got, plain_bf16, want in zip((hidden.grad, weight.grad), rough, exact, strict=True):
        assert got is not None
        limit = 2 * (plain_bf16.float() - want.float()).abs().max() + 1e-3
        assert (got.float() - want.float()).abs().max() <= limit


def test_without_labels_it_is_zero_and_keeps_the_graph() -> None:
    hidden, weight, labels = case(5, 0.0)
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    loss.backward()
    assert loss == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_its_own(frozen: int) -> None:
    *inputs, labels = case(9, 0.2)
    inputs[frozen].requires_grad_(False)
    learnt = inputs[1 - frozen]
    (wanted,) = torch.autograd.grad(plain(*inputs, labels), learnt)
    linear_cross_entropy(*inputs, labels).backward()
    assert inputs[frozen].grad is None
    torch.testing.assert_close(learnt.grad, wanted)


@pytest.mark.parametrize("label", [-1, VOCABULARY])
def test_a_label_outside_the_vocabulary_is_an_error(label: int) -> None:
    hidden, weight, labels = case(5, 0.0)
    labels[2] = label
    with pytest.raises(ValueError, match=f"got {label}"):
        linear_cross_entropy(hidden, weight, labels)


def test_installed_in_a_model_it_equals_the_models_own_loss() -> None:
    model = tiny_qwen2(2, vocabulary=VOCABULARY)
    ids = torch.randint(0, VOCABULARY, (2, 11))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.4, -100)
    wanted = model(input_ids=ids, labels=labels).loss
    wanted.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    install_loss(model)
    got = model(input_ids=ids, labels=labels)["loss"]
    got.backward()
    torch.testing.assert_close(got, wanted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name])
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    again = model(input_ids=ids, shift_labels=shifted, num_items_in_batch=(shifted != -100).sum())["loss"]
    torch.testing.assert_close(again, wanted)
    assert model(input_ids=ids).logits.shape == (2, 11, VOCABULARY)


def test_the_head_is_called_as_a_module() -> None:
    """FSDP has a module's weights whole only while the module runs; it is told by hooks."""
    model = install_loss(tiny_qwen2(vocabulary=VOCABULARY))
    called = []
    model.lm_head.register_forward_pre_hook(lambda *_: called.append("before"))
    model.lm_head.register_forward_hook(lambda *_: called.append("after"))
    ids = torch.randint(0, VOCABULARY, (1, 5))
    model(input_ids=ids, labels=ids)["loss"].backward()
    assert called == ["before", "after"]
