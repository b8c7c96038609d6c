"""Windows of jobs: order kept, pixels in memory bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from longva_model.pictures.opening import ArrayFrames
from longva_model.prompts.prompting import Prompt
from longva_model.run import batches as dealing
from vniah.contract.requests import Frames, Request, Target


def prompt(**media: Any) -> Prompt:
    return Prompt(request=Request((Frames("a", 0, 1),), Target("x")), media=media)


def test_images_and_frames_in_memory_end_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "_WINDOW_PIXELS", 100)
    image = PILImage.new("RGB", (6, 10))
    clip = ArrayFrames(np.zeros((6, 2, 5, 3), np.uint8))
    assert clip.pixels_in_memory == 60
    prompts = [prompt(a=image), prompt(a=image), prompt(b=clip), prompt(b=clip, c=object()), prompt(a=image), prompt()]
    found = [[job for job, _ in window] for window in dealing.windows(range(6), lambda job: prompts[job])]
    assert found == [[0, 1], [2, 3], [4, 5]]


def test_a_prompt_larger_than_a_window_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "_WINDOW_PIXELS", 10)
    image = PILImage.new("RGB", (6, 10))
    found = list(dealing.windows(range(3), lambda job: prompt(**{str(job): image})))
    assert [[job for job, _ in window] for window in found] == [[0], [1], [2]]
