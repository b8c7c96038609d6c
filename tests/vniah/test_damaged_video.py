"""Videos with a hole: a prompt's is shown as far as it decodes, a haystack's is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from video_files import write_video

from vniah.haystack import open_haystack, open_video
from vniah.tasks.videos.source import probe

FRAMES, GROUP = 40, 4  # frames of the film, and of a group of pictures


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", num_frames=FRAMES, fps=1)


def erase(path: Path, frames: Iterable[int]) -> Path:
    """Zeros in place of those frames' packets."""
    import av

    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for frame in frames:
        at, size = places[frame]
        assert at is not None
        content[at : at + size] = bytes(size)
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(content)
    return damaged


@pytest.mark.parametrize(
    ("lost", "stand_in"),
    [(range(20, 24), 19), (range(4), 4), (range(36, 40), 35)],
    ids=["middle", "beginning, where what comes first stands in", "end"],
)
def test_the_frame_before_stands_in(film: Path, lost: range, stand_in: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = open_video(film, FRAMES).frames(0, FRAMES)
    path = erase(film, lost)
    damaged = open_video(path, FRAMES)
    found = damaged.frames(0, FRAMES)
    shown = [stand_in if at in lost else at for at in range(FRAMES)]
    np.testing.assert_array_equal(found, whole[shown])
    assert [record.message for record in caplog.records] == [
        f"{path} is damaged: where a frame cannot be decoded, the one before it is shown"
    ]
    # In pieces, out of order and sampled: the same frames.
    np.testing.assert_array_equal(damaged.frames(18, 26), found[18:26])
    np.testing.assert_array_equal(damaged.frames(2, 5), found[2:5])
    few = open_video(path, 5)
    np.testing.assert_array_equal(few.frames(0, 5), found[np.linspace(0, FRAMES - 1, 5, dtype=int)])


def test_a_haystack_with_a_hole_is_refused(film: Path) -> None:
    haystack = open_haystack(str(erase(film, range(20, 24))))
    with pytest.raises(ValueError, match="the file is damaged, fetch or copy it again"):
        haystack.frames(0, FRAMES)


def test_a_video_without_any_frame_is_an_error(film: Path) -> None:
    with pytest.raises(ValueError, match="could be read"):
        open_video(erase(film, range(FRAMES)), 8)


def test_bytes_missing_behind_the_last_frame_count_as_broken(film: Path) -> None:
    """Otherwise the film would be found to be short only when a model opens it."""
    content = film.read_bytes()
    film.write_bytes(content[:-3])
    with pytest.raises(ValueError, match=r"does not open|ends before|3 of its bytes are missing"):
        probe(film)
    with pytest.raises(ValueError, match="3 of its bytes are missing"):
        open_video(film, 8)


def test_a_frame_that_the_decoder_made_up_is_no_frame_of_a_haystack(tmp_path: Path) -> None:
    """Some codecs fill what is damaged from what lies around it."""
    import av

    path = write_video(tmp_path / "film.avi", num_frames=FRAMES, fps=1)
    whole = open_haystack(str(path)).frames(0, FRAMES)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    at, size = places[20]
    content = bytearray(path.read_bytes())
    content[at + size // 2 : at + size // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    np.testing.assert_array_equal(open_haystack(str(path)).frames(0, 20), whole[:20])
    # From the next key frame on all is well; in noise each frame is one.
    np.testing.assert_array_equal(open_haystack(str(path)).frames(21, FRAMES), whole[21:])
    with pytest.raises(ValueError, match="the file is damaged"):
        open_haystack(str(path)).frames(20, 21)
