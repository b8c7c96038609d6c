"""Models by their own template and processor on several processes: a ring, shared work, and what a ring refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ring_processes
from ring_processes import Checks, assert_passed

# Two processes that load all libraries: half a minute.
pytestmark = pytest.mark.slow
CHECKS = check = Checks()
WORLDS = (2,)
QUESTIONS = ("What is it?", "Which animal?")


def runner_of(family: str, **args: Any) -> Any:
    from longva_model.arguments import ModelArgs
    from longva_model.run.runner import Runner

    folder = Path(os.environ["VNIAH_CACHE"]) / family
    given = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "journal": "none", **args}
    return Runner.load(ModelArgs.read(given))


def prompts_of(backend: Any) -> list[Any]:
    """Two clips that part in the middle, two questions, an answer and words of its own."""
    from lmms_requests import film

    from vniah.contract.requests import Generate, Target

    first = film(24)
    other = first.copy()
    other[5] = 255 - other[5]
    leaves = (Target("A red boat."), Generate(max_new_tokens=4))
    return [
        backend.question(question, [clip], leaf, max_frames=32)
        for clip in (first, other)
        for question in QUESTIONS
        for leaf in leaves
    ]


def compare(family: str) -> None:
    runner = runner_of(family)
    prompts = prompts_of(runner.backend)
    alone = runner.engine(ring=False).run(prompts)
    assert len({tuple(result.answer_logprobs) for result in alone}) > 2
    ring = runner.engine(ring=True)
    assert max(one.tokens for one in ring.lower(prompts).lowered) > 64, "a chunk is dealt out"
    for found, wanted in zip(ring.run(prompts), alone, strict=True):
        assert found.predicted_ids == wanted.predicted_ids
        assert found.answer_logprobs == pytest.approx(wanted.answer_logprobs, abs=1e-5)


@check
def ring_qwen2_5_vl(rank: int, world: int) -> None:
    compare("qwen2_5_vl")


@check
def ring_qwen3_vl(rank: int, world: int) -> None:
    compare("qwen3_vl")


@check
def ring_internvl(rank: int, world: int) -> None:
    compare("internvl")


@check
def a_ring_refuses_masks_of_images(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="see each other both ways; use parallel=branch"):
        runner_of("gemma3").engine(ring=True)


@check
def branches_are_as_one_process(rank: int, world: int) -> None:
    """Each process answers its share; frames that both need are encoded by one."""
    from longva_model.run.runner import Job

    runner = runner_of("qwen3_vl", parallel="branch")
    prompts = prompts_of(runner.backend)
    alone = runner.engine(ring=False).run(prompts)
    jobs = [
        Job(task="clips", split="test", doc_id=number, index=0, context=None, leaf=prompt.request.leaf)
        for number, prompt in enumerate(prompts)
    ]
    found = runner.run(jobs[rank::world], lambda job: prompts[job.doc_id], lambda job: {})
    for one, wanted in zip(found, alone[rank::world], strict=True):
        assert one.predicted_ids == wanted.predicted_ids
        assert one.answer_logprobs == pytest.approx(wanted.answer_logprobs, abs=1e-5)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], Path]) -> dict[int, Sequence[Any]]:
    root = tmp_path_factory.mktemp("cache")
    for family in ("qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"):
        (root / family).symlink_to(folder_of(family), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(root))
        return ring_processes.reports(__file__, tmp_path_factory.mktemp("together"), WORLDS)


@pytest.mark.parametrize("name", list(CHECKS))
def test_on_two_processes(told: dict[int, Sequence[Any]], name: str) -> None:
    assert_passed(told[2], name)
