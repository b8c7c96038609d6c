"""Prompts as atoms: codes, the tree of prefixes by its definition, the steps of a walk, chunks and what is in them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tiny_backends as tiny
import torch
from hypothesis import given, settings
from numpy.typing import NDArray
from PIL import Image as PILImage

from longva_model.engine.atoms import AtomTable, Lowered, Node, PrefixTree, Series
from longva_model.engine.chunks import Chunk, Feeder
from longva_model.engine.engine import TreeEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings, reach
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Frames, Image, Text
from vniah.contract.sources import HeldFrames
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests

BACKEND = tiny.TinyBackend()
FILM = tiny.NoiseFrames(40)
# Visual units of three sizes; the last is a vector that a model itself appends.
PAIRS = Series(name=FILM.fingerprint, fitted="pad", tokens=3, placeholder=7, source=FILM)
STILL = Series(name="still", fitted="image", tokens=5, source=None)
LINE = Series(name="", fitted="newline", tokens=1)


def codes(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


# The table


def test_codes_tell_units_apart_and_give_back_what_they_stand_for() -> None:
    table = AtomTable()
    film, again = table.codes(PAIRS, 4, 7), table.codes(PAIRS, 5, 6)
    still, last = table.codes(STILL, 0, 1), table.codes(PAIRS, 2**31, 2**31 + 1)
    atoms_A = np.concatenate([codes(9, 0), film, codes(8), still, last])
    assert film[1] == again[0] and len(set(atoms_A.tolist())) == len(atoms_A)
    assert (atoms_A < 0).tolist() == [False, False, True, True, True, False, True, True]
    assert table.series == [PAIRS, STILL]
    assert table.sizes(atoms_A).tolist() == [1, 1, 3, 3, 3, 1, 5, 3]
    assert table.ids(atoms_A).tolist() == [9, 0, 7, 7, 7, 8, -1, 7]
    # Text between units does not part a run; another series or a gap does.
    assert list(table.runs(atoms_A)) == [(PAIRS, 4, 7), (STILL, 0, 1), (PAIRS, 2**31, 2**31 + 1)]
    split = np.concatenate([film[:1], codes(3), film[1:]])
    assert list(table.runs(split)) == [(PAIRS, 4, 7)]
    assert list(table.runs(codes(1, 2))) == list(table.runs(codes())) == []


def test_the_same_series_from_another_object_is_the_same() -> None:
    table = AtomTable()
    other = Series(name=PAIRS.name, fitted="pad", tokens=3, placeholder=7, source=tiny.NoiseFrames(40))
    fitted = Series(name=PAIRS.name, fitted="crop", tokens=3, placeholder=7, source=FILM)
    assert table.codes(PAIRS, 0, 2).tolist() == table.codes(other, 0, 2).tolist()
    assert table.codes(PAIRS, 0, 2).tolist() != table.codes(fitted, 0, 2).tolist()
    assert len(table.series) == 2


def test_a_prompt_knows_where_its_atoms_begin() -> None:
    table = AtomTable()
    prompt = Lowered.of([codes(1, 2), table.codes(PAIRS, 0, 2), codes(), codes(3)], table)
    assert [prompt.begin(atom) for atom in range(len(prompt) + 1)] == [0, 1, 2, 5, 8, 9] and prompt.tokens == 9
    text = Lowered.of([codes(1, 2)], table)
    assert text.ends_A is None and text.tokens == 2 and Lowered.of([], table).tokens == 0
    # Hundreds of millions of them stand in a grid of long texts.
    assert text.atoms_A.dtype == np.int32 and prompt.atoms_A.dtype == np.int64


@pytest.mark.parametrize("columns", [0, 11, 50])
def test_positions_of_no_token_or_of_too_many_are_refused(columns: int) -> None:
    table = AtomTable()
    pieces = [codes(1, 2, 3), table.codes(PAIRS, 0, 2)]
    for fitting in (1, 9, 10):
        assert Lowered.of(pieces, table, np.zeros((3, fitting), np.int64)).tokens == 9
    with pytest.raises(ValueError, match=f"{columns} positions for a prompt of 9 tokens"):
        Lowered.of(pieces, table, np.zeros((3, columns), np.int64))


def test_positions_run_on_behind_the_last_that_is_given() -> None:
    table = AtomTable()
    pieces = [codes(1, 2), table.codes(PAIRS, 0, 1), codes(3, 4)]
    given = np.array([[0, 1, 2, 2, 2, 9], [0, 1, 5, 6, 7, 9]])
    prompt = Lowered.of(pieces, table, given)
    assert prompt.positions(0, 9).tolist() == [[0, 1, 2, 2, 2, 9, 10, 11, 12], [0, 1, 5, 6, 7, 9, 10, 11, 12]]
    for start in range(9):
        for stop in range(start, 10):
            assert prompt.positions(start, stop).tolist() == [
                axis[start:stop] for axis in prompt.positions(0, 12)[:, :12].tolist()
            ]
    assert Lowered.of(pieces, table).positions(3, 9).tolist() == [[3, 4, 5, 6, 7, 8]]


def test_reach_is_how_far_each_series_is_read() -> None:
    table = AtomTable()
    prompts = [
        Lowered.of([table.codes(PAIRS, 0, 4), table.codes(STILL, 0, 1), table.codes(PAIRS, 4, 9)], table),
        Lowered.of([codes(1), table.codes(PAIRS, 2, 3)], table),
    ]
    assert {name: end for (name, _), (end, _) in reach(table, prompts).items()} == {PAIRS.name: 9, "still": 1}
    assert reach(table, prompts[1:]) == {(PAIRS.name, PAIRS.fitted): (3, PAIRS.tokens)}


# The tree, against its definition: a set of prefixes of (code, positions) pairs

Key = tuple[Any, ...]


def keys(prompt: Lowered, table: AtomTable) -> tuple[Key, ...]:
    """What each atom is: its code with the positions of its tokens."""
    # One axis that runs on is as three that run on alike.
    positions_PT = np.broadcast_to(prompt.positions(0, prompt.tokens), (3, prompt.tokens)).astype(np.int64)
    return tuple(
        (int(code), positions_PT[:, prompt.begin(atom) : prompt.begin(atom + 1)].tobytes())
        for atom, code in enumerate(prompt.atoms_A)
    )


def assert_is_the_tree_of(tree: PrefixTree, prompts: Sequence[Lowered], table: AtomTable) -> None:
    spelled = [keys(prompt, table) for prompt in prompts]
    found: dict[int, tuple[Key, ...]] = {}
    path: list[tuple[Key, ...]] = []
    tokens = 0
    for depth, node in tree.walk():
        del path[depth:]
        own = spelled[node.prompt][node.start : node.stop]
        assert own and node.start == sum(map(len, path)), "a node begins where its parent ends"
        path.append(own)
        tokens += prompts[node.prompt].begin(node.stop) - prompts[node.prompt].begin(node.start)
        found.update(dict.fromkeys(node.leaves, sum(path, ())))
        firsts = [spelled[child.prompt][child.start] for child in node.children]
        assert len(set(firsts)) == len(firsts), "children begin with different atoms"
        assert node.leaves or len(node.children) > 1, "a node ends where prompts end or part"
    found.update(dict.fromkeys(tree.root.leaves, ()))
    assert found == dict(enumerate(spelled))
    prefixes = {prompt[:stop]: prompt[stop - 1][0] for prompt in spelled for stop in range(1, len(prompt) + 1)}
    assert tokens == sum(int(table.sizes(codes(code))[0]) for code in prefixes.values())


ATOMS = st.lists(st.sampled_from([1, 2, "a", "b", "still"]), max_size=7)
AXES = st.sampled_from(
    ["running", "running by name", "shifted", "from the middle", "one axis", "cut short",
     "a jump at the end of what is given"]
)  # fmt: skip


def lowered(atoms: Sequence[Any], axes: str, table: AtomTable, shared: dict[Any, NDArray[np.int64]]) -> Lowered:
    named = {"a": table.codes(PAIRS, 0, 1), "b": table.codes(PAIRS, 1, 2), "still": table.codes(STILL, 0, 1)}
    pieces = [named[atom] if isinstance(atom, str) else codes(atom) for atom in atoms]
    if axes == "running":
        return Lowered.of(pieces, table)
    length = Lowered.of(pieces, table).tokens
    # Prompts of one length and kind share one array, as the cells of a column do.
    kind = (axes, length)
    if kind not in shared:
        positions_PT = np.tile(np.arange(length + 1), (1 if axes == "one axis" else 3, 1))
        if axes == "shifted":
            positions_PT[1] += 1
        elif axes == "from the middle":
            positions_PT[2, length // 2 :] = 50
        elif axes == "a jump at the end of what is given":
            positions_PT = positions_PT[:, : length // 2 + 1]
            positions_PT[:, -1] = 50
        elif axes == "cut short":
            positions_PT = positions_PT[:, : length // 2 + 1]
        shared[kind] = positions_PT
    return Lowered.of(pieces, table, shared[kind])


@settings(max_examples=400, deadline=None)
@given(drawn=st.lists(st.tuples(ATOMS, AXES), max_size=9))
def test_the_tree_is_that_of_the_prefixes(drawn: list[Any]) -> None:
    table, shared = AtomTable(), {}
    prompts = [lowered(atoms, axes, table, shared) for atoms, axes in drawn]
    assert_is_the_tree_of(PrefixTree(prompts), prompts, table)


def test_positions_part_prompts_that_are_written_alike() -> None:
    table = AtomTable()
    pieces = [codes(1, 2), table.codes(PAIRS, 0, 2), codes(3)]
    straight = np.tile(np.arange(10), (3, 1))
    bent = straight.copy()
    bent[1, 6] = 77  # within the second unit
    prompts = [Lowered.of(pieces, table, positions) for positions in (straight, bent, None, straight.copy())]
    tree = PrefixTree(prompts)
    assert_is_the_tree_of(tree, prompts, table)
    (trunk,) = tree.root.children
    assert (trunk.start, trunk.stop) == (0, 3) and [child.leaves for child in trunk.children] == [[0, 2, 3], [1]]
    # What stands behind a prompt is none of its prefix.
    ends = straight.copy()
    ends[:, -1] = 50
    (only,) = PrefixTree([prompts[0], Lowered.of(pieces, table, ends)]).root.children
    assert only.leaves == [0, 1]


# Steps


SHORT = st.lists(st.lists(st.sampled_from([1, 2, "a", "b"]), min_size=1, max_size=7), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(drawn=SHORT, data=st.data())
def test_steps_are_the_same_whatever_is_known(drawn: list[Any], data: st.DataObject) -> None:
    table = AtomTable()
    prompts = [lowered(atoms, "running", table, {}) for atoms in drawn]
    tree = PrefixTree(prompts)
    whole = list(steps(tree))
    spans = [(id(step.prompt), step.start, step.stop, step.depth) for step in whole]
    assert sorted(leaf for step in whole for leaf in step.leaves) == list(range(len(prompts)))
    assert sum(step.new for step in whole) == sum(
        tree.prompts[node.prompt].begin(node.stop) - tree.prompts[node.prompt].begin(node.start)
        for _, node in tree.walk()
    )
    known = data.draw(st.sets(st.integers(0, len(prompts) - 1)))
    rest = list(steps(tree, known))
    chosen = [spans.index((id(step.prompt), step.start, step.stop, step.depth)) for step in rest]
    assert chosen == sorted(chosen), "in the same order"
    assert sorted(leaf for step in rest for leaf in step.leaves) == sorted(set(range(len(prompts))) - known)
    assert [step.lone for step in rest] == [whole[number].lone for number in chosen]
    # Each begins where one that was run ends, as the engine's marks have it.
    marks = [0]
    for step in rest:
        del marks[step.depth + 1 :]
        assert marks[step.depth] == step.past
        marks += [step.past + step.new] * step.nodes


@settings(max_examples=200, deadline=None)
@given(drawn=SHORT, data=st.data())
def test_a_trunk_goes_on_where_prompts_part_and_the_others_come_back_to_it(
    drawn: list[Any], data: st.DataObject
) -> None:
    table = AtomTable()
    prompts = [lowered(atoms, "running", table, {}) for atoms in drawn]
    tree = PrefixTree(prompts)
    whole = list(steps(tree, trunks=True))
    assert sum(step.new for step in whole) == sum(step.new for step in steps(tree))
    assert len(whole) <= len(list(steps(tree)))
    known = data.draw(st.sets(st.integers(0, len(prompts) - 1)))
    spans = [(id(step.prompt), step.start, step.stop, step.ends, step.lone) for step in whole]
    rest = list(steps(tree, known, trunks=True))
    chosen = [spans.index((id(step.prompt), step.start, step.stop, step.ends, step.lone)) for step in rest]
    assert chosen == sorted(chosen), "the same steps in the same order"
    assert sum(step.new for step in rest) == sum(step.new for step in steps(tree, known)), "and no token more"
    assert sorted(leaf for step in rest for leaf in step.leaves) == sorted(set(range(len(prompts))) - known)
    # Rows that are cut to where a step begins are those of its prompt, and behind it those of the leaves at its end.
    rows: list[int] = []
    for step in rest:
        del rows[step.past :]
        spelled = spell(step.prompt, table)
        assert rows == spelled[: step.past] and step.past == step.prompt.begin(step.start)
        rows += spelled[step.past : step.past + step.new]
        assert all(rows == spell(prompts[leaf], table) for leaf in step.leaves)


def spell(prompt: Lowered, table: AtomTable) -> list[int]:
    return [int(code) for code in np.repeat(prompt.atoms_A, table.sizes(prompt.atoms_A))]


def test_a_film_is_one_step_whatever_its_splices() -> None:
    table = AtomTable()
    film = Series(name="film", fitted="pad", tokens=2)
    prompts = [
        Lowered.of([table.codes(film, 0, at), codes(100 + needle), table.codes(film, at, 9), codes(1)], table)
        for at in (2, 5, 7)
        for needle in range(2)
    ]
    first, *others = steps(PrefixTree(prompts), trunks=True)
    assert first.past == 0 and first.lone, "to the end of one cell"
    assert [step.past for step in others] == sorted((step.past for step in others), reverse=True)
    assert all(step.lone for step in others) and len(others) == 5
    assert first.shared and not any(step.shared for step in others), "the film is all cells', though it ends in one"


# Chunks


def feeder() -> Feeder:
    return Feeder(BACKEND, FrameEmbeddings(BACKEND))


def mixed(table: AtomTable, *, axes: bool = False) -> Lowered:
    """Text, frames and an image, with an image's worth of places that three axes count apart."""
    still = Series(name="needle", fitted="image", tokens=3, source=tiny.needle_image(1))
    pieces = [
        codes(5, 6, 7), table.codes(PAIRS, 2, 5), codes(8),
        table.codes(still, 0, 1), table.codes(PAIRS, 5, 6), codes(9),
    ]  # fmt: skip
    if not axes:
        return Lowered.of(pieces, table)
    length = Lowered.of(pieces, table).tokens
    positions_PT = np.random.default_rng(0).integers(0, 1000, (3, length + 1))
    positions_PT[:, -1] = 40
    return Lowered.of(pieces, table, positions_PT)


