"""From a name to a backend: which class reads the checkpoint, how it is prepared, what its template is."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from longva_model.engine import work
from longva_model.engine.backend import Backend, TextMixin, eos_token_ids
from longva_model.model_args import ModelArgs
from vniah.prompts import PromptTemplate, get_template

logger = logging.getLogger(__name__)
LONGVA_TYPES = ("longva", "llava_qwen", "llava_llama", "llava_mistral")
_TEMPLATE_OF_DECODER = {"qwen2": "qwen_1_5", "mistral": "mistral", "llama": "vicuna"}


def nano_folder() -> Path:
    """The shipped nano checkpoint.

    Raises:
        FileNotFoundError: the package was built without its weights.
    """
    import longva_model.nano as nano

    folder = Path(str(nano.__file__)).parent
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"the nano weights are not in {folder}; reinstall vniah, or train them: vniah train nano"
        )
    return folder


def load_backend(args: ModelArgs) -> Backend:
    """Load ``args.pretrained`` onto its device.

    Raises:
        FileNotFoundError: neither a folder nor a model that the Hub or the local cache has.
        ValueError: a checkpoint of a kind that is not known here, or one that does not load.
    """
    from longva_model import checkpoint

    name = str(nano_folder()) if args.pretrained == "nano" else args.pretrained
    folder = checkpoint.resolve_folder(name, {"revision": args.revision} if args.revision else {})
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"pretrained={args.pretrained!r} has no config.json; expected nano, a checkpoint folder or a Hub model id"
        )
    kind = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    device = work.pick_device(args.device)
    dtype = args.dtype if args.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    backends = {"llava_next_video": LlavaNextVideoBackend, **dict.fromkeys(LONGVA_TYPES, LongVABackend)}
    backend = backends.get(str(kind), TextBackend)
    return backend(folder, args, device, getattr(torch, dtype))


class _HubModel(TextMixin):
    """What the three backends share: names, length, template, attention."""

    def _finish(self, folder: str, args: ModelArgs, model: Any, decoder: Any, lm_head: Any, tokenizer: Any) -> None:
        from longva_model import checkpoint

        self.name = args.pretrained
        self.model, self.decoder, self.lm_head, self.tokenizer = model.eval(), decoder, lm_head, tokenizer
        config = decoder.config
        stated = getattr(model.config, "context_length", None) or getattr(config, "max_position_embeddings", None)
        self.max_length = args.max_length or int(stated or 0)
        self.train_tokens = getattr(config, "max_position_embeddings", None)
        self.eos_ids = eos_token_ids(tokenizer, getattr(model, "generation_config", None))
        self.template: PromptTemplate = self._template(args)
        rope = json.dumps(getattr(config, "rope_parameters", None), sort_keys=True, default=str)
        parts = (checkpoint.weights_fingerprint(folder), rope, type(self).__name__)
        self.fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._choose_attention(args)

    def _levels(self, pixels_NHWC: torch.Tensor, table: NDArray[np.float32]) -> torch.Tensor:
        """uint8 frames to normalised (N, 3, S, S) on the device: a quarter of the bytes is moved."""
        from longva_model.visual import levels_to_pixels

        return levels_to_pixels(pixels_NHWC.to(self.device), table).to(self.dtype)

    def _template(self, args: ModelArgs) -> PromptTemplate:
        if args.template != "auto":
            return get_template(args.template)
        named = getattr(self.model.config, "chat_template_name", None)
        return get_template(named or _TEMPLATE_OF_DECODER.get(self.decoder.config.model_type, "plain"))

    def _choose_attention(self, args: ModelArgs) -> None:
        """Blocks without a mask for the tree, unless the user names something else; torch's for the plain way."""
        if args.attn != "auto":
            name = args.attn
        elif args.scoring == "plain":
            name = "sdpa"
        else:
            name = "longva_blockwise"
        if name.startswith("longva_"):
            from longva_model.attention import register

            register()
        try:
            self.decoder.set_attn_implementation(name)
        except (ValueError, ImportError) as error:
            raise ValueError(f"attn={name!r} cannot be used: {error}") from error


