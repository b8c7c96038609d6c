"""Position schemes: what each gives, that a tree under a foreign one is the model's own forward at those positions, and
that a scheme which no decoder takes is refused.

Shapes: T tokens, A axes, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.own_forward import own_inputs

from longva_model.arguments import ModelArgs
from longva_model.backends import positions
from longva_model.backends.any_model import AnyModelBackend
from longva_model.backends.columns import ClipShape, Column
from longva_model.backends.positions import PositionedPrompt, PositionedUnit, Scheme, load_scheme
from longva_model.engine.atoms import AtomTable
from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from longva_model.run.runner import Runner
from vniah.contract.requests import Clip, Frames, Request, Segment, Target, Text, Tokens, Turn
from vniah.contract.sources import HeldFrames

QUESTIONS = (
    "What is the animal in the frame that does not belong to the clip?",
    "Which one? Answer with a single word.",
)
ANSWER = "Teddy bear."
FPS = 2.0


@pytest.fixture(scope="module")
def load(folder_of: Callable[[str], Path]) -> Callable[..., AnyModelBackend]:
    """A backend of a tiny family under a scheme; each is made once."""
    made: dict[tuple[str, str], AnyModelBackend] = {}

    def backend(name: str, scheme: str = "model") -> AnyModelBackend:
        if (name, scheme) not in made:
            folder = str(folder_of(name))
            args = ModelArgs(pretrained=folder, positions=scheme)
            made[name, scheme] = AnyModelBackend(folder, args, torch.device("cpu"), torch.float32)
        return made[name, scheme]

    return backend


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a user's that can be imported; gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"users_scheme_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + source)
        sys.modules.pop(name, None)
        return name

    return write


def clip(frames: int) -> np.ndarray:
    """(frames, 48, 64, 3) uint8: coloured squares."""
    squares_NHWC = np.random.default_rng(5).integers(0, 256, (frames, 3, 4, 3), dtype=np.uint8)
    return squares_NHWC.repeat(16, axis=1).repeat(16, axis=2)


def prompts(frames: int) -> list[Prompt]:
    """Two clips that differ in their third frame, each with two questions."""
    media = {"film": HeldFrames(clip(frames), "film"), "needle": HeldFrames(255 - clip(1), "needle")}
    clips: list[tuple[Segment, ...]] = [
        (Frames("film", 0, frames),),
        (Frames("film", 0, 2), Frames("needle", 0, 1), Frames("film", 3, frames)),
    ]
    return [
        Prompt(request=Request((Turn("user"), Clip(fps=FPS), *shown, Text(text)), Target(ANSWER)), media=media)
        for shown in clips
        for text in QUESTIONS
    ]


def shown_frames(prompt: Prompt) -> np.ndarray:
    spans = [one for one in prompt.request.segments if isinstance(one, Frames)]
    return np.concatenate([prompt.media[one.source].frames(one.start, one.stop) for one in spans])


def column(backend: AnyModelBackend, frames: int, question: str = QUESTIONS[0], fps: float = FPS) -> Column:
    return backend.renderer.column((("user", (ClipShape(frames, (48, 64), fps), question)),))


def given_positions(backend: AnyModelBackend, frames: int, question: str = QUESTIONS[0]) -> np.ndarray:
    """(A, T + 1); the model's own running ones where it has no others."""
    found = column(backend, frames, question)
    running_AT = np.arange(len(found.ids_T) + 1)[None]
    return running_AT if found.positions_AT is None else found.positions_AT


def scores(backend: AnyModelBackend, asked: Sequence[Prompt], chunk: int, kind: type = TreeEngine) -> np.ndarray:
    """Log-probabilities of the answer's tokens, (prompts, tokens)."""
    engine = kind(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk))
    return np.array([result.answer_logprobs for result in engine.run(asked)])