def wanted_features(prompt: Lowered, table: AtomTable) -> torch.Tensor:
    """Of all visual tokens, by the definition: unit after unit, (1, V, D)."""
    found = []
    for code in prompt.atoms_A[prompt.atoms_A < 0]:
        ((series, start, _),) = table.runs(codes(int(code)))
        image = isinstance(series.source, PILImage.Image)
        pixels = BACKEND.pixels(FILM.frames(start, start + 1), "pad")
        found.append(BACKEND.encode_image(series.source) if image else BACKEND.encode_pixels(pixels)[0])
    return torch.cat(found)[None]


@pytest.mark.parametrize("axes", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10, 100])
@pytest.mark.parametrize("ids", [(), (11, 12)])
def test_chunks_are_the_prompt_and_never_cut_a_unit(size: int, ids: tuple[int, ...], axes: bool) -> None:
    table = AtomTable()
    prompt = mixed(table, axes=axes)
    sizes_A = table.sizes(np.concatenate([prompt.atoms_A, codes(*ids)]))
    borders = {0, *np.cumsum(sizes_A).tolist()}
    chunks = list(feeder().chunks(table, prompt, ids=ids, size=size))
    total = prompt.tokens + len(ids)
    assert [chunk.start for chunk in chunks] == np.cumsum([0, *map(len, chunks)])[:-1].tolist()
    assert sum(map(len, chunks)) == total and all(chunk.start in borders for chunk in chunks)
    for chunk, after in zip(chunks, [*chunks[1:], None], strict=True):
        atoms = [at for at in borders if chunk.start < at <= chunk.start + len(chunk)]
        assert len(chunk) <= size or len(atoms) == 1, "only a unit that is longer than a chunk is fed whole"
        if after is not None:
            nxt = min(at for at in borders if at > after.start) - after.start
            assert len(chunk) + nxt > size, "and a chunk holds as many atoms as it may"
    visual_T = np.repeat(prompt.atoms_A < 0, table.sizes(prompt.atoms_A))
    whole_T = np.concatenate([visual_T, np.zeros(len(ids), bool)])
    assert torch.cat([chunk.visual_T for chunk in chunks]).tolist() == whole_T.tolist()
    for chunk in chunks:
        assert chunk.types_S.tolist() == whole_T[: chunk.start + len(chunk)].astype(int).tolist()
    assert torch.cat([chunk.ids_T for chunk in chunks]).tolist() == [
        *np.repeat(table.ids(prompt.atoms_A), table.sizes(prompt.atoms_A)).tolist(), *ids
    ]  # fmt: skip
    features = torch.cat([chunk.features_kVD for chunk in chunks if chunk.features_kVD is not None], 1)
    torch.testing.assert_close(features, wanted_features(prompt, table))
    positions = torch.cat([chunk.positions for chunk in chunks], -1)
    if prompt.positions_PT is None:
        assert positions.tolist() == list(range(total))
    else:
        behind = np.tile(40 + np.arange(len(ids)), (3, 1))
        assert positions.tolist() == np.concatenate([prompt.positions_PT[:, :-1], behind], 1).tolist()


