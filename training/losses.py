"""Cross entropy of a language-model head without the full logits.

At 224K tokens and 152K words the logits alone are 68 GB in bf16. Here rows are scored in chunks and only where there is
a label, so the peak is one chunk. Exact for any number of rows (the chunked loss of the paper's code dropped those that
did not fill its last chunk, reference section 6), and the same wherever it runs.

Shape legend: N rows (tokens), D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vniah.training.stages import CHUNK_ELEMENTS, IGNORE


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(hidden @ weight.T)[label]; gradients are made in the forward pass.

    With p = softmax(z): d loss / d z = p - onehot(label), so that both gradients of a chunk are one
    product each and its logits can be dropped at once. Accumulates in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk: int) -> Tensor:
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND) if want_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if want_weight else None
        for start in range(0, len(hidden_ND), chunk):
            rows_CD, labels_C = hidden_ND[start : start + chunk], labels_N[start : start + chunk]
            logits_CV = (rows_CD @ weight_VD.t()).float()
            lse_C = torch.logsumexp(logits_CV, dim=-1)
            total += (lse_C - logits_CV.gather(1, labels_C[:, None])[:, 0]).sum()
            if not (want_hidden or want_weight):
                continue
            grad_CV = logits_CV.sub_(lse_C[:, None]).exp_()
            grad_CV[torch.arange(len(labels_C), device=labels_C.device), labels_C] -= 1.0
            grad_CV = grad_CV.to(hidden_ND.dtype)
            if grad_ND is not None:
                torch.mm(grad_CV, weight_VD, out=grad_ND[start : start + chunk])
            if grad_VD is not None:
                grad_VD += grad_CV.t() @ rows_CD
        ctx.save_for_backward(grad_ND, grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (upstream,) = grads
        grad_ND, grad_VD = ctx.saved_tensors
        if grad_ND is not None:
            grad_ND = grad_ND * upstream.to(grad_ND.dtype)
        if grad_VD is not None:
            grad_VD = (grad_VD * upstream).to(ctx.weight_dtype)
        return grad_ND, grad_VD, None, None


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of the cross entropy of ``hidden @ weight.T`` over the rows whose label is not -100.

    Labels are already shifted.

    Returns:
        fp32 scalar: a sum, so that micro-batches and ranks add up exactly. 0 (with zero gradients) without labels.

    Raises:
        ValueError: a label outside the vocabulary.
    """
    keep_N = labels_N != IGNORE
    if not bool(keep_N.any()):
        # Keeps every parameter in the graph: data-parallel ranks wait for each other's gradients.
        return (hidden_ND.float().sum() + weight_VD.float().sum()) * 0.0
    if not bool(keep_N.all()):
        hidden_ND, labels_N = hidden_ND[keep_N], labels_N[keep_N]
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < 0 or high >= len(weight_VD):
        raise ValueError(f"labels must be -100 or 0..{len(weight_VD) - 1}, got {low if low < 0 else high}")
    if hidden_ND.dtype != weight_VD.dtype:
        hidden_ND = hidden_ND.to(weight_VD.dtype)
    chunk = max(1, min(len(labels_N), CHUNK_ELEMENTS // len(weight_VD)))
    total: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, chunk)
    return total


def loss_and_hits(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Without gradients: the sum of the cross entropy, and how many labels have the largest logit. fp32, (2,)."""
    keep_N = labels_N != IGNORE
    hidden_ND, labels_N = hidden_ND[keep_N].to(weight_VD.dtype), labels_N[keep_N]
    sums_2 = hidden_ND.new_zeros(2, dtype=torch.float32)
    for rows_CD, labels_C in zip(
        *(tensor.split(max(1, CHUNK_ELEMENTS // len(weight_VD))) for tensor in (hidden_ND, labels_N)), strict=True
    ):
        logits_CV = (rows_CD @ weight_VD.t()).float()
        sums_2 += torch.stack(
            [F.cross_entropy(logits_CV, labels_C, reduction="sum"), (logits_CV.argmax(-1) == labels_C).sum().float()]
        )
    return sums_2


@functools.cache
def ring_context(size: int) -> Any:
    """How a sequence lies on a ring of ranks that follow each other: rows of a mesh of data by ring. Collective."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from longva_model.attention import RingContext

    if not dist.is_initialized() or size == dist.get_world_size():
        return RingContext(layout="zigzag")
    shape = (dist.get_world_size() // size, size)
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", shape, mesh_dim_names=("data", "ring"))
    return RingContext(layout="zigzag", group=mesh["ring"].get_group())


def install_loss(model: Any, *, ring: int = 0, without_visuals: Callable[[], Tensor] | None = None) -> Any:
    """Make ``model(..., labels=)`` return the loss alone, through ``linear_cross_entropy``; without gradients also the
    number of "hits", labels that have the largest logit.

    The base decoder (``model.model``) runs as it is; the head is applied inside the loss, called as a module so that
    FSDP gathers its weight. ``shift_labels`` (already shifted: a shard of a sequence has its next token elsewhere) wins
    over ``labels``. ``num_items_in_batch`` is the divisor where a step has several micro-batches or ranks.

    Under ``ring`` the batch is this rank's zigzag shard of a sequence, and attention goes round so many ranks.
    ``without_visuals`` gives a zero that is added where a batch has no images, with a graph through tower and
    projector: sharded layers are gathered by all ranks together, forwards and backwards, so that ranks without images
    must do what ranks with images do, in the same order.
    """

    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None and shift_labels is None:
            return plain_forward(*args, **kwargs)
        kwargs.pop("use_cache", None)
        extra = {"ring_context": ring_context(ring)} if ring else {}
        hidden_BTD = self.model(*args, use_cache=False, **extra, **kwargs).last_hidden_state
        if shift_labels is None:
            assert labels is not None
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        total = self.lm_head(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), labels_N=shift_labels.reshape(-1))
        count = num_items_in_batch if num_items_in_batch is not None else (shift_labels != IGNORE).sum().clamp(min=1)
        if total.dim():  # (2,): nothing is learnt here
            return {"loss": total[0] / count, "hits": total[1]}
        return {"loss": total / count}

    def head_forward(self: Any, hidden_ND: Tensor, labels_N: Tensor | None = None) -> Any:
        if labels_N is None:
            return plain_head(hidden_ND)
        if not torch.is_grad_enabled():
            return loss_and_hits(hidden_ND, self.weight, labels_N)
        return linear_cross_entropy(hidden_ND, self.weight, labels_N)

    def embed(input_ids: Tensor, *visuals: Any, **named: Any) -> Any:
        if any(value is not None for value in (*visuals, *named.values())):
            return plain_embed(input_ids, *visuals, **named)
        assert without_visuals is not None
        zero = without_visuals()
        embeds_BLD, images, videos = plain_embed(input_ids)
        return embeds_BLD + zero.to(embeds_BLD.dtype), images, videos

    assert hasattr(model, "model") and hasattr(model, "lm_head"), "a model with a decoder and a head"
    plain_forward, plain_head = model.forward, model.lm_head.forward
    if without_visuals is not None:
        plain_embed, model.model.embed = model.model.embed, embed
    model.forward = types.MethodType(forward, model)
    model.lm_head.forward = types.MethodType(head_forward, model.lm_head)
    return model
