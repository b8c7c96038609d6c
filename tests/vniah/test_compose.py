"""Composing: the index map, what a spliced video says of itself, and the mp4s, judged by decoding them."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from video_files import inserted

from vniah import notices
from vniah.contract.requests import Frames
from vniah.contract.requests import Image as ImageSegment
from vniah.contract.sources import FrameSource, Visual
from vniah.haystack import open_haystack
from vniah.needles import open_needles
from vniah.runs.grid import Cell, around_needle, needle_index
from vniah.visual import composed_videos as composing
from vniah.visual.compose import (
    PAD_COLOUR,
    SplicedVideo,
    composed_frames,
    held_at_the_end,
    letterbox,
)
from vniah.visual.composed_videos import Composer
from vniah.visual.scenes import Needles

HAYSTACK = "synthetic:0:200:64x48"


@pytest.fixture
def needle() -> Image.Image:
    """A wide picture unlike any frame of the haystack."""
    return Image.linear_gradient("L").convert("RGB").resize((90, 30))


@pytest.fixture
def cell(needle: Image.Image):
    def make(num_frames: int, index: int | None, spec: str = HAYSTACK) -> SplicedVideo:
        haystack = open_haystack(spec)
        return SplicedVideo(haystack=haystack, num_frames=num_frames, inserted=inserted(needle, index))

    return make


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def subsampled(frames: np.ndarray) -> np.ndarray:
    """What 4:2:0 leaves of frames, without any coding: the mark that a decoded film is measured by."""
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p") for frame in frames]
    return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


NEEDLE = -1


def index_map(num_frames: int, index: int | None) -> list[int]:
    """Which haystack frame stands at each position."""
    before, after = around_needle(num_frames, index)
    return [*before, *([] if index is None else [NEEDLE]), *after]


@given(st.integers(1, 300), st.data())
def test_index_map(num_frames: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, num_frames))
    indices = index_map(num_frames, index)
    assert indices[index] == NEEDLE
    assert indices[:index] + indices[index + 1 :] == list(range(num_frames))
    assert index_map(num_frames, None) == list(range(num_frames))


def test_index_map_errors(cell) -> None:
    with pytest.raises(ValueError, match="num_frames must be positive, got 0"):
        cell(0, 0)
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"must lie from 0 to 4, got {index}"):
            cell(4, index)


def test_letterbox_keeps_the_whole_picture() -> None:
    frame = letterbox(Image.new("RGB", (90, 30), (250, 0, 0)), (48, 60))
    assert frame.shape == (48, 60, 3)
    assert (frame[:14] == PAD_COLOUR).all() and (frame[34:] == PAD_COLOUR).all()
    assert (frame[14:34] == (250, 0, 0)).all()
    tall = letterbox(Image.new("RGB", (1, 1000), (0, 250, 0)), (10, 8))
    assert (tall[:, :3] == PAD_COLOUR).all() and (tall[:, 3] == (0, 250, 0)).all()


def test_segments_leave_empty_runs_out(cell) -> None:
    hay, image = open_haystack(HAYSTACK).fingerprint, cell(8, 3).inserted[0].source
    assert cell(8, 3).segments() == (Frames(hay, 0, 3), ImageSegment(image), Frames(hay, 3, 8))
    assert cell(8, 0).segments() == (ImageSegment(image), Frames(hay, 0, 8))
    assert cell(8, 8).segments() == (Frames(hay, 0, 8), ImageSegment(image))
    assert cell(8, None).segments() == (Frames(hay, 0, 8),)
    media = cell(8, 3).media()
    assert set(media) == {hay, image} and isinstance(media[hay], FrameSource)
    assert np.array_equal(np.asarray(media[image]), np.asarray(cell(8, 3).inserted[0].picture.image))
    assert set(cell(8, None).media()) == {hay}


def test_spliced_frames_follow_the_index_map(cell) -> None:
    hay = open_haystack(HAYSTACK)
    for index in (0, 3, 7, 8, None):
        video = cell(8, index)
        assert isinstance(video, Visual) and isinstance(video, FrameSource) and video.preprocess == "pad"
        shown = [
            letterbox(video.inserted[0].picture.image, hay.size) if i == NEEDLE else hay.frames(i, i + 1)[0]
            for i in index_map(8, index)
        ]
        assert len(video) == len(shown)
        for start in range(len(shown) + 1):
            for stop in range(start, len(shown) + 1):
                got = video.frames(start, stop)
                assert len(got) == stop - start
                assert all(np.array_equal(a, b) for a, b in zip(got, shown[start:stop], strict=True))


def test_fingerprints_tell_cells_apart(cell, needle: Image.Image) -> None:
    cells = [cell(8, 3), cell(8, 4), cell(9, 3), cell(8, None), cell(8, 3, "synthetic:1:200:64x48")]
    cells.append(SplicedVideo(haystack=cells[0].haystack, num_frames=8, inserted=inserted(needle.rotate(180), 3)))
    assert len({one.fingerprint for one in cells}) == len(cells)
    assert cell(8, 3).fingerprint == cells[0].fingerprint


def test_spliced_video_errors(cell, needle: Image.Image) -> None:
    with pytest.raises(ValueError, match="has 200 frames and 201 are needed"):
        cell(201, 0)
    with pytest.raises(ValueError, match="must lie from 0 to 8, got 9"):
        cell(8, 9)
    first, second = inserted(needle, 2), inserted(needle, 3)
    with pytest.raises(ValueError, match="a picture at 2 stands behind one at 2 or later; sort them"):
        SplicedVideo(haystack=open_haystack(HAYSTACK), num_frames=8, inserted=(*second, *first))
    with pytest.raises(ValueError, match="must lie from 0 to 7, got 8"):
        SplicedVideo(
            haystack=open_haystack(HAYSTACK), num_frames=8, inserted=(replace(second[0], place=8, instead=True),)
        )
    with pytest.raises(ValueError, match="frames 3 to 10 were asked of a spliced video of 9"):
        cell(8, 2).frames(3, 10)


def test_depths_reach_both_ends() -> None:
    """0 % is before the first frame, 100 % after the last."""
    assert index_map(8, needle_index(8, 0))[0] == NEEDLE
    assert index_map(8, needle_index(8, 100))[-1] == NEEDLE


@pytest.mark.parametrize("codec", composing.CODECS)
@pytest.mark.parametrize("index", [0, 1, 35, 69, 70, None])
def test_mp4_shows_the_needle_at_its_index(tmp_path: Path, cell, codec: str, index: int | None) -> None:
    """70 frames, so that the haystack spans two chunks of its encoding."""
    video = cell(70, index)
    path = Composer(video.haystack, tmp_path, codec=codec).write(video, tmp_path / "cell.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == stream.guessed_rate == 1
        assert stream.frames == len(video)
        times = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.size]
    assert times == list(range(len(video)))
    decoded, expected = decode(path), subsampled(video.frames(0, len(video)))
    assert decoded.shape == expected.shape
    similar = [psnr(*pair) for pair in zip(decoded, expected, strict=True)]
    assert min(similar) > 35
    if index is not None:
        # No other frame shows it.
        assert all(psnr(frame, expected[index]) < 20 for i, frame in enumerate(decoded) if i != index)
    # The composed film is itself a haystack of one frame a second.
    assert len(open_haystack(str(path))) == len(video)


@pytest.mark.parametrize("reader", ["decord", "cv2"])
def test_other_readers_see_the_same(tmp_path: Path, cell, reader: str) -> None:
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    video = cell(70, 65)
    path = str(Composer(video.haystack, tmp_path).cached(video))
    if reader == "decord":
        import decord

        film = decord.VideoReader(path)
        assert film.get_avg_fps() == 1.0
        decoded = film.get_batch(range(len(film))).asnumpy()
        assert np.array_equal(film[65].asnumpy(), decoded[65])
    else:
        import cv2

        film, frames = cv2.VideoCapture(path), []
        assert film.get(cv2.CAP_PROP_FPS) == 1.0 and film.get(cv2.CAP_PROP_FRAME_COUNT) == 71
        while (got := film.read())[0]:
            frames.append(got[1][..., ::-1])
        decoded = np.stack(frames)
    expected = subsampled(video.frames(0, len(video)))
    assert decoded.shape == expected.shape
    assert min(psnr(*pair) for pair in zip(decoded, expected, strict=True)) > 30
    assert psnr(decoded[65], expected[65]) > 35


def test_cells_share_one_encoding(tmp_path: Path, cell, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = composing.encode_intra

    def counting(frames, file, codec):
        frames = list(frames)
        encoded.append(len(frames))
        real(frames, file, codec)

    monkeypatch.setattr(composing, "encode_intra", counting)
    composer = Composer(open_haystack(HAYSTACK), tmp_path)
    paths = {composer.cached(cell(n, n * d // 100)) for n in (40, 80, 120) for d in (0, 50, 100)}
    assert len(paths) == 9
    # Two chunks of the haystack, and one needle.
    assert sorted(encoded) == [1, 64, 64] and composer.encoded_frames == 128
    assert {composer.cached(cell(80, 40))} <= paths and len(encoded) == 3
    # Another run finds all of it on disk, also what it has not composed itself.
    again = Composer(open_haystack(HAYSTACK), tmp_path)
    assert len(decode(again.cached(cell(100, 7)))) == 101 and again.encoded_frames == 0


def test_longer_haystacks_go_on_where_shorter_ones_ended(tmp_path: Path, cell) -> None:
    """A loop or synthetic film has one fingerprint at any length, and its last chunk must not stay short."""
    for spec, num_frames in (("synthetic:0:70:64x48", 70), (HAYSTACK, 100), (HAYSTACK, 70)):
        video = cell(num_frames, 66, spec)
        decoded = decode(Composer(video.haystack, tmp_path).cached(video))
        assert min(psnr(*pair) for pair in zip(decoded, subsampled(video.frames(0, num_frames + 1)), strict=True)) > 35


def test_odd_sizes_grow_to_even_ones(tmp_path: Path, cell) -> None:
    video = cell(3, 1, "synthetic:0:9:33x47")
    decoded = decode(Composer(video.haystack, tmp_path).cached(video))
    assert decoded.shape == (4, 48, 34, 3)
    assert psnr(decoded[1, :47, :33], video.frames(1, 2)[0]) > 30


def test_disk_use_is_bounded(tmp_path: Path, cell, capsys: pytest.CaptureFixture[str]) -> None:
    cells = tmp_path / "cells"
    one = Composer(open_haystack(HAYSTACK), tmp_path).cached(cell(60, 0))
    size = one.stat().st_size
    hay = sum(path.stat().st_size for path in tmp_path.glob("haystack-*/*.mp4"))
    for index in range(1, 20):
        # A run of its own each, older and older than what follows; what an ended one made may go.
        path = Composer(open_haystack(HAYSTACK), tmp_path, max_bytes=hay + 6 * size).cached(cell(60, index))
        os.utime(path, (1000 + index, 1000 + index))
        assert path.exists()
    left = sorted(cells.glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    assert 4 <= len(left) <= 6
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.mp4")) <= hay + 6 * size
    assert not capsys.readouterr().err
    # What was used last is still there; a limit below everything keeps what is in use and the encoding.
    tiny = Composer(open_haystack(HAYSTACK), tmp_path, max_bytes=1)
    assert tiny.cached(cell(60, 19)) in left and tiny.encoded_frames == 0
    assert len(list(cells.glob("*.mp4"))) == 1


def test_what_a_run_has_handed_out_stays(tmp_path: Path, cell, capsys: pytest.CaptureFixture[str]) -> None:
    """Some models ask for every video before they read the first one."""
    composer = Composer(open_haystack(HAYSTACK), tmp_path, max_bytes=1)
    paths = [composer.cached(cell(60, index)) for index in range(8)]
    for path in paths:
        os.utime(path, (0, 0))  # whatever the clock says
    other = Composer(open_haystack("synthetic:1:200:64x48"), tmp_path, max_bytes=1)
    other.cached(cell(60, 3, "synthetic:1:200:64x48"))
    assert all(len(decode(path)) == 61 for path in paths)
    assert capsys.readouterr().err.count("VNIAH_CACHE_GB") == 1
    del composer
    other.cached(cell(60, 4, "synthetic:1:200:64x48"))
    assert not any(path.exists() for path in paths)


def test_what_is_held_is_held_where_lmms_eval_has_joined_the_locks_of_a_process(tmp_path: Path, cell, capsys) -> None:
    """It makes all of filelock's locks of one path one lock, which any composer of the process then holds."""
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    evaluator._enable_reentrant_filelocks()
    test_what_a_run_has_handed_out_stays(tmp_path, cell, capsys)


