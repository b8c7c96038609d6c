"""Video files as people really have them: the right frames, or one clear error, never a frozen or a wrong one.

Each frame shows its own number, so that what was sampled can be read off.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import number_of, numbers, write_numbered

from vniah import notices
from vniah.files import read_json, read_json_lines
from vniah.haystack import open_haystack, open_video
from vniah.haystack.opening import inspect_file
from vniah.haystack.timeline import read_timeline
from vniah.needles import open_needles
from vniah.tasks.videos.source import VideoFolders, find_videos, probe

EVEN = [number * 100 for number in range(100)]  # ten frames a second
EVERY_10TH = list(range(0, 100, 10))
HOUR_MS = 3_600_000
HAS_DECORD = importlib.util.find_spec("decord") is not None
FORMATS = {"a.mp4": "libx264", "a.mkv": "libx264", "a.webm": "libvpx", "a.ts": "libx264", "a.flv": "libx264"}


@pytest.fixture(autouse=True)
def _fresh_notices() -> None:
    notices.forget()


def shown_at_each_second(times_ms: list[int]) -> list[int]:
    """By the rule itself: the last frame that is no later."""
    length = (times_ms[-1] - times_ms[0]) // 1000
    return [
        max(number for number, time in enumerate(times_ms) if time - times_ms[0] <= second * 1000)
        for second in range(length + 1)
    ]


# Equal stamps.


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [("a.webm", "libvpx", 0), ("a.webm", "libvpx-vp9", 0), ("a.mkv", "libx264", 0), ("a.mkv", "libx264", 2)],
)
def test_frames_of_one_time_keep_their_order_and_the_clock_holds(
    tmp_path: Path, name: str, codec: str, b_frames: int
) -> None:
    times = [number * 33 for number in range(90)] + [3000 + number * 700 for number in range(30)]
    for twin in (10, 40, 70, 100, 101):  # one of them a key frame, and three frames of one time
        times[twin] = times[twin - 1]
    path = write_numbered(tmp_path / name, times, codec=codec, fps=30, b_frames=b_frames)
    haystack = open_haystack(str(path))
    expected = shown_at_each_second(times)
    assert numbers(haystack) == expected
    # Reached from key frames, in any order, they are the same.
    frames = haystack.frames(0, len(haystack))
    for at in (len(haystack) - 1, 3, 12, 0):
        np.testing.assert_array_equal(haystack.frames(at, at + 1)[0], frames[at])
    assert numbers(open_video(path, 120)) == list(range(120))


@pytest.mark.parametrize("twin", [30, 31])
def test_each_twin_can_be_the_sample(tmp_path: Path, twin: int) -> None:
    times = [number * 33 for number in range(91)]
    times[twin] = times[twin - 1]
    path = write_numbered(tmp_path / "a.mkv", times, fps=30, group=15)
    assert numbers(open_haystack(str(path))) == [0, 30, 60, 90]
    assert numbers(open_video(path, 91)) == list(range(91))


# Clocks that jump.


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.flv"])
@pytest.mark.parametrize("jump_ms", [300_000, HOUR_MS])
def test_a_clock_that_jumps_ahead_is_one_clear_error(tmp_path: Path, name: str, jump_ms: int) -> None:
    times = EVEN[:50] + [time + jump_ms for time in EVEN[50:]]
    path = write_numbered(tmp_path / name, times, codec=FORMATS[name])
    with pytest.raises(ValueError, match=rf"its clock jumps ahead by {jump_ms // 1000:,} s after 4\.9 s") as caught:
        open_haystack(str(path))
    assert "\n" not in str(caught.value)
    # A prompt's video is sampled by number, so that its clock does not matter.
    assert numbers(open_video(path, 10)) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def test_an_epoch_in_front_is_no_film_of_54_years(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", [0] + [1_700_000_000_000 + time for time in EVEN])
    with pytest.raises(ValueError, match="jumps ahead by 1,700,000,000 s"):
        open_haystack(str(path))


def test_a_clock_that_stands_still_is_refused(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", [number // 20 for number in range(100)])
    with pytest.raises(ValueError, match=r"its clock stands still, with 100 frames in 0\.004 s"):
        open_haystack(str(path))
    assert numbers(open_video(path, 100)) == list(range(100))


def test_a_picture_that_stands_for_some_seconds_is_film_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = EVEN[:50] + [time + 30_000 for time in EVEN[50:]]
    haystack = open_haystack(str(write_numbered(tmp_path / "a.mkv", times)))
    assert numbers(haystack) == shown_at_each_second(times)
    assert "one frame stands for 30 s after 4.9 s" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_slow_even_beat_keeps_the_limits_of_a_still_and_its_length(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def film(gap_s: int) -> Path:
        return write_numbered(tmp_path / name, [number * gap_s * 1000 for number in range(6)])

    with pytest.raises(ValueError, match="its clock jumps ahead by 300 s after 0"):
        open_haystack(str(film(300)))
    found = inspect_file(str(film(20)))
    assert (found.num_frames, found.seconds, found.fps, found.rule) == (6, 120.0, 0.05, "every1")
    assert found.warnings[0] == "one frame stands for 20 s after 0.0 s"
    assert "it has a frame every 20 s" in found.warnings[1] and found.warnings[1] in capsys.readouterr().err
    assert ["every 2 s" in line for line in inspect_file(str(film(2))).warnings] == [True]
    found = inspect_file(str(film(1)))
    assert (found.seconds, found.warnings) == (6.0, [])


@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames", "offset_ms"),
    [
        *(("ts", "libx264", 2, offset) for offset in (0, 5_000, 60_000, HOUR_MS, 26 * HOUR_MS)),
        ("mpg", "mpeg2video", 0, 0),
        ("mpg", "mpeg2video", 0, 5_000),
    ],
)
def test_joined_recordings_of_a_transport_stream_are_mended(
    tmp_path: Path, suffix: str, codec: str, b_frames: int, offset_ms: int, capsys: pytest.CaptureFixture[str]
) -> None:
    even = [number * 40 for number in range(250)]
    parts = []
    for number, start in enumerate((0, offset_ms)):
        times = [time + start for time in even]
        parts.append(
            write_numbered(
                tmp_path / f"{number}.{suffix}", times, codec=codec, fps=25, first=250 * number, b_frames=b_frames
            )
        )
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    haystack = open_haystack(str(path))
    assert numbers(haystack) == list(range(0, 500, 25))
    assert haystack.frames(13, 14).shape == (1, 64, 128, 3)
    assert numbers(haystack)[13] == 325
    assert read_timeline(path).seconds == pytest.approx(20, abs=0.1)
    assert "its clock jumps after " in capsys.readouterr().err
    assert haystack.fingerprint != open_haystack(str(parts[0])).fingerprint


def test_a_variable_rate_keeps_its_clock_over_a_mended_jump(tmp_path: Path) -> None:
    slow = [number * 1500 for number in range(8)]
    first = write_numbered(tmp_path / "1.ts", EVEN)
    second = write_numbered(tmp_path / "2.ts", [HOUR_MS + time for time in slow], first=100)
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert numbers(open_haystack(str(path))) == shown_at_each_second(EVEN + [10_000 + time for time in slow])


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_recording_that_begins_between_key_frames_begins_at_the_first(
    tmp_path: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    whole = write_numbered(tmp_path / "whole.ts", [number * 40 for number in range(200)], codec=codec, fps=25, group=50)
    with av.open(str(whole)) as container:
        _, key, *_ = (packet.pos for packet in container.demux(video=0) if packet.is_keyframe)
        assert container.streams.video[0].id == 0x100
    data = whole.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    pids = [(packet[1] & 31) << 8 | packet[2] for packet in packets]
    tables = [packet for packet, pid in zip(packets[:20], pids, strict=False) if pid != 0x100]
    start = key // 188 - 6  # some packets of the film before the second key frame
    path = tmp_path / "late.ts"
    path.write_bytes(b"".join(tables + packets[start:]))
    haystack = open_haystack(str(path))
    assert numbers(haystack) == [50, 75, 100, 125, 150, 175]
    assert numbers(open_video(path, 3))[0] == 50
    assert "it begins between key frames" in capsys.readouterr().err


def shift_flv(path: Path, after_ms: int, delta_ms: int) -> Path:
    """Move the times of an FLV's pictures from ``after_ms`` on."""
    data, at = bytearray(path.read_bytes()), 13
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        time = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        if data[at] == 9 and time >= after_ms:
            data[at + 4 : at + 7] = (time + delta_ms & 0xFFFFFF).to_bytes(3, "big")
            data[at + 7] = time + delta_ms >> 24
        at += size + 15
    path.write_bytes(data)
    return path


