"""What else is asked of a model by its own template and processor: generation, conversations, text, processes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_requests import (
    cells_of,
    evaluated,
    film,
    generate,
    generate_chat,
    instance,
    picture,
    show,
    user,
    visuals_of,
)
from video_files import write_video

from longva_model.arguments import ModelArgs
from longva_model.engine.conversation import Conversation
from longva_model.engine.engine import TreeEngine
from longva_model.engine.perplexity import measure, windows
from longva_model.run.runner import Runner
from vniah.contract.requests import Generate, Target

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.usefixtures("module_cache")
# What follows a prompt knows little of its family: two of them every day.
SMALL = (
    "qwen2_5_vl",
    "llava_onevision",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_vl", "internvl")),
)
TOKENS = 8


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=SMALL)
def folder(request: pytest.FixtureRequest, folder_of: Any) -> Path:
    found: Path = folder_of(request.param)
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
        ([film(4), film(4, seed=2)], [clip(film(4)), clip(film(4, seed=2))]),
    ]
    said = generate(simple, [{"text": "What is it?", "visuals": given} for given, _ in cases])
    wanted = [own_answer(simple.backend, [("user", [*shown, "What is it?"])]) for _, shown in cases]
    assert said == wanted and len(set(said)) > 2
    kinds = [[("image" if item in (one, other) else "video", item) for item in given] for given, _ in cases[:3]]
    kinds += [[("video", item) for item in given] for given, _ in cases[3:]]
    docs = [{"messages": user(*items, "What is it?")} for items in kinds]
    assert generate_chat(chat, docs) == wanted


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each chunk that an engine computes, from here on."""
    found: list[int] = []
    hidden = TreeEngine.hidden

    def counted(self: TreeEngine, chunk: Any, keep: int) -> torch.Tensor:
        found.append(len(chunk))
        return hidden(self, chunk, keep)

    monkeypatch.setattr(TreeEngine, "hidden", counted)
    return found


def test_several_questions_share_a_film(lms: tuple[Any, Any], video: Path, computed: list[int]) -> None:
    simple, _ = lms
    computed.clear()
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


@pytest.mark.parametrize("family", [*SMALL, "qwen3_5"])
def test_follow_ups_are_as_asked_in_one_go(family: str, folder_of: Any, video: Path, computed: list[int]) -> None:
    """Qwen3.5 has recurrent layers, and its template opens a thought that it leaves out of earlier turns."""
    runner = runner_of(folder_of(family))
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


GRID = {"frames": "4,7", "depths": "0,100", "haystack": "synthetic", "needles": "icons:0:1"}


@pytest.mark.slow
def test_vniah_run_is_as_through_lmms_eval(folder_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import json

    import vniah

    folder = folder_of("qwen3_vl")
    given = {"device": "cpu", "dtype": "float32", "journal": "none"}
    vniah.evaluate(str(folder), "vniah", **GRID, **given, output=tmp_path)
    for key, value in GRID.items():
        monkeypatch.setenv(f"VNIAH_{key.upper()}", value)
    args = ",".join([f"pretrained={folder}", *(f"{key}={value}" for key, value in given.items())])
    theirs = cells_of(evaluated("hf_tree", args, "vniah"), "vniah")
    (file,) = tmp_path.rglob("*samples*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ours = [row.get("vniah_acc") or row["vniah_control"] for row in rows]
    names = ("num_frames", "depth_percent", "predicted_ids", "answer_logprobs")
    assert [[one[name] for name in names] for one in ours] == [[one[name] for name in names] for one in theirs]
    assert len({tuple(one["answer_logprobs"]) for one in ours}) == len(ours) == 6
    (results,) = tmp_path.rglob("*results.json")
    assert json.loads(results.read_text())["config"]["model"] == "hf_tree"


def test_a_films_needle_is_shown_in_free_answers(folder_of: Any) -> None:
    """``vniah_generate`` gives a film of one frame a second, which is shown whole."""
    import vniah

    given = {"device": "cpu", "dtype": "float32", "journal": "none", "max_frames_num": 2}
    run = vniah.evaluate(str(folder_of("qwen3_vl")), "vniah_generate", **{**GRID, "frames": "4"}, **given)
    assert len(run.cells) == 3


def test_text_alone_is_as_its_own_forward(folder: Path) -> None:
    runner = runner_of(folder, chunk_tokens=19)
    backend = runner.backend
    ids = backend.token_ids("A brown teddy bear sits on the blue chair. The green kite is over the meadow. " * 4)[:90]
    found = measure(runner.engine(ring=False), [ids], 40, stride=20)
    losses: list[float] = []
    for window in windows(len(ids), 40, 20):
        one = torch.tensor([ids[window.start : window.stop]])
        with torch.inference_mode():
            logits = backend.own_logits({"input_ids": one, "attention_mask": torch.ones_like(one)}, 40)
        each = torch.nn.functional.cross_entropy(logits[:-1], one[0, 1:], reduction="none")
        losses += each[window.scored_from - window.start - 1 :].tolist()
    assert found.nll == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "attn"),
    [("qwen2_5_vl", "auto"), ("internvl", "eager"), pytest.param("qwen3_vl", "sdpa", marks=pytest.mark.slow)],
)
def test_attention_is_chosen(folder_of: Any, family: str, attn: str) -> None:
    folder = folder_of(family)
    runner = runner_of(folder, attn=attn)
    assert runner.backend.decoder.config._attn_implementation == {"auto": "longva_blockwise"}.get(attn, attn)
    prompt = runner.backend.question("What is it?", [film(6)], Target("A red boat."), max_frames=32)
    wanted = runner_of(folder, scoring="plain").run_one(prompt)
    assert runner.run_one(prompt).answer_logprobs == pytest.approx(wanted.answer_logprobs, abs=2e-5)


