"""The synthetic film: the same bytes for ever, any frame on its own, cuts and motion, every size."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from vniah.haystack import SyntheticHaystack, open_haystack
from vniah.haystack.synthetic import BLOCK_FRAMES, ENDLESS_FRAMES, MIN_SCENE_FRAMES, VERSION, Actor, Part, scene_starts


def test_bytes_are_those_of_version_1() -> None:
    """Results are compared by this film. If this fails, raise VERSION and renew the hashes."""
    assert VERSION == 1
    film = open_haystack("synthetic")
    digest = hashlib.sha256()
    for i in (0, 1, 23, 24, 100, 3000):
        digest.update(film.frames(i, i + 1).tobytes())
    assert (film.fingerprint, film.size) == ("synthetic-v1-0-320x180", (180, 320))
    assert digest.hexdigest() == "dc7db5008142ad6f2c68ea3d33bc9b5a617e6b2cdc3dfe192119459664dace8d"
    small = open_haystack("synthetic:7:50:32x32")
    assert (
        hashlib.sha256(small.frames(0, 50).tobytes()).hexdigest()
        == "e3e8d3a17654bfc54dcfa274443fcf56a65069d2da4ae611c6b5cdfc05fa6897"
    )


def test_any_frame_can_be_drawn_on_its_own() -> None:
    film = SyntheticHaystack(seed=3, num_frames=80, width=48, height=32)
    whole = film.frames(0, 80)
    for i in (79, 0, 41, 24, 23):
        alone = SyntheticHaystack(seed=3, num_frames=80, width=48, height=32)
        assert np.array_equal(alone.frames(i, i + 1)[0], whole[i])
    assert np.array_equal(list(film.stream(5, 71)), whole[5:71])
    assert np.array_equal(pickle.loads(pickle.dumps(film)).frames(10, 12), whole[10:12])


def test_length_does_not_change_frames_and_seed_and_size_do() -> None:
    short, long = open_haystack("synthetic:1:10"), open_haystack("synthetic:1:1000000")
    assert len(long) == 1000000 and short.fingerprint == long.fingerprint
    assert np.array_equal(short.frames(9, 10), long.frames(9, 10))
    assert long.frames(999999, 1000000).shape == (1, 180, 320, 3)
    others = [open_haystack(spec) for spec in ("synthetic:2:10", "synthetic:1:10:64x36")]
    assert len({short.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert not np.array_equal(short.frames(0, 1), others[0].frames(0, 1))


def test_a_film_without_a_length_has_no_end() -> None:
    film, cut = open_haystack("synthetic:1"), open_haystack("synthetic:1:200")
    assert isinstance(film, SyntheticHaystack) and isinstance(cut, SyntheticHaystack)
    assert film.endless and not cut.endless and (len(film), len(cut)) == (ENDLESS_FRAMES, 200)
    assert film.fingerprint == cut.fingerprint, "a cut film is the start of the whole one"
    # Beyond the hour that it once had, and at its far end.
    for i in (3599, 3600, ENDLESS_FRAMES - 1):
        assert film.frames(i, i + 1).any()
    assert pickle.loads(pickle.dumps(film)).endless


def test_scenes_are_cut_and_move() -> None:
    film = SyntheticHaystack(seed=5, num_frames=10 * BLOCK_FRAMES, width=64, height=36)
    frames = film.frames(0, len(film)).astype(int)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    starts = [block * BLOCK_FRAMES + start for block in range(10) for start in scene_starts(5, block)]
    cut = np.isin(np.arange(1, len(film)), starts)
    assert change.min() > 0  # neighbouring frames always differ
    assert change[cut].mean() > 1.5 * change[~cut].mean()
    assert 15 <= len(starts) <= 60
    lengths = np.diff([*starts, len(film)])
    assert lengths.min() >= MIN_SCENE_FRAMES and len(set(lengths)) > 3


def test_no_frame_is_plain() -> None:
    frames = open_haystack("synthetic:11:400:64x36").frames(0, 400)
    assert frames.std(axis=(1, 2)).max(axis=1).min() > 8


@pytest.mark.parametrize("size", ["16x16", "17x333", "1000x21", "600x400"])
def test_any_size(size: str) -> None:
    width, height = map(int, size.split("x"))
    film = open_haystack(f"synthetic:0:200:{size}")
    for i in range(0, 200, 40):
        assert film.frames(i, i + 1).shape == (1, height, width, 3)


def test_an_actor_of_a_large_film_does_not_overflow() -> None:
    """The squared products of distances in 1/16 pixel leave 32 bits far behind."""

    def painted(scale: int) -> float:
        part = Part(round=True, x=-900 * scale, y=300 * scale, half_w=1200 * scale, half_h=800 * scale)
        actor = Actor(
            parts=(part,), x=4096 * scale, y=4096 * scale, dx=0, dy=0, angle=20, spin=0, colour=(200, 200, 200), shade=9
        )
        picture_HWC = np.zeros((512 * scale, 512 * scale, 3), np.uint8)
        actor.draw(picture_HWC, 2)
        return float((picture_HWC.max(axis=2) > 0).mean())

    area = np.pi * 1200 * 800 / (512 * 16) ** 2
    assert painted(1) == pytest.approx(area, rel=0.01) and painted(3) == pytest.approx(area, rel=0.002)