def test_another_process_keeps_what_it_uses(tmp_path: Path, cell) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD + "sys.stdout.flush(); sys.stdin.read()", str(tmp_path), "5"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    path = Path(child.stdout.readline().split()[1])
    composer = Composer(open_haystack("synthetic:1:200:64x48"), tmp_path, max_bytes=1)
    composer.cached(cell(60, 3, "synthetic:1:200:64x48"))
    assert path.exists() and len(list(tmp_path.glob("haystack-*"))) == 2
    child.kill()
    child.communicate()
    composer.cached(cell(60, 4, "synthetic:1:200:64x48"))
    assert not path.exists()
    assert len(list((tmp_path / "in-use").glob("*.txt"))) == 1


def test_encodings_of_other_haystacks_go_only_when_unused(tmp_path: Path, cell) -> None:
    user = Composer(open_haystack("synthetic:9:64:64x48"), tmp_path)
    user.cached(cell(60, 0, "synthetic:9:64:64x48"))
    (other,) = tmp_path.glob("haystack-*/*.mp4")
    composer = Composer(open_haystack(HAYSTACK), tmp_path, max_bytes=1)
    composer.cached(cell(60, 0))
    assert other.exists()
    abandoned, fresh = tmp_path / "cells" / ".x.mp4.1-1.part", tmp_path / "cells" / ".y.mp4.1-1.part"
    long_ago = time.time() - 100_000
    for path in (abandoned, fresh):
        path.write_bytes(b"half")
    for path in (other, abandoned):
        os.utime(path, (long_ago, long_ago))
    composer.cached(cell(60, 1))
    assert other.exists() and not abandoned.exists() and fresh.exists()
    del user
    composer.cached(cell(60, 2))
    assert not other.exists()