@pytest.mark.parametrize("axes", [False, True])
def test_ids_behind_the_prompt_and_behind_other_ids_go_on_where_those_end(axes: bool) -> None:
    table = AtomTable()
    prompt = mixed(table, axes=axes)
    whole = list(feeder().chunks(table, prompt, ids=(11, 12, 13), size=1000))
    (later,) = feeder().chunks(table, prompt, len(prompt), ids=(13,), size=1000, behind=2)
    assert later.start == prompt.tokens + 2 and later.ids_T.tolist() == [13]
    assert later.positions.tolist() == whole[0].positions[..., -1:].tolist()
    assert later.types_S.tolist() == whole[0].types_S.tolist() and later.features_kVD is None
    (middle,) = feeder().chunks(table, prompt, 4, 7, size=1000)
    assert middle.start == prompt.begin(4)
    assert middle.positions.tolist() == whole[0].positions[..., middle.start : middle.start + len(middle)].tolist()


def rows_of(chunk: Chunk) -> Iterator[torch.Tensor]:
    """Shares of a chunk as processes take them: every so manieth, in any order, one, none."""
    yield torch.arange(0, len(chunk), 2)
    yield torch.randperm(len(chunk), generator=torch.Generator().manual_seed(0))
    yield torch.tensor([len(chunk) - 1])
    yield torch.tensor([], dtype=torch.long)


