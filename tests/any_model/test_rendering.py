"""A column rendered from shapes alone is what the model's processor makes of the real clip, to the token and bit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.families import CORE, FAMILIES, TEXT, make_tokenizer
from any_model.own_forward import own_inputs
from numpy.typing import NDArray

from longva_model.backends.columns import NEWLINE, ClipShape, Column, ImageShape
from longva_model.backends.rendering import Renderer
from longva_model.backends.unit_pixels import UnitPixels

QUESTION = "What is the animal in the frame that does not belong to the clip?"
# Nemotron-H-Omni's processor names its pixels in ways of its own.
SHOWN = sorted(name for name, family in FAMILIES.items() if family.refused is None)
# Of these a processor merges two frames and refuses a lone one.
PAIRED = ("qwen3", "glm4v")


def asked(shape: ClipShape, question: str = QUESTION) -> tuple[Any, ...]:
    return (("user", (shape, question)),)


def clip(frames: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def slow_clip(frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A still picture of which a part changes in each frame, another from time to time."""
    shown_NHWC = clip(1, size).repeat(frames, axis=0)
    for index in range(frames):
        shown_NHWC[index, : size[0] // 2, : size[1] // 2] = 30 * (index // 3)
        shown_NHWC[index, size[0] // 2 :] = 25 * (index // 2)
    return shown_NHWC


@pytest.fixture(scope="session")
def built(folder_of: Callable[[str], Path]) -> Any:
    """(processor, config, positions or None) of a family, the model on the meta device."""

    def make(name: str) -> tuple[Any, Any, Any]:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        folder = folder_of(name)
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        return (
            AutoProcessor.from_pretrained(folder),
            config,
            getattr(getattr(model, "model", None), "get_rope_index", None),
        )

    return make


def renderer(made: tuple[Any, Any, Any], **options: Any) -> Renderer:
    processor, config, positions = made
    return Renderer(processor, config, positions, **options)


def pixel_rows(tensors: Any) -> torch.Tensor:
    names = ("pixel_values_videos", "pixel_values", "pixel_values_images")
    name = next(name for name in names if name in tensors)
    return tensors[name]  # type: ignore[no-any-return]


def own_images(rendered: Renderer, shown_NHWC: NDArray[np.uint8]) -> dict[str, Any]:
    try:
        return own_inputs(rendered.processor, shown_NHWC, QUESTION, "images")
    except (TypeError, DeprecationWarning) as error:  # InternVL's of transformers 5.17
        pytest.skip(f"the processor itself takes no images here: {error}")


def unit_rows(rendered: Renderer, column: Column, shown_NHWC: NDArray[np.uint8]) -> list[UnitPixels]:
    """Each unit's pixels by its own frames alone."""
    return [
        rendered.unit_pixels(shown_NHWC[None, list(unit.frames)], unit.fitted)
        for unit in column.units
        if unit.frames and not unit.offset
    ]


def check_like_own(rendered: Renderer, own: dict[str, Any], column: Column, shown_NHWC: NDArray[np.uint8]) -> None:
    """Ids, positions, token types, pixels and the places of units."""
    ids_T = own["input_ids"][0].numpy()
    np.testing.assert_array_equal(column.ids_T, ids_T)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    if rendered._positions is not None:
        positions = rendered._positions(**{name: own[name] for name in names if name in own})[0]
        assert column.positions_AT is not None
        np.testing.assert_array_equal(column.positions_AT[:, :-1], positions.flatten(0, -2).numpy())
        # The token behind a prompt that ends in text goes on by one.
        np.testing.assert_array_equal(column.positions_AT[:, -1], column.positions_AT[:, -2] + 1)
    types = own.get("mm_token_type_ids", own.get("token_type_ids"))
    if types is not None:
        assert column.types_T is not None
        np.testing.assert_array_equal(column.types_T, types[0].numpy())
    covered = [place for unit in column.units for place in range(unit.start, unit.stop)]
    np.testing.assert_array_equal(covered, np.flatnonzero(np.isin(ids_T, rendered.placeholders)))
    shown = [index for unit in column.units if not unit.offset for index in unit.frames]
    assert sorted(set(shown)) == list(range(len(shown_NHWC)))
    whole = pixel_rows(own)
    alone = torch.cat([pixel_rows(unit.tensors) for unit in unit_rows(rendered, column, shown_NHWC)])
    assert torch.equal(alone.reshape(whole.shape), whole)


@pytest.mark.parametrize("name", SHOWN)
def test_column_is_what_the_processor_makes_of_the_clip(built: Any, name: str) -> None:
    rendered = renderer(built(name), presentation=FAMILIES[name].presentation)
    for frames, size in ((1, (40, 56)), (2, (33, 97)), (5, (64, 48)), (6, (48, 64))):
        if frames == 1 and name.startswith(PAIRED):
            continue
        shown_NHWC = clip(frames, size)
        own = own_inputs(rendered.processor, shown_NHWC, QUESTION, FAMILIES[name].presentation, fps=2.0)
        column = rendered.column(asked(ClipShape(frames, size, 2.0)), lambda _clip, shown=shown_NHWC: shown)
        check_like_own(rendered, own, column, shown_NHWC)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "glm4v", "internvl", "llava_onevision", "video_llava"])