@pytest.mark.parametrize("what", ["cells/*.mp4", "haystack-*/*.mp4"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, cell, what: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def compose() -> bytes:
        return Composer(open_haystack(HAYSTACK), tmp_path).cached(cell(70, 3)).read_bytes()

    whole = compose()
    capsys.readouterr()
    notices.forget()
    for path in tmp_path.glob(what):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-7]), "empty": b""}[damage])
    if what.startswith("haystack"):
        for path in tmp_path.glob("cells/*.mp4"):
            path.unlink()
    assert compose() == whole
    assert capsys.readouterr().err.count("are damaged: what is not as it was written is made again") == 1
    assert compose() == whole and not capsys.readouterr().err


def test_a_file_under_the_name_of_another_is_not_believed(
    tmp_path: Path, cell, capsys: pytest.CaptureFixture[str]
) -> None:
    """Content that is whole, and of something else: another cell's, or the same chunk of another haystack."""
    specs = (HAYSTACK, "synthetic:1:200:64x48")

    def compose(spec: str, index: int) -> bytes:
        return Composer(open_haystack(spec), tmp_path).cached(cell(70, index, spec)).read_bytes()

    def damaged_once() -> bool:
        notices.forget()
        return capsys.readouterr().err.count("are damaged: what is not as it was written is made again") == 1

    whole = {(spec, index): compose(spec, index) for spec in specs for index in (3, 9)}
    assert len(set(whole.values())) == 4
    first, second, *_ = sorted((tmp_path / "cells").glob("*.mp4"))
    recipes, hashes = zip(*(path.stem.split("-") for path in (first, second)), strict=True)
    first.rename(first.with_name("aside"))
    second.rename(second.with_name(f"{recipes[0]}-{hashes[1]}.mp4"))
    first.with_name("aside").rename(first.with_name(f"{recipes[1]}-{hashes[0]}.mp4"))
    assert {key: compose(*key) for key in whole} == whole and damaged_once()

    folders = sorted(tmp_path.glob("haystack-*"))
    chunks = [sorted(folder.glob("chunk-00000-*.mp4")) for folder in folders]
    exchanged = [chunks[1][0].read_bytes(), chunks[0][0].read_bytes()]
    for folder, (mine,), (theirs,), data in zip(folders, chunks, reversed(chunks), exchanged, strict=True):
        (folder / theirs.name).write_bytes(data)
        if theirs.name != mine.name:
            mine.unlink()
    for path in (tmp_path / "cells").glob("*.mp4"):
        path.unlink()
    assert {key: compose(*key) for key in whole} == whole and damaged_once()


