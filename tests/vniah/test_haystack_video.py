"""Video files as haystacks: what is sampled, that frames are exact however they are reached, and every error.

The short reference is: decode every picture, keep every ``round(fps)``-th.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vniah.haystack import base, open_haystack, require_frames
from vniah.haystack.video import VideoHaystack, _RgbConverter

QUARTER_TURNS = {
    "cw": ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
    "ccw": ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
    "half": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
    "mirror": ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    "transpose": ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
}


def write_video(
    path: Path,
    num_frames: int = 95,
    *,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    times_ms: Callable[[int], int] | None = None,
    x264: str = "",
    **container: str,
) -> Path:
    """A video whose every frame is different noise; ``times_ms`` sets presentation times, else ``fps`` does."""
    base_HWC = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w", options=container) as out:
        stream = out.add_stream(codec, rate=fps, options={"x264-params": x264} if x264 else {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        tick = Fraction(1, 1000) if times_ms else 1 / Fraction(fps)
        stream.codec_context.time_base = tick
        for i in range(num_frames):
            picture = av.VideoFrame.from_ndarray(np.roll(base_HWC, i, 1), format="rgb24")
            picture.pts, picture.time_base = (times_ms(i) if times_ms else i), tick
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """The reference: every picture of a video, one after the other."""
    to_rgb = _RgbConverter(path)
    with av.open(str(path)) as container:
        return [to_rgb(frame) for frame in container.decode(video=0)]


def every(path: Path, stride: int) -> np.ndarray:
    return np.stack(decode_all(path)[::stride])


def cut(path: Path, share: float) -> Path:
    """The first part of a file, as a download that broke off leaves it."""
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("h264.avi", {}),  # pictures out of order and without trustworthy times
        ("raw.h264", {}),  # no times at all
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),  # no frame count in the header
        ("open.mp4", {"x264": "keyint=12:min-keyint=12:open-gop=1:bframes=5:scenecut=0", "num_frames": 160}),
        ("closed.mp4", {"x264": "keyint=12:bframes=3", "num_frames": 160}),
        ("refresh.mp4", {"x264": "keyint=40:intra-refresh=1:bframes=0", "num_frames": 160}),
        ("pyramid.mp4", {"x264": "keyint=250:bframes=8:b-adapt=0:ref=5:b-pyramid=normal", "num_frames": 160}),
    ],
)
def test_samples_are_every_30th_decoded_frame(tmp_path: Path, name: str, options: dict) -> None:
    path = write_video(tmp_path / name, **options)
    expected = every(path, 30)
    haystack = open_haystack(str(path))
    assert len(haystack) == len(expected) and haystack.size == (48, 64)
    assert np.array_equal(haystack.frames(0, len(haystack)), expected)
    assert np.array_equal(list(haystack.stream(1)), expected[1:])
    for i in (2, 0, 3, 1):  # back and forth, each from its own key frame
        assert np.array_equal(haystack.frames(i, i + 1)[0], expected[i])


def test_single_threaded_and_threaded_decoding_agree(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 160, x264="keyint=60:bframes=5:b-pyramid=normal")
    frames = [VideoHaystack(path, threads=threads).frames(0, 6) for threads in (1, 2, 3)]
    assert np.array_equal(frames[0], frames[1]) and np.array_equal(frames[0], frames[2])


@pytest.mark.parametrize(
    ("fps", "num_frames", "stride", "length"),
    [(Fraction(30000, 1001), 95, 30, 4), (Fraction(25, 2), 40, 12, 4), (1, 7, 1, 7), (Fraction(1, 4), 5, 1, 5)],
)
def test_stride_is_the_rounded_frame_rate(
    tmp_path: Path, fps: Fraction | int, num_frames: int, stride: int, length: int
) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames, fps=fps)
    haystack = open_haystack(str(path))
    assert len(haystack) == length
    assert haystack.fps == pytest.approx(float(fps) / stride)
    assert np.array_equal(haystack.frames(0, length), every(path, stride))


def test_variable_frame_rate_is_sampled_by_the_clock(tmp_path: Path) -> None:
    # 30 fps for two seconds, then a picture every 1.5 seconds.
    def time_ms(i: int) -> int:
        return i * 1000 // 30 if i < 60 else 2000 + (i - 60) * 1500

    path = write_video(tmp_path / "a.mkv", 64, times_ms=time_ms)
    pictures = decode_all(path)
    haystack = open_haystack(str(path))
    shown = [max(i for i in range(64) if time_ms(i) <= second * 1000) for second in range(7)]
    assert shown == [0, 30, 60, 60, 61, 62, 62]
    assert np.array_equal(haystack.frames(0, len(haystack)), np.stack([pictures[i] for i in shown]))
    assert haystack.fps == 1.0


def test_a_call_that_goes_on_does_not_open_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 300)
    haystack = open_haystack(str(path))
    opened = []
    monkeypatch.setattr(av, "open", lambda *a, _open=av.open, **k: opened.append(a) or _open(*a, **k))
    parts = [haystack.frames(i, i + 2) for i in range(0, 10, 2)]
    assert len(opened) == 1
    assert np.array_equal(np.concatenate(parts), every(path, 30))
    # Read to its end, a video holds no decoder: a benchmark has hundreds of them.
    assert haystack._live is None
    haystack.frames(0, 3)
    assert haystack._live is not None
    opened.clear()
    list(haystack.stream(0, 10))
    assert len(opened) == 1


@pytest.mark.parametrize(("keys", "starts", "openings"), [("keyint=250", [0, 9, 30], 1), ("keyint=2", [0, 9, 30], 3)])
def test_a_jump_seeks_only_where_a_key_frame_saves_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, starts: list[int], openings: int
) -> None:
    path = write_video(tmp_path / "film.mp4", 40, fps=1, x264=f"{keys}:scenecut=0")
    haystack, expected = VideoHaystack(path), every(path, 1)
    opened = []
    decode = haystack._stream
    monkeypatch.setattr(haystack, "_stream", lambda *span: opened.append(span) or decode(*span))
    for start in starts:
        np.testing.assert_array_equal(haystack.frames(start, start + 2), expected[start : start + 2])
    assert len(opened) == openings
    # Where one key frame serves the whole film, a second reader would only decode the same again.
    assert (haystack.reader() is None) == (openings == 1)


@pytest.mark.parametrize("turn", QUARTER_TURNS)
def test_display_matrix_is_applied(tmp_path: Path, turn: str) -> None:
    path = write_video(tmp_path / "a.mp4", 31)
    upright = open_haystack(str(path)).frames(0, 2)
    (a, b, c, d), expected = QUARTER_TURNS[turn]
    turned = _with_matrix(path, a, b, c, d)
    haystack = open_haystack(str(turned))
    want = np.stack([expected(frame) for frame in upright])
    assert haystack.size == want.shape[1:3]
    assert np.array_equal(haystack.frames(0, 2), want)


def test_a_slanted_display_matrix_is_refused(tmp_path: Path) -> None:
    slanted = _with_matrix(write_video(tmp_path / "a.mp4", 31), 0.5, 0.5, -0.5, 0.5)
    with pytest.raises(ValueError, match="not a quarter turn"):
        open_haystack(str(slanted))


def _with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Copy an mp4 with another matrix in its track header: after 4 + 20 + 16 bytes of version 0."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *(round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    turned = path.with_name("turned.mp4")
    turned.write_bytes(data)
    return turned


def test_a_size_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    first, second = write_video(tmp_path / "1.ts"), write_video(tmp_path / "2.ts", size=(32, 48))
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    haystack = open_haystack(str(both))
    with pytest.raises(ValueError, match="changes size on the way, from 64x48 to 32x48"):
        haystack.frames(0, len(haystack))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libx265"])
def test_approximate_mode_shows_the_same_frames_a_little_off(tmp_path: Path, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write_video(tmp_path / "a.mp4", 160, codec=codec)
    exact, fast = open_haystack(str(path)), open_haystack(str(path), decoder="pyav-fast")
    assert "approximate" in fast.fingerprint and "approximate" not in exact.fingerprint
    pictures = np.stack(decode_all(path)).astype(int)
    frames = fast.frames(0, len(fast)).astype(int)
    assert len(fast) == len(exact) == 6
    for i, frame in enumerate(frames):
        # Nearer to its own picture than to any other, though every picture moves by one pixel.
        assert np.abs(pictures - frame).mean(axis=(1, 2, 3)).argmin() == 30 * i
    assert np.array_equal(frames[2:4], fast.frames(2, 4))


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
def test_decord_gives_equal_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 160)
    ours, theirs = open_haystack(str(path)), open_haystack(str(path), decoder="decord")
    assert len(ours) == len(theirs) and ours.fps == theirs.fps and ours.size == theirs.size
    assert np.array_equal(ours.frames(0, len(ours)), theirs.frames(0, len(theirs)))
    assert np.array_equal(list(theirs.stream(1, 5)), ours.frames(1, 5))
    assert ours.fingerprint != theirs.fingerprint


def test_decord_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match="pip install decord"):
        open_haystack(str(write_video(tmp_path / "a.mp4", 31)), decoder="decord")


@pytest.mark.parametrize(("name", "length"), [("jobs", 18), ("water", 32)])
def test_real_videos(shared: Path, name: str, length: int) -> None:
    path = shared / "data" / "videos" / f"{name}.mp4"
    expected = every(path, 30)
    for decoder in ("pyav", "pyav-fast", "decord"):
        if decoder == "decord" and importlib.util.find_spec("decord") is None:
            continue
        haystack = open_haystack(str(path), decoder=decoder)
        assert len(haystack) == len(expected) == length
        assert haystack.size == (1024, 576) and haystack.fps == 1.0
        if decoder != "pyav-fast":
            assert np.array_equal(haystack.frames(0, length), expected)


def test_fingerprint_is_of_content_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 31)
    fingerprint = open_haystack(str(path)).fingerprint
    reads = []
    monkeypatch.setattr(
        base.hashlib, "blake2b", lambda *a, _h=base.hashlib.blake2b, **k: reads.append(1) or _h(*a, **k)
    )
    assert open_haystack(str(path)).fingerprint == fingerprint
    assert len(reads) == 1  # the short list of parts, and not the file again
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    assert open_haystack(str(copy)).fingerprint == fingerprint
    other = write_video(tmp_path / "b.mp4", 32)
    assert open_haystack(str(other)).fingerprint != fingerprint


def _send_frames(haystack: VideoHaystack, pipe: Any) -> None:
    pipe.send(haystack.frames(2, 4))


def test_survives_pickling_and_forking(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 160)
    haystack = open_haystack(str(path))
    expected = every(path, 30)
    assert np.array_equal(haystack.frames(0, 2), expected[:2])
    assert np.array_equal(pickle.loads(pickle.dumps(haystack)).frames(1, 3), expected[1:3])
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=_send_frames, args=(haystack, theirs), daemon=True)
    child.start()
    assert mine.poll(20) and np.array_equal(mine.recv(), expected[2:4])
    child.join(20)
    assert child.exitcode == 0
    assert np.array_equal(haystack.frames(2, 4), expected[2:4])


# Bad input: one clear error each.


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no haystack at .*nowhere\.mp4"):
        open_haystack(str(tmp_path / "nowhere.mp4"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"hello, this is text" * 50, "is not a video that can be read")],
)
def test_not_a_video(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_haystack(str(path))


def test_an_image_is_not_a_video(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is an image and not a video"):
        open_haystack(str(tmp_path / "a.png"))


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match="has no video stream"):
        open_haystack(str(path))


def test_zero_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(ValueError, match="holds no video frames"):
        open_haystack(str(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mkv", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.ts", {}),
    ],
)
def test_truncated_says_how_many_frames_could_be_read(tmp_path: Path, name: str, options: dict) -> None:
    whole = write_video(tmp_path / name, **options)
    with pytest.raises(ValueError, match=r"truncated.* only (\d+) frames could be read") as error:
        open_haystack(str(cut(whole, 0.6)))
    count = int(str(error.value).split(" frames could")[0].split()[-1])
    assert 10 < count < 90


def test_truncated_before_the_index(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4")  # the index is at the end
    with pytest.raises(ValueError, match=r"is truncated: .* only 0 frames could be read"):
        open_haystack(str(cut(whole, 0.6)))


def test_damage_inside_shows_when_it_is_reached(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 300, x264="keyint=30:scenecut=0")
    data = bytearray(path.read_bytes())
    middle = len(data) * 45 // 100
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    haystack = open_haystack(str(path))
    assert len(haystack) == 10
    with pytest.raises(ValueError, match=r"only \d of 10 sampled frames could be read"):
        haystack.frames(0, 10)


def test_fewer_frames_than_asked(tmp_path: Path) -> None:
    haystack = open_haystack(str(write_video(tmp_path / "film.mp4", 95)))
    require_frames(haystack, 4)
    with pytest.raises(ValueError, match=r"'film' has 4 frames and 5 are needed"):
        require_frames(haystack, 5)
    with pytest.raises(ValueError, match="frames 2 to 5 were asked of 'film', which has frames 0 to 4"):
        haystack.frames(2, 5)
    with pytest.raises(ValueError, match="frames 2 to 5 were asked"):
        haystack.stream(2, 5)


def test_unknown_decoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no decoder 'ffmpeg'; expected one of pyav, pyav-fast, decord"):
        open_haystack("synthetic", decoder="ffmpeg")