@pytest.mark.parametrize("axes", [False, True])
def test_a_share_of_a_chunk_has_the_features_of_its_rows(axes: bool) -> None:
    table = AtomTable()
    (chunk,) = feeder().chunks(table, mixed(table, axes=axes), size=1000)
    assert chunk.features_kVD is not None
    # A second level of features, as DeepStack has them.
    two_kVD = torch.cat([chunk.features_kVD, -chunk.features_kVD])
    chunk = Chunk(
        ids_T=chunk.ids_T, positions=chunk.positions, start=0, visual_T=chunk.visual_T, features_kVD=two_kVD,
        types_S=chunk.types_S,
    )  # fmt: skip
    spread_kTD = torch.zeros(2, len(chunk), two_kVD.shape[-1])
    spread_kTD[:, chunk.visual_T] = two_kVD
    for rows_n in rows_of(chunk):
        share = chunk.take(rows_n)
        assert share.ids_T.tolist() == chunk.ids_T[rows_n].tolist()
        assert share.positions.tolist() == chunk.positions[..., rows_n].tolist()
        assert share.visual_T.tolist() == chunk.visual_T[rows_n].tolist()
        assert share.features_kVD is not None and torch.equal(share.features_kVD, spread_kTD[:, rows_n[share.visual_T]])
        assert share.types_S is chunk.types_S and len(share) == len(rows_n)


