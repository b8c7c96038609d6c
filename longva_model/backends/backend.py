"""What the engine needs of a model, as a checkpoint on disk gives it.

A backend lowers prompts to atoms, turns frames and images into features, chunks of tokens into hidden states, and
hidden states into logits. It is the one place where model classes differ; the engine knows none of them.

Shapes: N frames, T tokens, D hidden size, V vocabulary, t visual tokens a frame, S edge of a tile in pixels,
F frequencies of RoPE.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import nn

from longva_model.arguments import ModelArgs
from longva_model.backends.spreading import place_of, settle_spread, spreading
from longva_model.backends.tensor_parallel import shard
from longva_model.checkpoints.checkpoint import IDLE_TENSORS, read_tensor_index, weights_fingerprint
from longva_model.engine.atoms import AtomTable, Lowered, Series
from longva_model.engine.chunks import Chunk
from longva_model.engine.kv_blocks import refuse_too_long
from longva_model.engine.logits import widened
from longva_model.engine.state import CroppableCache, new_state
from longva_model.pictures.layout import VisualLayout
from longva_model.pictures.levels import levels_to_pixels
from longva_model.pictures.preprocess import fit_frames
from longva_model.prompts.chat_templates import DEFAULT_TEMPLATES
from longva_model.prompts.prompting import Prompt, build_chat, build_prompt
from longva_model.renamed import cache_keyword
from longva_model.run import processes
from longva_model.run.processes import Group
from vniah.contract.cost import ModelShape
from vniah.contract.requests import Frames, Image, Leaf, Request, Segment, Text, Tokens
from vniah.contract.sources import HeldFrames
from vniah.files import sha256_of
from vniah.notices import notice
from vniah.prompts import PromptTemplate, get_template

# Settings of a config that decide nothing of what a model computes.
_IDLE_NAMES = (
    "transformers_version architectures dtype torch_dtype _name_or_path id2label label2id problem_type return_dict "
    "output_hidden_states output_attentions use_cache initializer_range initializer_factor chunk_size_feed_forward "
    "is_encoder_decoder attention_dropout projection_dim"
)
_IDLE = frozenset(_IDLE_NAMES.split())
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
# How the decoders lay F angles out over a head.
_LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda angles: torch.cat((angles, angles), dim=-1),
    lambda angles: torch.repeat_interleave(angles, 2, dim=-1),
    lambda angles: angles,
)
# Ids of texts up to so many characters are kept.
_SHORT_TEXT = 4096
# Frequencies of the other types change with the length of the prompt.
_FIXED_TYPES = ("default", "linear", "llama3", "yarn")


class Backend:
    """The face of a model towards the engine; as it stands here, that of a text-only one."""

    name: str
    fingerprint: str  # of all that decides what the model computes
    template: PromptTemplate
    tokenizer: Any
    model: Any
    decoder: Any
    lm_head: Any
    eos_ids: tuple[int, ...]
    max_length: int  # tokens of the longest prompt; 0 is any
    train_tokens: int | None  # positions that the checkpoint's config states
    # Under tensor parallelism, those that hold this model together; and those that hold the same part of it, over which
    # a ring goes (all processes, where there is none).
    tensor_group: Group | None = None
    ring_group: Group | None = None
    tokens_per_frame: int = 0
    layout: VisualLayout | None = None  # how images and frames become visual tokens
    # Tokens of the longest prompt that may be computed in parts, and of the longest at all; None is any.
    chunked_until: int | None = None
    positions_until: int | None = None
    # Whether embeddings, positions and a cache are all that its decoder is given, and each token sees those before it.
    plain_decoder: bool = True
    # Where and how keys and values are kept, and in blocks of how many rows (``engine/kv_blocks.py``).
    kv: str = "device"
    kv_block: int | None = None
    kv_difference: float | None = None  # of logits in 8 bits from the model's own, as a share of their spread
    _frames_fingerprint: str = ""

    @property
    def in_blocks(self) -> bool:
        """Whether attention reads keys and values block by block."""
        return self.kv != "device" or self.kv_block is not None

    @property
    def frames_fingerprint(self) -> str:
        """Of all that decides a frame's visual tokens: not of the decoder's RoPE."""
        return self._frames_fingerprint or self.fingerprint

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """What the checkpoint's generation config asks for where a task leaves it open."""
        config = getattr(self.model, "generation_config", None)
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "min_new_tokens")
        return {name: value for name in names if (value := getattr(config, name, None)) is not None}

    @property
    def device(self) -> torch.device:
        """Where a chunk begins: of a model that is spread over devices, where its embeddings are looked up."""
        return place_of(self.decoder.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def shape(self) -> ModelShape:
        return decoder_shape(self.decoder.config, self.tokens_per_frame, self.dtype.itemsize)

    def token_ids(self, text: str) -> list[int]:
        """Tokenise alone, no special tokens added."""
        return list(self._short_ids(text)) if len(text) <= _SHORT_TEXT else self._tokenised(text)

    def _tokenised(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    @functools.cached_property
    def _short_ids(self) -> Callable[[str], list[int]]:
        """The cells of a grid are made of a few texts, each of which is asked for thousands of times."""
        return functools.lru_cache(maxsize=4096)(self._tokenised)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def embed_ids(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """(T, D)."""
        embedded: torch.Tensor = self.decoder.get_input_embeddings()(torch.as_tensor(ids, device=self.device).long())
        return embedded

    def reference(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor | None:
        """Logits at the end of a prompt and of each of ``ids`` behind it, by one forward of the model's own on what its
        own processor makes of the whole, (1 + n, V); None where ``forward`` of a whole prompt is just that."""
        return None

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, V), float32, not rounded to a shorter type on the way."""
        logits_TV: torch.Tensor = widened(self.lm_head)(hidden_TD)
        return logits_TV.float()

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        """Fit frames to the tower on the CPU, (N, S, S, 3) uint8; ``preprocess`` is a mode of ``fit_frames``."""
        if self.layout is None:
            self._sees_nothing("frames")
        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, self.layout.tile_size))  # type: ignore[arg-type]

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """(N, t, D)."""
        self._sees_nothing("frames")

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        """One image as the model sees an image (UniRes or AnyRes), (T, D)."""
        self._sees_nothing("images")

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Visual tokens of an image of (width, height)."""
        if self.layout is None:
            self._sees_nothing("images")
        return self.layout.num_image_tokens(size)

    def question(
        self, text: str, visuals: Sequence[Any], leaf: Leaf, *, max_frames: int, system: str | None = None
    ) -> Prompt:
        """One user turn (see ``build_prompt``)."""
        return build_prompt(text, visuals, leaf, self.template, max_frames=max_frames, system=system)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], leaf: Leaf, *, max_frames: int, system: str | None = None
    ) -> Prompt:
        """A conversation (see ``build_chat``)."""
        return build_chat(messages, leaf, self.template, max_frames=max_frames, system=system)

    def follow_up(self, prompt: Prompt, answer: str, question: str, leaf: Leaf) -> Prompt:
        """The conversation of a prompt, its answer and another question."""
        template = self.template
        more = (Text(template.answer + answer), Text(template.between + question + template.post))
        return replace(prompt, request=Request((*prompt.request.segments, *more), leaf))

    def check(self, engine: Any = None) -> None:
        """Compare what is peculiar to this kind of model with its own forward, when it is loaded.

        Args:
            engine: the class of engine to compare; all processes of a ring make this call with its class.

        Raises:
            ValueError: it differs.
        """

    def expect(self, prompts: Iterable[Prompt]) -> None:
        """See all prompts of a run before the first is lowered, for what the shortest depends on the longest.

        Every process is shown the same ones. Their frames are not to be read.
        """

    def about(self) -> dict[str, Any]:
        """How prompts are shown and what was checked, for whoever reads the results; beside what the runner says."""
        return {}

    def settings(self) -> list[Any]:
        """What of that decides results."""
        return []

    def appended(self, name: str) -> torch.Tensor:
        """A vector of the model's own that stands among visual tokens (T, D): "newline", behind an ordinary video."""
        raise ValueError(f"{self.name} appends no {name}")

    @property
    def ends_videos(self) -> bool:
        """Whether an ordinary video ends in the newline of AnyRes (reference section 1)."""
        return False

    def lower(self, prompt: Prompt, table: AtomTable, preprocess: str = "auto") -> Lowered:
        """A prompt as atoms; here each text is tokenised alone, and positions run on.

        Args:
            preprocess: "pad", "crop", or "auto" (each source's own, else crop).

        Raises:
            ValueError: a source that the prompt's media do not hold.
        """
        return Lowered.of(
            [piece for part in prompt.request.segments for piece in self._codes(part, prompt, table, preprocess)], table
        )

    def _codes(
        self, segment: Segment, prompt: Prompt, table: AtomTable, preprocess: str
    ) -> Iterator[NDArray[np.int64]]:
        if isinstance(segment, Text):
            yield np.array(self.token_ids(segment.text), np.int64)
            return
        if not isinstance(segment, (Frames, Image, Tokens)):
            raise ValueError(f"{self.name} has no place for a {type(segment).__name__}")
        if segment.source not in prompt.media:
            raise ValueError(f"a segment names the source {segment.source!r}, which the media do not hold")
        source = prompt.media[segment.source]
        fitted = preprocess if preprocess != "auto" else prompt.preprocess.get(segment.source, "crop")
        if isinstance(segment, Tokens):
            yield np.asarray(source.token_ids(segment.start, segment.stop), np.int64)
        elif isinstance(segment, Frames):
            if segment.stop > len(source):
                raise ValueError(f"frames up to {segment.stop} are asked of a source that has {len(source)}")
            for home, start, stop in table.homes(source, segment.start, segment.stop):
                frames = Series(name=home.fingerprint, fitted=fitted, tokens=self.tokens_per_frame, source=home)
                yield table.codes(frames, start, stop)
            if self.ends_videos and segment.source in prompt.videos and segment.stop == len(source):
                yield table.codes(Series(name="", fitted="newline", tokens=1), 0, 1)
        elif segment.as_frame:
            # A source of length 1: so a needle passes the frame pipeline and its cache.
            still = source
            if isinstance(source, PILImage.Image):
                still = HeldFrames(np.asarray(source.convert("RGB"))[None], f"still:{segment.source}")
            frame = Series(name=still.fingerprint, fitted=fitted, tokens=self.tokens_per_frame, source=still)
            yield table.codes(frame, 0, 1)
        else:
            tokens = self.image_tokens(source.size)
            yield table.codes(Series(name=segment.source, fitted="image", tokens=tokens, source=source), 0, 1)

    def new_state(self, room: int, *, kv: str | None = None, kv_block: int | None = None) -> CroppableCache:
        """An empty state for prompts of up to ``room`` tokens with their answers; it grows past that when it must.

        Args:
            kv, kv_block: instead of the backend's own (see ``engine.state.new_state``).

        Raises:
            ValueError: keys and values that cannot be kept so, or do not fit the host's memory.
        """
        if kv is None:
            kv, kv_block = self.kv, self.kv_block
        if kv == "host":
            refuse_too_long(self.shape, room, kv_block, self.device)
        return new_state(self.decoder.config, room, kv=kv, kv_block=kv_block)

    def embed(self, chunk: Chunk) -> torch.Tensor:
        """The embeddings of a chunk's tokens, visual ones in place, (T, D)."""
        # A placeholder may be no word of the decoder's; features take its place.
        embeds_TD = self.embed_ids(chunk.ids_T.masked_fill(chunk.visual_T, 0))
        if chunk.features_kVD is not None:
            embeds_TD[chunk.visual_T] = chunk.features_kVD[0].to(embeds_TD)
        return embeds_TD

    def forward(self, chunk: Chunk, state: Any, keep: int) -> torch.Tensor:
        """The last ``keep`` hidden states of a chunk behind ``state``, or of a whole prompt without one, (keep, D)."""
        given = {} if state is None else {cache_keyword(self.decoder): state}
        out = self.decoder(
            inputs_embeds=self.embed(chunk)[None],
            position_ids=chunk.positions[None],
            use_cache=state is not None,
            **given,
        )
        hidden_TD: torch.Tensor = out.last_hidden_state[0, -keep:]
        return hidden_TD

    def _sees_nothing(self, what: str) -> NoReturn:
        raise ValueError(f"{self.name} is a text-only model and cannot be shown {what}; choose a LongVA checkpoint")


class HubModel(Backend):
    """What every backend of a Hugging Face checkpoint shares: names, length, template, fingerprints."""

    def _finish(self, folder: str, args: ModelArgs, model: Any, decoder: Any, lm_head: Any, tokenizer: Any) -> None:
        self.name = args.pretrained
        self.tensor_group, self.ring_group = processes.grid_of_groups(processes.tensor_parallel_size(args))
        if self.tensor_group is not None:
            shard(model, decoder, self.tensor_group, processes.pick_device(args.device), self.name)
        self.model, self.decoder, self.lm_head, self.tokenizer = model.eval(), decoder, lm_head, tokenizer
        config = decoder.config
        self.train_tokens = getattr(config, "max_position_embeddings", None)
        self.max_length = args.max_length or int(getattr(model.config, "context_length", 0) or self.train_tokens or 0)
        self.eos_ids = _eos_token_ids(tokenizer, getattr(model, "generation_config", None))
        named = getattr(model.config, "chat_template_name", None) or DEFAULT_TEMPLATES.get(config.model_type, "plain")
        self.template = get_template(named if args.template == "auto" else args.template)
        if self.layout is not None:
            self.tokens_per_frame = self.layout.tokens_per_frame
        self._frames_fingerprint = _hash(weights_fingerprint(folder), type(self).__name__, self._visual_settings())
        files = [path for name in _TOKENIZER_FILES if (path := Path(folder) / name).is_file()]
        self.fingerprint = _hash(self._frames_fingerprint, described(config), *map(sha256_of, files))
        make_exact(decoder)
        self.chunked_until = _chunked_until(config)
        self.positions_until = _positions_until(decoder)

    def _visual_settings(self) -> str:
        """What besides weights decides visual tokens: of the tower, the projector and the pooling."""
        return ""

    def _levels(self, pixels_NHWC: torch.Tensor, table: NDArray[np.float32]) -> torch.Tensor:
        """uint8 frames to normalised (N, 3, S, S) on the device: a quarter of the bytes is moved."""
        return levels_to_pixels(pixels_NHWC.to(self.device), table).to(self.dtype)


def decoder_shape(config: Any, tokens_per_frame: int, kv_bytes: int) -> ModelShape:
    """A decoder's sizes by its config; of layers that are not alike, the largest."""
    heads = config.num_attention_heads
    # Kinds of models older than a common name for the width of an MLP have names of their own.
    names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size")
    widths = (_largest(config, name) for name in names)
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=next((w for w in widths if isinstance(w, int) and w > 0), 4 * int(config.hidden_size)),
        heads=heads,
        kv_heads=_largest(config, "num_key_value_heads") or heads,
        head_dim=_largest(config, "head_dim") or config.hidden_size // heads,
        vocab=config.vocab_size,
        tokens_per_frame=tokens_per_frame,
        kv_bytes=kv_bytes,
    )


