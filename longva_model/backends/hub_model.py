"""What every backend of a Hugging Face checkpoint shares: name, context length, template, fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from longva_model.backends.backend import TextMixin, eos_token_ids
from longva_model.checkpoints.checkpoint import IDLE_TENSORS, read_tensor_index
from longva_model.lmms.model_args import ModelArgs
from longva_model.rope import make_exact
from vniah.notices import notice
from vniah.prompts import PromptTemplate, get_template

TEMPLATE_OF_DECODER = {"qwen2": "qwen_1_5", "mistral": "mistral", "llama": "vicuna"}


# Settings of a config that decide nothing of what a model computes.
_IDLE_NAMES = (
    "transformers_version architectures dtype torch_dtype _name_or_path id2label label2id problem_type return_dict "
    "output_hidden_states output_attentions use_cache initializer_range initializer_factor chunk_size_feed_forward "
    "is_encoder_decoder attention_dropout projection_dim"
)
_IDLE = frozenset(_IDLE_NAMES.split())
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def described(config: Any) -> str:
    """The settings of a config that decide what a model computes: with other ones, weights are another model."""
    values = {key: value for key, value in config.to_dict().items() if key not in _IDLE}
    return json.dumps(values, sort_keys=True, default=str)


def _tokenizer_files(folder: str) -> list[str]:
    paths = [Path(folder) / name for name in _TOKENIZER_FILES]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class HubModel(TextMixin):
    """What every backend of a Hub checkpoint shares: names, length, template."""

    def _finish(self, folder: str, args: ModelArgs, model: Any, decoder: Any, lm_head: Any, tokenizer: Any) -> None:
        from longva_model.checkpoints import checkpoint

        self.name = args.pretrained
        self.model, self.decoder, self.lm_head, self.tokenizer = model.eval(), decoder, lm_head, tokenizer
        config = decoder.config
        stated = getattr(model.config, "context_length", None) or getattr(config, "max_position_embeddings", None)
        self.max_length = args.max_length or int(stated or 0)
        self.train_tokens = getattr(config, "max_position_embeddings", None)
        self.eos_ids = eos_token_ids(tokenizer, getattr(model, "generation_config", None))
        self.template: PromptTemplate = self._template(args)
        self._frames_fingerprint = _hash(
            checkpoint.weights_fingerprint(folder), type(self).__name__, self._visual_settings()
        )
        self.fingerprint = _hash(self._frames_fingerprint, described(config), *_tokenizer_files(folder))
        make_exact(decoder)
        self.chunked_until = chunked_until(config)
        self.positions_until = positions_until(decoder)

    @property
    def frames_fingerprint(self) -> str:
        return self._frames_fingerprint

    def _visual_settings(self) -> str:
        """What besides weights decides visual tokens: of the tower, the projector and the pooling."""
        return ""

    def _levels(self, pixels_NHWC: torch.Tensor, table: NDArray[np.float32]) -> torch.Tensor:
        """uint8 frames to normalised (N, 3, S, S) on the device: a quarter of the bytes is moved."""
        from longva_model.pictures.visual import levels_to_pixels

        return levels_to_pixels(pixels_NHWC.to(self.device), table).to(self.dtype)

    def _template(self, args: ModelArgs) -> PromptTemplate:
        if args.template != "auto":
            return get_template(args.template)
        named = getattr(self.model.config, "chat_template_name", None)
        return get_template(named or TEMPLATE_OF_DECODER.get(self.decoder.config.model_type, "plain"))


def chunked_until(config: Any) -> int | None:
    """Tokens up to which a prompt may be computed in parts: None = as many as one likes.

    Frequencies of the RoPE types "dynamic" and "longrope" depend on the length of what one forward is given, so that
    the parts of a longer prompt would have others than the whole.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # Some models have one set for each type of layer.
    for one in (parameters, *parameters.values()):
        if isinstance(one, dict) and one.get("rope_type") in ("dynamic", "longrope"):
            return int(one.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None


def positions_until(decoder: Any) -> int | None:
    """How many positions a decoder has learned; None where they are not learned."""
    longest = int(getattr(decoder.config, "max_position_embeddings", None) or 0)
    tables = [part.num_embeddings for part in decoder.modules() if isinstance(part, nn.Embedding)]
    tokens = decoder.get_input_embeddings().num_embeddings
    # OPT has two rows more than positions.
    learned = longest > 0 and any(longest <= rows <= longest + 2 for rows in tables if rows != tokens)
    return longest if learned else None


@contextlib.contextmanager
def building(folder: str) -> Iterator[None]:
    """Around what libraries do to make a model of a folder: what they raise becomes one line with its cause.

    Errors that this package raises itself go on as they are: a ValueError is clear, anything else a fault of ours.

    Raises:
        ValueError: naming the folder and the cause.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a value of config.json leads to: KeyError, ZeroDivisionError, ImportError ...
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).split(".")[0] in ("longva_model", "vniah"):
            raise
        cause = " ".join(str(error).split())[:400]
        if isinstance(error, (LookupError, ArithmeticError, TypeError, AttributeError)):
            # Such a cause says little without what was computed.
            cause = f"{type(error).__name__}: {cause} at {traceback.extract_tb(error.__traceback__)[-1].line}"
        raise ValueError(f"no model can be made of {folder}: {cause}; check the values in its config.json") from error


def load_transformers(auto: Any, folder: str, config: Any, args: ModelArgs, **load: Any) -> Any:
    """A model of transformers' own, weights complete.

    Raises:
        ValueError: tensors that are missing, left over, or of another shape than the config says.
    """
    if args.rope_theta is not None:
        text = config.get_text_config()
        parameters = dict(getattr(text, "rope_parameters", None) or {"rope_type": "default"})
        text.rope_parameters = {**parameters, "rope_theta": args.rope_theta}
    wanted = {key: value for key, value in load.items() if key in ("dtype", "device_map")}
    try:
        model, info = auto.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **wanted
        )
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
    # With either, transformers would go on: with random weights, or with a part of the model.
    extra = (key for key in info["unexpected_keys"] if not key.endswith(IDLE_TENSORS))
    found = (
        ("lack {} tensors of the model", sorted(info["missing_keys"])),
        ("hold {} tensors that the model does not have", sorted(extra)),
    )
    if told := [f"{what.format(len(names))}, such as {', '.join(names[:3])}" for what, names in found if names]:
        raise ValueError(
            f"the weights in {folder} {' and '.join(told)}; check that config.json belongs to these weights"
        )
    _say_left_out(model, folder)
    return model


def _say_left_out(model: Any, folder: str) -> None:
    """Say which tensors the model's own class leaves out, such as layers that predict more than the next token."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    if not patterns:
        return
    kept = model.state_dict().keys()
    names = [
        name
        for name, tensor in read_tensor_index(folder).items()
        if any(pattern.search(name) for pattern in patterns)
        and name not in kept
        # Causal masks.
        and not (name.endswith(IDLE_TENSORS) or tensor.shape[:2] == (1, 1))
    ]
    if names:
        notice(
            f"{len(names)} tensors in {folder} are left out, as {type(model).__name__} does, such as "
            f"{', '.join(sorted(names)[:3])}"
        )


def load_args(args: ModelArgs, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    extra: dict[str, Any] = {"dtype": dtype, "device_map": str(device) if device.type != "cpu" else None}
    if args.rope_theta is not None:
        extra["rope_theta"] = args.rope_theta
    for key in ("mm_spatial_pool_mode", "mm_spatial_pool_stride"):
        if getattr(args, key) is not None:
            extra[key] = getattr(args, key)
    return {key: value for key, value in extra.items() if value is not None}
