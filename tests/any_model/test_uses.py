"""What else is asked of a model by its own template and processor: generation, conversations, text, processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.families import FAMILIES
from lmms_requests import film, generate, generate_chat, instance, picture, show, user, visuals_of
from video_files import write_video

from longva_model.arguments import ModelArgs
from longva_model.engine.conversation import Conversation
from longva_model.engine.engine import TreeEngine
from longva_model.run.runner import Runner
from vniah.contract.requests import Generate

pytest.importorskip("lmms_eval")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("module_cache")
SMALL = ("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision")
TOKENS = 8


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a family's checkpoint, once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        if not (root / name).exists():
            FAMILIES[name].build(root / name, 0)
        return root / name

    return make


@pytest.fixture(scope="module", params=SMALL)
def folder(request: pytest.FixtureRequest, checkpoints: Any) -> Path:
    found: Path = checkpoints(request.param)
    return found


@pytest.fixture(scope="module")
def lms(folder: Path) -> tuple[Any, Any]:
    """The model by the simple protocol and by the chat protocol."""
    from longva_model.lmms.longva_ring import HfTree, HfTreeChat

    found = []
    for kind in (HfTree, HfTreeChat):
        lm: Any = kind(pretrained=str(folder), dtype="float32", device="cpu", journal="none", max_frames_num=4)
        lm.task_dict = {}
        found.append(lm)
    return found[0], found[1]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "film.mp4", num_frames=9, fps=4)


def runner_of(folder: Path, **args: Any) -> Any:
    given = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "journal": "none", **args}
    return Runner.load(ModelArgs.read(given))


def own_answer(backend: Any, turns: Sequence[Any], tokens: int = TOKENS, **options: Any) -> str:
    """What the model's own ``generate`` says.

    Args:
        turns: (role, items): strings, images, and clips as (frames, fps, indices, total).
    """
    from transformers.video_utils import VideoMetadata

    processor, messages = backend.processor, []
    given: dict[str, Any] = {}
    for role, items in turns:
        content: list[dict[str, Any]] = []
        for item in items:
            if isinstance(item, str):
                content.append({"type": "text", "text": item})
            elif isinstance(item, tuple):
                frames, fps, indices, total = item
                height, width = frames.shape[1:3]
                content.append({"type": "video"})
                given.setdefault("videos", []).append(list(frames))
                given.setdefault("video_metadata", []).append(
                    VideoMetadata(
                        total_num_frames=total,
                        fps=fps,
                        duration=total / fps,
                        width=width,
                        height=height,
                        frames_indices=list(indices),
                    )
                )
                given["do_sample_frames"] = False
            else:
                content.append({"type": "image"})
                given.setdefault("images", [[]])[0].append(item)
        messages.append({"role": role, "content": content})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], return_tensors="pt", **given)
    inputs.pop("video_metadata", None)
    backend.forget_positions()
    settings = {"max_new_tokens": tokens, "do_sample": False, **options}
    out = backend.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()
    backend.forget_positions()
    end = next((place for place, token in enumerate(out) if token in backend.eos_ids), len(out))
    return str(backend.decode(out[:end])).strip()


def clip(frames: np.ndarray) -> tuple[Any, ...]:
    return frames, 1.0, range(len(frames)), len(frames)


def sampled(video: Path, frames: int) -> tuple[Any, ...]:
    """A file's frames as lmms-eval samples them, with what is true of them."""
    import av

    with av.open(str(video)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        rate = float(container.streams.video[0].average_rate or 0)
    numbers = np.linspace(0, len(every) - 1, frames, dtype=int)
    return every[numbers], rate, numbers.tolist(), len(every)


def test_generation_is_that_of_generate(lms: tuple[Any, Any], video: Path) -> None:
    simple, chat = lms
    frames, one, other = film(5), picture(50, 40, 0), picture(70, 40, 1)
    cases: list[tuple[list[Any], list[Any]]] = [
        ([], []),
        ([one], [one]),
        ([one, other], [one, other]),
        ([frames], [clip(frames[np.linspace(0, 4, 4, dtype=int)])]),
        ([str(video)], [sampled(video, 4)]),
    ]
    said = generate(simple, [{"text": "What is it?", "visuals": given} for given, _ in cases])
    wanted = [own_answer(simple.backend, [("user", [*shown, "What is it?"])]) for _, shown in cases]
    assert said == wanted and len(set(said)) > 2
    kinds = [[("image" if item in (one, other) else "video", item) for item in given] for given, _ in cases[:3]]
    kinds += [[("video", item) for item in given] for given, _ in cases[3:]]
    docs = [{"messages": user(*items, "What is it?")} for items in kinds]
    assert generate_chat(chat, docs) == wanted


def test_several_questions_share_a_film(lms: tuple[Any, Any], video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simple, _ = lms
    computed: list[int] = []
    hidden = TreeEngine.hidden

    def counted(self: TreeEngine, chunk: Any, keep: int) -> torch.Tensor:
        computed.append(len(chunk))
        return hidden(self, chunk, keep)

    monkeypatch.setattr(TreeEngine, "hidden", counted)
    questions = ["What is it?", "Who is there?", "What is the animal?"]
    docs = [{"text": question, "visuals": [str(video)]} for question in questions]
    said = generate(simple, docs, {"max_new_tokens": 1})
    together, computed[:] = sum(computed), []
    alone = [generate(simple, [doc], {"max_new_tokens": 1})[0] for doc in docs]
    assert said == alone and together < sum(computed)
    assert sum(computed) - together > 2 * 8, "the film's tokens are computed once"


def test_settings_of_generation(lms: tuple[Any, Any]) -> None:
    simple, _ = lms
    doc = {"text": "What is it?", "visuals": [picture()]}
    said = generate(simple, [doc], {"max_new_tokens": 12})[0]
    turns = [("user", [picture(), "What is it?"])]
    penalised = generate(simple, [doc], {"max_new_tokens": 12, "repetition_penalty": 1.4})[0]
    assert penalised == own_answer(simple.backend, turns, 12, repetition_penalty=1.4)
    stop = said[len(said) // 2 :][:2]
    assert generate(simple, [doc], {"max_new_tokens": 12, "until": [stop]})[0] == said[: said.index(stop)].strip()
    warm = {"max_new_tokens": 8, "temperature": 2.0, "do_sample": True}
    show(simple, [doc])
    again = [
        instance("generate_until", (doc["text"], dict(warm), visuals_of, 0, "task", "test"), 0, repeats=3)
        for _ in range(3)
    ]
    samples = simple.generate_until(again)
    assert len(set(samples)) > 1 and simple.generate_until(again) == samples


def test_rounds_are_told_the_answers_before(lms: tuple[Any, Any]) -> None:
    simple, _ = lms
    frames = film(4)
    show(simple, [{"visuals": [frames]}])

    def ask(doc: Any, previous_output: Any = None, round_idx: int = 0, **_: Any) -> Any:
        return None, f"You said {previous_output[-1]}. And now?", round_idx >= 2, previous_output, None

    given = ("What is it?", {"max_new_tokens": 6}, visuals_of, ask, 0, "task", "test")
    (answers,) = simple.generate_until_multi_round([instance("generate_until_multi_round", given)])
    first = own_answer(simple.backend, [("user", [clip(frames), "What is it?"])], 6)
    second = own_answer(simple.backend, [("user", [f"You said {first}. And now?"])], 6)
    assert answers == [first, second]


def test_follow_ups_are_as_asked_in_one_go(folder: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(folder)
    computed: list[int] = []
    hidden = TreeEngine.hidden

    def counted(self: TreeEngine, chunk: Any, keep: int) -> torch.Tensor:
        computed.append(len(chunk))
        return hidden(self, chunk, keep)

    monkeypatch.setattr(TreeEngine, "hidden", counted)
    talk = Conversation(runner.engine(ring=False), [str(video), picture()], max_frames=4)
    turns: list[Any] = []
    prompts = []
    for question in ("What is it?", "Why?", "And who is there?"):
        turns.append(("user", [question] if turns else [sampled(video, 4), picture(), question]))
        computed.clear()
        found = talk.ask(question, Generate(max_new_tokens=TOKENS))
        prompts.append(found.prompt_tokens)
        assert found.text.strip() == own_answer(runner.backend, turns), question
        turns.append(("assistant", [found.text]))
    assert sum(computed) < prompts[-1] - prompts[0] + TOKENS + 40, "the film is computed once"
