"""Any image-text-to-text model of transformers: its towers a unit at a time, its decoder a chunk at a time.

The model's own forward does three things: it runs its towers over the whole clip, puts their features among the
embeddings, and runs its decoder. Here they are three steps, so that a unit goes through the towers once however many
prompts show it, and the decoder goes on where another prompt's prefix ended. What is special to a family stands in
``families.py``.

Shapes: N units, t visual tokens a unit, k levels of features (1, and one for each level of DeepStack), T tokens of a
chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import HubModel, building, described_values, load_transformers
from longva_model.backends.columns import ClipShape
from longva_model.backends.families import Family, family_of
from longva_model.backends.lowering import Lowering
from longva_model.backends.positions import PositionedPrompt, Scheme, load_scheme
from longva_model.backends.refusals import refuse_by_config
from longva_model.backends.rendering import Renderer
from longva_model.backends.unit_pixels import UnitPixels
from longva_model.engine.atoms import AtomTable, Lowered
from longva_model.engine.chunks import Chunk
from longva_model.engine.logits import OwnHead
from longva_model.prompts.prompting import Prompt, build_question, build_turns
from longva_model.renamed import cache_keyword
from vniah.contract.requests import Leaf, Request, Text, Turn
from vniah.files import sha256_of
from vniah.notices import notice

# What decides a clip's text and pixels.
_PROCESSOR_FILES = (
    *("preprocessor_config.json", "image_preprocessor_config.json", "video_preprocessor_config.json"),
    *("processor_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.json", "chat_template.jinja"),
)
# The clip that a position scheme is tried on.
_PROOF_FRAMES, _PROOF_SIZE = 5, (120, 160)


class AnyModelBackend(HubModel):
    """A video-language model by transformers' own class and processor.

    Args:
        folder: config.json, safetensors, the processor's and the tokenizer's files.

    Raises:
        ValueError: a model that cannot be computed a unit or a chunk at a time, or that does not load.
    """

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoModelForImageTextToText

        self.scheme = load_scheme(args.positions)
        with building(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        refuse_by_config(args.pretrained, config)
        args.refuse(
            ("preprocess", "template", "mm_spatial_pool_mode", "mm_spatial_pool_stride"),
            "its own processor and chat template show a clip",
        )
        self.processor = processor_of(folder)
        with building(folder):
            model = load_transformers(AutoModelForImageTextToText, folder, config, args, device, dtype)
        inner, decoder = parts_of(model)
        self.own_attention = decoder.config._attn_implementation
        self._head = OwnHead(model, decoder if inner is model else inner)
        self.family: Family = family_of(model, inner, decoder)
        self.plain_decoder = self.family.plain_decoder
        thinking = {} if args.thinking == "auto" else {"enable_thinking": args.thinking == "on"}
        if thinking and "enable_thinking" not in str(_templates_of(self.processor)):
            notice(
                f"thinking={args.thinking} changes nothing: the chat template of {args.pretrained} does not know "
                "enable_thinking"
            )
            thinking = {}
        self.renderer = renderer_of(
            self.processor, config, inner, args.presentation, args.frame_tokens, thinking, self.scheme
        )
        self._lowering = Lowering(self.renderer)
        self._checked: float | None = None
        files = [path for name in _PROCESSOR_FILES if (path := Path(folder) / name).is_file()]
        self._file_hashes = [sha256_of(path) for path in files]
        self._finish(folder, args, model, decoder, model.get_output_embeddings(), self.processor.tokenizer)
        begun, plain = list(self.tokenizer("x")["input_ids"]), self.token_ids("x")
        self._begin = begun[: len(begun) - len(plain)] if begun[-len(plain) :] == plain else []
        self._scheme_proof = self._proof_of_scheme()

    def _proof_of_scheme(self) -> str:
        """A fingerprint of the chosen scheme: of its code, and of what it gives for a short clip, in which whatever
        else it reads shows; "" for the model's own.

        Raises:
            ValueError: it gives nothing that this model takes.
        """
        if self.scheme is None:
            return ""
        if self.chunked_until is not None or self.positions_until is not None:
            raise ValueError(
                f"positions={self.scheme.name} is not for {self.name}: how it knows positions (learned ones, or a RoPE "
                "that follows the length) depends on how far they reach; leave it out"
            )
        turns = (("user", (ClipShape(_PROOF_FRAMES, _PROOF_SIZE), "?")),)
        column = self.renderer.column(turns, lambda _: np.zeros((_PROOF_FRAMES, *_PROOF_SIZE, 3), np.uint8))
        self._axes = 1 if column.positions_AT is None else len(column.positions_AT)
        given = b"" if column.positions_AT is None else column.positions_AT.tobytes()
        return hashlib.sha256(self.scheme.fingerprint.encode() + given).hexdigest()[:32]

    def _visual_settings(self) -> str:
        # Both what a processor makes of frames and where a model places them have changed between versions.
        from transformers import __version__

        settings = self.model.config.to_dict()
        settings.pop("text_config", None)
        return " ".join((described_values(settings), __version__, *self._file_hashes))

    def question(
        self, text: str, visuals: Sequence[Any], leaf: Leaf, *, max_frames: int, system: str | None = None
    ) -> Prompt:
        return build_question(text, visuals, leaf, max_frames=max_frames, system=system)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], leaf: Leaf, *, max_frames: int, system: str | None = None
    ) -> Prompt:
        return build_turns(messages, leaf, max_frames=max_frames, system=system)

    def follow_up(self, prompt: Prompt, answer: str, question: str, leaf: Leaf) -> Prompt:
        more = (Turn("assistant"), Text(answer), Turn("user"), Text(question))
        return replace(prompt, request=Request((*prompt.request.segments, *more), leaf))

    def lower(self, prompt: Prompt, table: AtomTable, preprocess: str = "auto") -> Lowered:
        segments = prompt.request.segments
        if not any(isinstance(segment, Turn) for segment in segments):
            # A raw prompt begins as the tokenizer begins every text.
            pieces = [piece for part in segments for piece in self._codes(part, prompt, table, preprocess)]
            return self._raw(Lowered.of([np.array(self._begin, np.int64), *pieces], table))
        return self._lowering.lower(segments, prompt.media, table)

    def expect(self, prompts: Iterable[Prompt]) -> None:
        self._lowering.expect(prompts)

    def _raw(self, lowered: Lowered) -> Lowered:
        """A prompt of text alone, whose own positions run on; a scheme may have others."""
        if self.scheme is None:
            return lowered
        own_AT = np.arange(lowered.tokens + 1, dtype=np.int64)[None].repeat(self._axes, 0)
        text = PositionedPrompt(lowered.atoms_A.astype(np.int64), np.zeros(lowered.tokens, np.bool_), (), own_AT)
        found_AT = self.scheme.positions(text)
        if np.array_equal(found_AT, own_AT) and self.scheme.step == 1:
            return lowered
        return replace(lowered, positions_PT=found_AT.astype(np.int32), step=self.scheme.step)

    def reference(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor | None:
        segments = prompt.request.segments
        if not any(isinstance(segment, Turn) for segment in segments):
            return None
        turns, visuals = self._lowering.shown(segments, prompt.media)
        inputs = self.renderer.inputs(turns, lambda clip: visuals[clip].frames())
        behind = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}
        behind |= {name: [0] * len(ids) for name in ("token_type_ids", "mm_token_type_ids")}
        for name, values in behind.items():
            if name in inputs:
                rows_1T = torch.as_tensor(inputs[name])
                inputs[name] = torch.cat([rows_1T, torch.tensor([values], dtype=rows_1T.dtype)], 1)
        if self.scheme is not None:
            length = inputs["input_ids"].shape[1]
            positions_PT = torch.from_numpy(self.lower(prompt, AtomTable()).positions(0, length))
            inputs["position_ids"] = positions_PT if len(positions_PT) == 1 else positions_PT[:, None]
            # Without a mask, jumps in positions are taken for borders between sequences that share a batch.
            inputs.setdefault("attention_mask", torch.ones(1, length, dtype=torch.long))
        return self.own_logits(inputs, 1 + len(ids))

    def check(self, engine: Any = None) -> None:
        from longva_model.backends.visual_check import check_visual

        columns = dict(self._lowering.columns)
        self._checked = check_visual(self) if engine is None else check_visual(self, engine)
        self._lowering.columns = columns  # without those of the check's clips

    def pixels(self, frames_NfHWC: NDArray[np.uint8], preprocess: str) -> Any:
        frames_NfHWC = frames_NfHWC if frames_NfHWC.ndim == 5 else frames_NfHWC[:, None]
        return self.renderer.unit_pixels(frames_NfHWC, preprocess.removesuffix("-fast"))

    def appended(self, name: str) -> torch.Tensor:
        return self.family.appended(name)[None].to(self.device)

    @property
    def tokens_per_frame(self) -> int:  # type: ignore[override]
        """About: of the first column that was rendered. How work is dealt out goes by it, and no result."""
        return next((max(1, round(one["tokens_a_frame"][0])) for one in self._lowering.told()), 1)

    def image_tokens(self, size: tuple[int, int]) -> int:
        return self.tokens_per_frame

    def about(self) -> dict[str, Any]:
        from transformers import __version__

        shown = dict(self._lowering.shown_as)
        kind = "video_processor" if self.renderer.presentation == "video" else "image_processor"
        return {
            "template": "the checkpoint's chat template",
            "template_kwargs": self.renderer.template_kwargs or None,
            "presentation": self.renderer.presentation,
            "frame_tokens": self.renderer.frame_tokens,
            "frames_held_at": None if self.renderer.frame_tokens == "auto" else self.renderer.size_rule,
            "processor": {"class": type(self.processor).__name__, kind: shown.get(kind)},
            "frames_shown": self._lowering.told(),
            **self._positions_told(),
            "notes": list(self._lowering.notes),
            "largest_difference_from_own_forward": self._checked,
            "transformers": __version__,
        }

    def settings(self) -> list[Any]:
        rules = [
            self.renderer.presentation,
            self.renderer.size_rule,
            self.renderer.template_kwargs,
            self._positions_told(),
        ]
        return [*rules, *self._file_hashes]

    def _positions_told(self) -> dict[str, str]:
        """Whose positions; a fingerprint where they are not the model's own."""
        if self.scheme is None:
            return {"positions": "model"}
        return {"positions": self.scheme.name, "positions_fingerprint": self._scheme_proof}

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        return self._head(hidden_TD)

    @torch.inference_mode()
    def encode_pixels(self, pixels: UnitPixels) -> torch.Tensor:  # type: ignore[override]
        """Visual tokens of units, (N, k * t, D): all of a unit's first level, then all of its next."""
        features_kNtD = self.family.encode(pixels)
        return features_kNtD.transpose(0, 1).flatten(1, 2).to(self.device)

    def forward(self, chunk: Chunk, state: Any, keep: int) -> torch.Tensor:
        several = chunk.positions.ndim == 2 and len(chunk.positions) > 1
        positions = chunk.positions[:, None] if several else chunk.positions.reshape(1, -1)
        given: dict[str, Any] = {"position_ids": positions, "use_cache": state is not None}
        if state is None and chunk.positions.ndim == 2 and not several:
            # As in ``reference``.
            given["attention_mask"] = torch.ones_like(chunk.ids_T)[None]
        if state is not None:
            given[cache_keyword(self.decoder)] = state
        return self.family.decode(chunk, self.embed(chunk), given)[-keep:]

    @torch.inference_mode()
    def own_logits(self, inputs: Mapping[str, Any], keep: int) -> torch.Tensor:
        """Logits at the last ``keep`` tokens by one plain forward with the model's own attention, (keep, V), fp32.

        Args:
            inputs: what the model's processor made of one prompt.
        """
        self.forget_positions()
        moved = {name: self._moved(name, value) for name, value in inputs.items()}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            moved["logits_to_keep"] = keep
        chosen = self.decoder.config._attn_implementation
        self.decoder.set_attn_implementation(self.own_attention)
        try:
            logits_TV: torch.Tensor = self.model(**moved, use_cache=False).logits[0, -keep:].float()
        finally:
            self.decoder.set_attn_implementation(chosen)
        self.forget_positions()
        return logits_TV

    def forget_positions(self) -> None:
        """Let go of what the model remembers of another prompt's positions."""
        if getattr(self.family.inner, "rope_deltas", None) is not None:
            self.family.inner.rope_deltas = None

    def _moved(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # Times between frames are floats too, and decide positions.
        pixels = name.startswith("pixel_values") and value.is_floating_point()
        return value.to(self.device, self.dtype) if pixels else value.to(self.device)


def processor_of(folder: str) -> Any:
    """A checkpoint's own processor.

    Raises:
        ValueError: it has none, or none that shows a prompt with images.
    """
    from transformers import AutoProcessor

    needed = "a folder of such a model holds its processor's and tokenizer's files and its chat template too"
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever files that are missing or others' lead to
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"no processor can be made of {folder}: {type(error).__name__}: {cause}; {needed}") from error
    lacks = [name for name in ("tokenizer", "image_processor") if getattr(processor, name, None) is None]
    if lacks:
        raise ValueError(
            f"{folder} gives a {type(processor).__name__} without {' and '.join(lacks)} (is preprocessor_config.json "
            f"or processor_config.json missing?); {needed}"
        )
    if not _templates_of(processor):
        raise ValueError(f"{folder} has no chat template; add its maker's chat_template.jinja")
    return processor