def shift_mkv(path: Path, after_ms: int, delta_ms: int) -> Path:
    """Move the times of a Matroska file's clusters from ``after_ms`` on."""
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.find(b"\x1f\x43\xb6\x75", at)) >= 0:
        element = at + 13 - data[at + 4].bit_length()  # behind the cluster's name and length
        element += 6 if data[element] == 0xBF else 0  # a checksum, which nobody minds
        assert data[element] == 0xE7
        length = data[element + 1] & 0x7F
        time = int.from_bytes(data[element + 2 : element + 2 + length], "big")
        if time >= after_ms:
            data[element + 2 : element + 2 + length] = (time + delta_ms).to_bytes(length, "big")
        at += 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("back_ms", [3000, 9000])
@pytest.mark.parametrize(("name", "shift"), [("a.flv", shift_flv), ("a.mkv", shift_mkv)])
def test_a_clock_that_jumps_back_is_one_clear_error(
    tmp_path: Path, name: str, shift: Callable[[Path, int, int], Path], back_ms: int
) -> None:
    times = [10_000 + time for time in EVEN]
    options = {"cluster_time_limit": "1000"} if name == "a.mkv" else {}
    path = shift(write_numbered(tmp_path / name, times, **options), 15_000, -back_ms)
    with pytest.raises(ValueError, match=r"its clock jumps back by [289]\.9 s"):
        open_haystack(str(path))
    assert numbers(open_video(path, 100)) == list(range(100))