def test_a_raw_prompt_begins_as_the_tokenizer_begins_a_text(folder_of: Any) -> None:
    from longva_model.engine.atoms import AtomTable
    from longva_model.prompts.prompting import Prompt
    from vniah.contract.requests import Request, Text

    for name, begun in (("gemma3", True), ("qwen2_5_vl", False)):
        backend = runner_of(folder_of(name)).backend
        prompt = Prompt(request=Request((Text("A red boat."), Text(" Which?")), Target("A")), media={})
        ids = backend.lower(prompt, AtomTable()).atoms_A.tolist()
        assert ids == backend.tokenizer("A red boat.")["input_ids"] + backend.token_ids(" Which?")
        assert (ids[0] == backend.tokenizer.bos_token_id) == begun


@pytest.mark.slow
def test_beams_are_right_or_refused(folder_of: Any) -> None:
    backend = None
    for name, refused in (("internvl", False), ("llava_onevision", False), ("qwen3_vl", True), ("gemma3", True)):
        runner = runner_of(folder_of(name))
        backend = runner.backend
        leaf = Generate(max_new_tokens=6, num_beams=3)
        prompt = backend.question("What is it?", [picture()], leaf, max_frames=4)
        if refused:
            with pytest.raises(ValueError, match="num_beams=3 is not to be had"):
                runner.run_one(prompt)
        else:
            wanted = own_answer(backend, [("user", [picture(), "What is it?"])], 6, num_beams=3)
            assert runner.run_one(prompt).text.strip() == wanted


def test_a_model_under_accelerates_hooks_keeps_its_head(folder_of: Any) -> None:
    """What device_map does to a model: its modules' forwards are wrapped, and tensors are moved to them."""
    from accelerate import dispatch_model
    from transformers import AutoModelForImageTextToText

    from longva_model.engine.logits import OwnHead

    model = AutoModelForImageTextToText.from_pretrained(folder_of("qwen2_5_vl")).eval()
    hidden_TD = torch.randn(5, model.config.text_config.hidden_size)
    with torch.inference_mode():
        wanted_TV = OwnHead(model, model.model)(hidden_TD)
        places = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}
        hooked = dispatch_model(model, places, force_hooks=True)
        assert OwnHead(hooked, hooked.model)(hidden_TD).equal(wanted_TV)
    runner = runner_of(folder_of("qwen2_5_vl"), device_map="auto")
    prompt = runner.backend.question("What is it?", [film(3)], Generate(max_new_tokens=3), max_frames=4)
    assert runner.run_one(prompt) == runner_of(folder_of("qwen2_5_vl")).run_one(prompt)


