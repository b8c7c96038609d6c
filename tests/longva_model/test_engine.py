"""The tree executor equals one forward a request, whatever the grid, the backbone and the chunk size; its cache."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import tiny_backends as tiny
import torch
from hypothesis import HealthCheck, given, settings

from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.engine.state import CroppableCache
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.run.runner import Progress
from vniah.contract.requests import Frames, Generate, Image, Leaf, Request, RequestTree, Segment, Target, Text

HAY = tiny.NoiseFrames(12)
MEDIA = {HAY.fingerprint: HAY, **{f"needle{number}": tiny.needle_image(number) for number in range(3)}}
BACKENDS = {kind: tiny.TinyBackend(kind) for kind in tiny.CONFIGS}


def cell(num_frames: int, index: int | None, needle: int, leaf: Leaf) -> Request:
    segments: list[Segment] = [Text("system")]
    if index is None:
        segments.append(Frames(HAY.fingerprint, 0, num_frames))
    else:
        if index:
            segments.append(Frames(HAY.fingerprint, 0, index))
        segments.append(Image(f"needle{needle}"))
        if index < num_frames:
            segments.append(Frames(HAY.fingerprint, index, num_frames))
    return Request((*segments, Text(f"what is {needle}?"), Text("it is")), leaf)


def tree_engine(backend: Any, chunk_tokens: int = 64) -> TreeEngine:
    return TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk_tokens))


def assert_same(ours: list[LeafResult], reference: list[LeafResult]) -> None:
    for one, other in zip(ours, reference, strict=True):
        assert one.predicted_ids == other.predicted_ids
        assert one.answer_ids == other.answer_ids
        assert one.prompt_tokens == other.prompt_tokens
        assert one.text == other.text
        torch.testing.assert_close(
            torch.tensor(one.answer_logprobs), torch.tensor(other.answer_logprobs), atol=2e-4, rtol=2e-4
        )


CELLS = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.one_of(st.none(), st.integers(0, 100)),
        st.integers(0, 2),
        st.sampled_from(["a", "no", "abcde"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells=CELLS, chunk_tokens=st.sampled_from([1, 2, 7, 64]))
def test_tree_equals_plain_on_random_grids(kind: str, cells: list[Any], chunk_tokens: int) -> None:
    requests = [
        cell(frames, None if depth is None else frames * depth // 100, needle, Target(answer))
        for frames, depth, needle, answer in cells
    ]
    asked, backend = tiny.prompts(requests, MEDIA), BACKENDS[kind]
    plain = PlainEngine(backend, FrameEmbeddings(backend)).run(asked)
    assert_same(tree_engine(backend, chunk_tokens).run(asked), plain)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cells=CELLS, chunk_tokens=st.sampled_from([1, 7, 64]), data=st.data())
def test_what_is_known_is_not_computed_and_the_rest_is_the_same_to_the_bit(
    cells: list[Any], chunk_tokens: int, data: st.DataObject
) -> None:
    requests = [
        cell(frames, None if depth is None else frames * depth // 100, needle, Target(answer))
        for frames, depth, needle, answer in cells
    ] + [cell(9, 4, 0, Generate(max_new_tokens=3))]
    asked, backend = tiny.prompts(requests, MEDIA), BACKENDS["qwen2"]
    whole = tree_engine(backend, chunk_tokens).run(asked)
    known = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    told: list[int] = []
    flops: list[int] = []
    engine = tree_engine(backend, chunk_tokens)
    rest = engine.run(
        asked,
        on_result=lambda index, _: told.append(index),
        on_flops=flops.append,
        known={index: whole[index] for index in known},
    )
    assert rest == whole
    assert sorted(told) == [index for index in range(len(requests)) if index not in known]
    assert sum(flops) == engine.planned_flops(engine.lower(asked), known)


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_the_plain_way_is_the_models_own_forward(kind: str) -> None:
    """No cache, no mask of ours: embeddings through transformers' model with its eager attention."""
    backend = tiny.TinyBackend(kind, attn="eager")
    request = cell(5, 2, 1, Target("abc"))
    result = PlainEngine(backend, FrameEmbeddings(backend)).run(tiny.prompts([request], MEDIA))[0]
    hay = backend.encode_pixels(backend.pixels(HAY.frames(0, 5), "pad"))
    needle = backend.encode_image(MEDIA["needle1"])
    ids = backend.token_ids
    embeds = torch.cat(
        [
            backend.embed_ids(ids("system")),
            hay[:2].flatten(0, 1),
            needle,
            hay[2:].flatten(0, 1),
            backend.embed_ids(ids("what is 1?") + ids("it is") + ids("abc")),
        ]
    )
    logits = backend.model(inputs_embeds=embeds[None]).logits[0, -4:-1].float()
    assert result.predicted_ids == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids("abc"))[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(result.answer_logprobs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("chunk_tokens", [1, 64])
def test_generation_leaves_equal_transformers_generate(kind: str, chunk_tokens: int) -> None:
    backend = BACKENDS[kind]
    requests = [cell(6, index, index % 3, Generate(max_new_tokens=9)) for index in (0, 3, 6)]
    requests.append(cell(6, None, 0, Generate(max_new_tokens=9)))
    results = tree_engine(backend, chunk_tokens).run(tiny.prompts(requests, MEDIA))
    engine = tree_engine(backend)
    batch = engine.lower(tiny.prompts(requests, MEDIA))
    engine.table = batch.table
    for prompt, result in zip(batch.lowered, results, strict=True):
        embeds = torch.cat([backend.embed(chunk) for chunk in engine.chunks(prompt)])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        expected = backend.model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=0, pad_token_id=0
        )[0].tolist()
        assert result.predicted_ids == [token for token in expected if token != 0]


def test_targets_and_generations_share_a_prompt() -> None:
    backend = BACKENDS["qwen2"]
    leaves: list[Leaf] = [Target("abc"), Generate(max_new_tokens=4), Target("xy"), Target("abc")]
    requests = [cell(4, 2, 0, leaf) for leaf in leaves]
    results = tree_engine(backend).run(tiny.prompts(requests, MEDIA))
    assert_same(results, PlainEngine(backend, FrameEmbeddings(backend)).run(tiny.prompts(requests, MEDIA)))
    assert results[0] == results[3]


def test_sampling_is_repeatable_by_seed_and_honours_its_settings() -> None:
    backend = BACKENDS["qwen2"]

    def sample(**settings: Any) -> list[int]:
        request = cell(4, 2, 0, Generate(max_new_tokens=12, temperature=2.0, **settings))
        return tree_engine(backend).run(tiny.prompts([request], MEDIA))[0].predicted_ids

    assert sample(seed=1) == sample(seed=1)
    assert len({tuple(sample(seed=seed)) for seed in range(6)}) > 1
    greedy = (
        tree_engine(backend).run(tiny.prompts([cell(4, 2, 0, Generate(max_new_tokens=12))], MEDIA))[0].predicted_ids
    )
    assert sample(seed=3, top_k=1) == greedy


def test_a_stop_string_ends_the_text_before_it() -> None:
    backend = BACKENDS["qwen2"]
    free = tree_engine(backend).run(tiny.prompts([cell(4, 2, 0, Generate(max_new_tokens=8))], MEDIA))[0].text
    assert len(free) > 3
    leaf = Generate(max_new_tokens=8, stop=(free[2],))
    assert tree_engine(backend).run(tiny.prompts([cell(4, 2, 0, leaf)], MEDIA))[0].text == free[: free.index(free[2])]


def test_frames_are_encoded_once_for_a_whole_grid(tmp_path: Path) -> None:
    backend = tiny.TinyBackend()
    requests = [cell(12, index, needle, Target("a")) for index in (0, 4, 8, 12) for needle in range(3)]
    frames = FrameEmbeddings(backend, tmp_path)
    TreeEngine(backend, frames).run(tiny.prompts(requests, MEDIA))
    assert backend.frames_encoded == 12 + 3
    again = tiny.TinyBackend()
    TreeEngine(again, FrameEmbeddings(again, tmp_path)).run(tiny.prompts(requests, MEDIA))
    assert again.frames_encoded == 0


def test_results_are_told_as_they_come() -> None:
    backend = BACKENDS["qwen2"]
    requests = [cell(8, index, 0, Target("a")) for index in (0, 4, 8)]
    told: list[int] = []
    flops: list[int] = []
    tree_engine(backend).run(
        tiny.prompts(requests, MEDIA), on_result=lambda index, _: told.append(index), on_flops=flops.append
    )
    assert sorted(told) == [0, 1, 2]
    from vniah.contract.cost import tree_flops

    assert sum(flops) == tree_flops(RequestTree(requests), backend.shape, len)


def test_bad_requests_are_named() -> None:
    backend = BACKENDS["qwen2"]
    with pytest.raises(ValueError, match="has no tokens"):
        tree_engine(backend).run(tiny.prompts([cell(4, 2, 0, Target(""))], MEDIA))
    with pytest.raises(ValueError, match="frames up to 13"):
        tree_engine(backend).run(tiny.prompts([cell(13, 2, 0, Target("a"))], MEDIA))
    with pytest.raises(ValueError, match="needle9"):
        tree_engine(backend).run(tiny.prompts([cell(4, 2, 9, Target("a"))], MEDIA))
    engine = tree_engine(backend)
    long = tiny.prompts([cell(12, 2, 0, Target("a"))], MEDIA)
    engine.backend.max_length = 20
    try:
        with pytest.raises(ValueError, match="context of 20 tokens"):
            engine.lower(long)
        # A measurement of how far the context reaches is not refused.
        assert engine.lower([replace(long[0], beyond_context=True)]).lowered[0].tokens > 20
    finally:
        engine.backend.max_length = 4096


def test_the_bars_rate_counts_from_the_first_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10**12, done=2, of=12, noun="cells", show=True) as progress:
        for _ in range(10):
            progress.computed(10**11)
            progress.answered()
    told = capsys.readouterr().err
    assert "100 % of the work" in told and "12 of 12 cells" in told and "2 of 12 cells" in told
    for total, show in ((10**12, False), (10**6, True)):
        with Progress(total, done=0, of=1, noun="cells", show=show) as progress:
            progress.computed(total)
        assert capsys.readouterr().err == ""