@pytest.mark.parametrize(("name", "shift"), [("a.flv", shift_flv), ("a.mkv", shift_mkv)])
def test_a_little_disorder_keeps_the_order_of_display(
    tmp_path: Path, name: str, shift: Callable[[Path, int, int], Path]
) -> None:
    options = {"cluster_time_limit": "500"} if name == "a.mkv" else {}
    path = shift(write_numbered(tmp_path / name, [10_000 + time for time in EVEN], **options), 14_700, -300)
    assert numbers(open_haystack(str(path))) == EVERY_10TH
    assert numbers(open_video(path, 100)) == list(range(100))


@pytest.mark.parametrize("hours", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_film_of_hours_is_sampled(tmp_path: Path, hours: int) -> None:
    seconds = 3600 * hours
    path = write_numbered(tmp_path / "a.mkv", [number * 1000 for number in range(seconds)], fps=1, group=250)
    haystack = open_haystack(str(path))
    assert len(haystack) == seconds
    assert read_timeline(path).seconds == pytest.approx(seconds)
    assert [number_of(haystack.frames(at, at + 1)[0]) for at in (0, seconds - 1)] == [0, seconds - 1]


# Which stream.


@pytest.mark.parametrize(
    ("name", "others", "stream"),
    [
        ("a.mkv", [("mjpeg", (32, 16), 0)], 1),
        ("a.mkv", [("libx264", (64, 32), 0), ("libx264", (32, 16), 0)], 2),
        ("a.ts", [("libx264", (64, 32), 0)], 1),
        ("a.mp4", [("png", (640, 480), 0)], 1),  # a cover that is not marked as one
        ("a.mp4", [("png", (640, 480), 1024)], 0),  # one that is: the muxer puts it behind
    ],
)
def test_the_film_is_taken_and_not_what_lies_beside_it(
    tmp_path: Path, name: str, others: list[tuple[str, tuple[int, int], int]], stream: int
) -> None:
    path = write_numbered(tmp_path / name, EVEN, others=others)
    haystack = open_haystack(str(path))
    assert haystack.size == (64, 128)
    assert numbers(haystack) == EVERY_10TH
    assert read_timeline(path).stream == stream
    assert probe(path).duration_s == pytest.approx(10)


def test_of_two_streams_the_default_goes_before_the_larger(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", EVEN, others=[("libx264", (256, 128), 0)])
    # The muxer marks the first track as enabled; take that from it and give it to the second.
    data = bytearray(path.read_bytes())
    at, flags = 0, [2, 3]
    while (at := data.find(b"tkhd", at)) >= 0:
        data[at + 7] = flags.pop(0)
        at += 4
    path.write_bytes(data)
    haystack = open_haystack(str(path))
    assert haystack.size == (64, 128) and numbers(haystack) == EVERY_10TH


# Benchmarks' probes.


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.ts", "libx264"), ("a.mpg", "mpeg2video"), ("a.flv", "flv1"), ("a.mp4", "libx264"), ("a.mkv", "libx264")],
)
@pytest.mark.parametrize("sound_s", [0.0, 60.0])
def test_a_video_that_decodes_is_there(tmp_path: Path, name: str, codec: str, sound_s: float) -> None:
    """Without an index, in one group of pictures, or with sound that goes on behind the picture."""
    times = [number * 40 for number in range(250)]
    path = write_numbered(tmp_path / name, times, codec=codec, fps=25, group=250, sound_s=sound_s)
    info = probe(path)
    assert info.duration_s == pytest.approx(10, abs=0.1) and info.fps == pytest.approx(25, rel=0.01)
    assert numbers(open_haystack(str(path))) == list(range(0, 250, 25))


@pytest.mark.parametrize("bytes_lost", [1, 5, 700])
def test_a_broken_off_flv_is_not_the_whole_film(tmp_path: Path, bytes_lost: int) -> None:
    path = write_numbered(tmp_path / "a.flv", EVEN)
    path.write_bytes(path.read_bytes()[:-bytes_lost])
    with pytest.raises(ValueError, match=r"a\.flv is truncated"):
        open_haystack(str(path))
    with pytest.raises(ValueError, match="it ends before its header says"):
        probe(path)


def test_ids_that_differ_by_case_find_each_its_own(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for number, name in enumerate(("AbCdE", "abcde", "only")):
        write_numbered(tmp_path / "v" / f"{name}.mp4", EVEN[:10], first=number * 10)
    folders = VideoFolders([tmp_path / "v"])
    for name in ("AbCdE", "abcde"):
        assert folders.find(name).stem == folders.find(f"{name}.mp4").stem == name
    with pytest.raises(ValueError, match="2 files bear that name"):
        folders.find("ABCDE")
    assert folders.find("ONLY").stem == "only"
    # Where one has no file, the other's is not taken for it.
    report = find_videos(folders, {name: (f"{name}.mp4", ()) for name in ("only", "oNlY", "AbCdE")})
    assert list(report.found) == ["only", "AbCdE"]
    assert report.missing == {"oNlY": "not found (only.mp4 is another's)"}


def test_the_container_that_is_named_goes_before_another(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4"):
        write_numbered(tmp_path / name, EVEN[:10])
    folders = VideoFolders([tmp_path])
    assert folders.find("a.mp4").name == "a.mp4" and folders.find("a.mkv").name == "a.mkv"


# Names and playlists.


@pytest.mark.parametrize(
    "name",
    [
        "a:b.mp4",
        "http:x.mp4",
        "concat:a.mp4",
        "~backup.mp4",
        "one+two.mp4",
        "film?loop=3",
        "film?speed=2.mp4",
        "synthetic:3.mp4",
        "synthetic",
        "-x.mp4",
        "icons:0.mp4",
        "%03d.mp4",
    ],
)
def test_a_file_wins_by_its_literal_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.replace(write_numbered(tmp_path / "x.mp4", EVEN), tmp_path / name)
    assert numbers(open_haystack(name)) == EVERY_10TH
    assert len(open_haystack(f"{name}?loop=25")) == 25
    assert numbers(open_video(name, 2)) == [0, 99]
    if HAS_DECORD:
        assert numbers(open_haystack(name, decoder="decord")) == EVERY_10TH


@pytest.mark.parametrize("spec", ["ok.mp4+", "+ok.mp4", "ok.mp4++ok.mp4", "+", "ok.mp4 + ?loop=9", " "])
def test_an_empty_part_of_a_spec_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "ok.mp4", EVEN)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="has an empty part" if "+" in spec else "the haystack is empty"):
        open_haystack(spec)


def test_names_with_a_plus_are_joined_by_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a+b.mp4", "c.mp4")):
        write_numbered(tmp_path / name, EVEN[:20], first=number * 100)
    assert numbers(open_haystack("a+b.mp4+c.mp4")) == [0, 10, 100, 110]
    assert numbers(open_haystack("c.mp4+a+b.mp4?loop=5")) == [100, 110, 0, 10, 100]
    with pytest.raises(FileNotFoundError, match=r"no haystack at gone\.mp4"):
        open_haystack("c.mp4+gone.mp4")


def test_a_folder_called_synthetic_is_taken_only_if_it_holds_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    assert open_haystack("synthetic").endless
    Image.new("RGB", (8, 8)).save(tmp_path / "synthetic" / "1.png")
    assert len(open_haystack("synthetic")) == 1
    assert "is the" in capsys.readouterr().err


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nseg.ts\n#EXT-X-ENDLIST\n",
    "b.mp4": "\ufeff#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/seg.ts\n#EXT-X-ENDLIST\n",
    "c.txt": "ffconcat version 1.0\nfile seg.ts\n",
    "d.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
    "e.sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_numbered(tmp_path / "seg.ts", EVEN)
    (tmp_path / name).write_text(PLAYLISTS[name], encoding="utf-8", newline="")
    for opened in (lambda path: open_haystack(path), lambda path: open_video(path, 4)):
        with pytest.raises(ValueError, match="is a playlist that names other files"):
            opened(str(tmp_path / name))
    with pytest.raises(ValueError, match="playlist"):
        probe(tmp_path / name)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(FileNotFoundError, match="no haystack at"):
        open_haystack(str(tmp_path / "pipe.mp4"))
    (tmp_path / "a.txt").write_text("This is text, and no film. " * 200)
    with pytest.raises(ValueError, match="is text or raw bytes and not a video"):
        open_haystack(str(tmp_path / "a.txt"))


# decord.


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
@pytest.mark.parametrize("name", FORMATS)
def test_decord_gives_the_same_frames_or_refuses(tmp_path: Path, name: str) -> None:
    times = [number * 100 for number in range(60)] + [6000 + number * 700 for number in range(20)]
    path = write_numbered(tmp_path / name, times, codec=FORMATS[name])
    try:
        theirs = numbers(open_haystack(str(path), decoder="decord"))
    except ValueError as error:
        assert str(path) in str(error) and "pyav" in str(error)
    else:
        assert theirs == numbers(open_haystack(str(path))) == shown_at_each_second(times)


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_decord_is_refused_where_it_cannot_start_decoding(tmp_path: Path, shared: Path) -> None:
    import av

    path = tmp_path / "open.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=10, options={"x264-params": "keyint=12:open-gop=1:bframes=5:scenecut=0"}
        )
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(100):
            picture = np.random.default_rng(number).integers(0, 255, (64, 128, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    for file in (path, shared / "data" / "odd_files" / "07_edit_list.mp4"):
        with pytest.raises(ValueError, match="decord reads other frames"):
            open_haystack(str(file), decoder="decord")


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
@pytest.mark.parametrize("turn", [(-1, 0, 0, 1), (0, 1, -1, 0)], ids=["mirrored", "turned"])
def test_decord_is_refused_where_it_shows_a_picture_otherwise(tmp_path: Path, turn: tuple[int, ...]) -> None:
    path = write_numbered(tmp_path / "a.mp4", EVEN, first=1)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44  # the display matrix of the track
    a, b, c, d = (value << 16 for value in turn)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    ours = open_haystack(str(path)).frames(0, 10)
    try:
        theirs = open_haystack(str(path), decoder="decord").frames(0, 10)
    except ValueError as error:
        assert "decord reads other frames" in str(error)
    else:
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_decord_is_refused_where_frames_have_equal_times(tmp_path: Path) -> None:
    """Its seeks there end at one frame or the other, from one opening to the next."""
    path = write_numbered(tmp_path / "a.mkv", [0, 1000, 1000, 1000, *range(2000, 10_000, 1000)], b_frames=0)
    for _ in range(5):
        with pytest.raises(ValueError, match=r"2 frames have no later time than the one before, first frame 2\)"):
            open_haystack(str(path), decoder="decord")


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_a_clock_that_ends_decords_process_is_refused_before_it(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", [0] + [1_700_000_000_000 + time for time in EVEN])
    with pytest.raises(ValueError, match="jumps ahead"):
        open_haystack(str(path), decoder="decord")


# The files of others.


def test_odd_files_of_the_shared_folder(shared: Path) -> None:
    odd = shared / "data" / "odd_files"
    for case in json.loads((odd / "expected.json").read_text())["videos"]:
        if "num" in case:
            haystack = open_haystack(str(odd / case["file"]))
            assert len(haystack) == case["num"], case["file"]
            assert numbers(haystack)[: len(case["first"])] == case["first"], case["file"]
            assert probe(odd / case["file"]).duration_s > 0


def test_odd_pictures_and_annotations_of_the_shared_folder(shared: Path) -> None:
    odd = shared / "data" / "odd_files"
    expected = json.loads((odd / "expected.json").read_text())
    for case in expected["images"]:
        haystack = open_haystack(str(odd / case["folder"]))
        greys = haystack.frames(0, len(haystack)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(greys, case["grey"], atol=1)
    for folder in expected["needles"]:
        assert open_needles(str(odd / folder)).ids
    for path in sorted(odd.glob("28*")):
        if path.suffix == ".json":
            assert read_json(path)
        else:
            assert list(read_json_lines(path))