def own_scores(backend: AnyModelBackend, prompt: Prompt, positions_AT: np.ndarray, step: int = 1) -> np.ndarray:
    """By one forward of the model's own class, which is given the positions; those behind the last run on."""
    question = next(one.text for one in prompt.request.segments if isinstance(one, Text))
    inputs = own_inputs(backend.processor, shown_frames(prompt), question, "video", FPS)
    ids = backend.token_ids(ANSWER)
    length = inputs["input_ids"].shape[1]
    assert positions_AT.shape[1] == length + 1
    behind = {"input_ids": ids, "attention_mask": [1] * len(ids), "mm_token_type_ids": [0] * len(ids)}
    for name, values in behind.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.tensor([values]).to(inputs[name])], dim=1)
    places_AT = torch.from_numpy(
        np.concatenate([positions_AT, positions_AT[:, -1:] + step * np.arange(1, len(ids))], axis=1)
    ).long()
    given = places_AT if len(places_AT) == 1 else places_AT[:, None]
    backend.forget_positions()
    with torch.inference_mode():
        logits_TV = backend.model(**inputs, position_ids=given, use_cache=False).logits[0].float()
    return logits_TV[length - 1 : -1].log_softmax(-1)[range(len(ids)), ids].numpy()


# ---------------------------------------------------------------- what a scheme gives


def layout(units: Sequence[tuple[int, int, float]], total: int, axes: int = 3, **about: Any) -> PositionedPrompt:
    """A prompt of one clip: units as (start, frame, seconds), 2 x 3 tokens each."""
    made = tuple(PositionedUnit(start, start + 6, 0, (frame,), (at,), (1, 2, 3)) for start, frame, at in units)
    visual_T = np.zeros(total, np.bool_)
    for unit in made:
        visual_T[unit.start : unit.stop] = True
    running_AT = np.repeat(np.arange(total + 1)[None], axes, 0)
    return PositionedPrompt(np.zeros(total, np.int64), visual_T, made, running_AT, **about)


def test_formulas_by_hand() -> None:
    """Three tokens of text, units at 0, 1 and 3.5 seconds in a row, two tokens of text and the one behind."""
    prompt = layout([(3, 0, 0.0), (9, 1, 1.0), (15, 2, 3.5)], 23, tokens_per_second=2)
    assert (positions.vanilla(prompt) == np.arange(24)).all()
    by_time = [0, 1, 2, *[3] * 6, *[5] * 6, *[10] * 6, 11, 12, 13]
    assert positions.time(prompt).tolist() == [by_time] * 3
    by_unit = np.array([0, 1, 2, *[3] * 6, *[4] * 6, *[5] * 6, 6, 7, 8])
    assert (positions.tad(prompt) == np.arange(24) + by_unit).all()
    rows, columns = [0, 0, 0, 1, 1, 1] * 3, [0, 1, 2] * 6
    behind = [6, 7, 8]  # behind 5: the time axis and the third column both end there
    assert positions.mrope(prompt).tolist() == [
        [0, 1, 2, *[3] * 6, *[4] * 6, *[5] * 6, *behind],
        [0, 1, 2, *(3 + row for row in rows), *behind],
        [0, 1, 2, *(3 + column for column in columns), *behind],
    ]
    times = [3] * 6 + [5] * 6 + [7] * 6
    assert positions.videorope(prompt).tolist() == [
        [0, 1, 2, *times, 8, 9, 10],
        [0, 1, 2, *(at + row for at, row in zip(times, rows, strict=True)), 8, 9, 10],
        [0, 1, 2, *(at + column - 1 for at, column in zip(times, columns, strict=True)), 8, 9, 10],
    ]