def test_a_full_disk_is_one_clear_error(tmp_path: Path, cell, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.tell() + len(data) > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    real = Path.open

    def opened(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if self.suffix == ".part" and mode == "wb":
            real(self, "wb").close()
            return Full()
        return real(self, mode, *rest, **more)

    composer = Composer(open_haystack(HAYSTACK), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError, match=r"cannot write .*haystack-.*: No space left on device; make room there"):
            composer.cached(cell(60, 3))
    composer.cached(cell(60, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError, match=r"cannot write .*cells: No space left on device; make room there"):
            composer.cached(cell(60, 4))
        with pytest.raises(OSError, match="No space left on device"):
            composer.write(cell(60, 4), tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists() and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (".", r"cannot write composed videos in \S+/cache/in-use: Not a directory; make room there, or give another f"),
        ("in-use", r"cannot write composed videos in \S+/cache/in-use: File exists; .*\(VNIAH_CACHE"),
        ("cells", r"cannot write composed videos in \S+/cache/cells: (File exists|Not a directory); .*\(VNIAH_CACHE"),
        ("haystack", r"cannot write composed videos in \S+/haystack-\w+: Is a directory \(\S+\.mp4\); .*\(VNIAH_CACHE"),
    ],
)
def test_a_cache_that_cannot_be_used_is_one_clear_error(tmp_path: Path, cell, damage: str, said: str) -> None:
    cache = tmp_path / "cache"
    if damage == "haystack":
        Composer(open_haystack(HAYSTACK), cache).cached(cell(60, 3))
        (chunk,) = cache.glob("haystack-*/*.mp4")
        chunk.unlink()
        chunk.mkdir()
    elif damage == ".":
        cache.write_text("mine")
    else:
        cache.mkdir()
        (cache / damage).write_text("mine")
    with pytest.raises(OSError, match=said):
        Composer(open_haystack(HAYSTACK), cache).cached(cell(60, 4))


def test_a_read_only_cache_is_one_clear_error(tmp_path: Path, cell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *given: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match=r"cannot write composed videos in \S+/in-use: Read-only file system; .*VNIAH_CACHE"
    ):
        Composer(open_haystack(HAYSTACK), tmp_path).cached(cell(60, 4))


@given(st.integers(1, 400), st.integers(0, 100))
def test_composed_videos_are_even_and_their_control_as_long(num_frames: int, depth: int) -> None:
    """Whatever drops the last of an odd number, or pairs frames, has them all."""
    film = open_haystack("synthetic:0:500:16x16")
    needles = Needles(open_needles("icons:0:1"))
    (needle_id,) = needles.needles.ids

    def composed(depth_percent: int | None) -> SplicedVideo:
        scene, shown = needles.composed(Cell(num_frames, depth_percent, needle_id))
        return SplicedVideo(haystack=film, num_frames=shown, inserted=scene.inserted)

    video = composed(depth)
    assert len(video) == composed_frames(num_frames) == len(composed(None))
    assert len(video) % 2 == 0 and 1 <= len(video) - num_frames <= 2
    assert video.inserted[0].place == (len(video) - 1) * depth // 100
    if num_frames % 2:  # the paper's own
        own = needles.scene(Cell(num_frames, depth, needle_id), num_frames)
        assert own.inserted[0].place == needle_index(num_frames, depth)
        paper = SplicedVideo(haystack=film, num_frames=num_frames, inserted=own.inserted)
        assert video.segments() == paper.segments()


def test_a_haystack_that_is_too_short_for_it_is_held(needle: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    film = open_haystack("synthetic:0:8:64x48")
    held = held_at_the_end(film, 8)
    assert len(held) == 10 and held.fingerprint != film.fingerprint and held.size == film.size
    assert "has 8 frames, and the videos of 8 show 10: its last frame is held" in capsys.readouterr().err
    shown = held.frames(0, 10)
    assert np.array_equal(shown[:8], film.frames(0, 8))
    assert np.array_equal(shown[8], shown[7]) and np.array_equal(shown[9], shown[7])
    assert np.array_equal(held.frames(9, 10)[0], shown[7])
    assert held_at_the_end(film, 6) is film
    with pytest.raises(ValueError, match="has 8 frames and 9 are needed"):
        held_at_the_end(film, 9)


_CHILD = """
import sys
from PIL import Image
from vniah.needles.needle import Picture
from vniah.visual.compose import Inserted, SplicedVideo
from vniah.visual.composed_videos import Composer
from vniah.haystack import open_haystack

haystack = open_haystack("synthetic:0:200:64x48")
needle = Image.new("RGB", (9, 9), (255, 0, 0))
composer = Composer(haystack, sys.argv[1])
shown = Inserted(Picture(lambda: needle, "a needle"), int(sys.argv[2]))
video = SplicedVideo(haystack=haystack, num_frames=70, inserted=(shown,))
print("done", composer.cached(video), composer.encoded_frames)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Two of one cell and one of another, all at once."""
    indices = (5, 5, 6)
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True)
        for i in indices
    ]
    encoded = 0
    for child, index in zip(children, indices, strict=True):
        printed, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        _, path, count = printed.split()
        encoded += int(count)
        decoded = decode(Path(path))
        assert len(decoded) == 71 and decoded[index][24, 32, 0] > 230
    assert encoded == 128
    assert not list(tmp_path.rglob("*.part"))


def test_threads_share_a_composer(tmp_path: Path, cell) -> None:
    """Some models ask for the videos of several cells at once."""
    composer = Composer(open_haystack(HAYSTACK), tmp_path / "threads")
    cells = [cell(70, index) for index in (0, 3, 3, 35, 69, 70)]
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(composer.cached, cells))
    alone = Composer(open_haystack(HAYSTACK), tmp_path / "alone")
    assert [path.read_bytes() for path in paths] == [alone.cached(one).read_bytes() for one in cells]
    assert composer.encoded_frames == 128 and paths[1] == paths[2]