def _load_args(args: ModelArgs, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    extra: dict[str, Any] = {"dtype": dtype, "device_map": str(device) if device.type != "cpu" else None}
    if args.rope_theta is not None:
        extra["rope_theta"] = args.rope_theta
    for key in ("mm_spatial_pool_mode", "mm_spatial_pool_stride"):
        if getattr(args, key) is not None:
            extra[key] = getattr(args, key)
    return {key: value for key, value in extra.items() if value is not None}


class LongVABackend(_HubModel):
    """LongVA, in the released layout or ours (LongVA-7B, its AnyRes and baselines, nano)."""

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from longva_model import LongVAForConditionalGeneration, LongVAProcessor

        model = LongVAForConditionalGeneration.from_pretrained(folder, **_load_args(args, device, dtype))
        self.processor = LongVAProcessor.from_pretrained(folder)
        self.layout = model.config.layout
        self.tokens_per_frame = int(self.layout.tokens_per_frame)
        self.size = int(self.layout.tile_size)
        self._finish(folder, args, model, model.language_model, model.lm_head, self.processor.tokenizer)

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        from longva_model.preprocess import fit_frames

        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, self.size))  # type: ignore[arg-type]

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        tokens_NtD: torch.Tensor = self.model.encode_frames(self._levels(pixels_NHWC, self.processor.level_table))
        return tokens_NtD

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        inputs = self.processor(text="<image>", images=[image], return_tensors="pt")
        tokens_TD: torch.Tensor = self.model.get_image_features(
            inputs["pixel_values"].to(self.device, self.dtype), inputs["image_sizes"]
        )
        return tokens_TD

    def image_tokens(self, size: tuple[int, int]) -> int:
        return int(self.layout.num_image_tokens(size))

    def video_suffix(self) -> torch.Tensor | None:
        """What follows a video's last frame, (1, D): the newline of AnyRes (reference section 1), else nothing."""
        newline = self.model.model.image_newline
        return None if newline is None else newline[None].detach()


class LlavaNextVideoBackend(_HubModel):
    """LLaVA-NeXT-Video by transformers' own class: the baseline of Figure 4 (iii) and (iv)."""

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

        config = LlavaNextVideoConfig.from_pretrained(folder)
        if args.rope_theta is not None:
            parameters = dict(getattr(config.text_config, "rope_parameters", None) or {"rope_type": "default"})
            config.text_config.rope_parameters = {**parameters, "rope_theta": args.rope_theta}
        wanted = {
            key: value for key, value in _load_args(args, device, dtype).items() if key in ("dtype", "device_map")
        }
        model = LlavaNextVideoForConditionalGeneration.from_pretrained(
            folder, config=config, use_safetensors=True, **wanted
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.size = int(config.vision_config.image_size)
        side = self.size // int(config.vision_config.patch_size) // int(config.spatial_pool_stride)
        self.tokens_per_frame = side * side
        self._finish(folder, args, model, model.model.language_model, model.lm_head, tokenizer)

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        from longva_model.preprocess import fit_frames

        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, self.size))  # type: ignore[arg-type]

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        from longva_model.preprocess import level_table

        config = self.model.config
        out = self.model.model.get_video_features(
            pixel_values_videos=self._levels(pixels_NHWC, level_table())[None],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            output_hidden_states=True,
        )
        pooled = out.pooler_output if hasattr(out, "pooler_output") else out
        tokens_TD = torch.cat(list(pooled)) if isinstance(pooled, (list, tuple)) else pooled.flatten(0, 1)
        tokens_NtD: torch.Tensor = tokens_TD.reshape(len(pixels_NHWC), -1, tokens_TD.shape[-1])
        return tokens_NtD

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        """One frame: this baseline is here for video."""
        pixels = self.pixels(np.asarray(image.convert("RGB"))[None], "crop")
        return self.encode_pixels(pixels)[0]

    def image_tokens(self, size: tuple[int, int]) -> int:
        return self.tokens_per_frame

    def video_suffix(self) -> torch.Tensor | None:
        return None


class TextBackend(_HubModel):
    """A text-only causal model of transformers (Qwen2-7B-Instruct-224K and others): text NIAH, perplexity."""

    tokens_per_frame = 0

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(folder)
        except (ValueError, KeyError) as error:
            raise ValueError(f"pretrained={args.pretrained!r} is of no kind that is known here: {error}") from error
        if args.rope_theta is not None:
            parameters = dict(getattr(config, "rope_parameters", None) or {"rope_type": "default"})
            config.rope_parameters = {**parameters, "rope_theta": args.rope_theta}
        wanted = {
            key: value for key, value in _load_args(args, device, dtype).items() if key in ("dtype", "device_map")
        }
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, use_safetensors=True, **wanted)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._finish(folder, args, model, model.get_decoder(), model.get_output_embeddings(), tokenizer)

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        raise ValueError(f"{self.name} is a text-only model and cannot be shown frames; choose a LongVA checkpoint")

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"{self.name} is a text-only model and cannot be shown frames; choose a LongVA checkpoint")

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        raise ValueError(f"{self.name} is a text-only model and cannot be shown images; choose a LongVA checkpoint")

    def image_tokens(self, size: tuple[int, int]) -> int:
        raise ValueError(f"{self.name} is a text-only model and cannot be shown images; choose a LongVA checkpoint")

    def video_suffix(self) -> torch.Tensor | None:
        return None