# The croppable cache: what was appended is what is read, cropping forgets, buffers are made once.


def rows(start: int, stop: int) -> torch.Tensor:
    """(1, 2, T, 4), each row its position."""
    return torch.arange(start, stop, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 4)


def append(cache: CroppableCache, start: int, stop: int) -> list[torch.Tensor]:
    return [cache.update(rows(start, stop), -rows(start, stop), layer)[0] for layer in range(2)]


def test_rows_come_back_in_order_after_crops() -> None:
    cache = CroppableCache(2, 600)
    append(cache, 0, 5)
    append(cache, 5, 300)
    cache.crop_to(4)
    for keys in append(cache, 10, 12):
        assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 10, 11]
    assert cache.length == 6
    for length in (-1, 7):
        with pytest.raises(AssertionError, match=f"cannot crop 6 rows to {length}"):
            cache.crop_to(length)
    cache.crop_to(0)
    assert cache.length == cache.get_seq_length() == 0 and cache.num_bytes == 2 * 2 * 2 * 600 * 4 * 4


def test_buffers_of_a_known_length_are_made_once_and_others_grow() -> None:
    known, unknown = CroppableCache(2, 1000), CroppableCache(2)
    for start in range(0, 1000, 100):
        append(known, start, start + 100)
        append(unknown, start, start + 100)
        assert known.num_bytes == 2 * 2 * 2 * 1000 * 4 * 4
    assert unknown.num_bytes >= known.num_bytes
    # Beyond what was planned an eighth more, and not twice as much.
    long = CroppableCache(2, 8000)
    append(long, 0, 8000)
    append(long, 8000, 8001)
    assert long.num_bytes == 2 * 2 * 2 * 9001 * 4 * 4
    for keys in append(known, 1000, 1001):
        assert keys[0, 0, :, 0].tolist() == list(range(1001))


def test_values_may_be_of_another_size_than_keys() -> None:
    cache = CroppableCache(1, 20)
    for start in (0, 3):
        keys, values = cache.update(rows(start, start + 3), rows(start, start + 3)[..., :2], 0)
    assert keys.shape == (1, 2, 6, 4) and values.shape == (1, 2, 6, 2)
    assert values[0, 0, :, 0].tolist() == list(range(6))


def test_a_prompt_without_tokens_is_refused() -> None:
    request = Request((Text(""),), Generate(max_new_tokens=2))
    with pytest.raises(ValueError, match="no tokens"):
        tree_engine(BACKENDS["qwen2"]).run(tiny.prompts([request]))