@pytest.mark.slow
def test_kills_while_composing(tmp_path: Path) -> None:
    """What a killed run left is taken up or made again; a rerun's videos are the same to the byte."""
    child = _CHILD.replace("composer = ", "print('go', flush=True)\ncomposer = ")

    def run(folder: str, seconds: float | None) -> bytes:
        process = subprocess.Popen(
            [sys.executable, "-c", child, str(tmp_path / folder), "5"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        if seconds is not None:
            time.sleep(seconds)
            process.kill()
        printed, _ = process.communicate(timeout=120)
        return b"" if seconds is not None else Path(printed.split()[1]).read_bytes()

    whole = run("whole", None)
    for number in range(12):
        folder = f"killed-{number // 3}"
        run(folder, 0.01 + 0.03 * number)
        assert run(folder, None) == whole


def test_a_failure_leaves_nothing_behind(tmp_path: Path, cell, monkeypatch: pytest.MonkeyPatch) -> None:
    video = cell(70, 3)
    composer = Composer(video.haystack, tmp_path)

    def broken(start: int, stop: int) -> np.ndarray:
        raise ValueError("the film tears here")

    with monkeypatch.context() as patch:
        patch.setattr(video.haystack.__class__, "frames", lambda self, start, stop: broken(start, stop))
        with pytest.raises(ValueError, match="tears"):
            composer.write(video, tmp_path / "out.mp4")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "in-use"]
    assert [path.name for path in left if path.name != ".lock"] == []
    assert len(decode(composer.write(video, tmp_path / "out.mp4"))) == 71


def test_a_needle_of_another_configuration_is_refused(tmp_path: Path, cell, monkeypatch: pytest.MonkeyPatch) -> None:
    video = cell(4, 1)
    composer = Composer(video.haystack, tmp_path)
    composer.cached(cell(4, None))
    monkeypatch.setitem(composing._SETTINGS["libx264"], "x264-params", "keyint=1:scenecut=0:aud=1:cabac=0")
    with pytest.raises(RuntimeError, match="differs from the haystack's"):
        composer.cached(video)


def test_write_errors(tmp_path: Path, cell) -> None:
    video = cell(4, 1)
    composer = Composer(video.haystack, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"must be an \.mp4 file, got .*cell\.avi"):
        composer.write(video, tmp_path / "cell.avi")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write cell\.mp4"):
        composer.write(video, tmp_path / "nowhere" / "cell.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.mp4 is a folder"):
        composer.write(video, tmp_path / "folder.mp4")
    path = tmp_path / "cell.mp4"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"cell\.mp4 exists already"):
        composer.write(video, path)
    assert path.read_text() == "mine"
    assert len(decode(composer.write(video, path, overwrite=True))) == 5
    with pytest.raises(ValueError, match="this composer is for 'synthetic:0' and not for 'synthetic:1'"):
        composer.cached(cell(4, 1, "synthetic:1:9"))
    with pytest.raises(ValueError, match="no codec 'av2' for composing; expected one of libx264, mjpeg"):
        Composer(video.haystack, tmp_path, codec="av2")