def test_levels_of_features_lie_one_behind_the_other_in_a_unit() -> None:
    """The tower gives (units, levels x tokens, D); a chunk holds each level of all its units."""

    class Levels:
        def get(self, source: Any, start: int, stop: int, preprocess: str) -> Iterator[torch.Tensor]:
            for first in range(start, stop, 2):
                units = torch.arange(first, min(first + 2, stop), dtype=torch.float)
                yield (units[:, None] * 100 + torch.arange(6))[..., None]  # 2 levels of 3 tokens

        def expect(self, until: Any) -> None: ...

    table = AtomTable()
    (chunk,) = Feeder(BACKEND, Levels()).chunks(table, Lowered.of([table.codes(PAIRS, 1, 4)], table), size=100)  # type: ignore[arg-type]
    assert chunk.features_kVD is not None and chunk.features_kVD[..., 0].tolist() == [
        [100, 101, 102, 200, 201, 202, 300, 301, 302],
        [103, 104, 105, 203, 204, 205, 303, 304, 305],
    ]


# Sizes of the paper: 450 cells of up to 3,000 frames


def paper_cells() -> list[Prompt]:
    grid = Grid.parse("200-3000:200", "0-100:20")
    needles = [(f"needle{number}", f"what is {number}?", "an answer") for number in range(5)]
    film = HeldFrames(np.zeros((grid.longest, 1, 1, 3), np.uint8), "film")
    media = {"haystack": film, **{name: tiny.needle_image(0) for name, *_ in needles}}
    return [Prompt(request=request, media=media) for request in grid_requests(grid, needles)[0]]


