"""What a family of video-language models needs between its towers and its decoder, where it needs anything.

Most need nothing: ``Family`` calls the tower by the names that the processor gives its tensors, and the decoder with
embeddings, positions and a cache, as the model's own forward does. What differs stands here, a few lines a family.

Shapes: N units, t visual tokens a unit, k levels of features (1, and one for each level of DeepStack), T tokens of a
chunk, S tokens from the prompt's start to the chunk's end, V visual tokens of a chunk, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from longva_model.backends.columns import NEWLINE
from longva_model.backends.spreading import place_of
from longva_model.backends.unit_pixels import UnitPixels
from longva_model.engine.chunks import Chunk


class Family:
    """What holds for a model of no family below.

    Args:
        model: of transformers.
        inner: its part that has the towers and the text model.
        decoder: its text model.
    """

    # Frames reach the tower as (1, N, 3, Y, X) and not as (N, 3, Y, X), by the names of their tensors.
    one_batch: tuple[str, ...] = ()
    # Whether its decoder is given no more than embeddings, positions and a cache, and looks at what stands before only.
    plain_decoder = True

    def __init__(self, model: Any, inner: Any, decoder: Any) -> None:
        self.model, self.inner, self.decoder = model, inner, decoder
        self._deep = "deepstack_visual_embeds" in inspect.signature(decoder.forward).parameters

    def encode(self, units: UnitPixels) -> torch.Tensor:
        """Visual tokens, (k, N, t, D).

        Raises:
            ValueError: the tower gives another number of tokens than units of one size have.
        """
        tensors = dict(units.tensors)
        keep_Nt = tensors.pop("video_compression_mask", None)
        video = "pixel_values_videos" in tensors
        function = self._tower(video)
        given = {name: self._shaped(name, tensor, tensors) for name, tensor in tensors.items()}
        # By place: releases of transformers name it differently.
        pixels = given.pop("pixel_values_videos" if video else "pixel_values")
        out = function(pixels, **_taken(function, {**self._settings(units), **given}))
        levels = [_rows(out), *map(_rows, getattr(out, "deepstack_features", None) or ())]
        features_kND = torch.stack([self._units(level_TD) if video else level_TD for level_TD in levels])
        count, left = divmod(features_kND.shape[1], len(units))
        if left or not count:
            raise ValueError(
                f"{type(self.model).__name__} gives {features_kND.shape[1]} visual tokens for {len(units)} units of "
                "one size; its units do not stand for themselves"
            )
        features_kNtD = features_kND.unflatten(1, (len(units), count))
        if keep_Nt is not None:
            features_kNtD = _kept(features_kNtD, keep_Nt.to(features_kNtD.device).bool())
        return features_kNtD

    def appended(self, name: str) -> torch.Tensor:
        """A vector that the model itself puts among visual tokens, (D,).

        Raises:
            ValueError: it has none of that name.
        """
        vector = getattr(self.inner, "image_newline", None) if name == NEWLINE else None
        if vector is None:
            raise ValueError(f"{type(self.model).__name__} has no vector {name!r} that stands among visual tokens")
        return vector.detach()

    def decode(self, chunk: Chunk, embeds_TD: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """The decoder's hidden states of a chunk, (T, D).

        Args:
            chunk: what is fed.
            embeds_TD: its embeddings, features at their places.
            given: positions and cache.
        """
        if self._deep and chunk.features_kVD is not None and len(chunk.features_kVD) > 1:
            deeper = chunk.features_kVD[1:].to(embeds_TD.dtype)
            given = {**given, "visual_pos_masks": chunk.visual_T[None], "deepstack_visual_embeds": list(deeper)}
        return _hidden(self.decoder(inputs_embeds=embeds_TD[None], **given))

    def _tower(self, video: bool) -> Callable[..., Any]:
        name = "get_video_features" if video and hasattr(self.inner, "get_video_features") else "get_image_features"
        function: Callable[..., Any] = getattr(self.inner, name)
        return function

    def _settings(self, units: UnitPixels) -> dict[str, Any]:
        """What the model's own forward passes besides the processor's tensors."""
        names = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")
        found = {name: getattr(self.model.config, name) for name in names if hasattr(self.model.config, name)}
        return {**found, "return_dict": True}

    def _shaped(self, name: str, tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """A tensor of N units as the tower takes it."""
        # Tiles of images stand in one row, except where their sizes tell them apart.
        whole = {"pixel_values": 4, "pixel_attention_mask": 3}.get(name, tensor.ndim)
        if tensor.ndim == whole + 1 and "image_sizes" not in tensors:
            tensor = tensor.flatten(0, 1)
        if name.startswith("pixel_values"):
            tensor = tensor.to(place_of(self.inner), self.inner.dtype)
            if any(other.endswith("grid_thw") for other in tensors):
                return tensor.flatten(0, 1)  # patches of all units in a row
        else:
            tensor = tensor.to(place_of(self.inner))
        return tensor[None] if name in self.one_batch else tensor

    def _units(self, features_TD: torch.Tensor) -> torch.Tensor:
        """The features that belong to units of a video, without what the model appends to them."""
        return features_TD


class Batched(Family):
    """Takes the frames of a video, or a prompt's images, in one batch."""

    one_batch = ("pixel_values_videos", "pixel_values", "pixel_attention_mask")