def test_frames_as_images(built: Any, name: str) -> None:
    """Tiles, and one image alone treated otherwise than one of several, among them."""
    rendered = renderer(built(name), presentation="images")
    for frames, size in ((1, (40, 56)), (3, (64, 48))):
        shown_NHWC = clip(frames, size)
        own = own_images(rendered, shown_NHWC)
        column = rendered.column(asked(ClipShape(frames, size)))
        check_like_own(rendered, own, column, shown_NHWC)
        assert all(unit.fitted.startswith("image ") for unit in column.units)


@pytest.mark.parametrize("name", [*CORE, "glm4v", "video_llama_3", "mistral3"])
def test_units_together_are_units_alone(built: Any, name: str) -> None:
    """A batch of the tower is made of any units of a series."""
    rendered = renderer(built(name), presentation=FAMILIES[name].presentation)
    shown_NHWC = clip(5, (40, 56))
    column = rendered.column(asked(ClipShape(5, (40, 56))), lambda _clip: shown_NHWC)
    units = [unit for unit in column.units if unit.frames and not unit.offset]
    frames_NfHWC = np.stack([shown_NHWC[list(unit.frames)] for unit in units])
    together = rendered.unit_pixels(frames_NfHWC, units[0].fitted)
    alone = UnitPixels.joined(unit_rows(rendered, column, shown_NHWC))
    assert len(together) == len(units)
    for key, tensor in alone.tensors.items():
        assert torch.equal(together.tensors[key], tensor), key


def test_odd_clip_repeats_its_last_frame(built: Any) -> None:
    column = renderer(built("qwen2_5_vl")).column(asked(ClipShape(5, (48, 64))))
    assert [unit.frames for unit in column.units] == [(0, 1), (2, 3), (4, 4)]
    assert column.settings["frames_a_unit"] == [2]


def test_newline_stands_behind_the_last_frame(built: Any) -> None:
    for frames in (1, 4):  # of one frame its tokens and the newline are ten, which ten units of one would be as well
        column = renderer(built("llava_onevision")).column(asked(ClipShape(frames, (48, 64))))
        *shown, newline = column.units
        assert len(shown) == frames and newline.fitted == NEWLINE and newline.frames == ()
        assert newline.stop - newline.start == 1 and newline.start == shown[-1].stop


def test_rows_of_an_image_are_places_of_one_unit(built: Any) -> None:
    """Mistral 3 ends each row of an image with a token of text."""
    column = renderer(built("mistral3")).column(asked(ClipShape(2, (33, 97))))
    first = [unit for unit in column.units if unit.frames == (0,)]
    assert len(first) > 1
    assert [unit.offset for unit in first] == [sum(u.stop - u.start for u in first[:k]) for k in range(len(first))]
    assert all(b.start == a.stop + 1 for a, b in itertools.pairwise(first))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_thin_rendering_is_the_whole_one(built: Any, name: str) -> None:
    made = built(name)
    thin, whole = renderer(made), renderer(made)
    turns = asked(ClipShape(41, (48, 64)))
    column = thin.column(turns)
    assert set(thin._thin.values()) == {"grids" if "qwen" in name else "runs"}
    plain = whole._render(turns, "whole")
    np.testing.assert_array_equal(column.ids_T, plain.ids_T)
    assert column.units == whole._placing.units(plain)