def test_the_papers_grid_is_a_tree_of_a_node_a_splice() -> None:
    backend = tiny.TinyBackend(tokens_per_frame=144)
    backend.max_length = 0
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    prompts = paper_cells()
    tracemalloc.start()
    batch = engine.lower(prompts)
    walk = list(steps(batch.tree))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(prompts) == 450 and max(one.tokens for one in batch.lowered) > 3001 * 144
    assert sorted(leaf for step in walk for leaf in step.leaves) == list(range(450))
    # An atom a frame and not a number a token: 750,000 atoms of two numbers.
    assert held < 40e6 and peak < 80e6, (held, peak)
    assert sum(1 for step in walk if step.lone) == 450
    # The definition: the film once; behind each splice and needle the film to its longest column; each cell's question.
    splices: dict[tuple[int, str], int] = {}
    for prompt in prompts:
        films = [part for part in prompt.request.segments if isinstance(part, Frames)]
        (needle,) = (part.source for part in prompt.request.segments if isinstance(part, Image))
        opening, before, *_, question, post = prompt.request.segments
        index = before.stop if isinstance(before, Frames) else 0
        splices[index, needle] = max(splices.get((index, needle), 0), films[-1].stop)
    texts = sum(len(part.text) for part in (question, post) if isinstance(part, Text))
    shown = 3000 + sum(1 + behind - index for (index, _), behind in splices.items())
    assert isinstance(opening, Text) and sum(step.new for step in walk) == len(opening.text) + shown * 144 + 450 * texts


