"""Options of a generation, rounds of questions, and refusals of the lmms-eval model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_requests import (
    expected,
    generate,
    instance,
    make,
    picture,
    prompt_of,
    show,
    user,
    visuals_of,
)
from tiny_checkpoints import write_longva

from longva_model import LongVAForConditionalGeneration, LongVAProcessor

pytest.importorskip("lmms_eval")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longva(tmp_path_factory.mktemp("longva"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
        needle=picture(),
        needle_index=3,
    )
    show(lm, [{"visuals": [video]}])
    scored: Any = lm.loglikelihood([instance("loglikelihood", ("Where?", "here", visuals_of, 0, "task", "test"))])[0]
    assert scored.details["prompt_tokens"] > 64