def test_thin_rendering_is_left_where_it_differs(built: Any) -> None:
    """A tokenizer that reads a run of placeholders otherwise than one of them."""
    processor, config, positions = built("internvl")

    class Merging:
        """Writes a token of text behind a placeholder that stands alone."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, key: str) -> Any:
            return getattr(self._inner, key)

        def __call__(self, text: Any, **kwargs: Any) -> Any:
            lone = "<img><IMG_CONTEXT></img>"
            return self._inner([one.replace(lone, lone + "!") for one in text], **kwargs)

    processor.tokenizer = Merging(processor.tokenizer)
    rendered = Renderer(processor, config, positions)
    column = rendered.column(asked(ClipShape(9, (48, 64))))
    assert set(rendered._thin.values()) == {"whole"}
    assert len(column.units) == 9


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v", "video_llama_3"])
def test_budget_of_the_whole_video_shrinks_frames(built: Any, name: str) -> None:
    made = built(name)
    # Room for about eight frames as they come.
    made[0].video_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 8 * 64 * 96}
    rendered = renderer(made)
    few, many = (
        rendered.column(asked(ClipShape(frames, (64, 96))), lambda _clip, frames=frames: clip(frames, (64, 96)))
        for frames in (2, 31)
    )
    assert not few.settings["frames_shrunk"] and many.settings["frames_shrunk"]
    assert few.units[0].fitted != many.units[0].fitted
    shown_NHWC = clip(31, (64, 96))
    check_like_own(rendered, own_inputs(made[0], shown_NHWC, QUESTION, "video"), many, shown_NHWC)


def test_frame_tokens_give_one_size_to_clips_of_any_length(built: Any) -> None:
    for name in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        made = built(name)
        rendered = renderer(made, frame_tokens=10)
        shown_NHWC = clip(7, (64, 96))
        columns = [rendered.column(asked(ClipShape(frames, (64, 96)))) for frames in (2, 7, 200)]
        assert {unit.fitted for column in columns for unit in column.units} == {"48x32"}
        assert {unit.stop - unit.start for column in columns for unit in column.units} == {6}
        assert not columns[-1].settings["frames_shrunk"]
        # What the processor makes of frames that have that size already.
        frames = torch.from_numpy(shown_NHWC).permute(0, 3, 1, 2).contiguous()
        small_NHWC = rendered._cutter.resized(frames, "video", (32, 48)).permute(0, 2, 3, 1).numpy()
        own = own_inputs(made[0], small_NHWC, QUESTION, "video")
        np.testing.assert_array_equal(columns[1].ids_T, own["input_ids"][0].numpy())
        rows = torch.cat([pixel_rows(one.tensors) for one in unit_rows(rendered, columns[1], shown_NHWC)])
        assert torch.equal(rows.flatten(0, 1), pixel_rows(own))


def test_left_out_tokens_are_told_by_a_mask(built: Any) -> None:
    made = built("video_llama_3")
    rendered = renderer(made)
    assert rendered.needs_frames
    shown_NHWC = slow_clip(7, (48, 64))
    own = own_inputs(made[0], shown_NHWC, QUESTION, "video")
    column = rendered.column(asked(ClipShape(7, (48, 64))), lambda _clip: shown_NHWC)
    check_like_own(rendered, own, column, shown_NHWC)
    masks = [one.tensors["video_compression_mask"][0] for one in unit_rows(rendered, column, shown_NHWC)]
    assert torch.equal(torch.cat(masks), own["video_compression_mask"])
    counts = [unit.stop - unit.start for unit in column.units]
    assert counts == [int(mask.sum()) for mask in masks] and len(set(counts)) > 1
    with pytest.raises(ValueError, match="rendered with its frames only"):
        rendered.column(asked(ClipShape(7, (48, 64))))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_clips_and_images_in_one_prompt(built: Any, name: str) -> None:
    rendered = renderer(built(name))
    own_images(rendered, clip(2, (48, 48)))
    # InternVL's processor takes clips of one length only.
    other = 5 if name == "internvl" else 2
    turns = (("user", (ClipShape(5, (48, 64)), "And", ImageShape((48, 48)), ClipShape(other, (64, 48)), "?")),)
    column = rendered.column(turns)
    assert sorted({unit.clip for unit in column.units}) == [0, 1, 2]
    by_clip = {clip: {k for unit in column.units if unit.clip == clip for k in unit.frames} for clip in range(3)}
    assert by_clip == {0: set(range(5)), 1: {0}, 2: set(range(other))}
    assert next(unit for unit in column.units if unit.clip == 1).fitted.startswith("image ")
    covered = [place for unit in column.units for place in range(unit.start, unit.stop)]
    np.testing.assert_array_equal(covered, np.flatnonzero(np.isin(column.ids_T, rendered.placeholders)))


def test_turns_follow_one_another(built: Any) -> None:
    rendered = renderer(built("qwen2_5_vl"))
    text = rendered.processor.tokenizer.decode(
        rendered.column(
            (("user", (ClipShape(2, (48, 64)), "One?")), ("assistant", ("Two",)), ("user", ("Three",)))
        ).ids_T
    )
    assert text.index("One?") < text.index("Two") < text.index("Three") and text.endswith("assistant\n")


def test_times_are_those_of_the_original_video(built: Any) -> None:
    rendered = renderer(built("qwen3_vl"))
    shape = ClipShape(4, (48, 64), fps=10.0, indices=(0, 20, 40, 60), total=100)
    text = rendered.processor.tokenizer.decode(rendered.column(asked(shape)).ids_T)
    assert "<1.0 seconds>" in text and "<5.0 seconds>" in text


def test_opened_thought_is_noted_and_can_be_closed(built: Any) -> None:
    made = built("qwen3_5")
    turns = asked(ClipShape(2, (48, 64)))
    assert "opened thought" in renderer(made).column(turns).notes[0]
    assert renderer(made, template_kwargs={"enable_thinking": False}).column(turns).notes == []
    # A question about thoughts opens none.
    assert renderer(built("qwen2_5_vl")).column(asked(ClipShape(2, (48, 64)), "What does <think> do?")).notes == []


def test_no_second_begin_of_text(built: Any) -> None:
    rendered = renderer(built("gemma3"))
    column = rendered.column(asked(ClipShape(2, (48, 64))))
    assert (column.ids_T == rendered.processor.tokenizer.bos_token_id).sum() == 1


def test_column_is_rendered_once(built: Any) -> None:
    rendered = renderer(built("internvl"))
    turns = asked(ClipShape(4, (48, 64)))
    assert rendered.column(turns) is rendered.column(list(turns))
    assert rendered.column(turns) is not rendered.column(asked(ClipShape(4, (48, 64)), "Else?"))


def test_long_grid_is_cheap(built: Any) -> None:
    """Five columns to 3,000 frames at the paper's size: 448,845 tokens the longest."""
    import time

    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    small, config, positions = built("qwen2_5_vl")
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(),
        small.tokenizer,
        Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        chat_template=small.chat_template,
    )
    rendered = Renderer(processor, config, positions)
    before = time.process_time()
    columns = [rendered.column(asked(ClipShape(frames + 1, (360, 640)))) for frames in range(600, 3001, 600)]
    assert time.process_time() - before < 10, "0.6 s on an idle core"
    longest = columns[-1]
    assert len(longest.units) == 1501 and {unit.stop - unit.start for unit in longest.units} == {299}
    assert longest.units[-1].frames == (3000, 3000) and longest.units[0].fitted == "644x364"