def test_a_grid_with_three_axes_of_positions_shares_an_array_a_column() -> None:
    """299 tokens a pair of frames: 1,500 pairs are 448,500 positions on three axes."""
    table, tokens = AtomTable(), 299
    film = Series(name="film", fitted="pairs", tokens=tokens, placeholder=7)
    needles = [Series(name=f"needle{number}", fitted="pairs", tokens=tokens, placeholder=7) for number in range(5)]
    opening, question = codes(*range(1, 21)), codes(*range(30, 60))

    def axes(pairs: int) -> NDArray[np.int64]:
        """Text runs on; a pair is one step in time, 13 x 23 in space."""
        cells_3U = np.stack([np.zeros(tokens, np.int64), *np.divmod(np.arange(tokens), 23)])
        visual_PT = np.tile(cells_3U, pairs) + 20
        visual_PT[0] += np.repeat(np.arange(pairs), tokens)
        behind = visual_PT.max() + 1 + np.arange(len(question) + 1)
        return np.concatenate([np.tile(np.arange(20), (3, 1)), visual_PT, np.tile(behind, (3, 1))], 1)

    prompts, arrays = [], {}
    for pairs in range(100, 1501, 100):
        arrays[pairs] = axes(pairs + 1)
        for depth in range(0, 101, 20):
            index = pairs * depth // 100
            for needle in needles:
                pieces = [table.codes(film, 0, index), table.codes(needle, 0, 1), table.codes(film, index, pairs)]
                prompts.append(Lowered.of([opening, *pieces, question], table, arrays[pairs]))
    tracemalloc.start()
    tree = PrefixTree(prompts)
    walk = list(steps(tree))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(prompts) == 450 and max(one.tokens for one in prompts) == 1501 * tokens + 50
    assert sorted(leaf for step in walk for leaf in step.leaves) == list(range(450))
    # Beside the prompts the tree holds little, and at no time more than a few arrays of a column.
    assert held < 5e6 and peak < 4 * arrays[1500].nbytes, (held, peak)
    # Positions of a pair do not depend on the column, so the columns share the film up to a splice.
    splices = {round(pairs * depth / 100) for pairs in range(100, 1501, 100) for depth in range(0, 101, 20)}
    (trunk,) = tree.root.children
    film_code = int(table.codes(film, 0, 1)[0])
    shared = list(chain_of(tree, trunk, film_code))
    assert [node.stop - 20 for node in shared] == sorted(splices), (len(shared), len(splices))


def chain_of(tree: PrefixTree, node: Node, first: int) -> Iterator[Node]:
    """The nodes along the film itself, from the root on: each goes on with the frame where its parent ends."""
    while True:
        yield node
        at = node.stop - 20
        following = [child for child in node.children if tree.prompts[child.prompt].atoms_A[child.start] == first - at]
        if not following or node.stop - 20 >= 1500:
            return
        (node,) = following