def test_text_between_units() -> None:
    """As where each frame has its time written before it: no scheme goes back."""
    prompt = layout([(1, 0, 0.0), (9, 1, 10.0), (17, 2, 10.5)], 24, tokens_per_second=1)
    (by_time,) = np.unique(positions.time(prompt), axis=0)
    assert by_time.tolist() == [0, *[1] * 6, 2, 3, *[11] * 6, 12, 13, *[14] * 6, 15, 16]
    for scheme in positions.BUILT_IN.values():
        first_axis_T = scheme(prompt)[0]
        assert (np.diff(first_axis_T) >= 0).all() and first_axis_T[0] == 0


def test_videorope_moves_up_what_would_fall_below_zero() -> None:
    found = positions.videorope(layout([(0, 0, 0.0)], 8))
    assert found.min() == 0 and found[0].tolist() == [1] * 6 + [2, 3, 4]


@pytest.mark.parametrize(("frames", "same"), [(5, True), (6, True), (40, False)])
def test_mrope_is_qwen2_vls_own_until_time_is_the_longest_axis(load: Any, frames: int, same: bool) -> None:
    own = column(load("qwen2_vl"), frames)
    end = own.units[-1].stop
    height, width = own.positions_AT[1:, :end].max(1) - own.units[0].start + 1
    assert (len(own.units) <= max(int(height), int(width))) is same
    found_AT = given_positions(load("qwen2_vl", "mrope"), frames)
    np.testing.assert_array_equal(found_AT[:, :end], own.positions_AT[:, :end])
    assert np.array_equal(found_AT, own.positions_AT) is same
    if not same:
        assert found_AT[0, end] == own.units[0].start + len(own.units) > own.positions_AT[0, end]


def test_mrope_is_the_own_of_models_with_text_between_units(load: Any) -> None:
    own_AT = column(load("qwen3_vl"), 7).positions_AT
    np.testing.assert_array_equal(given_positions(load("qwen3_vl", "mrope"), 7), own_AT)


def test_time_follows_the_clips_frames_a_second(load: Any) -> None:
    backend = load("qwen2_5_vl", "time")
    rate = backend.model.config.vision_config.tokens_per_second
    for fps in (1.0, 0.25):
        found = column(backend, 6, fps=fps)
        starts = [unit.start for unit in found.units]
        steps = np.diff(found.positions_AT[:, starts], axis=1)
        assert (steps == int(rate * 2 / fps)).all()  # pairs of frames


# ---------------------------------------------------------------- the tree under a scheme

TRIED = [
    *(("qwen2_vl", scheme) for scheme in ("vanilla", "time", "tad", "mrope", "videorope")),
    *(("qwen3_vl", scheme) for scheme in ("vanilla", "videorope")),
    *(("internvl", scheme) for scheme in ("time", "tad")),
    ("llava_onevision", "time"),
]


@pytest.mark.parametrize("frames", [5, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "scheme"), TRIED)
def test_tree_is_the_own_forward_at_the_same_positions(load: Any, name: str, scheme: str, frames: int) -> None:
    backend, asked, step = load(name, scheme), prompts(frames), 2 if scheme == "tad" else 1
    places = [given_positions(backend, frames, question_of(one)) for one in asked]
    own = np.stack([own_scores(backend, one, places_AT, step) for one, places_AT in zip(asked, places, strict=True)])
    assert len(np.unique(own.round(3), axis=0)) == len(asked), "each prompt has a score of its own"
    for chunk in (8192, 37):
        np.testing.assert_allclose(scores(backend, asked, chunk), own, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores(backend, asked[:1], 8192, PlainEngine), own[:1], rtol=0, atol=1e-5)
    models_own, same = scores(load(name), asked, 8192), scheme == "mrope"  # of so few units
    assert bool(np.abs(models_own - own).max() > 1e-3) is not same, "another scheme, other scores"


def question_of(prompt: Prompt) -> str:
    return next(one.text for one in prompt.request.segments if isinstance(one, Text))


