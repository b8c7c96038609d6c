"""The pixels of visual units alone, to the bit those that the processor cuts out of the whole clip.

A processor with a budget for the whole video resizes a frame by how many frames there are. A unit has only its own
frames at hand, so the size is given, and the processor is told to leave it at that.

Shapes: N units, f frames merged into one unit, H and W a frame's height and width, t visual tokens a unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longva_model.backends.processor_calls import ProcessorCalls, Thinness
from longva_model.backends.unit_pixels import UnitPixels

Kind = Literal["image", "video"]
_FITTED = re.compile(r"(?P<image>image )?(?:(?P<tiles>\d+) of )?(?P<width>\d+)x(?P<height>\d+)(?: mask (?P<mask>\w+))?")
_PIXELS = ("pixel_values_videos", "pixel_values", "pixel_values_images")
_SETTINGS = (
    *("size", "max_pixels", "min_pixels", "cap_pixels_per_frame", "max_soft_tokens", "do_resize", "crop_size"),
    *("do_center_crop", "patch_size", "merge_size", "temporal_patch_size", "use_token_compression"),
)


@dataclass(frozen=True)
class Fitted:
    """What decides a unit's pixels and tokens besides its frames. ``str`` of it stands in keys and results, WxH.

    Attributes:
        kind: as what the frames are shown.
        height, width: of a frame in pixels after resizing and cropping.
        tiles: into how many pictures of this size an image is cut.
        mask: which of its tokens stand in the prompt, where the processor leaves some out; hexadecimal.
    """

    kind: Kind
    height: int
    width: int
    tiles: int = 1
    mask: str = ""

    def __str__(self) -> str:
        tiles = f"{self.tiles} of " if self.tiles > 1 else ""
        mask = f" mask {self.mask}" if self.mask else ""
        return f"{'image ' if self.kind == 'image' else ''}{tiles}{self.width}x{self.height}{mask}"

    @classmethod
    def read(cls, text: str) -> Fitted:
        """The other way round.

        Raises:
            ValueError: it is no such text.
        """
        match = _FITTED.fullmatch(text)
        if match is None:
            raise ValueError(f'{text!r} tells no size of frames; width and height read as "640x352" or "image 640x352"')
        kind: Kind = "image" if match["image"] else "video"
        return cls(kind, int(match["height"]), int(match["width"]), int(match["tiles"] or 1), match["mask"] or "")

    def fits(self, other: Fitted) -> bool:
        """Whether pixels are as many, whatever is masked."""
        return replace(self, mask="") == replace(other, mask="")

    @property
    def area(self) -> int:
        return self.height * self.width * self.tiles


class UnitCutter:
    """What a processor makes of single units."""

    def __init__(self, calls: ProcessorCalls) -> None:
        self._calls = calls
        self.processor = calls.processor
        self._probed: dict[tuple[Any, ...], Fitted] = {}

    def part(self, kind: str) -> Any:
        """The image or video processor."""
        return getattr(self.processor, f"{kind}_processor", None)

    @property
    def merged_frames(self) -> int:
        """Frames that are merged into one unit of a video, where the processor counts in patches."""
        return int(getattr(self.part("video"), "temporal_patch_size", None) or 1)

    def merged_patches(self, kind: str) -> int:
        """Patches that become one token."""
        return int(getattr(self.part(kind), "merge_size", None) or 1) ** 2

    def settings(self) -> dict[str, Any]:
        """The processors' settings that decide sizes."""
        found: dict[str, Any] = {}
        for kind in ("image", "video"):
            if (part := self.part(kind)) is not None:
                values = {name: getattr(part, name, None) for name in _SETTINGS}
                told = {name: _plain(value) for name, value in values.items() if value is not None}
                found[f"{kind}_processor"] = {"class": type(part).__name__, **told}
        return found

    def fitted_grid(self, kind: Kind, grid: tuple[int, int, int]) -> Fitted:
        """The size of (t, h, w) patches."""
        patch = int(self.part(kind).patch_size)
        return Fitted(kind, grid[1] * patch, grid[2] * patch)

    def natural(
        self,
        kind: Kind,
        size: tuple[int, int],
        frames: int,
        limits: dict[str, int] | None = None,
    ) -> Fitted:
        """What the processor makes of frames of ``size`` when it is left alone with so many of them.

        Args:
            kind: as what they are shown; an image and one of several may be treated differently.
            size: (H, W).
            frames: how many; two at least of a video, and more images than two are treated as two are.
            limits: in place of the processor's own ``size``.
        """
        # Of one frame a video's axes do not tell themselves; images are one alone or one of several.
        frames = max(frames, 2) if kind == "video" else min(frames, 2)
        key = (kind, size, frames, str(limits))
        if key not in self._probed:
            frame = torch.empty((1, 3, *size), dtype=torch.uint8, device="meta")
            shown = frame.expand(frames, 3, *size)
            given = self._given(kind, shown, {} if limits is None else {"size": limits})
            # A long clip's placeholders need not be written out to tell its grid.
            thin: Thinness = "grids" if frames > 2 and self._by_patches(kind) else "runs"
            try:
                made = self._calls.shapes(self._text(kind, frames), given, thin)
            except ValueError:  # VideoLLaMA3's looks at the patches that it is told of
                if thin == "runs":
                    raise
                made = self._calls.shapes(self._text(kind, frames), given, "runs")
            units = frames if kind == "image" else -(-frames // self._frames(made))
            self._probed[key] = self._fitted(kind, self._by_unit(made, kind, units))
        return self._probed[key]

    def shrunk(self, fitted: Fitted, size: tuple[int, int]) -> bool:
        """Whether frames of ``size`` became smaller than those of the shortest clip."""
        return fitted.kind == "video" and fitted.area < self.natural("video", size, self.merged_frames).area

    def size_of(self, size: tuple[int, int], kind: Kind, tokens: int) -> tuple[int, int]:
        """The largest size of a frame of ``size`` that the processor's rule allows with at most ``tokens`` a unit.

        Raises:
            ValueError: the processor has no rule to choose a size by, or no size has so few tokens.
        """
        part = self.part(kind)
        if not self._by_patches(kind):
            raise ValueError(
                f'frame_tokens={tokens}: {type(part).__name__} chooses no size by a number; give frame_tokens="auto"'
            )
        patch, merge = part.patch_size, part.merge_size
        area, frames = (patch * merge) ** 2, max(2, self.merged_frames)
        # The budget is a frame's in some processors, the whole video's in others.
        found = [
            self.natural(kind, size, frames, {"shortest_edge": area, "longest_edge": budget * area})
            for budget in (tokens, tokens * frames)
        ]
        fits = [one for one in found if one.area <= tokens * area]
        if not fits:
            raise ValueError(f"frame_tokens={tokens}: no size of a frame of {size[1]}x{size[0]} has so few tokens")
        best = max(fits, key=lambda one: one.area)
        return best.height, best.width

    def _by_patches(self, kind: Kind) -> bool:
        """Whether the processor chooses a frame's size in whole tokens of so many patches."""
        part = self.part(kind)
        return all(isinstance(getattr(part, name, None), int) for name in ("patch_size", "merge_size"))

    def pixels(self, frames_NfHWC: NDArray[np.uint8], fitted: str) -> UnitPixels:
        """Pixels of N units.

        Args:
            frames_NfHWC: uint8 RGB.
            fitted: as a ``UnitPlace`` tells it.

        Raises:
            ValueError: the processor fits these frames to no such size.
        """
        wanted = Fitted.read(fitted)
        units, size = len(frames_NfHWC), (int(frames_NfHWC.shape[2]), int(frames_NfHWC.shape[3]))
        alone = self._alone(wanted, size)
        if alone and units > 1:
            return UnitPixels.joined([self.pixels(one_fHWC[None], fitted) for one_fHWC in frames_NfHWC])
        # A lone unit is given twice: its axis then tells itself, and it is treated as one of several.
        shown = np.repeat(frames_NfHWC, 2, axis=0) if units == 1 and not alone else frames_NfHWC
        writable = np.require(shown, requirements=("C", "W"))  # torch takes no other without a warning
        frames = torch.from_numpy(writable).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
        kind = wanted.kind
        options: dict[str, Any] = {}
        if not self.natural(kind, size, len(frames)).fits(wanted):
            frames = self.resized(frames, kind, (wanted.height, wanted.width))
            options["do_resize"] = False
        if kind == "video" and getattr(self.part(kind), "use_token_compression", None):
            # Which tokens stay is told by ``fitted``, from what stands before the unit in its clip.
            options["use_token_compression"] = False
        made = self._calls.made(self._text(kind, len(frames)), self._given(kind, frames, options), "runs")
        tensors = self._by_unit(made, kind, len(shown))
        if not (found := self._fitted(kind, tensors)).fits(wanted):
            raise ValueError(f"{self._calls.name} fits frames of {size[1]}x{size[0]} to {found}, not to {fitted}")
        merged = self._frames(made) if kind == "video" else 1
        if frames_NfHWC.shape[1] != merged:
            raise ValueError(f"{frames_NfHWC.shape[1]} frames are given for a unit of {merged}")
        if wanted.mask:
            tensors["video_compression_mask"] = unpacked(wanted.mask, tensors["video_compression_mask"])
        return UnitPixels(tensors)[:units]

    def _alone(self, wanted: Fitted, size: tuple[int, int]) -> bool:
        """Whether an image is fitted as a prompt's only one, where that is another way than one of several."""
        if wanted.kind == "video" or self.natural("image", size, 2).fits(wanted):
            return False
        return self.natural("image", size, 1).fits(wanted)

    def _frames(self, made: dict[str, Any]) -> int:
        return self.merged_frames if "video_grid_thw" in made else 1

    def _text(self, kind: Kind, frames: int) -> str:
        token = str(getattr(self.processor, f"{kind}_token"))
        return token if kind == "video" else token * frames

    def _given(self, kind: Kind, frames: torch.Tensor, options: dict[str, Any]) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        if kind == "image":
            return {"images": [list(frames)], **options}
        count = len(frames)
        metadata = VideoMetadata(total_num_frames=count, fps=1.0, duration=count, frames_indices=list(range(count)))
        return {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False, **options}

    def _by_unit(self, made: dict[str, Any], kind: Kind, units: int) -> dict[str, torch.Tensor]:
        """The processor's tensors with a first axis of units; what tells nothing of single units is left out."""
        grids = made.get(f"{kind}_grid_thw")
        found: dict[str, torch.Tensor] = {}
        for name, tensor in made.items():
            if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "second_per_grid_ts"):
                continue
            if isinstance(tensor, list) and tensor and all(isinstance(one, torch.Tensor) for one in tensor):
                tensor = torch.stack(tensor) if len({one.shape for one in tensor}) == 1 else None
            if not isinstance(tensor, torch.Tensor) or not tensor.ndim:
                continue
            if tensor.shape[0] == 1 and tensor.ndim > 1 + (units == 1) and not name.endswith("grid_thw"):
                tensor = tensor[0]  # a batch of one
            if name.endswith("grid_thw"):
                _, h, w = (int(one) for one in tensor[0])
                found[name] = torch.tensor([[1, h, w]] * units)
            elif name.endswith("merge_sizes"):
                found[name] = tensor[:1].expand(units)
            elif tensor.shape[0] == units and grids is None:
                found[name] = tensor
            elif tensor.shape[0] % units == 0 and (name.startswith("pixel") or grids is not None):
                found[name] = tensor.unflatten(0, (units, tensor.shape[0] // units))
        return found

    def _fitted(self, kind: Kind, tensors: dict[str, torch.Tensor]) -> Fitted:
        grids = tensors.get(f"{kind}_grid_thw")
        if grids is not None:
            _, h, w = (int(one) for one in grids[0])
            return self.fitted_grid(kind, (1, h, w))
        name = next((name for name in _PIXELS if name in tensors), None)
        if name is None:
            raise ValueError(f"{self._calls.name} tells no pixels of single frames (among {', '.join(_PIXELS)})")
        shape = tensors[name].shape[1:]
        tiles = int(np.prod(shape[:-3])) if len(shape) > 3 else 1
        return Fitted(kind, int(shape[-2]), int(shape[-1]), tiles)

    def resized(self, frames_NCHW: torch.Tensor, kind: Kind, size: tuple[int, int]) -> torch.Tensor:
        """By the processor's own filter, whatever its rule for the size is."""
        from transformers.image_processing_backends import TorchvisionBackend
        from transformers.image_utils import SizeDict

        part = self.part(kind)
        if not isinstance(part, TorchvisionBackend):
            raise ValueError(
                f"{type(part).__name__} resizes frames in a way of its own; no other size can be asked for"
            )
        resized: torch.Tensor = TorchvisionBackend.resize(
            part, frames_NCHW, SizeDict(height=size[0], width=size[1]), resample=part.resample
        )
        return resized


def packed(mask_t: NDArray[np.bool_]) -> str:
    """A mask of tokens as hexadecimal digits."""
    return np.packbits(mask_t).tobytes().hex()


def unpacked(mask: str, like_Nt: torch.Tensor) -> torch.Tensor:
    """The mask that ``packed`` wrote, for each of N units."""
    bits_t = np.unpackbits(np.frombuffer(bytes.fromhex(mask), dtype=np.uint8))[: like_Nt.shape[1]]
    return torch.from_numpy(bits_t.astype(bool)).expand(like_Nt.shape)


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    return {name: one for name, one in dict(value).items() if one is not None}