def test_bad_input_is_refused_by_name(built: Any) -> None:
    made = built("qwen2_5_vl")
    rendered = renderer(made)
    with pytest.raises(ValueError, match=r"a text holds '<\|video_pad\|>'"):
        rendered.column(asked(ClipShape(2, (48, 64)), "What is <|video_pad|>?"))
    with pytest.raises(ValueError, match="a text holds '<image_soft_token>'"):  # which its template never writes
        renderer(built("gemma3")).column((("user", (ImageShape((48, 64)), "What is <image_soft_token>?")),))
    with pytest.raises(ValueError, match="0 frames"):
        ClipShape(0, (48, 64))
    with pytest.raises(ValueError, match="64x0"):
        ClipShape(2, (0, 64))
    with pytest.raises(ValueError, match="fps above 0"):
        ClipShape(2, (48, 64), fps=0.0)
    with pytest.raises(ValueError, match="3 frame numbers are given for 2 frames"):
        ClipShape(2, (48, 64), indices=(0, 1, 2))
    with pytest.raises(ValueError, match="frame 9 is shown of a video of 5 frames"):
        ClipShape(2, (48, 64), indices=(0, 9), total=5)
    with pytest.raises(ValueError, match="presentation='film': choose \"video\""):
        renderer(made, presentation="film")
    with pytest.raises(ValueError, match="frame_tokens=0"):
        renderer(made, frame_tokens=0)
    with pytest.raises(ValueError, match="shows no videos"):
        renderer(built("gemma3"), presentation="video")
    with pytest.raises(ValueError, match="InternVLVideoProcessor chooses no size"):
        renderer(built("internvl"), frame_tokens=5).column(asked(ClipShape(2, (48, 64))))
    with pytest.raises(ValueError, match="tells no size"):
        rendered.unit_pixels(clip(2, (48, 64))[None], "large")
    with pytest.raises(ValueError, match="1 frames are given for a unit of 2"):
        rendered.unit_pixels(clip(1, (48, 64))[None], "64x48")
    with pytest.raises(ValueError, match="Qwen3VLProcessor does not take this prompt: ValueError: t:1"):
        renderer(built("qwen3_vl")).column(asked(ClipShape(1, (48, 64))))


