"""Frame embeddings: encoded once, bounded in memory and on disk, mended when damaged, never taken for others."""

from __future__ import annotations

import gc
import os
import re
import shutil
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ring_processes
import tiny_backends as tiny
import torch

from longva_model.engine.atoms import AtomTable, Lowered, Series
from longva_model.engine.engine import TreeEngine
from longva_model.frames import block_store, embeddings
from longva_model.frames.block_store import BLOCK, BlockStore
from longva_model.frames.embeddings import FrameEmbeddings, Reach, reach
from longva_model.run import processes
from vniah.contract.requests import Frames, Request, Target, Text
from vniah.haystack import base, open_haystack
from vniah.notices import recorded
from vniah.runs.progress import Bar

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class CountingFrames(tiny.NoiseFrames):  # type: ignore[misc]
    """Notes which frames are asked for; a longer one continues a shorter one, as looped haystacks do."""

    def __init__(self, count: int, seed: int = 0, fingerprint: str = "film", fails_at: int | None = None) -> None:
        super().__init__(count, seed)
        self._frames = np.random.default_rng(seed).integers(0, 256, (1000, 4, 4, 3), dtype=np.uint8)[:count]
        self.fingerprint = fingerprint
        self.fails_at = fails_at
        self.asked: list[tuple[int, int]] = []
        self.readers: set[str] = set()

    def frames(self, start: int, stop: int) -> Any:
        self.asked.append((start, stop))
        self.readers.add(threading.current_thread().name)
        if self.fails_at is not None and start <= self.fails_at < stop:
            raise ValueError(f"frame {self.fails_at} cannot be decoded")
        return super().frames(start, stop)


@pytest.fixture
def backend() -> Any:
    return tiny.TinyBackend(tokens_per_frame=2)


def expected(backend: Any, source: Any, start: int, stop: int) -> torch.Tensor:
    """The definition: every frame through the tower."""
    flat = torch.from_numpy(source._frames[start:stop].copy()).float().div(255).flatten(1)
    tokens: torch.Tensor = (flat @ backend.frame_map).view(stop - start, backend.tokens_per_frame, -1)
    return tokens


def read(frames: FrameEmbeddings, source: Any, start: int, stop: int, preprocess: str = "pad") -> torch.Tensor:
    return torch.cat(list(frames.get(source, start, stop, preprocess)))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


RANGES = [(0, 1), (0, 64), (0, 200), (63, 65), (64, 128), (100, 101), (130, 200), (199, 200)]


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_any_range_is_what_the_tower_gives(backend: Any, tmp_path: Path, on_disk: bool, batch_size: int) -> None:
    source = CountingFrames(200)
    for start, stop in RANGES:
        fresh = FrameEmbeddings(backend, tmp_path / f"{start}-{stop}" if on_disk else None, batch_size=batch_size)
        kept = FrameEmbeddings(backend, tmp_path / "kept" if on_disk else None, batch_size=batch_size)
        for frames in (fresh, kept, kept):
            torch.testing.assert_close(read(frames, source, start, stop), expected(backend, source, start, stop))
    with pytest.raises(ValueError, match="frames up to 201 are asked of a source that has 200"):
        read(fresh, source, 0, 201)