class LlavaOnevision(Family):
    """Pools frames; puts one newline behind the video."""

    one_batch = ("pixel_values_videos",)

    def _settings(self, units: UnitPixels) -> dict[str, Any]:
        found = super()._settings(units)
        tiles = units.tensors.get("pixel_values")
        if tiles is not None and tiles.shape[1] == 1:
            # One of several images, which are not cut into tiles, however many are encoded at a time.
            found["batch_num_images"] = [max(len(units), 2)]
        return found

    def _units(self, features_TD: torch.Tensor) -> torch.Tensor:
        # Its forward puts the newline there in transformers 5.17, the function that encodes videos in 5.24.
        appended = features_TD[-1].equal(self.inner.image_newline.to(features_TD))
        return features_TD[:-1] if appended else features_TD


class Gemma3(Family):
    """Visual tokens of one image see each other both ways, which the model's own forward writes into its masks."""

    plain_decoder = False
    types = "token_type_ids"

    def decode(self, chunk: Chunk, embeds_TD: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        # Read by absolute position, so from the prompt's start on.
        types_1S = chunk.types_S.long()[None]
        return _hidden(self.inner(inputs_embeds=embeds_TD[None], **{self.types: types_1S}, **given))


class Gemma4(Gemma3):
    """As Gemma 3 where its config says so; smaller ones look embeddings up for each layer, by id."""

    types = "mm_token_type_ids"

    def __init__(self, model: Any, inner: Any, decoder: Any) -> None:
        super().__init__(model, inner, decoder)
        # transformers 5.17 takes a video's frames in one batch, and not their number.
        if "num_frames_per_video" not in inspect.signature(inner.get_video_features).parameters:
            self.one_batch = ("pixel_values_videos", "video_position_ids")

    def _settings(self, units: UnitPixels) -> dict[str, Any]:
        return {**super()._settings(units), "num_frames_per_video": torch.tensor([len(units)])}

    def decode(self, chunk: Chunk, embeds_TD: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        config = self.decoder.config
        if config.hidden_size_per_layer_input:
            padded_1T = chunk.ids_T.masked_fill(chunk.visual_T, config.pad_token_id)[None]
            given = {**given, "per_layer_inputs": self.decoder.get_per_layer_inputs(padded_1T, None)}
        return super().decode(chunk, embeds_TD, given)


FAMILIES: dict[str, type[Family]] = {
    "gemma3": Gemma3,
    "gemma4": Gemma4,
    "idefics3": Batched,
    "llava_next_video": Batched,
    "llava_onevision": LlavaOnevision,
    "nemotron_h_omni": Batched,
    "perception_lm": Batched,
    "smolvlm": Batched,
    "video_llava": Batched,
}


def family_of(model: Any, inner: Any, decoder: Any) -> Family:
    """The family that a model belongs to, by its config's ``model_type`` (see ``Family``)."""
    return FAMILIES.get(str(model.config.model_type), Family)(model, inner, decoder)


def _taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that the function names; all where it names none of them."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in known or name == "return_dict"}


def _rows(found: Any) -> torch.Tensor:
    """Visual tokens in order, (tokens, D), of whatever a tower returns: an output, a tuple, a list, a tensor."""
    found = getattr(found, "pooler_output", found)
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in _tensors(found)])


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    else:
        for part in found:
            yield from _tensors(part)


def _kept(features_kNtD: torch.Tensor, keep_Nt: torch.Tensor) -> torch.Tensor:
    """The tokens that units keep, as many each."""
    counts = keep_Nt.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"units of one series must keep as many tokens each, got {counts.tolist()}")
    levels = [level_NtD[keep_Nt].unflatten(0, (len(keep_Nt), int(counts[0]))) for level_NtD in features_kNtD]
    return torch.stack(levels)


def _hidden(out: Any) -> torch.Tensor:
    hidden_TD: torch.Tensor = out.last_hidden_state[0]
    return hidden_TD
