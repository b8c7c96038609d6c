"""Folders of images, loops, joins, the synthetic film, and how a spec is read."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vniah.contract.sources import FrameSource
from vniah.haystack import Haystack, SyntheticHaystack, open_haystack
from vniah.haystack.synthetic import BLOCK_FRAMES, ENDLESS_FRAMES, MIN_SCENE_FRAMES, VERSION, Actor, Part, scene_starts


def fill(folder: Path, names: list[str], size: tuple[int, int] = (20, 10)) -> Path:
    """Images of one grey each: the n-th name is n * 10."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number * 10,) * 3).save(folder / name)
    return folder


def greys(haystack: Haystack) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in haystack.frames(0, len(haystack))]


def test_folder_is_in_natural_order_and_passes_other_files_over(tmp_path: Path) -> None:
    folder = fill(tmp_path / "film", ["f_2.png", "f_10.png", "F_1.png", ".hidden.png"])
    (folder / "notes.txt").write_text("no image")
    (folder / "sub").mkdir()
    haystack = open_haystack(str(folder))
    assert isinstance(haystack, FrameSource)
    assert greys(haystack) == [20, 0, 10]
    assert haystack.size == (10, 20) and haystack.name == "film" and haystack.fps == 1.0
    assert [int(frame[0, 0, 0]) for frame in haystack.stream()] == [20, 0, 10]
    assert haystack.frames(1, 1).shape == (0, 10, 20, 3)


def test_folder_applies_orientation_and_drops_transparency(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    turned = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    turned.save(tmp_path / "1.png", exif=exif)
    Image.new("RGBA", (4, 6), (1, 2, 3, 40)).save(tmp_path / "2.png")
    haystack = open_haystack(str(tmp_path))
    assert haystack.size == (6, 4)
    assert np.array_equal(haystack.frames(0, 1)[0], np.rot90(pixels, -1))
    assert haystack.frames(1, 2)[0, 0, 0].tolist() == [1, 2, 3]


def test_folder_fingerprint_is_of_bytes_in_order(tmp_path: Path) -> None:
    first = open_haystack(str(fill(tmp_path / "a", ["1.png", "2.png"]))).fingerprint
    assert open_haystack(str(fill(tmp_path / "b", ["x1.png", "x2.png"]))).fingerprint == first
    assert open_haystack(str(fill(tmp_path / "c", ["2.png", "1.png"]))).fingerprint != first


def test_parity_haystack_opens(shared: Path) -> None:
    haystack = open_haystack(str(shared / "parity" / "niah" / "haystack"))
    assert len(haystack) >= 8 and haystack.frames(0, 8).shape == (8, *haystack.size, 3)


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*none"):
        open_haystack(str(tmp_path / "none"))
    folder = fill(tmp_path / "film", ["1.png", "2.png"])
    Image.new("RGB", (30, 10)).save(folder / "3.png")
    with pytest.raises(ValueError, match=r"different sizes .*: 1\.png is 20x10 and 3\.png is 30x10"):
        open_haystack(str(folder))
    (folder / "3.png").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"unreadable image .*3\.png"):
        open_haystack(str(folder))


def test_folder_with_a_cut_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "2.png")
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    haystack = open_haystack(str(tmp_path))
    assert haystack.frames(0, 1).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match=r"unreadable image .*2\.png"):
        haystack.frames(0, 2)


def test_loop_repeats_and_is_another_haystack(tmp_path: Path) -> None:
    folder = fill(tmp_path / "film", ["1.png", "2.png", "3.png"])
    base, looped = open_haystack(str(folder)), open_haystack(f"{folder}?loop=8")
    assert greys(looped) == [0, 10, 20, 0, 10, 20, 0, 10]
    assert [int(f[0, 0, 0]) for f in looped.frames(2, 7)] == [20, 0, 10, 20, 0]
    assert looped.fingerprint != base.fingerprint
    assert greys(open_haystack(f"{folder}?loop=2")) == [0, 10]
    # A longer loop continues a shorter one: frame i is the same picture.
    assert open_haystack(f"{folder}?loop=100").fingerprint == looped.fingerprint


def test_loop_streams_when_a_lap_is_too_big_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vniah.haystack.base.KEPT_LAP_BYTES", 0)
    looped = open_haystack(f"{fill(tmp_path / 'film', ['1.png', '2.png', '3.png'])}?loop=8")
    assert greys(looped) == [0, 10, 20, 0, 10, 20, 0, 10]


def test_join_and_loop(tmp_path: Path) -> None:
    a, b = fill(tmp_path / "a", ["1.png", "2.png"]), fill(tmp_path / "b", ["1.png", "2.png", "3.png"])
    joined = open_haystack(f"{a}+{b}")
    assert greys(joined) == [0, 10, 0, 10, 20]
    assert [int(f[0, 0, 0]) for f in joined.frames(1, 4)] == [10, 0, 10]
    assert joined.frames(3, 5)[-1, 0, 0, 0] == 20
    assert joined.fingerprint not in (open_haystack(f"{b}+{a}").fingerprint, open_haystack(str(a)).fingerprint)
    assert greys(open_haystack(f"{a}+{b}?loop=7")) == [0, 10, 0, 10, 20, 0, 10]
    other = fill(tmp_path / "c", ["1.png"], size=(8, 8))
    with pytest.raises(ValueError, match="different sizes cannot be joined: 'a' is 20x10 and 'c' is 8x8"):
        open_haystack(f"{a}+{other}")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_haystack(f"{a}+{tmp_path / 'nowhere'}")


def test_a_path_that_exists_is_taken_as_it_stands(tmp_path: Path) -> None:
    odd = fill(tmp_path / "a+b?loop=3", ["1.png"])
    assert greys(open_haystack(str(odd))) == [0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "the haystack is empty"),
        ("synthetic?loop=0", "loop=0 leaves zero frames"),
        ("synthetic?loop=many", "cannot read 'many' as loop"),
        ("synthetic?speed=2", "unknown option 'speed=2'"),
        ("synthetic:x", "cannot read 'x' as seed"),
        ("synthetic:-1", "cannot read '-1' as seed"),
        ("synthetic:0:0", "0 frames was asked for"),
        ("synthetic:0:9:8x8", "8x8 was asked for; sides go from 16 to 4096"),
        ("synthetic:0:9:32", "cannot read '' as height"),
        ("synthetic:0:9:32x32:9", "expected synthetic"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_haystack(spec)


def test_importing_brings_in_no_decoder() -> None:
    code = (
        "import sys, vniah.visual.compose, vniah.haystack; "
        "sys.exit(' '.join(m for m in ('av', 'decord', 'torch', 'cv2') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The synthetic film: the same bytes for ever, any frame on its own, cuts and motion, every size.


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
