"""The check of shown frames against a model's own forward: right models pass it, each known fault is refused by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from any_model.families import FAMILIES

from longva_model.arguments import ModelArgs
from longva_model.backends.any_model import AnyModelBackend
from longva_model.backends.loading import load_backend
from longva_model.backends.unit_pixels import UnitPixels
from longva_model.backends.visual_check import check_visual
from longva_model.engine.chunks import Chunk
from vniah.notices import forget, recorded


def load(folder: Path, name: str, kind: type[AnyModelBackend] = AnyModelBackend) -> AnyModelBackend:
    args = ModelArgs(pretrained=str(folder), presentation=FAMILIES[name].presentation)
    return kind(str(folder), args, torch.device("cpu"), torch.float32)


class RunningPositions(AnyModelBackend):
    """Positions that run on, whatever the model's own are."""

    def forward(self, chunk: Chunk, state: Any, keep: int) -> torch.Tensor:
        running_T = torch.arange(chunk.start, chunk.start + len(chunk))
        return super().forward(_changed(chunk, positions=running_T.expand(3, -1)), state, keep)


class OneLevel(AnyModelBackend):
    """DeepStack is dropped."""

    def forward(self, chunk: Chunk, state: Any, keep: int) -> torch.Tensor:
        features = None if chunk.features_kVD is None else chunk.features_kVD[:1]
        return super().forward(_changed(chunk, features_kVD=features), state, keep)


class ChunkTypes(AnyModelBackend):
    """What stands before a chunk is forgotten."""

    def forward(self, chunk: Chunk, state: Any, keep: int) -> torch.Tensor:
        return super().forward(_changed(chunk, types_S=chunk.types_S[chunk.start :]), state, keep)


class AcrossFrames(AnyModelBackend):
    """Units that go through the tower together see each other."""

    def encode_pixels(self, pixels: UnitPixels) -> torch.Tensor:  # type: ignore[override]
        found_NtD = super().encode_pixels(pixels)
        return found_NtD + 0.1 * found_NtD.mean(0, keepdim=True)


def _changed(chunk: Chunk, **values: Any) -> Chunk:
    names = ("ids_T", "positions", "start", "visual_T", "features_kVD", "types_S")
    return Chunk(**{**{name: getattr(chunk, name) for name in names}, **values})


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5", "gemma3"])  # of others: test_hf_tree.py
def test_right_models_pass(name: str, folder_of: Callable[[str], Path]) -> None:
    backend = load(folder_of(name), name)
    forget()
    backend.check()
    assert backend.about()["largest_difference_from_own_forward"] < 1e-4
    assert [said for said in recorded() if "opened thought" not in said] == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("qwen2_5_vl", RunningPositions),
        ("qwen3_vl", OneLevel),
        ("gemma3", ChunkTypes),
        ("internvl", AcrossFrames),
    ],
)
def test_a_fault_is_refused_with_its_figure(
    name: str, fault: type[AnyModelBackend], folder_of: Callable[[str], Path]
) -> None:
    backend = load(folder_of(name), name, fault)
    with pytest.raises(ValueError, match=r"refused, its scores would be wrong: .*own forward by 0?\.?\d") as caught:
        check_visual(backend)
    assert str(folder_of(name)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_blind_model_is_said_and_one_that_hardly_sees_is_refused(folder_of: Callable[[str], Path]) -> None:
    """Whatever is done to the features of such a model would pass."""
    backend = load(folder_of("gemma3"), "gemma3")
    projector = backend.model.model.multi_modal_projector.mm_input_projection_weight
    with torch.no_grad():
        projector.mul_(1e-8)  # normalised, features still tell clips apart by 3e-4
    with pytest.raises(ValueError, match="its check proves nothing"):
        check_visual(backend)
    with torch.no_grad():
        projector.zero_()
    forget()
    check_visual(backend)
    (said,) = recorded()
    assert "does not see what it is shown" in said


def test_shorter_floats_are_checked_by_what_rounding_explains(folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of("qwen3_vl"))
    args = ModelArgs(pretrained=folder)
    backend = AnyModelBackend(folder, args, torch.device("cpu"), torch.bfloat16)
    assert check_visual(backend) < 0.3


def test_rounding_is_measured_of_a_model_that_looks_its_ids_up_again(folder_of: Callable[[str], Path]) -> None:
    """Gemma 4 takes no embeddings in place of ids; in bf16 its check of text asks what rounding explains."""
    args = ModelArgs(pretrained=str(folder_of("gemma4")), dtype="bfloat16", device="cpu")
    assert load_backend(args).about()["largest_difference_from_own_forward"] < 0.3