def _templates_of(processor: Any) -> Any:
    """Its chat template, or several by name; nothing where it has none."""
    return getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)


def renderer_of(
    processor: Any,
    config: Any,
    inner: Any,
    presentation: str,
    frame_tokens: str,
    template_kwargs: Mapping[str, Any],
    scheme: Scheme | None = None,
) -> Renderer:
    """The renderer of a model, by arguments as a user gives them.

    Args:
        inner: what holds the model's towers, and knows its positions where they do not merely run on.

    Raises:
        ValueError: the processor shows no such thing as is asked for.
    """
    tokens: Any = int(frame_tokens) if frame_tokens.isdigit() else frame_tokens
    shown: Any = presentation
    return Renderer(processor, config, getattr(inner, "get_rope_index", None), shown, tokens, template_kwargs, scheme)


def parts_of(model: Any) -> tuple[Any, Any]:
    """(what holds the towers, the text model beside them).

    Raises:
        ValueError: it has no text model apart from its towers.
    """
    for inner in (getattr(model, "model", None), model):
        language = getattr(inner, "language_model", None) or getattr(inner, "text_model", None)
        if language is not None:
            # Some have a whole causal model there, with a head of its own.
            return inner, language if language.get_output_embeddings() is None else language.get_decoder()
    raise ValueError(f"{type(model).__name__} is refused: it has no text model apart from its towers")