def test_a_forward_without_a_cache_sees_all_before(load: Any) -> None:
    """Positions that jump are no borders between sequences."""
    backend, prompt = load("internvl", "time"), prompts(5)[0]
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions())
    lowered = backend.lower(prompt, engine.table)
    (chunk,) = engine.chunks(lowered, size=lowered.tokens)
    with torch.inference_mode():
        whole_D = backend.forward(chunk, None, 1)
        kept_D = backend.forward(chunk, backend.new_state(lowered.tokens), 1)
    torch.testing.assert_close(whole_D, kept_D, rtol=0, atol=1e-4)


BY_THE_END = """
def scheme(prompt):
    # Moved by the prompt's length; text by twos, and an answer by threes.
    steps = np.where(np.append(prompt.visual_T, False), 1, 2)
    return np.repeat((np.cumsum(steps) + 7 * (len(prompt) % 11))[None], prompt.axes, 0)

scheme.step = 3
"""


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
def test_a_users_scheme_that_looks_at_the_question_is_right(load: Any, module: Any, name: str) -> None:
    """Questions share nothing then, and text behind the visuals does not run on by 1."""
    backend, asked = load(name, f"{module(BY_THE_END)}:scheme"), prompts(5)
    firsts = {int(given_positions(backend, 5, text)[0, 0]) for text in QUESTIONS}
    assert len(firsts) == 2
    own = np.stack([own_scores(backend, one, given_positions(backend, 5, question_of(one)), 3) for one in asked])
    for chunk in (8192, 37):
        np.testing.assert_allclose(scores(backend, asked, chunk), own, rtol=0, atol=1e-5)


def test_a_users_scheme_is_asked_of_text_alone_too(load: Any, module: Any) -> None:
    class Words:
        def token_ids(self, start: int, stop: int) -> list[int]:
            return list(range(start, stop))

    prompt = Prompt(request=Request((Tokens("text", 0, 20),), Target(ANSWER)), media={"text": Words()})
    backend = load("qwen2_vl", f"{module(BY_THE_END)}:scheme")
    by_two = [63 + 2 * (n + 1) for n in range(20)]  # 20 % 11 * 7
    assert backend.lower(prompt, AtomTable()).positions(0, 22)[0].tolist() == [*by_two, 105, 108]
    assert load("qwen2_vl", "videorope").lower(prompt, AtomTable()).positions_PT is None
    assert (load("qwen2_vl", "tad").lower(prompt, AtomTable()).positions(0, 30) == 2 * np.arange(30)).all()


