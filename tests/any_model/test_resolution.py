"""Frames that a processor shrinks with their number: left free, held at the size of the longest column, or given a
number of tokens; and what results say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.families import FAMILIES

from longva_model.arguments import ModelArgs
from longva_model.backends.any_model import AnyModelBackend
from longva_model.backends.columns import ClipShape
from longva_model.engine.atoms import AtomTable
from longva_model.run.needle_model import NeedleModel
from vniah.contract.requests import Clip, Frames, Request, Target, Text, Turn
from vniah.contract.sources import HeldFrames
from vniah.notices import forget, recorded
from vniah.runs.measure import measure
from vniah.visual.settings import Settings
from vniah.visual.task import VisualTask

HEIGHT, WIDTH = 48, 64
QUESTION = "What is the animal in the frame that does not belong to the clip?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL whose processor has the pixels of six frames of 64x48 for a whole clip."""
    made = tmp_path_factory.mktemp("qwen3_vl")
    FAMILIES["qwen3_vl"].build(made, 0)
    (file,) = (one for one in made.glob("*processor_config.json") if "video_processor" in one.read_text())
    told = json.loads(file.read_text())
    told["video_processor"]["size"]["longest_edge"] = 6 * 48 * 64
    file.write_text(json.dumps(told))
    return made


def load(folder: Path, **arguments: Any) -> AnyModelBackend:
    args = ModelArgs(pretrained=str(folder), **arguments)
    return AnyModelBackend(str(folder), args, torch.device("cpu"), torch.float32)


def film(frames: int) -> HeldFrames:
    squares_NHWC = np.random.default_rng(3).integers(0, 256, (frames, 3, 4, 3), dtype=np.uint8)
    return HeldFrames(squares_NHWC.repeat(16, axis=1).repeat(16, axis=2), "film")


def prompt(frames: int, source: HeldFrames) -> Any:
    from longva_model.prompts.prompting import Prompt

    request = Request((Turn("user"), Clip(), Frames("film", 0, frames), Text(QUESTION)), Target("A panda"))
    return Prompt(request=request, media={"film": source}, beyond_context=True)


def fitted(backend: AnyModelBackend, prompts: list[Any]) -> list[set[str]]:
    table = AtomTable()
    found = []
    for one in prompts:
        lowered = backend.lower(one, table)
        found.append({series.fitted for series, _, _ in table.runs(lowered.atoms_A)})
    return found


def test_columns_are_free_held_or_of_so_many_tokens(folder: Path) -> None:
    source = film(16)
    prompts = [prompt(frames, source) for frames in (2, 8, 16)]
    free = load(folder)
    free.expect(prompts)
    assert fitted(free, prompts) == [{"64x48"}, {"48x32"}, {"32x16"}]
    assert free.settings()[1] == "auto"
    told = free.about()["frames_shown"]
    assert [(one["columns"], one["tokens_a_unit"], one["tokens_a_frame"]) for one in told] == [
        ("2", [12], [6.0]),
        ("8", [6], [3.0]),
        ("16", [2], [1.0]),
    ]
    (said,) = [one for one in recorded() if "shrinks frames" in one]
    assert "64x48 (12 tokens a pair) in a clip of 2 frames, 32x16 (2 tokens a pair) in one of 16" in said

    held = load(folder, frame_tokens="column")
    held.expect(prompts)
    assert fitted(held, prompts) == [{"32x16"}] * 3
    (told,) = held.about()["frames_shown"]
    assert told["columns"] == "2, 8, 16" and told["tokens_a_unit"] == [2]
    assert held.settings()[1] == held.about()["frames_held_at"] == {"64x48": "32x16"}
    # What nothing shrinks is the processor's own, and a result of either way is that of the other.
    held.expect(prompts[:1])
    assert fitted(held, prompts[:1]) == [{"64x48"}] and held.settings() == free.settings()

    number = load(folder, frame_tokens="6")
    number.expect(prompts)
    assert fitted(number, prompts) == [{"32x32"}] * 3 and number.settings()[1] == 6


def test_a_last_needle_that_is_shown_twice_is_told(folder: Path) -> None:
    source = film(9)
    forget()
    backend = load(folder)
    backend.expect([prompt(frames, source) for frames in (7, 8)])  # a control and its cells
    assert not any("repeats the last frame" in one for one in recorded())
    backend.expect([prompt(frames, source) for frames in (8, 9)])
    (said,) = [one for one in recorded() if "repeats the last frame" in one]
    assert "such as 9" in said and "depth 100" in said


