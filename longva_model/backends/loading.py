"""From a name to a backend: which class reads the checkpoint, how it is prepared, what its template is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image as PILImage

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import Backend, HubModel, building, described, load_transformers
from longva_model.backends.llava_next_video import LlavaNextVideoBackend
from longva_model.backends.spreading import settle_spread, spreading
from longva_model.checkpoints.checkpoint import read_tensor_index, resolve_folder
from longva_model.engine.logits import OwnHead
from longva_model.engine.self_check import refuse_recurrent, settle_attention, settle_kv
from longva_model.run import processes
from vniah.files import read_json
from vniah.notices import did_you_mean
from vniah.runs.profiling import part

# Arguments that say nothing to other backends.
_GENERIC = ("presentation", "frame_tokens", "positions", "thinking")
LONGVA_TYPES = ("longva", "llava_qwen", "llava_llama", "llava_mistral")


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


def checkpoint_folder(args: ModelArgs) -> str:
    """The folder of ``args.pretrained``, fetched from the Hub where it is neither shipped nor on disk.

    Raises:
        FileNotFoundError: neither a folder with a config nor a model that the Hub or the local cache has.
    """
    name = str(nano_folder()) if args.pretrained == "nano" else args.pretrained
    if "/" not in name and not Path(name).exists():
        near = did_you_mean(name, ["nano"])
        raise FileNotFoundError(
            f"no model {args.pretrained!r}{near}; expected nano, a checkpoint folder, or a Hub id owner/name"
        )
    folder = resolve_folder(name, {"revision": args.revision} if args.revision else {})
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"pretrained={args.pretrained!r} has no config.json; expected nano, a checkpoint folder or a Hub model id"
        )
    return folder


def load_backend(args: ModelArgs) -> Backend:
    """Load ``args.pretrained`` onto its device.

    Raises:
        FileNotFoundError: neither a folder nor a model that the Hub or the local cache has.
        ValueError: a checkpoint of a kind that is not known here, or one that does not load, or whose logits by the
            engine are not those of its own forward.
    """
    folder = checkpoint_folder(args)
    config_file = Path(folder) / "config.json"
    # Whole, and no pickle, whichever class reads them.
    read_tensor_index(folder)
    kind = read_json(config_file).get("model_type")
    device = processes.pick_device(args.device)
    dtype = args.dtype if args.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    if args.device_map is not None and processes.launched_processes() > 1:
        raise ValueError(
            f"device_map={args.device_map!r} spreads one model over all devices and is for one process; start it "
            "without torchrun, or leave device_map out, so that each process has a model of its own"
        )
    if args.max_memory is not None and args.device_map is None:
        raise ValueError(f"max_memory={args.max_memory!r} says how device_map=auto places weights; give both")
    if not answers_generically(folder, args):
        args.refuse(_GENERIC, "it is for models that the generic backend (hf_tree) answers")
    backend = _backend_of(str(kind), args.generic)(folder, args, device, getattr(torch, dtype))
    with part("self-check"):
        settle_attention(backend, attn=args.attn, plain=args.scoring == "plain")
        backend.check()
        settle_kv(backend, args.kv, args.kv_block)
    return backend


def answers_generically(folder: str | Path, args: ModelArgs) -> bool:
    """Whether the backend for any model reads a checkpoint: it is the model ``hf_tree``."""
    from longva_model.backends.any_model import AnyModelBackend

    return _backend_of(str(read_json(Path(folder) / "config.json").get("model_type")), args.generic) is AnyModelBackend


def _backend_of(kind: str, generic: bool) -> Callable[..., Backend]:
    """The class that reads a config's ``model_type``; a kind that has one of its own may be read by the generic one."""
    if kind in LONGVA_TYPES:
        return LongVABackend
    if kind == "llava_next_video" and not generic:
        return LlavaNextVideoBackend
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        from longva_model.backends.any_model import AnyModelBackend

        return AnyModelBackend
    return TextBackend


class LongVABackend(HubModel):
    """LongVA, in the released layout or ours (LongVA-7B, its AnyRes and baselines, nano)."""

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from longva_model import LongVAForConditionalGeneration, LongVAProcessor

        names = ("rope_theta", "mm_spatial_pool_mode", "mm_spatial_pool_stride")
        changed = {name: value for name in names if (value := getattr(args, name)) is not None}
        told = spreading(args, device)
        with building(folder):
            model = LongVAForConditionalGeneration.from_pretrained(
                folder, trust_remote_code=False, dtype=dtype, **told, **changed
            )
            settle_spread(model, told, args.pretrained)
            self.processor = LongVAProcessor.from_pretrained(folder, trust_remote_code=False)
        self.layout = model.config.layout
        self._finish(folder, args, model, model.language_model, model.lm_head, self.processor.tokenizer)

    def _visual_settings(self) -> str:
        config, normed = self.model.config, (self.processor.image_mean, self.processor.image_std)
        tower = (described(config.vision_config), config.vision_feature_layer, config.projector_hidden_act)
        return f"{self.layout} {normed} {tower}"

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        tokens_NtD: torch.Tensor = self.model.encode_frames(self._levels(pixels_NHWC, self.processor.level_table))
        return tokens_NtD

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        inputs = self.processor(text="<image>", images=[image], return_tensors="pt")
        tokens_TD: torch.Tensor = self.model.get_image_features(
            inputs["pixel_values"].to(self.device, self.dtype), inputs["image_sizes"]
        )
        return tokens_TD

    @property
    def ends_videos(self) -> bool:
        return self.model.model.image_newline is not None

    def appended(self, name: str) -> torch.Tensor:
        newline: torch.Tensor | None = self.model.model.image_newline
        return super().appended(name) if newline is None else newline[None].detach()


class TextBackend(HubModel):
    """A text-only causal model of transformers (Qwen2-7B-Instruct-224K and others): text NIAH, perplexity."""

    def __init__(self, folder: str, args: ModelArgs, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import (
            CONFIG_MAPPING,
            MODEL_FOR_CAUSAL_LM_MAPPING,
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
            PreTrainedModel,
        )
        from transformers import __version__ as transformers_version

        kind = read_json(Path(folder) / "config.json").get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise ValueError(
                f"pretrained={args.pretrained!r} is of no kind that is known here: its config.json has model_type "
                f"{kind!r}, which this transformers ({transformers_version}) does not have"
            )
        with building(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(
                f"pretrained={args.pretrained!r} ({config.model_type}) is no causal language model of transformers; "
                "expected LongVA, LLaVA-NeXT-Video or a causal language model"
            )
        args.refuse(("mm_spatial_pool_mode", "mm_spatial_pool_stride"), "it is a text-only model")
        stateful = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False)
        refuse_recurrent(args.pretrained, config, stateful)
        with building(folder):
            model = load_transformers(AutoModelForCausalLM, folder, config, args, device, dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        try:
            # Some kinds call a part of their head a decoder, others do not say where theirs is.
            found = (model.get_decoder(), model.base_model, getattr(model, "model", None))
            decoder = next((part for part in found if isinstance(part, PreTrainedModel) and part is not model), model)
            self._head = OwnHead(model, decoder)
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"{args.pretrained} ({config.model_type}) is refused: {error}") from error
        self._finish(folder, args, model, decoder, model.get_output_embeddings(), tokenizer)

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        return self._head(hidden_TD)