def test_the_example_of_the_documentation(load: Any, module: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "positions.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    backend, asked = load("qwen2_vl", f"{module(example)}:halved"), prompts(9)
    found, own_AT = given_positions(backend, 9), given_positions(load("qwen2_vl"), 9)
    units = column(backend, 9).units
    times = found[0, [unit.start for unit in units]] - units[0].start
    assert times.tolist() == [0, 0, 1, 1, 2] and (found[1:] == own_AT[1:])[:, : units[-1].stop].all()
    own = own_scores(backend, asked[0], found)
    np.testing.assert_allclose(scores(backend, asked[:1], 37)[0], own, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what results say


def test_scheme_and_function_are_in_key_and_identity(load: Any, module: Any) -> None:
    runners = {scheme: Runner(load("qwen2_vl", scheme), ModelArgs()) for scheme in ("model", "tad", "videorope")}
    keys = [repr(runner.settings_key()) for runner in runners.values()]
    assert len(set(keys)) == 3
    assert runners["model"].identity()["positions"] == "model"
    assert "positions_fingerprint" not in runners["model"].identity()
    told = runners["videorope"].identity()
    assert told["positions"] == "videorope" and len(told["positions_fingerprint"]) == 32


def test_what_a_function_reads_elsewhere_is_in_its_fingerprint(load: Any, module: Any, tmp_path: Path) -> None:
    """A helper's code, a constant of the module, and a file: each changes what is given, and so the key."""
    source = """
STEP = {step}
def helper(prompt):
    return np.repeat(np.arange(len(prompt) + 1)[None] * STEP, prompt.axes, 0)
def scheme(prompt):
    return helper(prompt) * int(open({file!r}).read())
"""
    number = tmp_path / "number.txt"
    folder = load("qwen2_vl").model.config._name_or_path
    proofs = []
    for step, factor in ((2, 1), (2, 1), (3, 1), (2, 5)):
        number.write_text(str(factor))
        args = ModelArgs(pretrained=folder, positions=f"{module(source.format(step=step, file=str(number)))}:scheme")
        proofs.append(AnyModelBackend(folder, args, torch.device("cpu"), torch.float32).settings())
    assert proofs[0] == proofs[1]
    assert len({str(proof) for proof in proofs}) == 3


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("vidorope", "positions='vidorope': no scheme of that name; did you mean 'videorope'"),
        ("nothing", "positions='nothing': no scheme of that name"),
        (":f", "positions=':f': no scheme of that name"),
        ("no_such_module_here:f", "no_such_module_here cannot be imported \\(ModuleNotFoundError"),
        ("math:no_such", "positions='math:no_such': math has none of that name"),
        ("math:pi", "positions='math:pi': math has a float of that name"),
    ],
)
def test_names_that_lead_nowhere(asked: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_scheme(asked)
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_import(module: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be imported \(ZeroDivisionError: division by zero\)"):
        load_scheme(f"{module('1 / 0')}:scheme")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("prompt.own_AT[:, :-1]", r"gave an array of shape \(3, 8\)"),
        ("prompt.own_AT[:1]", "gave 1 axes, and this model's decoder takes 3"),
        ("prompt.own_AT[0]", r"gave an array of shape \(9,\)"),
        ("prompt.own_AT / 2", "gave float64 values, such as 0.5 at token 1"),
        ("prompt.own_AT * np.nan", "gave float64 values, such as nan at token 0"),
        ("prompt.own_AT.astype(float)", "gave float64 values; expected whole numbers"),
        ("prompt.own_AT - 1", r"gave -1 at token 0 \(axis 0\)"),
        ("prompt.own_AT > 0", "gave bool values"),
        ("prompt.own_AT + 2**40", "gave positions up to"),
        ("None", "gave object values"),
        ("[[1], [1, 2]]", "failed on a prompt of 8 tokens: ValueError"),
        ("prompt.no_such", "failed on a prompt of 8 tokens: AttributeError"),
        ("prompt.own_AT.__iadd__(1)", "failed on a prompt of 8 tokens: ValueError: output array is read-only"),
    ],
)
def test_what_no_decoder_takes(body: str, said: str) -> None:
    function = eval(f"lambda prompt: {body}", {"np": np})
    with pytest.raises(ValueError, match=f"positions=mine:f {said}") as caught:
        Scheme("mine:f", function, "", built_in=False).positions(layout([(1, 0, 0.0)], 8))
    assert "\n" not in str(caught.value)


def test_torchs_whole_numbers_are_taken() -> None:
    scheme = Scheme("mine:f", lambda prompt: torch.tensor(prompt.own_AT * 2), "", built_in=False)
    assert scheme.positions(layout([], 4))[0].tolist() == [0, 2, 4, 6, 8]


def test_three_axes_are_not_for_a_decoder_of_one(load: Any) -> None:
    with pytest.raises(ValueError, match=r"positions=videorope has 3 axes .* decoder takes 1; choose vanilla, time"):
        load("internvl", "videorope")


def test_models_that_have_no_such_choice_refuse_it() -> None:
    from longva_model.backends.loading import load_backend

    with pytest.raises(ValueError, match="positions='time' is not for nano"):
        load_backend(ModelArgs(positions="time"))


def test_every_built_in_says_its_formula_and_source() -> None:
    for name, function in positions.BUILT_IN.items():
        assert "arXiv" in (inspect.getdoc(function) or ""), name