def described(config: Any) -> str:
    """The settings of a config that decide what a model computes: with other ones, weights are another model."""
    return described_values(config.to_dict())


def described_values(values: Mapping[str, Any]) -> str:
    """As ``described``, of settings that are no config any more."""
    return json.dumps({key: value for key, value in values.items() if key not in _IDLE}, sort_keys=True, default=str)


def _largest(config: Any, name: str) -> Any:
    """A setting of a decoder's config; of its layers the largest, where they have different ones (Gemma 4)."""
    layers = getattr(config, "per_layer_config", None)
    if not layers:
        return getattr(config, name, None)
    return max((value for layer in layers if isinstance(value := getattr(layer, name, None), int)), default=None)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _eos_token_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """Every id that ends a generation: the generation config's and the tokenizer's."""
    found: set[int] = set()
    for value in (getattr(generation_config, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        if value is not None:
            found.update([value] if isinstance(value, int) else map(int, value))
    return tuple(sorted(found))


def _chunked_until(config: Any) -> int | None:
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


def _positions_until(decoder: Any) -> int | None:
    """How many positions a decoder has learned; None where they are not learned."""
    longest = int(getattr(decoder.config, "max_position_embeddings", None) or 0)
    tables = [part.num_embeddings for part in decoder.modules() if isinstance(part, nn.Embedding)]
    tokens = decoder.get_input_embeddings().num_embeddings
    # OPT has two rows more than positions.
    learned = longest > 0 and any(longest <= rows <= longest + 2 for rows in tables if rows != tokens)
    return longest if learned else None


@contextlib.contextmanager
def building(folder: str) -> Iterator[None]:
    """Around what libraries do to make a model of a folder: what they raise becomes one line with its cause, and their
    bars are drawn on a terminal only.

    Errors that this package raises itself go on as they are: a ValueError is clear, anything else a fault of ours.

    Raises:
        ValueError: naming the folder and the cause.
    """
    try:
        with _no_bars_in_files():
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


@contextlib.contextmanager
def _no_bars_in_files() -> Iterator[None]:
    """transformers' own bars are off where standard error is no terminal, and for all processes but the first."""
    from transformers.utils import logging

    drawn = sys.stderr.isatty() and os.environ.get("RANK", "0") in ("", "0")
    if drawn or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_transformers(
    auto: Any, folder: str, config: Any, args: ModelArgs, device: torch.device, dtype: torch.dtype
) -> Any:
    """A model of transformers' own, weights complete.

    Raises:
        ValueError: tensors that are missing, left over, or of another shape than the config says.
    """
    if args.rope_theta is not None:
        text = config.get_text_config()
        parameters = dict(getattr(text, "rope_parameters", None) or {"rope_type": "default"})
        if any(isinstance(value, dict) for value in parameters.values()):
            raise ValueError(
                f"rope_theta={args.rope_theta:g} is not for {args.pretrained}: it has other angles for each type of "
                f"layer ({', '.join(parameters)}); leave it out"
            )
        text.rope_parameters = {**parameters, "rope_theta": args.rope_theta}
    spread = spreading(args, device)
    try:
        model, info = auto.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=dtype,
            **spread,
        )
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
    # With either, transformers would go on: with random weights, or with a part of the model.
    extra = sorted(key for key in info["unexpected_keys"] if not key.endswith(IDLE_TENSORS))
    missing = sorted(info["missing_keys"])
    found = (("lack {} tensors of the model", missing), ("hold {} tensors that the model does not have", extra))
    if told := [f"{what.format(len(names))}, such as {', '.join(names[:3])}" for what, names in found if names]:
        raise ValueError(
            f"the weights in {folder} {' and '.join(told)}; check that config.json belongs to these weights"
        )
    _say_left_out(model, folder)
    settle_spread(model, spread, args.pretrained)
    return model


def _say_left_out(model: Any, folder: str) -> None:
    """Say which tensors the model's own class leaves out, such as layers that predict more than the next token."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    kept = model.state_dict().keys()
    names = [
        name
        for name, tensor in read_tensor_index(folder).items()
        if any(re.search(pattern, name) for pattern in patterns)
        and name not in kept
        # Causal masks.
        and not (name.endswith(IDLE_TENSORS) or tensor.shape[:2] == (1, 1))
    ]
    if names:
        notice(
            f"{len(names)} tensors in {folder} are left out, as {type(model).__name__} does, such as "
            f"{', '.join(sorted(names)[:3])}"
        )


class ExactRotary(nn.Module):
    """transformers' ``plain`` rotary embedding with its angles in fp64, laid out from (B, T, F) to (B, T, D).

    Where positions have several axes (M-RoPE, P of them), from (P, B, T, F), as the model's own code picks them.

    An angle is a position times a frequency. In fp32 the product of position 432,000 is off by up to 0.03 radians,
    which bf16 would not hide (its rounding is 0.002); in fp64 it is exact. Cosine and sine are taken of it and returned
    as the decoder has them.
    """

    def __init__(self, plain: Any, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.plain = plain
        self._layout = layout

    @property
    def inv_freq(self) -> torch.Tensor:
        """Frequencies, (F,), in fp32."""
        return self.plain.inv_freq

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of (B, T) or (P, B, T) positions, (B, T, D) each, in the type of ``x``."""
        # Apple's GPUs have no fp64.
        device = torch.device("cpu") if x.device.type == "mps" else x.device
        angles_BTF = position_ids[..., None].to(device, torch.float64) * self.plain.inv_freq.to(device, torch.float64)
        scale = self.plain.attention_scaling
        cos, sin = ((self._layout(part) * scale).to(x.dtype) for part in (angles_BTF.cos(), angles_BTF.sin()))
        return cos.to(x.device), sin.to(x.device)


def make_exact(decoder: Any) -> bool:
    """Give ``decoder`` exact angles where its rotary embedding is of a known form; True where it now has them."""
    plain: Any = getattr(decoder, "rotary_emb", None)
    if isinstance(plain, ExactRotary):
        return True
    known = isinstance(getattr(plain, "inv_freq", None), torch.Tensor) and hasattr(plain, "attention_scaling")
    if not known or getattr(plain, "rope_type", None) not in _FIXED_TYPES or plain.inv_freq.is_meta:
        return False
    # Near position 0 both ways agree to rounding, which tells the layouts apart.
    probe = torch.zeros(1, 1, 1, device=plain.inv_freq.device)
    positions = torch.arange(8, device=probe.device)[None]
    layouts = _LAYOUTS
    if picked := getattr(plain, "recomposition_frequencies", None):
        layouts, positions = (picked,), torch.stack([positions, 2 * positions, 3 * positions])
    try:
        wanted = plain(probe, positions)
    except (TypeError, RuntimeError, IndexError):  # one that asks for more, such as a layer's type or a fourth axis
        return False
    for layout in layouts:
        exact = ExactRotary(plain, layout)
        found = exact(probe, positions)
        if all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
            decoder.rotary_emb = exact
            return True
    return False