@pytest.mark.parametrize(
    "family",
    ["qwen2_5_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_vl", "llava_onevision"))],
)
def test_a_model_whose_parts_wait_on_the_disk_answers_as_one_that_is_whole(folder_of: Any, family: str) -> None:
    from longva_model.engine.engine import EngineOptions, TreeEngine
    from longva_model.frames.embeddings import FrameEmbeddings

    def answers(**args: Any) -> Any:
        backend = runner_of(folder_of(family), **args).backend
        leaves = (Target("A red boat."), Generate(max_new_tokens=3))
        asked = [
            backend.question("What?", [shown], leaf, max_frames=4) for shown in (film(3), picture()) for leaf in leaves
        ]
        # Nothing of another model's frames is taken from a disk.
        return backend, TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=64)).run(asked)

    weights = sum(path.stat().st_size for path in folder_of(family).glob("*.safetensors"))
    backend, found = answers(device_map="auto", max_memory=f"{weights // 2 // 1000}KB")
    assert "disk" in backend.model.hf_device_map.values()
    for one, other in zip(found, answers()[1], strict=True):
        assert (one.text, one.predicted_ids) == (other.text, other.predicted_ids)
        assert one.answer_logprobs == pytest.approx(other.answer_logprobs, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "args", "said"),
    [
        ("gemma3", {"presentation": "video"}, 'shows no video.*presentation="auto"'),
        ("qwen2_5_vl", {"preprocess": "pad"}, "preprocess='pad' is not for .*its own processor"),
        ("qwen2_5_vl", {"mm_spatial_pool_stride": 2}, "mm_spatial_pool_stride=2 is not for"),
        ("qwen2_5_vl", {"template": "vicuna"}, "template='vicuna' is not for"),
        ("qwen2_5_vl", {"device_map": "everywhere"}, "expected one of auto"),
        ("nano", {"presentation": "images"}, "presentation='images' is not for nano: .*hf_tree"),
    ],
)
def test_arguments_of_other_models_are_refused(folder_of: Any, family: str, args: dict[str, Any], said: str) -> None:
    folder = "nano" if family == "nano" else folder_of(family)
    with pytest.raises(ValueError, match=said) as caught:
        runner_of(folder, **args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"), "processor"),
        (("chat_template.jinja", "chat_template.json"), "no chat template"),
        (("tokenizer.json", "tokenizer_config.json"), "no processor.*tokenizer's files"),
        ((), "no kind that is known here"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    folder_of: Any, tmp_path: Path, lost: tuple[str, ...], said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("internvl"), folder)
    for name in lost:
        (folder / name).unlink(missing_ok=True)
    if not lost:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"model_type": "internvl"', '"model_type": "internvl99"'))
    with pytest.raises(ValueError, match=said) as caught:
        runner_of(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_run_that_goes_on_is_the_same_to_the_bit(folder_of: Any, tmp_path: Path) -> None:
    import json

    import vniah

    model, journal = str(folder_of("qwen3_vl")), tmp_path / "journal.jsonl"
    given = {**GRID, "device": "cpu", "dtype": "float32", "journal": str(journal)}
    vniah.evaluate(model, "vniah", **given)
    whole = journal.read_text().splitlines()
    journal.write_text("\n".join(whole[: len(whole) // 2]) + "\n")
    vniah.evaluate(model, "vniah", **given)
    rows = [
        {row["key"]: row for line in lines if "doc" in (row := json.loads(line))}
        for lines in (whole, journal.read_text().splitlines())
    ]
    assert len(rows[0]) == 6 and rows[0] == rows[1]


def test_a_rope_base_is_the_decoders(folder_of: Any) -> None:
    found = []
    for base in (1e4, 1e7):
        runner = runner_of(folder_of("qwen2_5_vl"), rope_theta=base)
        prompt = runner.backend.question("What is it?", [film(5)], Target("A red boat."), max_frames=32)
        found.append(runner.run_one(prompt).answer_logprobs)
        ids = runner.backend.token_ids("A red boat.")
        own_L = runner.backend.reference(prompt, ids[:-1]).log_softmax(-1)[range(len(ids)), ids]
        assert found[-1] == pytest.approx(own_L.tolist(), abs=1e-4)
    assert max(abs(one - other) for one, other in zip(*found, strict=True)) > 1e-3
