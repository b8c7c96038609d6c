"""What a user may pass to our lmms-eval models, and a task's generation settings: checked once, where they enter.

lmms-eval hands over ``--model_args key=value,...`` with its own guess of each type; everything is read
again here, and an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vniah.contract.cost import KV_FORMS
from vniah.contract.requests import Generate
from vniah.notices import did_you_mean, notice

_CHOICES = {
    "parallel": ("auto", "branch", "ring", "tensor"),
    "preprocess": ("auto", "pad", "crop"),
    "scoring": ("tree", "plain"),
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "presentation": ("auto", "video", "images"),
    "thinking": ("auto", "on", "off"),
    "kv": KV_FORMS,
    "device_map": (None, "auto", "balanced", "balanced_low_0", "sequential"),
}
_SWITCH = {"1": True, "true": True, "0": False, "false": False}
# What lmms-eval adds to the arguments of every model.
_FROM_LMMS_EVAL = ("max_batch_size", "use_cache")


# What lmms-eval puts into every task that names no stop string. Its own models drop it, and an answer of
# several paragraphs (video_dc499) must not end at the first.
_NO_STOP = ["\n\n"]
_HONOURED = {"until", "do_sample", "max_new_tokens", "max_gen_toks", "min_new_tokens", "temperature", "top_p", "top_k"}
_HONOURED |= {"num_beams", "repetition_penalty", "seed"}
# Settings of other models, or of lmms-eval itself, that mean nothing here.
_IGNORED = {"image_aspect_ratio", "use_cache", "return_dict", "truncation", "max_length", "max_agentic_steps"}
_DEFAULT_MAX_NEW_TOKENS = 1024  # of lmms-eval's LongVA
_DEFAULT_TOP_K = 50  # of transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArgs:
    """Arguments of the lmms-eval models ``longva_ring`` and ``hf_tree``."""

    pretrained: str = "nano"  # shipped; or a folder or Hub id: LongVA, LLaVA-NeXT-Video, or a text-only causal model
    revision: str | None = None  # of the Hub
    dtype: str = "auto"  # bfloat16 on CUDA and float32 on the CPU
    device: str = "auto"  # this process's CUDA device, else the CPU
    max_frames_num: int = 32  # sampled from an ordinary video; V-NIAH shows all of a cell's frames
    rope_theta: float | None = None  # instead of the checkpoint's RoPE base
    max_length: int | None = None  # instead of the context length that the checkpoint states
    # Under torchrun, branch gives subtrees to ranks and ring shards one sequence over them; auto is branch when the
    # longest cell fits a device and ring when it does not; tensor deals out each layer's heads over all of them.
    parallel: str = "auto"
    tensor_parallel_size: int = 1  # so many ranks share each layer; branch and ring are then over groups of them
    kv: str = "device"  # where keys and values are kept: device, host (its memory), or fp8 (8 bits: approximate)
    kv_block: int | None = None  # tokens at a time that attention reads of them; None is all of them on the device
    attn: str = "auto"  # or a name of transformers' registry of attention
    device_map: str | None = None  # auto spreads a model over all devices, the host and the disk, as transformers does
    max_memory: str | None = None  # of weights on a device under device_map, such as 40GB
    journal: str = "auto"  # file of scored leaves; auto keeps one per run in the cache, none keeps none
    preprocess: str = "auto"  # how frames are fitted; auto is pad for V-NIAH and crop for ordinary videos
    scoring: str = "tree"  # shares prefixes; plain is one forward a request (the reference)
    chunk_tokens: int = 8192  # of one prefill chunk
    frame_batch: int = 16  # frames of one tower call
    template: str = "auto"  # of the prompt, or a name of vniah.prompts
    system_prompt: str | None = None  # text or a file of text; a system message of a chat task wins
    mm_spatial_pool_mode: str | None = None  # this and the next for released configs that lack them
    mm_spatial_pool_stride: int | None = None
    # Models of other makers (hf_tree):
    presentation: str = "auto"  # a clip as one video, or as images; auto is a video where the model knows videos
    frame_tokens: str = (
        "auto"  # tokens of a unit of frames: as the processor has it, a number, or column (the longest's)
    )
    positions: str = "model"  # whose position scheme: the model's own, a built-in one, or module:function
    thinking: str = "auto"  # on and off tell the chat template so (enable_thinking)
    generic: bool = False  # set by hf_tree: read by the generic backend where there is another one
    profile: bool = False  # tell at the end, and in results, where the time went
    batch_size: int = 1  # accepted for lmms-eval; the tree shares prefixes instead of batching

    @classmethod
    def read(cls, values: dict[str, Any]) -> ModelArgs:
        """Check and convert raw arguments.

        Raises:
            ValueError: an unknown key (names the nearest), a value of the wrong type, out of its range or choices, or
                values that exclude each other.
        """
        known = {field.name: field for field in fields(cls) if field.name != "generic"}
        read: dict[str, Any] = {}
        for key, value in values.items():
            if key in _FROM_LMMS_EVAL or value is None:
                continue
            if key not in known:
                hint = did_you_mean(key, known) or f"; expected one of {', '.join(known)}"
                raise ValueError(f"unknown model argument {key}={value!r}{hint}")
            read[key] = _convert(key, str(known[key].type), value)
        args = cls(**read)
        for key, choices in _CHOICES.items():
            if getattr(args, key) not in choices:
                raise ValueError(f"{key}={getattr(args, key)!r}: expected one of {', '.join(filter(None, choices))}")
        if args.frame_tokens not in ("auto", "column") and not (args.frame_tokens.isdigit() and int(args.frame_tokens)):
            raise ValueError(f"frame_tokens={args.frame_tokens!r}: expected auto, column, or a number of tokens")
        if args.in_blocks:
            given = args.kv_given
            if args.parallel == "ring":
                raise ValueError(f"{given} keeps all of a prompt in one process; leave it out, or parallel=ring")
            if args.scoring == "plain":
                raise ValueError(f"{given} is of what the tree keeps, and scoring=plain keeps nothing; leave one out")
        return args

    @property
    def in_blocks(self) -> bool:
        """Whether attention is to read keys and values block by block."""
        return self.kv != "device" or self.kv_block is not None

    @property
    def kv_given(self) -> str:
        """The arguments that say so, as they are given; empty where it is not."""
        if not self.in_blocks:
            return ""
        return f"kv={self.kv}" if self.kv_block is None else f"kv={self.kv},kv_block={self.kv_block}"

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Raise where one of these arguments was given and says nothing to the model.

        Raises:
            ValueError: naming it.
        """
        for name in names:
            if getattr(self, name) != getattr(ModelArgs(), name):
                raise ValueError(f"{name}={getattr(self, name)!r} is not for {self.pretrained}: {why}; leave it out")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check_needles(self, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """Say so where the shipped model is asked what it was not taught; ``measured`` is provenance by task."""
        asked = {task: str(told.get("needles_name", "icons")) for task, told in measured.items()}
        strange = [task for task, needles in asked.items() if not needles.startswith("icons")]
        if self.pretrained == "nano" and strange:
            notice(
                f"the model is nano, a tiny one that ships for trying things out and was taught icons, and "
                f"{', '.join(strange)} asks for other needles: expect nothing of it. Name a model of yours "
                "(pretrained=...), or ask what it knows (needles icons:0:20)"
            )

    def system_text(self) -> str | None:
        """The system prompt, read where it is a file; ``None`` for the template's own."""
        given = self.system_prompt or ""
        if given and os.path.isfile(given):
            return Path(given).read_text(encoding="utf-8").strip() or None
        return given or None


def parse_model_args(text: str) -> dict[str, str]:
    """``key=value,key=value`` as lmms-eval's ``--model_args``.

    Raises:
        ValueError: a piece without "=".
    """
    found: dict[str, str] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = piece.partition("=")
        if not equals:
            raise ValueError(f"cannot read {piece!r}; expected key=value,key=value")
        found[key.strip()] = value.strip()
    return found


def _convert(key: str, kind: str, value: Any) -> Any:
    if kind.startswith("str"):
        return str(value)
    if kind == "bool":
        if str(value).lower() not in _SWITCH:
            raise ValueError(f"{key}={value!r}: expected 1 or 0")
        return _SWITCH[str(value).lower()]
    number = _number({key: value}, key, 0.0)
    if not math.isfinite(number):
        raise ValueError(f"{key}={value!r}: expected a finite number")
    if kind.startswith("int"):
        if number != int(number) or isinstance(value, bool):
            raise ValueError(f"{key}={value!r}: expected a whole number")
        number = int(number)
    if number <= 0:
        raise ValueError(f"{key}={value!r}: must be positive")
    return number


def generate_leaf(settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Generate:
    """Read ``generation_kwargs``; greedy unless ``do_sample`` or a temperature above 0 says otherwise.

    ``do_sample: false`` wins over a temperature, as in transformers; ``do_sample: true`` without one samples
    at the checkpoint's temperature. Whatever the task leaves open is as ``model.generate`` has it: the
    checkpoint's generation config, then transformers' default.

    Args:
        settings: of the task.
        defaults: the checkpoint's generation config (``Backend.generation_defaults``).

    Raises:
        ValueError: a setting that is no number where one is needed, or out of its range.
    """
    if unknown := sorted(settings.keys() - _HONOURED - _IGNORED):
        notice(f"generation settings that are not honoured: {', '.join(unknown)}")
    own = {key: value for key, value in settings.items() if value is not None}
    values = {**(defaults or {}), **own}
    until = own.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(str(word) for word in until) if until != _NO_STOP else ()
    temperature = _number(own, "temperature", 0.0)
    sampled = own.get("do_sample", temperature > 0)
    if sampled and temperature == 0:
        temperature = _number(defaults or {}, "temperature", 1.0) or 1.0
    leaf = Generate(
        max_new_tokens=int(_number(own, "max_new_tokens", _number(own, "max_gen_toks", _DEFAULT_MAX_NEW_TOKENS))),
        min_new_tokens=int(_number(values, "min_new_tokens", 0)),
        temperature=temperature if sampled else 0.0,
        top_p=_number(values, "top_p", 1.0) if sampled else 1.0,
        top_k=int(_number(values, "top_k", _DEFAULT_TOP_K)) if sampled else 0,
        num_beams=int(_number(own, "num_beams", 1)),
        repetition_penalty=_number(values, "repetition_penalty", 1.0),
        seed=int(_number(own, "seed", 0)),
        stop=stop,
    )
    for name, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1), ("top_k", 0), ("temperature", 0)):
        if getattr(leaf, name) < low:
            raise ValueError(f"{name}={getattr(leaf, name)}: must be at least {low}")
    if not 0 <= leaf.top_p <= 1:
        raise ValueError(f"top_p={leaf.top_p}: must lie from 0 to 1")
    if leaf.repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty={leaf.repetition_penalty}: must be positive")
    return leaf


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}={value!r}: expected a number") from None