def test_template_that_leaves_out_what_is_said_is_refused(built: Any) -> None:
    """Its scores would be those of another question."""
    processor, config, positions = built("internvl")
    said = (("system", ("Be brief.",)), ("user", ("Hello",)), ("assistant", ("Hm.",)))
    turns = (*said, *asked(ClipShape(3, (48, 64)), " What is\n it? "))
    own = processor.chat_template
    for role, text in (("system", "Be brief"), ("user", "Hello"), ("assistant", None), (None, None)):
        changed = copy.copy(processor)
        # Videos are shown whatever becomes of texts.
        text_of = "{% if message['role'] != '" + str(role) + "' %}{{ part['text'] }}{% endif %}"
        changed.chat_template = own.replace("{{ part['text'] }}", text_of)
        assert changed.chat_template != own
        made = Renderer(changed, config, positions)
        if text is None:  # of what an assistant said, many leave the thoughts out
            made.column(turns)
            continue
        with pytest.raises(ValueError, match=f"does not show what the {role} says \\('{text}"):
            made.column(turns)


def test_template_that_fails_says_why(built: Any) -> None:
    processor, config, positions = built("internvl")
    changed = copy.copy(processor)
    changed.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"neither videos nor images \(the template fails: .*roles must alternate"):
        Renderer(changed, config, positions)
    changed.chat_template = "{% if %}"
    with pytest.raises(ValueError, match=r"shows no images \(the template fails: TemplateSyntaxError"):
        Renderer(changed, config, positions, "images")


def test_placeholders_that_do_not_come_out_even_are_refused(built: Any) -> None:
    processor, config, positions = built("internvl")
    rendered = Renderer(processor, config, positions)
    rendered._placing._frame_counts[48, 64] = (3, 0)
    with pytest.raises(ValueError, match="20 placeholders for 5 frames of 3 tokens and 0 behind them"):
        rendered.column(asked(ClipShape(5, (48, 64))))


def test_processor_whose_pixels_are_not_told_by_frame_is_refused(built: Any) -> None:
    with pytest.raises(ValueError, match="tells no pixels of single frames"):
        renderer(built("nemotron_h_omni")).column(asked(ClipShape(5, (48, 64))))


def test_prompt_without_visuals(built: Any) -> None:
    for name in ("qwen2_5_vl", "gemma3"):
        rendered = renderer(built(name))
        column = rendered.column((("user", ("Hello there",)),))
        own = rendered.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}],
            add_generation_prompt=True,
            tokenize=True,
        )
        assert column.units == [] and [column.ids_T.tolist()] == [list(one) for one in own]
        if column.positions_AT is not None:
            np.testing.assert_array_equal(column.positions_AT, np.tile(np.arange(len(column.ids_T) + 1), (3, 1)))


def test_config_without_placeholders_is_refused() -> None:
    from transformers import Qwen2Config

    with pytest.raises(ValueError, match="names no token that stands for"):
        Renderer(make_tokenizer([]), Qwen2Config(**TEXT))
