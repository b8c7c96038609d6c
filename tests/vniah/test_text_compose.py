"""Placement and prompts: whole needles at sentence borders, exact counts, for any tokenizer, length, depth, seed."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vniah.contract.requests import RequestTree, Target, Text, Tokens
from vniah.contract.sources import TokenSource, Visual
from vniah.runs.grid import Cell
from vniah.text import prose
from vniah.text.compose import ComposedText, compose
from vniah.text.haystack import TextHaystack, from_texts, open_text_haystack
from vniah.text.measure import MeasuredHaystack
from vniah.text.puzzles import PREFIX, make_puzzle, question_text
from vniah.text.settings import TextSettings
from vniah.text.task import TextPrompt, TextTask

Encode = Callable[[str], list[int]]


@functools.cache
def sample_text() -> str:
    return "".join(itertools.islice(prose.sentences(5), 400))


@functools.cache
def byte_bpe() -> tuple[Encode, Callable[[list[int]], str]]:
    """Byte-level BPE with the pre-tokenizer of GPT-4-like vocabularies (Qwen2's), trained on the spot."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    words += r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([sample_text(), question_text()], trainer)
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode


@functools.cache
def unigram() -> tuple[Encode, Callable[[list[int]], str]]:
    """SentencePiece-like: unigram pieces, spaces as a mark that is also put before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = sorted(set(sample_text() + PREFIX + question_text() + "0123456789\n"))
    trainer = trainers.UnigramTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator([sample_text(), question_text()], trainer)
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode


def characters() -> tuple[Encode, Callable[[list[int]], str]]:
    return lambda text: [ord(letter) for letter in text], lambda ids: "".join(map(chr, ids))


TOKENIZERS: dict[str, Callable[[], tuple[Encode, Callable[[list[int]], str]]]] = {
    "byte-level BPE": byte_bpe,
    "SentencePiece-like": unigram,
    "characters": characters,
}


@functools.cache
def measured(tokenizer: str, haystack: str) -> MeasuredHaystack:
    """A haystack measured once for all examples. "short" is read again and again."""
    if haystack == "short":
        source: TextHaystack = from_texts("short", ["One is here. Two, Mr. Smith, is not!\nA third?", "他来了。Four."])
    else:
        source = open_text_haystack("builtin:3")
    return MeasuredHaystack(source, TOKENIZERS[tokenizer]()[0], tokenizer)


def task_of(encode: Encode | None = None, source: MeasuredHaystack | None = None, **inputs: Any) -> TextTask:
    """A task over built-in prose, counted by a model that brings ``encode``."""
    task = TextTask("text_niah", "teacher-forced", TextSettings(**{"haystack": "builtin", **inputs}), source)
    if encode is not None:
        task.count_by(encode)
    return task


def longest_sentence(source: MeasuredHaystack, length: int) -> int:
    """Tokens of the longest sentence among the first ``length``: the bound of every placement."""
    borders = [0]
    while borders[-1] < length:
        borders.append(source.border_after(borders[-1] + 1))
    return int(np.diff(borders).max())


def ids_of(composed: ComposedText, encode: Encode) -> list[int]:
    """The prompt as a model gets it."""
    ids: list[int] = []
    for segment in composed.segments():
        if isinstance(segment, Tokens):
            assert segment.source == composed.source.fingerprint
            ids += composed.source.token_ids(segment.start, segment.stop).tolist()
        else:
            assert isinstance(segment, Text)
            ids += encode(segment.text)
    return ids


@given(
    tokenizer=st.sampled_from(sorted(TOKENIZERS)),
    haystack=st.sampled_from(["builtin", "short"]),
    length=st.integers(60, 4000),
    depth=st.one_of(st.none(), st.integers(0, 100)),
    sample=st.integers(0, 9),
    seed=st.integers(0, 2**32),
    count=st.integers(0, 6),
    variant=st.sampled_from(["single", "multi", "keys", "absent"]),
)
@settings(max_examples=250, deadline=None)
def test_placement(
    tokenizer: str,
    haystack: str,
    length: int,
    depth: int | None,
    sample: int,
    seed: int,
    count: int,
    variant: str,
) -> None:
    encode = TOKENIZERS[tokenizer]()[0]
    source = measured(tokenizer, haystack)
    cell = Cell(length, depth, sample=sample)
    needles = 3 if variant in ("multi", "keys") else 1
    puzzle = make_puzzle(cell, seed=seed, num_distractors=count, variant=variant, num_needles=needles)
    if source.border_after(1) > length:
        with pytest.raises(ValueError, match="does not hold the first sentence"):
            compose(source, cell, puzzle)
        return
    composed = compose(source, cell, puzzle)
    ids = ids_of(composed, encode)
    longest = longest_sentence(source, length + 1)

    # Lengths: exact in total, and the haystack less than one sentence below the nominal length.
    assert len(ids) == composed.num_tokens
    assert length - longest < composed.haystack_tokens <= length

    # Every insertion is whole, where it is said to be, and none overlaps another.
    end = 0
    for one in composed.placed:
        wanted = encode(one.insert.text)
        assert ids[one.index : one.index + len(wanted)] == wanted
        assert one.index >= end, "insertions do not overlap"
        end = one.index + len(wanted)
    assert sorted(one.insert.city for one in composed.placed) == sorted(
        [one.city for one in puzzle.others] + ([puzzle.needle.city] if puzzle.needle else [])
    )

    # Without the insertions, the haystack is untouched.
    bare = list(ids)
    for one in reversed(composed.placed):
        del bare[one.index : one.index + len(encode(one.insert.text))]
    prefix, question = encode(PREFIX), encode(puzzle.question)
    assert bare == [*prefix, *source.token_ids(0, composed.haystack_tokens), *question]

    # Every insertion is at a sentence border of the haystack.
    assert all(source.border_after(one.at) == one.at for one in composed.placed)

    # The needle is at its depth: at the first border at or after it, sentences and insertions being whole.
    needle = composed.needle
    assert (needle is None) == (depth is None)
    if needle is None or depth is None:
        return
    others = [encode(one.insert.text) for one in composed.placed if one is not needle]
    context = composed.haystack_tokens + sum(map(len, others))
    before = needle.index - len(prefix)
    target = context * depth // 100
    assert target <= before < target + max([longest, *map(len, others)])
    assert needle.fraction == pytest.approx(before / context)
    if depth == 0:
        assert before == 0
    if depth == 100:
        assert before == context


@given(
    length=st.integers(300, 3000),
    depth=st.integers(0, 100),
    count=st.integers(0, 6),
    haystack=st.sampled_from(["builtin", "short"]),
)
@settings(max_examples=60, deadline=None)
def test_text_and_segments_are_the_same_prompt(length: int, depth: int, count: int, haystack: str) -> None:
    _, decode = characters()
    cell = Cell(length, depth, sample=0)
    composed = compose(measured("characters", haystack), cell, make_puzzle(cell, seed=3, num_distractors=count))
    assert decode(ids_of(composed, characters()[0])) == composed.text()
    assert len(composed.text()) == composed.num_tokens


def test_inserted_sentences_follow_sentence_ends() -> None:
    """By the text itself, not by our own borders."""
    for sample in range(40):
        cell = Cell(1500, 50, sample=sample)
        composed = compose(measured("characters", "builtin"), cell, make_puzzle(cell, seed=1, num_distractors=5))
        text = composed.text()
        for one in composed.placed:
            before = text[: one.index]
            assert before.endswith((".", "”", "\n", "<book>")), before[-30:]
            after = text[one.index + len(one.insert.text) :]
            assert after[0] in " \n“<" or after[0].isupper(), after[:30]


@pytest.mark.parametrize("tokenizer", ["byte-level BPE", "characters"])
def test_tokenising_by_sentence_is_tokenising_the_whole(tokenizer: str) -> None:
    encode = TOKENIZERS[tokenizer]()[0]
    source = measured(tokenizer, "builtin")
    end = source.border_before(5000)
    assert source.token_ids(0, end).tolist() == encode(source.text(0, end))


def test_a_short_haystack_is_read_again() -> None:
    source = measured("characters", "short")
    assert source.num_tokens is None or source.num_tokens == source.haystack.num_chars
    whole = source.text(0, source.border_before(10_000))
    once = "".join(source.haystack.sentences())
    assert source.num_tokens == len(once)
    assert whole.startswith(once * 3) and source.repeats(10 * len(once)) == 10
    assert source.repeats(5) == 1.0
    twice = source.token_ids(len(once) - 3, 2 * len(once) + 3).tolist()
    assert twice == [ord(letter) for letter in (once * 3)[len(once) - 3 : 2 * len(once) + 3]]


def test_a_cell_does_not_depend_on_the_others() -> None:
    encode = characters()[0]
    small = task_of(encode, lengths="900", depths="30", samples=1, num_distractors=3)
    large = task_of(encode, lengths="500-2500:400", depths="0-100:10", samples=3, num_distractors=3)
    large.requests()  # measured much further
    cell = Cell(900, 30, sample=0)
    assert cell in small.cells and cell in large.cells
    assert small.compose(cell).request() == large.compose(cell).request()


def test_a_cell_is_read_back_from_its_row() -> None:
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask

    film = VisualTask("vniah", "generated", Settings(frames="4,7", depths="0-100:25", needles="icons:0:2"))
    for task in (film, task_of(lengths="900", depths="0,30", samples=2)):
        assert all(task.cell(task.row(cell)) == cell for cell in task.cells)
        assert {row["depth_percent"] for row in task.rows if row["control"]} == {-1}


def test_the_haystack_is_tokenised_once_however_often_it_is_bound() -> None:
    seen: list[str] = []

    def encode(text: str) -> list[int]:
        seen.append(text)
        return [ord(letter) for letter in text]

    source = MeasuredHaystack(open_text_haystack("builtin"))
    tasks = [task_of(source=source, lengths="2K", samples=2, num_distractors=k) for k in (0, 5)]
    for task in tasks:
        for cell in task.cells:
            prompt = TextPrompt(task, cell)
            prompt.bind_tokenizer(lambda text: encode(text), "characters")
            assert prompt.segments()
    known = set(itertools.islice(prose.sentences(0), 3000))
    sentences = [text for text in seen if text in known]
    assert sentences
    assert len(sentences) == len(set(sentences)), "no sentence is tokenised twice"
    before = tasks[1].counted
    tasks[0].count_by(lambda text: [ord(letter) + 1 for letter in text])
    source = tasks[0].counted
    assert source.token_ids(0, 3).tolist() == [ord(letter) + 1 for letter in source.text(0, source.border_after(1))[:3]]
    assert tasks[1].counted is before, "another task's counts are as they were"


def test_fingerprints_tell_text_and_tokenizer_apart() -> None:
    first, second = open_text_haystack("builtin:3"), open_text_haystack("builtin:4")
    chars = characters()[0]
    base = MeasuredHaystack(first, chars).fingerprint
    assert base == measured("characters", "builtin").fingerprint, "however far it was measured"
    assert base != MeasuredHaystack(second, chars).fingerprint
    assert base != measured("byte-level BPE", "builtin").fingerprint


def test_a_prompt_is_a_visual_and_says_what_it_is_not() -> None:
    task = task_of(lengths="1K", depths="50", samples=1)
    (prompt,) = task.visuals(task.rows[0])
    assert isinstance(prompt, Visual) and prompt.template == "none"
    prompt.bind_tokenizer(characters()[0])
    media = prompt.media()
    (source,) = media.values()
    assert isinstance(source, TokenSource)
    spans = [segment for segment in prompt.segments() if isinstance(segment, Tokens)]
    assert {span.source for span in spans} == set(media)
    with pytest.raises(AttributeError, match="text_niah_generate"):
        _ = prompt.size


def test_without_a_tokenizer_lengths_are_estimates_and_say_so() -> None:
    task = task_of(lengths="2K", depths="50", samples=1)
    composed = task.compose(task.cells[0])
    assert "estimated" in composed.source.unit
    assert abs(len(composed.text()) / 4 - composed.num_tokens) < 0.05 * composed.num_tokens
    with pytest.raises(ValueError, match="no tokenizer is known"):
        composed.source.token_ids(0, 10)
    assert "estimated" in str(task.provenance()["length_unit"])


def test_a_text_that_makes_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="makes no tokens"):
        MeasuredHaystack(open_text_haystack("builtin"), lambda text: [])


@pytest.mark.parametrize(("count", "shared"), [(0, False), (5, False), (5, True)])
def test_the_tree_computes_a_shared_haystack_once(count: int, shared: bool) -> None:
    inputs = {"lengths": "1K-4K:1K", "depths": "0-100:25", "samples": 2}
    task = task_of(characters()[0], **inputs, num_distractors=count, shared_distractors=shared)
    requests = task.requests()
    tree = RequestTree(requests)

    # Every request is found again along its branch.
    found: dict[int, list[int]] = {}
    path: list[Any] = []
    nodes = 0
    for depth, node in tree.walk():
        path = [*path[:depth], node.segment]
        nodes += node.segment.stop - node.segment.start if isinstance(node.segment, Tokens) else 0
        for index, leaf in node.leaves:
            assert leaf == requests[index].leaf
            found[index] = _letters(task, path)
    assert len(found) == len(requests)
    assert all(found[index] == _letters(task, request.segments) for index, request in enumerate(requests))

    # Without distractors the trunk is computed once, and behind a needle what is left of its own haystack.
    if count == 0:
        composed = [task.compose(cell) for cell in task.cells]
        trunk = max(one.haystack_tokens for one in composed)
        tails = sum(one.haystack_tokens - one.needle.at for one in composed if one.needle is not None)
        assert nodes == trunk + tails
    # Places drawn anew in every prompt leave less to share than one set of distractors a length.
    assert nodes < (0.7 if count == 0 or shared else 0.9) * sum(map(len, found.values()))
    assert all(isinstance(request.leaf, Target) for request in requests)


def test_the_plan_tells_what_sharing_saves() -> None:
    from typer.testing import CliRunner

    from vniah.cli import app

    saved = []
    for options in ([], ["--distractors", "5", "--shared-distractors"], ["--distractors", "5"]):
        result = CliRunner().invoke(app, ["plan", "--text", "4K-16K:4K", "--samples", "2", *options])
        assert result.exit_code == 0, result.output
        found = re.search(r"\(([\d.]+)x fewer\)", result.output)
        assert found is not None
        saved.append(float(found[1]))
    assert saved[0] > saved[1] > saved[2] > 1


def _letters(task: TextTask, segments: Any) -> list[int]:
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, Tokens):
            ids += task.counted.token_ids(segment.start, segment.stop).tolist()
        else:
            ids += [ord(letter) for letter in segment.text]
    return ids


def test_on_real_essays_with_a_real_tokenizer(shared: Path) -> None:
    """Reference section 4's strings, tokenised alone, around real text: ids and places to the token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shared / "parity" / "LongVA-tiny-unires" / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    essays = str(shared / "data" / "essays")
    task = task_of(encode, lengths="1K-8K:1K", depths="0-100:50", samples=1, haystack=essays, num_distractors=5)
    longest = longest_sentence(task.counted, 8000)
    assert longest < 200
    for cell in task.cells:
        composed = task.compose(cell)
        segments = composed.segments()
        assert segments[0] == Text("This is a very long story book: <book>")
        assert segments[-1] == Text(question_text())
        inserts = [one.text for one in segments[1:-1] if isinstance(one, Text)]
        assert all(one.startswith("\nThe special magic ") and one.endswith(".\n") for one in inserts)
        assert len(inserts) == 5 + (not cell.is_control)
        assert len(ids_of(composed, encode)) == composed.num_tokens
        if composed.needle is not None and cell.depth_percent is not None:
            assert 0 <= composed.needle.fraction - cell.depth_percent / 100 < (longest + 1) / cell.length
    assert np.all(np.diff([task.compose(cell).haystack_tokens for cell in task.cells if cell.is_control]) > 0)