def test_a_run_that_was_interrupted_goes_on_at_its_block(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(200)
    first = FrameEmbeddings(backend, tmp_path).get(source, 0, 200, "pad")
    next(first), next(first)
    first.close()
    assert len(files(tmp_path)) == 2
    again = CountingFrames(200)
    frames = FrameEmbeddings(backend, tmp_path)
    torch.testing.assert_close(read(frames, again, 0, 200), expected(backend, again, 0, 200))
    assert min(start for start, _ in again.asked) == 2 * BLOCK
    assert frames.frames_encoded == 200 - 2 * BLOCK


def asks(source: Any, *spans: tuple[int, int]) -> Reach:
    """How far prompts that show these frames read their source."""
    table = AtomTable()
    film = Series(name=source.fingerprint, fitted="pad", tokens=3, source=source)
    return reach(table, [Lowered.of([table.codes(film, *span)], table) for span in spans])


def test_what_will_be_asked_for_is_encoded_in_one_go(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []
    monkeypatch.setattr(embeddings, "Bar", lambda **options: bars.append(Bar(**options)) or bars[-1])  # type: ignore[func-returns-value]
    source = CountingFrames(300)
    frames = FrameEmbeddings(backend, tmp_path, show=True)
    frames.expect(asks(source, (0, 40), (40, 100), (40, 250)))
    torch.testing.assert_close(read(frames, source, 0, 40), expected(backend, source, 0, 40))
    assert frames.frames_encoded == 256 and len(files(tmp_path)) == 4
    assert [(bar.n, bar.total) for bar in bars] == [(256, 256)]
    asked = len(source.asked)
    torch.testing.assert_close(read(frames, source, 40, 250), expected(backend, source, 40, 250))
    assert len(source.asked) == asked
    read(frames, source, 250, 300)
    assert frames.frames_encoded == 300


def test_what_the_disk_would_not_keep_is_encoded_as_it_is_asked_for(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(300)
    block_bytes = BLOCK * backend.tokens_per_frame * backend.shape.hidden * backend.dtype.itemsize
    for folder, limit in ((None, 10**9), (tmp_path, 6 * block_bytes)):
        frames = FrameEmbeddings(backend, folder, limit)
        frames.expect(asks(source, (0, 300)))
        read(frames, source, 0, 40)
        assert frames.frames_encoded == BLOCK


class Alive:
    """How many of the tensors that were noted live at once, at the most; with ``rows``, how many rows they have."""

    def __init__(self, rows: bool = False) -> None:
        self.rows = rows
        self.noted: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.noted.append(weakref.ref(tensor))
        alive = [one for reference in self.noted if (one := reference()) is not None]
        self.most = max(self.most, sum(map(len, alive)) if self.rows else len(alive))
        return tensor


def test_memory_holds_a_few_batches_and_blocks_and_never_the_film(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    pixels, blocks = Alive(), Alive()
    fit, encode = backend.pixels, backend.encode_pixels

    def counting_encode(pixels_NHWC: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels_NHWC))
        time.sleep(0.002)  # the thread may run ahead
        encoded: torch.Tensor = encode(pixels_NHWC)
        return encoded

    backend.pixels = lambda frames_NHWC, preprocess: pixels.note(fit(frames_NHWC, preprocess).clone())
    backend.encode_pixels = counting_encode
    source = CountingFrames(1000)
    frames = FrameEmbeddings(backend, tmp_path, batch_size=8)
    remember = frames._remember

    def counting_remember(key: str, index: int, tokens_NtD: torch.Tensor) -> None:
        remember(key, index, tokens_NtD)
        blocks.note(tokens_NtD)

    frames._remember = counting_remember  # type: ignore[method-assign]
    monkeypatch.setattr(embeddings, "_MEMORY_BYTES", 8 * BLOCK * backend.tokens_per_frame * backend.shape.hidden * 4)
    for _ in range(2):
        for _piece in frames.get(source, 0, 1000, "pad"):
            pass
    assert max(batches) == 8
    assert max(stop - start for start, stop in source.asked) == 8
    # Two in the queue, one in the thread's hands, one in the tower, and one on its way between.
    assert pixels.most <= 5
    gc.collect()
    assert blocks.most <= 8 + 2
    assert sum(batches) == 1000


def test_the_least_recently_used_blocks_go_first(backend: Any, tmp_path: Path) -> None:
    old, new = CountingFrames(3 * BLOCK, fingerprint="old"), CountingFrames(3 * BLOCK, seed=1, fingerprint="new")
    read(FrameEmbeddings(backend, tmp_path), old, 0, 3 * BLOCK)
    size = files(tmp_path)[0].stat().st_size
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (1e9 + age, 1e9 + age))
    # Used again: no longer the oldest.
    read(FrameEmbeddings(backend, tmp_path), old, 0, 1)
    frames = FrameEmbeddings(backend, tmp_path, max_bytes=int(4.5 * size))
    read(frames, new, 0, 3 * BLOCK)
    left = {
        path.parent.name: [int(p.stem) for p in files(tmp_path) if p.parent == path.parent] for path in files(tmp_path)
    }
    assert sorted(map(len, left.values())) == [1, 3]
    assert [0] in left.values()
    torch.testing.assert_close(read(frames, old, 0, 3 * BLOCK), expected(backend, old, 0, 3 * BLOCK))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 4.5 * size


def test_a_limit_below_one_block_keeps_the_newest_and_stays_right(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(5 * BLOCK)
    frames = FrameEmbeddings(backend, tmp_path, max_bytes=1)
    for _ in range(2):
        torch.testing.assert_close(read(frames, source, 0, 5 * BLOCK), expected(backend, source, 0, 5 * BLOCK))
    assert len(files(tmp_path)) == 1


def test_the_limit_holds_when_other_processes_fill_the_folder(tmp_path: Path) -> None:
    block = torch.zeros(BLOCK, 1, 16)
    size = block.nbytes
    stores = [BlockStore(tmp_path, 20 * size) for _ in range(3)]
    for number in range(40):
        for which, store in enumerate(stores):
            store.store(f"film{which}", number, block)
    assert sum(path.stat().st_size for path in files(tmp_path)) < 20 * size + 3 * 16 * size + 40 * 200


DAMAGES = [
    "cut",
    "garbage",
    "empty",
    "other rows",
    "zeroed",
    "one bit",
    "swapped",
    "another film's",
    "no checksum",
    "dtype",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_made_anew(backend: Any, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    source = CountingFrames(200)
    read(FrameEmbeddings(backend, tmp_path), source, 0, 200)
    read(FrameEmbeddings(backend, tmp_path), CountingFrames(200, seed=9, fingerprint="another"), 0, 200)
    key = FrameEmbeddings(backend, tmp_path)._key(source, "pad")
    path = tmp_path / key / "000001.safetensors"
    whole = path.read_bytes()
    length = len(whole)
    (other,) = [folder for folder in tmp_path.iterdir() if folder.name != key]
    tokens = load_file(path)["tokens"]
    if damage == "other rows":
        save_file({"tokens": torch.zeros(3, 2, 32)}, path)
    elif damage == "no checksum":
        save_file({"tokens": tokens}, path)
    elif damage == "dtype":
        path.write_bytes(whole.replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    else:
        damaged = {
            "cut": whole[:-100],
            "garbage": os.urandom(length),
            "empty": b"",
            "zeroed": whole[: length // 2] + bytes(length - length // 2),
            "one bit": whole[: length - 77] + bytes([whole[length - 77] ^ 1]) + whole[length - 76 :],
            "swapped": (tmp_path / key / "000000.safetensors").read_bytes(),
            "another film's": (other / "000001.safetensors").read_bytes(),
        }
        path.write_bytes(damaged[damage])
    frames = FrameEmbeddings(backend, tmp_path)
    torch.testing.assert_close(read(frames, source, 0, 200), expected(backend, source, 0, 200))
    assert frames.frames_encoded == BLOCK
    assert path.read_bytes() == whole
    assert sum("do not match their checksum" in line for line in recorded()) == 1


def test_a_block_of_the_tower_that_is_being_written_is_no_left_over(tmp_path: Path) -> None:
    """Whatever the clock says: a file that looks hours old is one in use while its writer lives."""
    store = BlockStore(tmp_path, 10**9)
    with store._part(tmp_path / "key") as part:
        os.utime(part, (1e9, 1e9))
        store.store("key", 0, torch.zeros(3, 2, 4))
        assert part.exists()
    assert not part.exists()


def test_a_block_that_goes_while_it_is_wanted_is_made_anew(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(200)
    read(FrameEmbeddings(backend, tmp_path), source, 0, 200)
    pieces = FrameEmbeddings(backend, tmp_path).get(source, 0, 200, "pad")
    first = next(pieces)
    for path in files(tmp_path):
        path.unlink()
    torch.testing.assert_close(torch.cat([first, *pieces]), expected(backend, source, 0, 200))


def test_a_film_that_grew_does_not_take_its_old_end_for_a_whole_block(backend: Any, tmp_path: Path) -> None:
    short, long = CountingFrames(100), CountingFrames(180)
    assert short.fingerprint == long.fingerprint
    for folder in (tmp_path, None):
        frames = FrameEmbeddings(backend, folder)
        for source in (short, long, short):
            torch.testing.assert_close(read(frames, source, 0, len(source)), expected(backend, source, 0, len(source)))
        # The first block serves both; the shorter one's end is kept beside the longer one's.
        assert frames.frames_encoded == 100 + (180 - BLOCK)


def test_what_decides_a_frames_tokens_keeps_them_apart(tmp_path: Path) -> None:
    source = CountingFrames(10)
    for name in ("weights", "dtype", "preprocess", "source"):
        ours, other = tiny.TinyBackend(tokens_per_frame=2), tiny.TinyBackend(tokens_per_frame=2)
        preprocess, film = "pad", source
        if name == "weights":
            other.fingerprint = "tiny-other"
        elif name == "dtype":
            other.decoder.to(torch.bfloat16)
        elif name == "preprocess":
            preprocess = "crop"
        else:
            film = CountingFrames(10, seed=1, fingerprint="another film")
        read(FrameEmbeddings(ours, tmp_path), source, 0, 10)
        frames = FrameEmbeddings(other, tmp_path)
        assert frames.missing(film, [0], preprocess) == [0], name
        read(frames, film, 0, 10, preprocess)
        assert frames.frames_encoded == 10


def test_an_error_of_the_decoder_is_raised_and_what_was_done_is_kept(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(200, fails_at=140)
    with pytest.raises(ValueError, match="frame 140 cannot be decoded"):
        read(FrameEmbeddings(backend, tmp_path), source, 0, 200)
    assert len(files(tmp_path)) == 2
    no_thread_is_left()
    assert "decode frames_0" in source.readers


def test_an_error_of_the_tower_ends_the_thread(backend: Any) -> None:
    def broken(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    backend.encode_pixels = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        read(FrameEmbeddings(backend), CountingFrames(200), 0, 200)
    no_thread_is_left()


def test_closing_early_ends_the_thread(backend: Any) -> None:
    pieces = FrameEmbeddings(backend, batch_size=4).get(CountingFrames(1000), 0, 1000, "pad")
    next(pieces)
    assert any(thread.name == "decode frames_0" for thread in threading.enumerate())
    pieces.close()
    no_thread_is_left()


def no_thread_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if " frames" in thread.name]


class ManyReaders(CountingFrames):
    """Can be read at several places at once."""

    def reader(self) -> ManyReaders:
        other = ManyReaders.__new__(ManyReaders)
        other.__dict__.update(self.__dict__)
        return other


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_a_film_that_is_read_at_several_places_comes_in_order(backend: Any, batch_size: int) -> None:
    source = ManyReaders(1000)
    frames = FrameEmbeddings(backend, batch_size=batch_size)
    for start, stop in [(0, 1000), (100, 101), (70, 640)]:
        torch.testing.assert_close(read(frames, source, start, stop), expected(backend, source, start, stop))
    assert "read frames_0" in source.readers
    assert sorted(source.asked) == sorted(
        (start, min(start + batch_size, stop))
        for block in range(0, 1000, BLOCK)
        for stop in [min(block + BLOCK, 1000)]
        for start in range(block, stop, batch_size)
    )
    no_thread_is_left()


@pytest.mark.usefixtures("four_cores")
def test_several_readers_hold_a_block_each(backend: Any, tmp_path: Path) -> None:
    pixels, fit = Alive(rows=True), backend.pixels
    backend.pixels = lambda frames_NHWC, preprocess: pixels.note(fit(frames_NHWC, preprocess).clone())
    for _ in FrameEmbeddings(backend, tmp_path, batch_size=8).get(ManyReaders(1000), 0, 1000, "pad"):
        time.sleep(0.01)  # the threads may run ahead
    assert 4 * 8 < pixels.most <= 4 * (BLOCK + 2 * 8) + 8


@pytest.mark.usefixtures("four_cores")
def test_large_frames_are_read_a_few_at_a_time(backend: Any) -> None:
    source = ManyReaders(200)
    source.size = (2160, 3840)
    batches: list[int] = []
    encode = backend.encode_pixels

    def counting_encode(pixels_NHWC: torch.Tensor) -> torch.Tensor:
        batches.append(len(pixels_NHWC))
        encoded: torch.Tensor = encode(pixels_NHWC)
        return encoded

    backend.encode_pixels = counting_encode
    torch.testing.assert_close(read(FrameEmbeddings(backend), source, 0, 200), expected(backend, source, 0, 200))
    assert max(stop - start for start, stop in source.asked) == 2
    assert max(batches) == 16


@pytest.mark.usefixtures("four_cores")
def test_errors_and_closing_end_every_reader(backend: Any) -> None:
    with pytest.raises(ValueError, match="frame 300 cannot be decoded"):
        read(FrameEmbeddings(backend), ManyReaders(1000, fails_at=300), 0, 1000)
    no_thread_is_left()
    pieces = FrameEmbeddings(backend).get(ManyReaders(1000), 0, 1000, "pad")
    next(pieces)
    assert sum(thread.name == "read frames_0" for thread in threading.enumerate()) == 4
    pieces.close()
    no_thread_is_left()


def test_a_video_read_at_several_places_has_the_same_frames(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video_files import write_video

    path = write_video(tmp_path / "film.mp4", num_frames=4 * 300)
    monkeypatch.setattr(base, "KEPT_LAP_BYTES", 0)
    plain = FrameEmbeddings(backend)
    for spec in (str(path), f"{path}?loop=700", f"{path}+{path}"):
        for decoder in ("pyav", "pyav-fast"):
            haystack = open_haystack(spec, decoder=decoder)
            assert haystack.approximate == (decoder == "pyav-fast")
            assert haystack.reader() is not None
            monkeypatch.setattr(os, "cpu_count", lambda: 1)
            one = read(plain, haystack, 0, len(haystack))
            monkeypatch.setattr(os, "cpu_count", lambda: 3)
            several = FrameEmbeddings(backend)
            assert torch.equal(read(several, haystack, 0, len(haystack)), one)
            assert several.frames_encoded == len(haystack)


def test_a_full_disk_is_a_warning_and_what_is_there_is_read_on(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = CountingFrames(300)
    read(FrameEmbeddings(backend, tmp_path), source, 0, 2 * BLOCK)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(block_store, "save_file", full)
    frames = FrameEmbeddings(backend, tmp_path)
    torch.testing.assert_close(read(frames, source, 0, 300), expected(backend, source, 0, 300))
    (told,) = recorded()
    assert re.search("not kept on disk: .*No space left", told) and told in capsys.readouterr().err
    assert frames.frames_encoded == 300 - 2 * BLOCK
    assert not list(tmp_path.glob("*/*.part"))


def test_the_last_of_a_disk_is_left_to_results(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(total=1 << 40, free=(1 << 28) + 9))
    source = CountingFrames(100)
    torch.testing.assert_close(
        read(FrameEmbeddings(backend, tmp_path), source, 0, 100), expected(backend, source, 0, 100)
    )
    assert re.search("not kept on disk: .*nearly full", "\n".join(recorded()))
    assert not list(tmp_path.glob("*/*"))


def test_left_overs_of_killed_processes_are_removed_when_old(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "gone").mkdir()
    old, young = tmp_path / "key/old.part", tmp_path / "key/young.part"
    for path in (old, young):
        path.write_bytes(b"half a block")
    os.utime(old, (1e9, 1e9))
    read(FrameEmbeddings(backend, tmp_path), CountingFrames(10), 0, 10)
    assert not old.exists() and young.exists()
    assert not (tmp_path / "gone").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to become another user")
def test_a_cache_that_may_only_be_read_is_read(backend: Any, tmp_path: Path) -> None:
    source = CountingFrames(100)
    read(FrameEmbeddings(backend, tmp_path), source, 0, 100)
    store = BlockStore(tmp_path, 10**9)
    path = files(tmp_path)[0]
    path.parent.chmod(0o555)
    path.chmod(0o444)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == 0 and str(folder) not in ("/", "/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    child = os.fork()
    if not child:
        os.setuid(65534)
        found = store.load(path.parent.name, 0, BLOCK) is not None
        try:
            os.utime(path)
        except PermissionError:
            os._exit(0 if found else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Forked behind the imports, which take seconds.
def read_beside(folder: Path, name: str) -> None:
    """Keep and read a dozen films beside another process: with room for all, then for a block and a half."""
    backend = tiny.TinyBackend(tokens_per_frame=2)
    for room, max_bytes in (("roomy", 10**9), ("narrow", 25_000)):
        (folder / f"ready-{room}-{name}").touch()
        while len(list(folder.glob(f"ready-{room}-*"))) < 2:
            time.sleep(0.005)
        for number in range(12):
            source = CountingFrames(300, seed=number, fingerprint=f"film {number}")
            frames = FrameEmbeddings(backend, folder / room, max_bytes)
            torch.testing.assert_close(read(frames, source, 0, 300), expected(backend, source, 0, 300))
            assert frames.store.writable


def test_two_processes_at_once(backend: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With room for all; and for a block and a half, where each removes what the other has just written."""
    child = ring_processes.fork(lambda: read_beside(tmp_path, "child"))
    try:
        read_beside(tmp_path, "parent")
    finally:
        _, ended = os.waitpid(child, 0)
    said = capfd.readouterr().err
    assert ended == 0 and "vniah: warning" not in said, said
    source = CountingFrames(300, seed=5, fingerprint="film 5")
    frames = FrameEmbeddings(backend, tmp_path / "roomy")
    torch.testing.assert_close(read(frames, source, 0, 300), expected(backend, source, 0, 300))
    assert frames.frames_encoded == 0
    assert not list(tmp_path.glob("*/*/*.part"))
    assert len(files(tmp_path / "narrow")) <= 2


# On the device


class OnMeta(tiny.TinyBackend):  # type: ignore[misc]
    """Its frames are to be on a device that is not the host, and no GPU is needed for it."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")


def test_blocks_are_copied_to_the_device_once_and_leave_with_the_walk(tmp_path: Path) -> None:
    film = CountingFrames(5 * BLOCK)
    frames = FrameEmbeddings(OnMeta(tokens_per_frame=2), tmp_path)
    block = BLOCK * 2 * frames.backend.shape.hidden * 4

    def copies(*spans: tuple[int, int]) -> int:
        before = frames.copies_to_device
        for start, stop in spans:
            pieces = list(frames.get(film, start, stop, "pad"))
            assert sum(map(len, pieces)) == stop - start and {piece.device.type for piece in pieces} == {"meta"}
        return frames.copies_to_device - before

    with frames.staying(5 * block):
        # The cells of a film: all of it, then what is behind each needle.
        assert copies((0, 5 * BLOCK), *((depth, 5 * BLOCK) for depth in range(0, 5 * BLOCK, BLOCK // 2))) == 5
        assert sum(held.nbytes for held in frames._on_device.values()) == 5 * block
    assert not frames._on_device
    assert copies((0, 5 * BLOCK), (BLOCK, 5 * BLOCK)) == 9
    with frames.staying(2 * block + 1):
        assert copies((0, 3 * BLOCK)) == 3
        assert sum(held.nbytes for held in frames._on_device.values()) == 2 * block
        # Blocks 1 and 2 are there; 1 is asked for, so 2 goes for 0.
        assert copies((BLOCK, BLOCK + 1), (0, 1), (BLOCK, BLOCK + 1)) == 1
        assert copies((2 * BLOCK, 2 * BLOCK + 1)) == 1
    with frames.staying(block - 1):
        assert copies((0, 1), (0, 1)) == 2 and not frames._on_device
    assert frames.frames_encoded == 5 * BLOCK


def test_the_device_is_let_go_after_an_error(tmp_path: Path) -> None:
    frames = FrameEmbeddings(OnMeta(tokens_per_frame=2))
    with pytest.raises(RuntimeError, match="of the walk"), frames.staying(1 << 30):
        list(frames.get(CountingFrames(BLOCK), 0, BLOCK, "pad"))
        assert frames._on_device
        raise RuntimeError("of the walk")
    assert not frames._on_device


def test_on_the_host_nothing_is_copied_nor_held_twice(backend: Any, tmp_path: Path) -> None:
    film, frames = CountingFrames(2 * BLOCK), FrameEmbeddings(backend, tmp_path)
    with frames.staying(1 << 30):
        pieces = [piece for _ in range(2) for piece in frames.get(film, 0, 2 * BLOCK, "pad")]
    assert frames.copies_to_device == 0 and not frames._on_device
    assert pieces[0].data_ptr() == pieces[2].data_ptr()


def test_a_walk_keeps_what_it_has_shown(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """The engine lets blocks stay while it runs, within a quarter of what keys and values leave of a device."""
    asked: list[int] = []
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    staying = engine.feeder.frames.staying
    monkeypatch.setattr(engine.feeder.frames, "staying", lambda most: (asked.append(most), staying(most))[1])
    film = CountingFrames(3)
    segments = (Text("see "), Frames(film.fingerprint, 0, 3))
    prompts = tiny.prompts([Request(segments, Target("a"))], {film.fingerprint: film})
    engine.run(prompts)
    assert asked == [0]
    batch = engine.lower(prompts)
    monkeypatch.setattr(type(backend), "device", torch.device("cuda", 0))
    monkeypatch.setattr(processes, "free_bytes", lambda device: 1_000_000)
    kv = batch.lowered[0].tokens * backend.shape.kv_bytes_per_token
    assert 0 < kv < 1_000_000 and engine._spare_bytes(batch) == (1_000_000 - kv) // 4
    monkeypatch.setattr(processes, "free_bytes", lambda device: 1)
    assert engine._spare_bytes(batch) == 0
