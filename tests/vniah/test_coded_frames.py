"""Frames known by their coded pictures: where equal names mean equal pixels, and where there are none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_files import numbered_frame

from vniah.haystack import coded_frames, open_haystack
from vniah.haystack.opening import open_video
from vniah.needles import open_needles
from vniah.visual.compose import Inserted, SplicedVideo
from vniah.visual.composed_videos import Composer

ALL = 10**9


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Composed videos of 8 and 6 frames of a film, with a needle at the beginning, in between, at the end, and none."""
    composer = Composer(open_haystack("synthetic:0:8:64x48"), tmp_path_factory.mktemp("composed"), codec="libx264")
    needles = open_needles("icons:0:1")
    needle = needles.get(needles.ids[0])
    shown = [(Inserted(needle.picture, index),) for index in (0, 3, 6)]
    videos = [SplicedVideo(haystack=composer.haystack, num_frames=6, inserted=one) for one in shown]
    return [composer.cached(video) for video in (*videos, SplicedVideo(haystack=composer.haystack, num_frames=8))]


def write(path: Path, *, params: str = "keyint=1", frames: int = 6, codec: str = "libx264", colour: int = 6) -> Path:
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=1, options={"x264-params": params} if codec == "libx264" else {"g": "1"})
        stream.width, stream.height = 128, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, 1)
        context.colorspace = colour
        for number in range(frames):
            # Not grey, which looks the same by every matrix.
            picture_HWC = numbered_frame(number) & np.array([255, 90, 30], np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_frames_of_composed_videos_are_the_same_where_their_pictures_are(cells: list[Path]) -> None:
    shown: dict[bytes, np.ndarray] = {}
    met = 0
    for path in cells:
        video = open_video(path, ALL)
        assert video.contents is not None  # type: ignore[attr-defined]
        assert len(video.contents) == len(video)  # type: ignore[attr-defined]
        for content, frame_HWC in zip(video.contents, video.frames(0, len(video)), strict=True):  # type: ignore[attr-defined]
            assert np.array_equal(shown.setdefault(content, frame_HWC), frame_HWC)
            met += 1
    assert (met, len(shown)) == (29, 9)
    # Pictures that look different have different names.
    assert len({frame_HWC.tobytes() for frame_HWC in shown.values()}) == len(shown)


def test_of_a_video_that_is_sampled_the_samples_are_named(cells: list[Path]) -> None:
    whole, some = open_video(cells[0], ALL), open_video(cells[0], 3)
    assert some.contents == tuple(whole.contents[number] for number in some.index.numbers)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("codec", "params"),
    [
        ("libx264", "keyint=4:min-keyint=4:scenecut=0:bframes=0"),  # pictures refer to pictures before
        ("libx264", "keyint=1:bframes=0:repeat-headers=1:annexb=1"),
        ("libx264", "keyint=2:min-keyint=1:open-gop=1:bframes=0:intra-refresh=0:force-cfr=1:scenecut=0"),
        ("mpeg4", ""),
        ("mjpeg", ""),
    ],
    ids=["groups", "every picture an IDR", "open groups", "mpeg4", "mjpeg"],
)
def test_only_pictures_that_stand_alone_are_named(tmp_path: Path, codec: str, params: str) -> None:
    contents = open_video(write(tmp_path / "film.mp4", codec=codec, params=params), ALL).contents  # type: ignore[attr-defined]
    assert (contents is not None) == ("repeat-headers" in params)


def test_colours_that_are_told_otherwise_are_other_frames(tmp_path: Path) -> None:
    """The pictures' own bytes are the same; BT.709 makes other RGB of them."""
    one, other = (open_video(write(tmp_path / f"{n}.mp4", colour=n), ALL) for n in (6, 1))
    assert not np.array_equal(one.frames(0, 6), other.frames(0, 6))
    assert not set(one.contents) & set(other.contents)  # type: ignore[attr-defined]


def test_a_film_with_a_picture_that_does_not_decode_is_known_as_a_file(tmp_path: Path, cells: list[Path]) -> None:
    """Where a decoder fills a hole from the picture before, the same bytes show another picture in another film."""
    import av

    with av.open(str(cells[0])) as container:
        packets = [bytes(one) for one in container.demux(container.streams.video[0]) if one.size]
    data = cells[0].read_bytes()
    at = data.index(packets[4]) + len(packets[4]) // 3
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data[:at] + bytes(len(packets[4]) // 2) + data[at + len(packets[4]) // 2 :])
    video = open_video(broken, ALL)
    assert video.contents is None  # type: ignore[attr-defined]
    assert len(video.frames(0, len(video))) == 7


def test_parameter_sets_that_change_on_the_way_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set in one packet would hold for those behind it that bring none."""
    path = write(tmp_path / "film.mp4", params="keyint=1:bframes=0:repeat-headers=1")
    video = open_video(path, ALL)
    import av.bitstream

    plain = av.bitstream.BitStreamFilterContext

    class Once:
        """The filter, the second picture's parameter set of another content."""

        def __init__(self, name: str, stream: object) -> None:
            self._filter, self._count = plain(name, stream), 0

        def filter(self, packet: object) -> list[object]:
            found = self._filter.filter(packet)
            self._count += 1
            if self._count != 2:
                return found
            data = bytes(found[0])
            at = next(at for at in range(len(data)) if data[at : at + 3] == b"\0\0\1" and data[at + 3] & 31 == 8)
            return [av.Packet(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])]

    assert coded_frames.frame_contents(path, video.index) is not None  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("av.bitstream.BitStreamFilterContext", Once)
        assert coded_frames.frame_contents(path, video.index) is None  # type: ignore[attr-defined]
