"""``LongVAProcessor``: prompts with ``<image>`` or ``<video>``, images and videos, as the model's inputs.

Text around a placeholder is tokenised separately, so that a visual never changes the tokens beside it
(reference section 3); a placeholder becomes as many placeholder ids as its visual makes tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from longva_model.checkpoints import checkpoint
from longva_model.checkpoints.layouts import find_tower
from longva_model.config import IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX, LongVAConfig
from longva_model.pictures.layout import VisualLayout
from longva_model.pictures.opening import load_frames, load_image
from longva_model.pictures.preprocess import CLIP_MEAN, CLIP_STD, MODES, fit_frames, level_table, normalise
from longva_model.prompts.chat_templates import CHAT_TEMPLATES, DEFAULT_TEMPLATES, PLACEHOLDER
from vniah.files import read_json


class LongVAProcessor(ProcessorMixin):
    """Tokenizer, tiles, frames and chat template in one.

    Args:
        tokenizer: the decoder's.
        chat_template: Jinja; one of ``chat_templates.CHAT_TEMPLATES`` by default.
        layout: a ``VisualLayout`` or its dict; must be the model's (``config.layout``).
        image_mean, image_std: per channel, of values in 0..1.
        image_token_index, video_token_index: placeholder ids.
        preprocess: how video frames are fitted unless a call says so: "crop" (the released inference: centre
            crop) or "pad" (V-NIAH: letterboxed).
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        layout: VisualLayout | dict[str, Any] | None = None,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        image_token_index: int = IMAGE_TOKEN_INDEX,
        video_token_index: int = VIDEO_TOKEN_INDEX,
        preprocess: str = "crop",
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        given = layout if isinstance(layout, VisualLayout) else VisualLayout(**(layout or {}))
        self.layout: dict[str, Any] = given.to_dict()
        self.visual_layout = given
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_token_index, self.video_token_index = image_token_index, video_token_index
        self.preprocess = _check_mode(preprocess)

    @property
    def level_table(self) -> NDArray[np.float32]:
        """Pixel value of each 8-bit level by channel, (3, 256): for ``levels_to_pixels``."""
        return level_table(self.image_mean, self.image_std)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        preprocess: str | None = None,
        num_frames: int | None = None,
        padding: bool | str | None = None,
        padding_side: str = "left",
        pad_to_multiple_of: int | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        return_mm_token_type_ids: bool = False,
        return_tensors: str | None = None,
        audio: None = None,
        do_sample_frames: bool | None = None,
        return_text_replacement_offsets: bool = False,
    ) -> BatchFeature:
        """Prompts and visuals as the model's inputs.

        Args:
            images: PIL images of any mode, uint8 arrays or paths; one list, or one list a prompt.
            text: one prompt or several, with one ``<image>`` or ``<video>`` a visual. ``<image>`` may stand for
                a video where there are no images.
            videos: uint8 (N, H, W, 3), lists of images, or paths of video files.
            preprocess: "crop" or "pad" for video frames; the processor's own unless given.
            num_frames: evenly many frames of each video; unless given all of them, but 32 of a file.
            padding: several prompts are padded to the longest unless this is False; on the left (what generation
                needs) unless ``padding_side`` is "right".
            truncation: nothing is ever cut: with it, a prompt above ``max_length``, visuals included, is an error.
            add_special_tokens: put the tokenizer's BOS in front, where it has that habit.
            return_offsets_mapping: also where in the text each token stands.
            return_mm_token_type_ids: also 0 for text, 1 for an image's tokens, 2 for a video's.
            return_tensors: "pt", "np" or None (lists of ids).
            do_sample_frames, return_text_replacement_offsets: what ``apply_chat_template`` adds; they say nothing more.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, L); with images ``pixel_values`` (images, tiles, 3, S, S),
            padded with zeros at the end, and ``image_sizes`` (images, 2) as height, width; with videos
            ``pixel_values_videos`` (videos, frames, 3, S, S) and, where they differ in length,
            ``video_num_frames`` (videos,).

        Raises:
            ValueError: placeholders and visuals that do not match in number, an unreadable image, an empty
                video, an unknown mode, or a prompt above ``max_length``.
        """
        mode = _check_mode(preprocess or self.preprocess)
        if audio is not None:
            raise ValueError("LongVA hears nothing; audio must be None")
        if images is not None and not isinstance(images, (list, tuple)):
            images = [images]
        videos = _as_list_of_videos(videos)
        texts = [text] if isinstance(text, str) else list(text or ())
        samples = [(images or (), videos or (), [])] if text is None else distribute(texts, images, videos)
        all_images = [load_image(image) for sample in samples for image in sample[0]]
        all_videos = [
            fit_frames(load_frames(video, num_frames), mode, self.visual_layout.tile_size)
            for sample in samples
            for video in sample[1]
        ]
        data: dict[str, Any] = {}
        if text is not None:
            counts = {
                "image": iter([self.visual_layout.num_image_tokens(image.size) for image in all_images]),
                "video": iter([self.visual_layout.num_video_tokens(len(frames)) for frames in all_videos]),
            }
            rows = [
                self._tokenise(prompt, [(kind, next(counts[kind])) for kind in kinds], add_special_tokens)
                for prompt, (_, _, kinds) in zip(texts, samples, strict=True)
            ]
            longest = max(len(ids) for ids, _ in rows)
            if truncation and max_length is not None and longest > max_length:
                raise ValueError(
                    f"a prompt is {longest} tokens long, above max_length={max_length}; nothing is cut. Give fewer "
                    "frames or smaller images, or raise max_length"
                )
            length = max(longest, max_length or 0) if padding == "max_length" else longest
            length = -(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
            pad = padding not in (False, "do_not_pad") if padding is not None else len(rows) > 1
            data = self._batch(rows, length if pad else None, padding_side)
            if not return_offsets_mapping:
                data.pop("offset_mapping")
            if return_mm_token_type_ids:
                types = {self.image_token_index: 1, self.video_token_index: 2}
                data["mm_token_type_ids"] = [[types.get(token, 0) for token in row] for row in data["input_ids"]]
        if all_images:
            data["pixel_values"] = self._pixels([self.visual_layout.tiles(image) for image in all_images])
            data["image_sizes"] = np.array([(image.height, image.width) for image in all_images])
        if all_videos:
            data["pixel_values_videos"] = self._pixels(all_videos)
            lengths = [len(frames) for frames in all_videos]
            if len(set(lengths)) > 1:
                data["video_num_frames"] = np.array(lengths)
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenise(
        self, prompt: str, visuals: list[tuple[str, int]], add_special_tokens: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """One prompt's ids, and where in it each stands; ``visuals`` are kind and tokens of each placeholder."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        tokenizer = self.tokenizer
        bos = tokenizer.bos_token_id if add_special_tokens else None
        # Only where the tokenizer does so itself, and the prompt does not bring its own.
        if bos is not None and tokenizer("").input_ids[:1] == [bos] and not prompt.startswith(tokenizer.bos_token):
            ids, offsets = [bos], [(0, 0)]
        at = 0
        for mark, visual in zip([*PLACEHOLDER.finditer(prompt), None], [*visuals, None], strict=True):
            stop = len(prompt) if mark is None else mark.start()
            if stop > at:
                part = tokenizer(prompt[at:stop], add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
                spans = part.get("offset_mapping", [(0, stop - at)] * len(part.input_ids))
                ids += part.input_ids
                offsets += [(at + start, at + end) for start, end in spans]
            if mark is not None and visual is not None:
                kind, count = visual
                ids += [self.image_token_index if kind == "image" else self.video_token_index] * count
                offsets += [mark.span()] * count
                at = mark.end()
        return ids, offsets

    def _batch(
        self, rows: list[tuple[list[int], list[tuple[int, int]]]], length: int | None, side: str
    ) -> dict[str, Any]:
        """Ids, mask and offsets of a batch, padded to a length where there is one."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad_id = next(token for token in known if token is not None)

        def padded(values: list[Any], filler: Any) -> list[Any]:
            gap = [filler] * ((length or 0) - len(values))
            return gap + values if side == "left" else values + gap

        return {
            "input_ids": [padded(ids, pad_id) for ids, _ in rows],
            "attention_mask": [padded([1] * len(ids), 0) for ids, _ in rows],
            "offset_mapping": [padded(offsets, (0, 0)) for _, offsets in rows],
        }

    def _pixels(self, visuals: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pixel values of images' tiles or videos' frames, (visuals, most, 3, S, S), zeros behind the shorter ones."""
        edge = self.visual_layout.tile_size
        pixels = np.zeros((len(visuals), max(map(len, visuals)), 3, edge, edge), np.float32)
        for row, frames in zip(pixels, visuals, strict=True):
            row[: len(frames)] = normalise(frames, self.image_mean, self.image_std)
        return pixels

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes", "pixel_values_videos", "video_num_frames"]

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """transformers' own; ``chat_template`` may also be one of ours by name, e.g. "vicuna"."""
        return super().apply_chat_template(
            conversation, CHAT_TEMPLATES.get(chat_template or "", chat_template), **kwargs
        )

    @classmethod
    def from_config(cls, config: LongVAConfig, tokenizer: Any, **kwargs: Any) -> LongVAProcessor:
        """The processor that fits a model's configuration."""
        template = CHAT_TEMPLATES[DEFAULT_TEMPLATES.get(config.text_config.model_type, "plain")]
        return cls(
            tokenizer,
            layout=config.layout,
            image_token_index=config.image_token_index,
            video_token_index=config.video_token_index,
            **{"chat_template": template, **kwargs},
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load from a folder or Hub id of either layout.

        A folder of the released layout has no processor: it is made from the config, from the preprocessing of
        the tower that the config names, and from the tokenizer.

        Raises:
            FileNotFoundError: neither a folder nor to be had from the Hub.
        """
        folder = checkpoint.resolve_folder(pretrained_model_name_or_path, kwargs, weights=False)
        # Whatever was asked for: no code is run from a checkpoint, and nobody is asked whether it may be.
        kwargs.pop("trust_remote_code", None)
        if (Path(folder) / "processor_config.json").is_file():
            return super().from_pretrained(folder, trust_remote_code=False, **kwargs)
        own = {key: kwargs.pop(key) for key in ("chat_template", "preprocess") if key in kwargs}
        config, kwargs = LongVAConfig.from_pretrained(
            folder, return_unused_kwargs=True, trust_remote_code=False, **kwargs
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, **kwargs)
        # The preprocessing of the tower: the checkpoint's own file, or that of the tower which the config names.
        path = Path(folder) / "preprocessor_config.json"
        tower = (config.released_config or {}).get("mm_vision_tower")
        preprocessor = read_json(path) if path.is_file() else find_tower(tower, Path(folder)).preprocessor or {}
        return cls.from_config(
            config,
            tokenizer,
            image_mean=preprocessor.get("image_mean", CLIP_MEAN),
            image_std=preprocessor.get("image_std", CLIP_STD),
            **own,
        )


def distribute(
    texts: Sequence[str], images: Sequence[Any] | None, videos: Sequence[Any] | None
) -> list[tuple[Sequence[Any], Sequence[Any], list[str]]]:
    """Each prompt's images, videos, and the kind ("image" or "video") of each of its placeholders, in order.

    ``<video>`` stands for a video. ``<image>`` stands for an image, or for a video where there are no images,
    as in the released code. Images, like videos, are one list for all prompts, or one list a prompt.

    Raises:
        ValueError: placeholders and visuals that do not match in number, or a video without frames.
    """
    if len(texts) == 1 and any(isinstance(video, (list, tuple)) and not video for video in videos or ()):
        raise ValueError("an empty video: a list without frames was given")
    image_lists, video_lists = _per_prompt(images, len(texts), "images"), _per_prompt(videos, len(texts), "videos")
    dealt_out = image_lists is None or video_lists is None
    has_images = [bool(images)] * len(texts) if dealt_out else [bool(own) for own in image_lists or ()]
    kinds = [
        ["image" if mark == "<image>" and has else "video" for mark in PLACEHOLDER.findall(text)]
        for text, has in zip(texts, has_images, strict=True)
    ]
    if image_lists is None or video_lists is None:
        _check_counts(list(chain.from_iterable(kinds)), len(images or ()), len(videos or ()), len(texts))
        left_images, left_videos = iter(images or ()), iter(videos or ())
        image_lists = [list(islice(left_images, sample.count("image"))) for sample in kinds]
        video_lists = [list(islice(left_videos, sample.count("video"))) for sample in kinds]
    for sample, own_images, own_videos in zip(kinds, image_lists, video_lists, strict=True):
        _check_counts(sample, len(own_images), len(own_videos), 1)
    return list(zip(image_lists, video_lists, kinds, strict=True))


def _as_list_of_videos(videos: Any) -> list[Any] | None:
    """A single video (array, path, list of images) as a list of one; lists of videos as they are."""
    if videos is None:
        return None
    if not isinstance(videos, (list, tuple)):
        return list(videos) if getattr(videos, "ndim", 4) == 5 else [videos]
    return [videos] if _is_video(videos) else list(videos)


def _per_prompt(visuals: Sequence[Any] | None, num_texts: int, what: str) -> list[Any] | None:
    """One list a prompt, or None where one list is to be dealt out to several."""
    if not visuals:
        return [[] for _ in range(num_texts)]
    # A list of frames is one video, so only a list of videos (or of nothing) is a prompt's own.
    if all(isinstance(item, (list, tuple)) and not (what == "videos" and _is_video(item)) for item in visuals):
        if len(visuals) != num_texts:
            raise ValueError(f"{what} are given for {len(visuals)} prompts, but there are {num_texts}")
        return list(visuals)
    return [visuals] if num_texts == 1 else None


def _is_video(item: Sequence[Any]) -> bool:
    first = item[0] if item else None
    return isinstance(first, Image.Image) or getattr(first, "ndim", 0) == 3


def _check_counts(kinds: list[str], num_images: int, num_videos: int, num_texts: int) -> None:
    if (kinds.count("image"), kinds.count("video")) == (num_images, num_videos):
        return
    if not num_images and not num_videos:
        wanted = f"{len(kinds)} <image> or <video>"
    else:
        wanted = f"{kinds.count('image')} <image> and {kinds.count('video')} <video>"
    where = "the prompt has" if num_texts == 1 else f"{num_texts} prompts have"
    raise ValueError(
        f"{where} {wanted} placeholders, but {num_images} images and {num_videos} videos were given. Each visual "
        "needs one placeholder: <image> for an image, <video> for a video (or <image>, where there are no images)"
    )


def _check_mode(mode: str) -> Any:
    if mode not in MODES:
        raise ValueError(f"preprocess must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


AutoProcessor.register(LongVAConfig, LongVAProcessor, exist_ok=True)
