"""The lmms-eval model against the model itself: same prompts, tokens, log-probabilities; options, refusals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_requests import (
    expected,
    film,
    generate,
    generate_chat,
    instance,
    make,
    picture,
    prompt_of,
    show,
    user,
    visuals_of,
)
from PIL import Image
from tiny_checkpoints import write_longva
from video_files import inserted, write_video

from longva_model import LongVAForConditionalGeneration, LongVAProcessor
from vniah.prompts import QWEN_1_5
from vniah.runs.scoring import ScoredPair

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longva(tmp_path_factory.mktemp("longva"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "film.mp4", num_frames=6)


@pytest.fixture(scope="module")
def lm(checkpoint: Path) -> Any:
    return make(checkpoint)


@pytest.fixture(scope="module")
def chat(checkpoint: Path) -> Any:
    return make(checkpoint, chat=True)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return LongVAForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return LongVAProcessor.from_pretrained(checkpoint)


# --- teacher forcing


def forced(model: Any, processor: Any, prompt: str, answer: str, images: Any, videos: Any) -> tuple[float, list[int]]:
    """Log-probability of an answer behind a prompt, and the argmax at each of its positions, by one forward."""
    inputs = processor(text=prompt, images=images, videos=videos, return_tensors="pt")
    ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    length = inputs["input_ids"].shape[1]
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1),
        "attention_mask": torch.ones(1, length + len(ids), dtype=torch.long),
    }
    with torch.inference_mode():
        logits = model(**whole).logits[0, length - 1 : -1].float()
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
    return float(chosen.sum()), logits.argmax(-1).tolist()


@pytest.mark.parametrize("scoring", ["tree", "plain"])
def test_loglikelihood_is_that_of_a_forward_counted_after_the_visuals(
    scoring: str, checkpoint: Path, model: Any, processor: Any, video: Path
) -> None:
    lm = make(checkpoint, scoring=scoring)
    cases: list[tuple[str, list[Any], Any, Any]] = [
        ("What is it?", [], None, None),
        ("What is it?", [picture()], [picture()], None),
        ("Which?", [picture(90, 28, 2), picture(20, 60, 3)], [picture(90, 28, 2), picture(20, 60, 3)], None),
        ("What is it?", [film()], None, [film()]),
        ("What is it?", [str(video)], None, [str(video)]),
    ]
    docs = [{"visuals": visuals, "text": text} for text, visuals, _, _ in cases]
    show(lm, docs)
    targets = ["Yes", "a cat"]
    requests = [
        instance("loglikelihood", (doc["text"], target, visuals_of, number, "task", "test"), number, idx=idx)
        for number, doc in enumerate(docs)
        for idx, target in enumerate(targets)
    ]
    found: list[Any] = list(lm.loglikelihood(requests))
    reordered = lm.loglikelihood(requests[::-1])[::-1]
    alone: list[Any] = [lm.loglikelihood([request])[0] for request in requests[:4]]
    for number, (text, visuals, images, videos) in enumerate(cases):
        for idx, target in enumerate(targets):
            place = number * len(targets) + idx
            logprob, predicted = forced(model, processor, prompt_of(text, len(visuals)), target, images, videos)
            scores: list[Any] = [found[place], reordered[place], *alone[place : place + 1]]
            for scored in scores:
                assert isinstance(scored, ScoredPair)
                assert scored[0] == pytest.approx(logprob, abs=2e-4)
                assert scored.details["predicted_ids"] == predicted
                assert scored[1] == (predicted == scored.details["answer_ids"])


def test_a_target_is_greedy_exactly_when_it_is_what_the_model_says(lm: Any) -> None:
    docs = [{"visuals": [picture(seed=seed)], "text": "What is it?"} for seed in range(9)]
    answers = generate(lm, docs, {"max_new_tokens": 4, "min_new_tokens": 4})
    # Spaces at the ends and special tokens are lost on the way from ids to an answer.
    whole = [(doc, answer) for doc, answer in zip(docs, answers, strict=True) if len(answer) == 4][:3]
    docs, said = [doc for doc, _ in whole], [answer for _, answer in whole]
    show(lm, docs)
    requests = []
    for number, answer in enumerate(said):
        other = answer[:-1] + ("x" if answer[-1] != "x" else "y")
        for idx, target in enumerate((answer, other)):
            # A function of the document, as lmms-eval's own log-likelihood tasks hand over.
            to_target = {0: lambda doc, t=target: t, 1: lambda doc, t=target: t}[idx]
            arguments = ("What is it?", to_target, visuals_of, number, "task", "test")
            requests.append(instance("loglikelihood", arguments, number, idx))
    assert len(said) == 3
    assert [pair[1] for pair in lm.loglikelihood(requests)] == [True, False] * 3


def test_loglikelihood_on_the_parity_checkpoint(shared: Path) -> None:
    folder = shared / "parity/LongVA-tiny-unires"
    lm, image = make(folder), Image.open(next((shared / "parity/images").iterdir()))
    own = LongVAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = LongVAProcessor.from_pretrained(folder)
    show(lm, [{"visuals": [image], "text": "the what"}])
    request = instance("loglikelihood", ("the what", "is this", visuals_of, 0, "task", "test"))
    scored: Any = lm.loglikelihood([request])[0]
    logprob, predicted = forced(own, processor, prompt_of("the what", 1), "is this", [image], None)
    assert scored[0] == pytest.approx(logprob, abs=5e-4)
    assert scored.details["predicted_ids"] == predicted


# --- generation


def cases_of(video: Path) -> dict[str, tuple[str, list[Any], dict[str, Any]]]:
    """Name to (text, visuals, what the processor is given); a frame list and a path are one video each."""
    two = [picture(90, 28, 2), picture(20, 60, 3)]
    frames = film(4, 5)
    return {
        "text only": ("What is two and two?", [], {}),
        "image": ("What is it?", [picture()], {"images": [picture()]}),
        "several images": ("Which is larger?", two, {"images": two}),
        "video file": ("What happens?", [str(video)], {"videos": [str(video)]}),
        "path object": ("What happens?", [video], {"videos": [str(video)]}),
        "frames as an array": ("What happens?", [frames], {"videos": [frames]}),
        "list of frames": ("What happens?", [[Image.fromarray(f) for f in frames]], {"videos": [frames]}),
        "placeholders": ("First <image>, then <image>: same?", two, {"images": two}),
    }


def prompts_of(cases: Mapping[str, tuple[str, list[Any], dict[str, Any]]]) -> list[str]:
    return [prompt_of(text, 0 if "<image>" in text else len(visuals)) for text, visuals, _ in cases.values()]


def test_simple_generation_is_the_models_own(lm: Any, model: Any, processor: Any, video: Path) -> None:
    cases = cases_of(video)
    docs = [{"text": text, "visuals": visuals} for text, visuals, _ in cases.values()]
    wanted = [
        expected(model, processor, prompt, **given)
        for prompt, (_, _, given) in zip(prompts_of(cases), cases.values(), strict=True)
    ]
    assert len(set(wanted)) >= 5, "the tiny model must tell its prompts apart for this test to mean anything"
    assert dict(zip(cases, generate(lm, docs), strict=True)) == dict(zip(cases, wanted, strict=True))
    # Whatever the order and the company.
    assert generate(lm, docs[::-1]) == wanted[::-1]
    assert [generate(lm, [doc])[0] for doc in docs] == wanted


def test_chat_generation_is_the_models_own(chat: Any, model: Any, processor: Any, video: Path) -> None:
    cases = cases_of(video)
    messages = []
    for text, visuals, given in cases.values():
        kind = "video" if "videos" in given else "image"
        messages.append(user(*((kind, visual) for visual in visuals), text))
    wanted = [
        expected(model, processor, prompt, **given)
        for prompt, (_, _, given) in zip(prompts_of(cases), cases.values(), strict=True)
    ]
    found = generate_chat(chat, [{"messages": one} for one in messages])
    assert dict(zip(cases, found, strict=True)) == dict(zip(cases, wanted, strict=True))


def test_visuals_between_texts_and_earlier_turns_are_as_the_chat_template_says(
    chat: Any, model: Any, processor: Any
) -> None:
    first, second = picture(60, 30, 7), picture(30, 60, 8)
    conversations = [
        user("Here is one", ("image", first), "and here", ("image", second), ("image", first), "\nwhich?"),
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            *user(("image", first), "What is it?"),
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            *user("And this?", ("image", second)),
        ],
    ]
    wanted = []
    for messages in conversations:
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        shown = [item["url"] for turn in messages for item in turn["content"] if item["type"] == "image"]
        wanted.append(expected(model, processor, prompt, images=shown))
    assert generate_chat(chat, [{"messages": messages} for messages in conversations]) == wanted
    assert wanted[0] != wanted[1]


def test_chat_and_simple_requests_may_come_together(chat: Any, lm: Any) -> None:
    docs = [{"visuals": [picture()], "text": "What?", "messages": user(("image", picture()), "What?")}]
    show(chat, docs)
    show(chat, docs, "other")
    settings = {"max_new_tokens": 6}
    requests = [
        instance("generate_until", ("", lambda doc: doc["messages"], settings, 0, "task", "test")),
        instance("generate_until", ("What?", settings, visuals_of, 0, "other", "test"), task="other"),
    ]
    assert chat.generate_until(requests) == generate(lm, docs, settings) * 2


def test_a_system_prompt_replaces_the_templates(checkpoint: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    image, wanted = picture(seed=4), []
    for system in ("Be brief.", "Be long."):
        prompt = prompt_of("What?", 1).replace("You are a helpful assistant.", system)
        wanted.append(expected(model, processor, prompt, images=[image]))
    lm = make(checkpoint, system_prompt=str(tmp_path / "system.txt"))
    assert generate(lm, [{"text": "What?", "visuals": [image]}]) == wanted[:1]
    told = {"role": "system", "content": "Be long."}
    messages = [user(("image", image), "What?"), [told, *user(("image", image), "What?")]]
    chat = make(checkpoint, chat=True, system_prompt="Be brief.")
    assert generate_chat(chat, [{"messages": one} for one in messages]) == wanted


def test_a_document_without_visuals_may_say_so_in_any_way(lm: Any) -> None:
    answers = generate(lm, [{"text": "Why?", "visuals": visuals} for visuals in ([], None, [None])])
    assert len(set(answers)) == 1
    assert generate(lm, [{"text": "Why?", "visuals": picture()}]) == generate(
        lm, [{"text": "Why?", "visuals": [picture()]}]
    )


def embeddings(lm: Any, prompt: Any) -> torch.Tensor:
    engine = lm.runner.engine(ring=False)
    batch = engine.lower([prompt])
    engine.table = batch.table
    return torch.cat([engine.backend.embed(chunk) for chunk in engine.chunks(batch.lowered[0])])


@pytest.mark.parametrize("merge", ["unires", "spatial_unpad"])
def test_a_video_is_the_same_however_it_is_handed_over(
    merge: str, tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longva_model.prompts.prompting import build_chat, build_prompt
    from vniah.contract.requests import Generate
    from vniah.haystack import open_video

    lm = make(write_longva(tmp_path / "model", mm_patch_merge_type=merge), frame_batch=4)
    frames = open_video(video, 4).frames(0, 4)
    listed = [Image.fromarray(frame) for frame in frames]
    prompts = [
        build_prompt("What?", [visual], Generate(), QWEN_1_5, max_frames=4)
        for visual in (str(video), video, {"type": "video", "url": str(video)}, frames, listed)
    ]
    prompts += [
        build_chat(user(("video", visual), "What?"), Generate(), QWEN_1_5, max_frames=4) for visual in (video, frames)
    ]
    first, *others = [embeddings(lm, prompt) for prompt in prompts]
    for other in others:
        assert torch.equal(first, other)
    # AnyRes closes a video with one newline (reference section 1), whoever hands it over.
    text = len(lm.backend.token_ids(QWEN_1_5.pre)) + len(lm.backend.token_ids("\nWhat?" + QWEN_1_5.post))
    assert len(first) == text + 4 * 4 + (merge == "spatial_unpad")
    # Batches of frames of another size change nothing but rounding.
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "another cache"))
    other_batch = make(tmp_path / "model", frame_batch=1)
    torch.testing.assert_close(embeddings(other_batch, prompts[0]), first, atol=1e-5, rtol=1e-4)


def test_images_of_any_kind_are_shown(lm: Any, model: Any, processor: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    out = io.BytesIO()
    picture(60, 30).save(out, "jpeg", exif=exif)
    deep = Image.fromarray(np.random.default_rng(3).integers(0, 65536, (30, 50)).astype(np.uint16))
    images = [Image.new("RGB", (1, 1), (9, 99, 199)), Image.open(out), deep, Image.new("L", (20_000, 100), 77)]
    images += [picture(seed=5).convert(mode) for mode in ("L", "P", "RGBA", "CMYK")]
    wanted = [expected(model, processor, prompt_of("What?", 1), images=[image]) for image in images]
    assert generate(lm, [{"text": "What?", "visuals": [image]} for image in images]) == wanted
    assert len(set(wanted)) > 3


def test_anyres_videos_and_images_are_the_models_own(tmp_path: Path, video: Path) -> None:
    folder = write_longva(tmp_path / "anyres", mm_patch_merge_type="spatial_unpad")
    lm, processor = make(folder), LongVAProcessor.from_pretrained(folder)
    model = LongVAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    docs = [{"text": "What?", "visuals": [visual]} for visual in (str(video), picture(90, 30))]
    wanted = [
        expected(model, processor, prompt_of("What?", 1), videos=[str(video)]),
        expected(model, processor, prompt_of("What?", 1), images=[picture(90, 30)]),
    ]
    assert generate(lm, docs) == wanted


def test_max_frames_num_samples_evenly(checkpoint: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    long = write_video(tmp_path / "long.mp4", num_frames=23)
    lm = make(checkpoint, max_frames_num=5)
    videos = [str(long), film(19)]
    answers = generate(lm, [{"text": "What?", "visuals": [video]} for video in videos])
    prompt = prompt_of("What?", 1)
    assert answers == [expected(model, processor, prompt, videos=[video], num_frames=5) for video in videos]
    assert [expected(model, processor, prompt, videos=[video]) for video in videos] != answers


def test_answers_do_not_change_with_the_company_of_other_documents(lm: Any) -> None:
    """Each answer alone, and in a crowd that shares its video, its question, or nothing."""
    shared = film(6, 3)
    docs = [{"text": f"What of {n}?", "visuals": [shared]} for n in range(3)]
    docs += [{"text": "What of 0?", "visuals": [picture(seed=n)]} for n in range(2)]
    crowd = generate(lm, docs)
    assert crowd == [generate(lm, [doc])[0] for doc in docs]


# --- options


def test_beams_and_penalties_are_transformers_own(lm: Any, model: Any, processor: Any) -> None:
    image = picture(seed=4)
    docs: list[dict[str, Any]] = [
        {"text": text, "visuals": [image]} for text in ("What is it?", "Why is it so?", "Who?")
    ]
    greedy = generate(lm, docs)
    for settings in (
        {"num_beams": 3},
        {"num_beams": 2, "repetition_penalty": 1.4},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 12, "max_new_tokens": 12},
    ):
        wanted = [
            expected(model, processor, prompt_of(doc["text"], 1), images=doc["visuals"], **settings) for doc in docs
        ]
        assert generate(lm, docs, {"max_new_tokens": 8, **settings}) == wanted, settings
        assert wanted != greedy, f"{settings} must change an answer for this test to mean anything"


def test_what_the_checkpoint_prefers_holds_where_the_task_says_nothing(tmp_path: Path) -> None:
    folder = write_longva(tmp_path / "picky")
    model = LongVAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.save_pretrained(folder)
    lm, processor = make(folder), LongVAProcessor.from_pretrained(folder)
    docs = [{"text": "What is it?", "visuals": [picture()]}]
    settings = {"max_new_tokens": 16}
    penalised = expected(model, processor, prompt_of("What is it?", 1), images=[picture()], **settings)
    plain = expected(
        model, processor, prompt_of("What is it?", 1), images=[picture()], repetition_penalty=1.0, **settings
    )
    assert penalised != plain
    assert generate(lm, docs, settings) == [penalised]
    assert generate(lm, docs, {**settings, "repetition_penalty": 1.0}) == [plain]


def test_sampling_is_by_seed_and_repeats_are_samples(lm: Any) -> None:
    docs = [{"text": "What is it?", "visuals": [picture()]}]
    sampled = {"max_new_tokens": 12, "do_sample": True, "temperature": 3.0, "top_k": 0}
    once = generate(lm, docs, sampled)
    assert generate(lm, docs, sampled) == once
    request = instance("generate_until", ("What is it?", dict(sampled), visuals_of, 0, "task", "test"), repeats=4)
    answers = lm.generate_until([request] * 4)
    assert answers[0] == once[0] and len(set(answers)) == 4
    greedy = generate(lm, docs, {"max_new_tokens": 12})
    for settings in ({"top_k": 1}, {"top_p": 0.0}, {"do_sample": False}):
        assert generate(lm, docs, {**sampled, **settings}) == greedy, settings


def test_answers_end_before_a_stop_string_but_not_at_lmms_evals_own(lm: Any) -> None:
    docs = [{"text": "What is it?", "visuals": [picture(seed=4)]}]
    free = generate(lm, docs, {"max_new_tokens": 12, "min_new_tokens": 12, "until": ["\n\n"]})[0]
    assert len(free) > 6
    stopped = generate(lm, docs, {"max_new_tokens": 12, "min_new_tokens": 12, "until": [free[4:6]]})[0]
    assert stopped == free[: free.index(free[4:6])].strip()
    assert generate(lm, docs, {"max_new_tokens": 3})[0] == free[:3].strip()


# --- rounds


def test_rounds_are_told_the_answers_before(lm: Any, chat: Any) -> None:
    images = [picture(seed=1), picture(seed=2)]
    doc = {"visuals": [images[0]]}
    show(lm, [doc])
    show(chat, [doc])
    told: list[Any] = []

    def to_text(doc: Any, previous_output: Any = None, round_idx: Any = None, previous_round_info: Any = None) -> Any:
        told.append((list(previous_output), round_idx, previous_round_info))
        if round_idx == 1:
            return [images[1]], f"You said {previous_output[-1]}. And <image>?", False, previous_output, {"round": 1}
        if round_idx == 2:
            return None, "No picture now.", False, previous_output, {"round": 2}
        return None, None, True, [*previous_output, "closing"], None

    def to_messages(doc: Any, **about: Any) -> Any:
        if not about:
            return user(("image", images[0]), "What is it?")
        visuals, text, stop, answers, info = to_text(doc, **about)
        messages = None if stop else user(*(("image", one) for one in visuals or []), text)
        return messages, stop, answers, info

    settings = {"max_new_tokens": 5, "min_new_tokens": 5}
    simple = ("What is it?", settings, visuals_of, to_text, 0, "task", "test")
    (answers,) = lm.generate_until_multi_round([instance("generate_until_multi_round", simple)])
    first = generate(lm, [{"text": "What is it?", "visuals": [images[0]]}], settings)
    second = generate(lm, [{"text": f"You said {first[0]}. And <image>?", "visuals": [images[1]]}], settings)
    third = generate(lm, [{"text": "No picture now.", "visuals": []}], settings)
    assert answers == [*first, *second, *third, "closing"]
    assert told == [
        (first, 1, None),
        ([*first, *second], 2, {"round": 1}),
        ([*first, *second, *third], 3, {"round": 2}),
    ]
    request = instance("generate_until_multi_round", ("", to_messages, settings, 0, "task", "test"))
    assert chat.generate_until_multi_round([request]) == [answers]


# --- refusals


def test_bad_prompts_are_refused_by_name(lm: Any, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 placeholders.*1 visuals"):
        generate(lm, [{"text": "<image> or <image>?", "visuals": [picture()]}])
    with pytest.raises(ValueError, match="cannot show a float"):
        generate(lm, [{"text": "What?", "visuals": [0.5]}])
    with pytest.raises(FileNotFoundError, match=r"no video at .*gone\.mp4"):
        generate(lm, [{"text": "What?", "visuals": [str(tmp_path / "gone.mp4")]}])
    short = make(checkpoint, max_length=100)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens and 8 for its answer.*context of 100 tokens"):
        generate(short, [{"text": "What?" * 30, "visuals": []}])
    with pytest.raises(ValueError, match="has no tokens"):
        show(lm, [{"visuals": []}])
        lm.loglikelihood([instance("loglikelihood", ("What?", "", visuals_of, 0, "task", "test"))])


def test_a_needle_grid_may_go_beyond_the_context(checkpoint: Path) -> None:
    from vniah.haystack import SyntheticHaystack
    from vniah.visual.compose import SplicedVideo

    lm = make(checkpoint, max_length=64)
    video = SplicedVideo(
        haystack=SyntheticHaystack(0, num_frames=20, width=32, height=32),
        num_frames=20,
        inserted=inserted(picture(), 3),
    )
    show(lm, [{"visuals": [video]}])
    scored: Any = lm.loglikelihood([instance("loglikelihood", ("Where?", "here", visuals_of, 0, "task", "test"))])[0]
    assert scored.details["prompt_tokens"] > 64


def test_needle_tasks_in_chats_are_the_same_prompts(lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced and free, on film and text; lmms-eval's own chat models find the video in the message, or the images."""
    from lmms_eval.protocol import ChatMessages

    from vniah.contract.requests import Generate, Text
    from vniah.runs.open import open_tasks

    film = {"FRAMES": "12", "DEPTHS": "50", "HAYSTACK": "synthetic:0:20:64x48", "NEEDLES": "icons:0:1", "DISTANCE": "3"}
    for name, value in {**film, "CACHE": str(tmp_path), "SAMPLES": "1"}.items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    names = ["vniah", "vniah_d", "vruler", "vniah_d_generate", "vruler_when_generate"]
    for task in open_tasks(names):
        row = task.rows[0]
        messages = task.messages(row)
        parts, leaf = [task.visuals(row), task.question(row)], task.leaf(row) or Generate()
        asked, told = (lm._prompt(shown, leaf, 99).request for shown in (parts, [messages]))
        words = ["".join(part.text for part in one.segments if isinstance(part, Text)) for one in (asked, told)]
        frames = [[part for part in one.segments if not isinstance(part, Text)] for one in (asked, told)]
        assert words[0] == words[1] and frames[0] == frames[1], task.name
        video, _ = messages[0]["content"]
        assert video["fps"] == 1.0 and video["frame_times"] == [float(frame) for frame in range(len(task.video(row)))]
        if task.scoring == "generated":
            chat_messages = ChatMessages(messages=messages)
            assert chat_messages.extract_media()[1] == task.visuals(row)
            assert chat_messages.to_hf_messages()[0]["content"][0]["video"] == video["url"]
        else:
            # Forced too: messages in place of visuals, as a host without the simple form would hand them.
            show(lm, list(task.rows), task.name)
            simple, chats = (
                lm.loglikelihood([instance("loglikelihood", (parts[1], task.target(row), form, 0, task.name, "test"))])
                for form in (task.visuals, task.messages)
            )
            assert simple[0] == chats[0]
    monkeypatch.setenv("VNIAH_PRESENTATION", "images")
    (task,) = open_tasks(["vruler_when_generate"])
    (message,) = task.messages(task.rows[0])
    *images, question = message["content"]
    assert [one["type"] for one in images] == ["image"] * 14 and [one["time"] for one in images] == list(range(14))
    assert len(ChatMessages(messages=[message]).extract_media()[0]) == 14 and question["type"] == "text"
    (text,) = open_tasks(["text_niah_0"], {"lengths": "300", "depths": "50", "haystack": "builtin", "samples": 1})
    (message,) = text.messages(text.rows[0])
    assert [one["type"] for one in message["content"]] == ["text"]
    assert text.target(text.rows[0]) in message["content"][0]["text"]
