"""Tensor parallelism: each layer's heads and MLP are dealt out over processes, by transformers' plan for the model.

A rule of a plan names modules and a style of transformers' registry (``colwise``: this process's rows of a weight;
``rowwise``: its columns, and a sum over all processes behind it), which cuts weights and wraps forwards. Between layers
every process has the same hidden states; keys and values of other processes' heads it never has. Weights are read
from the mapped file on the host, and only this process's part of each reaches its device.

A plan is not believed: the first layers and the head are compared with what they gave before they were cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longva_model.run.processes import Group

_ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-4}
_ALLOWED_HALF = 0.05
_PROBED_TOKENS = 16
# At least so many layers are compared, and as many more as have weights of other shapes.
_PROBED_LAYERS = 2


def shard(model: Any, decoder: Any, group: Group, device: torch.device, name: str) -> None:
    """Leave this process its part of a model that is whole on the CPU, on ``device``. Collective.

    Args:
        decoder: the part of the model that is dealt out, with the head; towers stay whole.
        name: the model's, for messages.

    Raises:
        ValueError: the model has no plan, its heads are not to be dealt out evenly, or what it computes changes.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES, replace_layer_number_by_wildcard

    kind = decoder.config.model_type
    plan = _plan(model, decoder)
    repeated = [rule for rule in plan if ".*." in rule]
    if not repeated:
        raise ValueError(
            f"{name} ({kind}) is refused: transformers has no tensor-parallel plan for its layers; use parallel=branch "
            "or parallel=ring, or device_map=auto in one process"
        )
    _refuse_uneven_heads(decoder.config, group.size, name)
    layers, head = model.get_submodule(repeated[0].partition(".*.")[0]), model.get_output_embeddings()
    with torch.inference_mode():
        wanted = _probe(model, layers, torch.device("cpu"))
        mesh = DeviceMesh.from_group(group.tensors, device.type)
        for path, module in list(model.named_modules()):
            rule = plan.get(replace_layer_number_by_wildcard(path))
            # A weight may have a rule of its own, as those of experts do.
            owns = {x: plan.get(replace_layer_number_by_wildcard(f"{path}.{x}"), rule) for x in module._parameters}
            styles = {weight: ALL_PARALLEL_STYLES[own] for weight, own in owns.items() if own is not None}
            try:
                for weight, style in styles.items():
                    style.validate_param(module, weight, mesh, parameter_name=f"{path}.{weight}")
            except ValueError as error:
                if module is not head:
                    raise ValueError(f"{name} ({kind}) is refused: {error}") from error
                continue  # transformers before 5.24 deals no odd vocabulary out: such a head stays whole
            for weight, style in styles.items():
                style.shard_param(module, weight, mesh)
            if rule is not None:
                ALL_PARALLEL_STYLES[rule].install_forward(module, mesh)
        model.to(device)
        try:
            found = _probe(model, layers, device)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{name} ({kind}) is refused: dealt out over {group.size} processes it does not run "
                f"({' '.join(str(error).split())[:200]}); use parallel=branch or parallel=ring"
            ) from error
    allowed = _ALLOWED.get(wanted[0].dtype, _ALLOWED_HALF)
    for what, before, after in zip(("its first layers", "its head"), wanted, found, strict=True):
        difference = float((after.cpu().float() - before.float()).norm() / before.float().norm())
        if not difference <= allowed:  # nan is wrong too
            raise ValueError(
                f"{name} ({kind}) is refused: dealt out over {group.size} processes, {what} give other values than "
                f"whole, off by {difference:.2%} of their size; use parallel=branch or parallel=ring"
            )


def _plan(model: Any, decoder: Any) -> dict[str, str]:
    """The rules for the decoder and the head; towers are encoded by one process at a time, and stay whole."""
    paths = {id(module): path for path, module in model.named_modules()}
    inside = f"{paths[id(decoder)]}." if paths.get(id(decoder)) else ""
    head = paths.get(id(model.get_output_embeddings()))
    rules: dict[str, str] = model.tp_plan or {}
    return {rule: style for rule, style in rules.items() if rule.startswith(inside) or rule == head}


def _refuse_uneven_heads(config: Any, size: int, name: str) -> None:
    """Every process has as many whole heads, and the key-value heads that they share."""
    heads = config.num_attention_heads
    for what, count in (("key-value", getattr(config, "num_key_value_heads", None) or heads), ("attention", heads)):
        if count % size:
            raise ValueError(
                f"{name} ({config.model_type}) is refused: the model has {count} {what} heads, which {size} processes "
                f"do not divide; use a tensor_parallel_size that divides {count}"
            )


def _probe(model: Any, layers: nn.ModuleList, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states behind the first layers, until every kind of layer was met, and logits of the last of them."""
    kinds = [tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters()) for layer in layers]
    last = max(min(_PROBED_LAYERS, len(kinds)) - 1, *(kinds.index(kind) for kind in set(kinds)))
    special = {value for key, value in model.config.to_dict().items() if "token" in key and isinstance(value, int)}
    ids = [number for number in range(1, _PROBED_TOKENS + len(special) + 1) if number not in special][:_PROBED_TOKENS]
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, _given: Any, out: Any) -> None:
        seen.append(out if isinstance(out, torch.Tensor) else out[0])
        raise _SeenError

    handle = layers[last].register_forward_hook(stop)
    try:
        model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    except _SeenError:
        pass
    finally:
        handle.remove()
    head = model.get_output_embeddings()
    return seen[0], head(seen[0][:, -2:])


class _SeenError(Exception):
    """The probe has what it wanted of a forward."""
