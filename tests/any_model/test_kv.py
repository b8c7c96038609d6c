"""Keys and values in blocks under models by their own processor: the bits of the device, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_requests import film

from longva_model.arguments import ModelArgs
from longva_model.run.runner import Runner
from vniah.contract.requests import Generate, Target

pytest.importorskip("lmms_eval")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("module_cache")
SLOW = ("qwen2_5_vl", "internvl", "glm4v")
FAMILIES = ("qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def runner_of(folder: Path, **args: Any) -> Runner:
    given = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "journal": "none", **args}
    return Runner.load(ModelArgs.read(given))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_by_its_own_processor_gives_the_same_bits(family: str, folder_of: Callable[[str], Path]) -> None:
    found = []
    for kv in ("device", "host"):
        runner = runner_of(folder_of(family), kv=kv, kv_block=16, chunk_tokens=20)
        prompts = [
            runner.backend.question(asked, [film(8)], leaf, max_frames=8)
            for asked in ("What is it?", "Who was there?")
            for leaf in (Target("A red kite."), Generate(max_new_tokens=4))
        ]
        runner.backend.expect(prompts)
        found.append(runner.engine(ring=False).run(prompts))
        assert min(result.prompt_tokens for result in found[-1]) > 2 * 16
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("family", "why"),
    [("gemma3", "run with attention .*, which reads none; use kv=device"), ("qwen3_5", "layers of linear_attention")],
)
def test_attention_that_goes_its_own_way_is_refused(family: str, why: str, folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=f"kv=host .*{why}"):
        runner_of(folder_of(family), kv="host")
