"""Cells that are shown as mp4s of their own share what they show, and answer as if each were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.grids import load

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend
from longva_model.engine.engine import PlainEngine, TreeEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.contract.requests import Target
from vniah.haystack import open_haystack
from vniah.haystack.video import PromptVideo
from vniah.needles import open_needles
from vniah.runs.grid import Cell
from vniah.visual.compose import SplicedVideo
from vniah.visual.composed_videos import Composer
from vniah.visual.scenes import Needles

torch.set_num_threads(1)
LENGTHS, DEPTHS = (5, 7), (0, 40, None)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Composed videos of 6 and 8 frames."""
    film = open_haystack("synthetic:0:8:84x56")
    composer = Composer(film, tmp_path_factory.mktemp("composed"), codec="libx264")
    needles = open_needles("icons:0:1")
    scenes = [Needles(needles).composed(Cell(n, depth, needles.ids[0])) for n in LENGTHS for depth in DEPTHS]
    videos = [SplicedVideo(haystack=film, num_frames=shown, inserted=scene.inserted) for scene, shown in scenes]
    return [composer.cached(video) for video in videos]


def loaded(name: str, folder_of: Callable[[str], Path]) -> Any:
    if name == "nano":
        return load_backend(ModelArgs(pretrained="nano", dtype="float32", device="cpu"))
    return load(folder_of(name), name)


def answered(backend: Any, cells: Sequence[Path], kind: Any) -> tuple[list[Any], int, int]:
    """Results, frames or pairs that went through the tower, and atoms that went through the decoder."""
    prompts = [backend.question("What is hidden?", [str(path)], Target("A kite"), max_frames=10**9) for path in cells]
    frames = FrameEmbeddings(backend)
    engine = kind(backend, frames)
    batch = engine.lower(prompts)
    results = engine.run(batch)
    return results, frames.frames_encoded, sum(step.new for step in steps(batch.tree))


# Units of pairs, of frames, of frames whose tokens depend on their neighbours; and LongVA.
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "video_llama_3", "nano"])
def test_composed_videos_share_their_frames(
    name: str, cells: list[Path], folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = loaded(name, folder_of)
    shared, encoded, fed = answered(backend, cells, TreeEngine)
    with monkeypatch.context() as patch:
        patch.setattr(PromptVideo, "contents", None)
        alone, encoded_alone, fed_alone = answered(backend, cells, TreeEngine)
        plain, *_ = answered(backend, cells, PlainEngine)
    assert encoded < 0.7 * encoded_alone and fed < 0.8 * fed_alone
    told = [np.array([one.answer_logprobs for one in results]) for results in (shared, alone, plain)]
    np.testing.assert_allclose(told[0], told[1], atol=1e-4)
    np.testing.assert_allclose(told[0], told[2], atol=1e-4)
    assert [one.predicted_ids for one in shared] == [one.predicted_ids for one in plain]
    # Another frame is another answer, so that a frame taken for another would show.
    apart = np.abs(told[2][:, None] - told[2][None]).max(-1) + np.eye(len(cells))
    assert apart.min() > 1e-3