def test_held_frames_are_those_of_the_longest_column(folder: Path) -> None:
    """To the bit what the processor makes of them in the longest clip, and the model's own forward sees the same."""
    source = film(16)
    prompts = [prompt(frames, source) for frames in (3, 16)]
    free, held = load(folder), load(folder, frame_tokens="column")
    held.expect(prompts)
    for one in prompts:
        turns, visuals = held._lowering.shown(one.request.segments, one.media)
        inputs = held.renderer.inputs(turns, lambda clip, visuals=visuals: visuals[clip].frames())
        units = inputs["video_grid_thw"][0]
        pairs_NfHWC = source.frames(0, 2)[None]
        alone = held.pixels(pairs_NfHWC, "32x16").tensors["pixel_values_videos"]
        patches = int(units[1] * units[2])
        assert torch.equal(inputs["pixel_values_videos"][:patches], alone.flatten(0, 1))
    turns, visuals = free._lowering.shown(prompts[1].request.segments, prompts[1].media)
    own = free.renderer.inputs(turns, lambda clip: visuals[clip].frames())
    assert torch.equal(own["pixel_values_videos"], inputs["pixel_values_videos"])
    assert torch.equal(own["input_ids"], inputs["input_ids"])


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VisualTask:
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    given = {"frames": "2,9", "depths": "0,50", "haystack": "synthetic:0:9:64x48", "needles": "icons:0:1"}
    return VisualTask("vniah", "teacher-forced", Settings.read(given=given))


@pytest.mark.slow
def test_a_run_with_another_size_takes_no_old_answers(folder: Path, task: VisualTask, tmp_path: Path) -> None:
    """One journal, three settings: each is computed, says how it was shown, and is found again by its own kind."""
    journal = tmp_path / "journal.jsonl"

    def logprobs(name: str, **arguments: Any) -> list[float]:
        model = NeedleModel(ModelArgs(pretrained=str(folder), journal=str(journal), **arguments), name=name)
        before = len(journal.read_text().splitlines()) if journal.is_file() else 0
        answers = model.answers({task.name: task}, [(task.name, number) for number in range(len(task.rows))])
        lines = [json.loads(line) for line in journal.read_text().splitlines()[before:]]
        added.append(sum("doc_id" in line for line in lines))
        headers.extend(line["run"]["model"] for line in lines if "run" in line)
        return [sum(answer.answer_logprobs) for answer in answers]

    added: list[int] = []
    headers: list[dict[str, Any]] = []
    cells = len(task.rows)
    free = logprobs("free")
    held = logprobs("held", frame_tokens="column")
    again = logprobs("again", frame_tokens="column")
    images = logprobs("images", presentation="images")
    assert added == [cells, cells, 0, cells] and again == held
    # The longest column is shown alike either way.
    longest = [int(row["num_frames"]) == 9 for row in task.rows]
    apart = np.abs(np.array(free) - np.array(held))
    assert apart[longest].max() < 1e-4 < 1e-2 < apart[~np.array(longest)].min()
    assert np.abs(np.array(images) - np.array(free)).min() > 1e-2
    # The header of each run, written before its first answer, tells all columns.
    shown = [[one["columns"] for one in header["frames_shown"]] for header in headers]
    assert shown == [["2, 3", "9, 10"], ["2, 3, 9, 10"], ["2, 3, 9, 10"]]
    assert [header["frame_tokens"] for header in headers] == ["auto", "column", "auto"]
    assert headers[2]["presentation"] == "images"
    assert all(header["processor"]["class"] == "Qwen3VLProcessor" for header in headers)
    assert all(header["largest_difference_from_own_forward"] < 1e-3 for header in headers)
    assert max(len(json.dumps(header)) for header in headers) < 2500


def test_results_say_how_frames_were_shown(folder: Path, task: VisualTask) -> None:
    (run,) = measure([task], NeedleModel(ModelArgs(pretrained=str(folder), journal="none")))
    told = run.settings["model"]
    assert told["frames_shown"][0]["tokens_a_unit"] == [12]
    assert told["positions"] and told["transformers"] and told["presentation"] == "video"


def test_the_longest_clip_of_each_size_decides(folder: Path) -> None:
    renderer = load(folder, frame_tokens="column").renderer
    assert renderer.expect([ClipShape(4, (48, 64)), ClipShape(16, (64, 48))])
    assert renderer.size_rule == {"64x48": "32x16", "48x64": "16x32"}
    assert not renderer.expect([ClipShape(16, (48, 64)), ClipShape(2, (64, 48))])


def test_an_opened_thought_is_said_before_the_first_answer(folder: Path) -> None:
    backend = load(folder)
    processor = backend.renderer.processor
    processor.chat_template = processor.chat_template + "<think>\n"
    backend.expect([prompt(2, film(2))])
    (said,) = [one for one in recorded() if "opened thought" in one]
    assert said.endswith("thinking=off tells the chat template otherwise, where it knows of that")
    assert backend.about()["notes"] == ["the rendered prompt ends in an opened thought, so an answer stands inside it"]


def test_thinking_that_a_template_does_not_know_is_said_once_and_not_passed_on(folder: Path) -> None:
    backend = load(folder, thinking="off")
    (said,) = [one for one in recorded() if "thinking=off" in one]
    assert said == f"thinking=off changes nothing: the chat template of {folder} does not know enable_thinking"
    assert backend.renderer.template_kwargs == {}
