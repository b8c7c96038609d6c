"""Finding and probing videos, and unpacking the archives they come in; every fault is a report, not an error."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from video_files import cut, write_video

from vniah.tasks.videos.archives import unpack_archives
from vniah.tasks.videos.source import VideoFolders, VideoSource, find_videos, load_once, matching, probe, read_rows


def test_probe_reads_length_and_rate(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", num_frames=20, fps=5))
    assert info.duration_s == pytest.approx(4.0)
    assert info.fps == pytest.approx(5.0)


@pytest.mark.parametrize("content", [b"", b"this is no video" * 100], ids=["empty", "garbage"])
def test_what_is_no_video_does_not_open(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not open"):
        probe(path)


@pytest.mark.parametrize(
    ("faststart", "reason"),
    [
        (False, "does not open"),
        # The header is whole and promises frames that are not there.
        (True, "ends before its header says"),
    ],
)
def test_a_download_that_broke_off_is_found_out(tmp_path: Path, faststart: bool, reason: str) -> None:
    path = cut(write_video(tmp_path / "half.mp4", num_frames=40, faststart=faststart), 0.5)
    with pytest.raises(ValueError, match=reason):
        probe(path)


def test_a_directory_or_vanished_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not open"):
        probe(tmp_path)
    with pytest.raises(ValueError, match="does not open"):
        probe(tmp_path / "gone.mp4")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("zoo/one.mp4", "plot/1.mp4", "summary/1.mkv", "deep/er/Two.MP4", "x/1.final.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "notes.txt").write_text("no video")
    return root


@pytest.mark.parametrize(
    ("name", "folders", "found"),
    [
        ("one.mp4", (), "zoo/one.mp4"),
        ("one", (), "zoo/one.mp4"),
        ("zoo/one.webm", (), "zoo/one.mp4"),
        ("ZOO\\ONE.mp4", (), "zoo/one.mp4"),
        ("two.mp4", (), "deep/er/Two.MP4"),
        ("1.mp4", ("plot",), "plot/1.mp4"),
        ("1.mp4", ("9_summary", "summary"), "summary/1.mkv"),
        ("plot/1.mp4", ("summary",), "plot/1.mp4"),
        ("somewhere/plot/1.mp4", (), "plot/1.mp4"),
        ("1.final.mp4", (), "x/1.final.mp4"),
        ("1.final", (), "x/1.final.mp4"),
    ],
)
def test_names_are_found_as_annotations_write_them(
    library: Path, name: str, folders: tuple[str, ...], found: str
) -> None:
    assert VideoFolders([library]).find(name, folders) == library / found


@pytest.mark.parametrize("name", ["../videos/zoo/one.mp4", "/etc/one.mp4", "zoo/../../one.mp4", "..", ""])
def test_a_name_that_leaves_the_folder_finds_nothing(library: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leave"):
        VideoFolders([library]).find(name)


def test_two_files_of_one_name_are_not_guessed_between(library: Path) -> None:
    with pytest.raises(ValueError, match="2 files bear that name"):
        VideoFolders([library]).find("1.mp4")


def test_a_linked_folder_is_searched_once_and_circles_end(library: Path, tmp_path: Path) -> None:
    (library / "loop").symlink_to(library, target_is_directory=True)
    elsewhere = write_video(tmp_path / "disk2" / "three.mp4")
    (library / "more").symlink_to(elsewhere.parent, target_is_directory=True)
    folders = VideoFolders([library])
    assert folders.find("three.mp4").resolve() == elsewhere
    assert len(folders) == 6


def test_one_file_reached_by_two_roots_is_one_file(library: Path) -> None:
    assert VideoFolders([library, library / "zoo"]).find("x/one.mp4") == library / "zoo" / "one.mp4"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        VideoFolders([tmp_path / "nowhere"])


def test_missing_and_broken_videos_are_a_report(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    wanted = {name: (f"{name}.mp4", ()) for name in ("good", "bad", "gone")}
    report = find_videos(VideoFolders([tmp_path]), wanted)
    assert list(report.found) == ["good"]
    assert report.found["good"].path == tmp_path / "good.mp4"
    assert report.missing["gone"] == "not found"
    assert "does not open" in report.missing["bad"]
    assert report.summary().startswith("2 of 3 videos missing or broken: bad (it does not open")
    assert report.summary(limit=1).endswith("; and 1 more")


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_archives_are_unpacked_once_and_a_bad_one_is_a_line(tmp_path: Path) -> None:
    good = zipped(tmp_path / "part_1.zip", {"data/a.mp4": b"a"})
    evil = zipped(tmp_path / "part_2.zip", {"data/b.mp4": b"b", "../../escaped.mp4": b"out"})
    torn = tmp_path / "part_3.zip"
    torn.write_bytes(good.read_bytes()[:40])
    dest = tmp_path / "deep" / "unpacked"
    folders, problems = unpack_archives([good, evil, torn], dest)
    assert (dest / "part_1" / "data" / "a.mp4").read_bytes() == b"a"
    assert len(problems) == 2 and "escaped" in problems[0] and "part_3" in problems[1]
    assert not list(tmp_path.rglob("escaped.mp4")) and not list(tmp_path.rglob("b.mp4"))
    assert folders == [dest / "part_1"]

    # A second run does not open the archive again, and so works without it being whole.
    before = (dest / "part_1" / "data" / "a.mp4").stat().st_mtime_ns
    content = good.read_bytes()
    good.write_bytes(b"x" * len(content))
    assert unpack_archives([good], dest) == ([dest / "part_1"], [])
    assert (dest / "part_1" / "data" / "a.mp4").stat().st_mtime_ns == before


def test_no_archive_ends_the_run_for_the_others(tmp_path: Path) -> None:
    stamped = zipped(tmp_path / "stamp.zip", {".unpacked": b"\xff\xfe", "z.mp4": b"z" * 99})
    raw = bytearray(stamped.read_bytes())
    raw[raw.index(b"z" * 99) + 5] ^= 1  # damaged further on
    stamped.write_bytes(raw)
    bad = {
        "long.zip": zipped(tmp_path / "long.zip", {"a" * 300: b"x"}),
        "inside.zip": zipped(tmp_path / "inside.zip", {".unpacked/x": b"x"}),
        "stamp.zip": stamped,
        "gone.zip": tmp_path / "gone.zip",
    }
    good = zipped(tmp_path / "good.zip", {"a.mp4": b"a"})
    for _ in range(2):
        folders, problems = unpack_archives([*bad.values(), good], tmp_path / "out")
        assert len(problems) == len(bad) and all(name in line for name, line in zip(bad, problems, strict=True))
        assert tmp_path / "out" / "good" in folders


def test_archives_that_are_called_alike_do_not_share_a_folder(tmp_path: Path) -> None:
    names = ["videos.part1.zip", "videos.part2.zip", "b/c.zip", "d/c.zip"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        zipped(tmp_path / name, {f"{number}.mp4": b"%d" % number})
    folders, problems = unpack_archives([tmp_path / name for name in names], tmp_path / "out")
    assert not problems and len(set(folders)) == 4
    assert [path.name for folder in folders for path in folder.glob("*.mp4")] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]


def test_rows_are_read_from_each_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "q", "options": ["a", "b"]}, {"question": "é", "options": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text('[{"question": "q", "options": ["a", "b"]}, {"question": "é", "options": []}]')
    (tmp_path / "a.jsonl").write_text('{"question": "q", "options": ["a", "b"]}\n\n{"question": "é", "options": []}\n')
    assert read_rows(tmp_path / "a.parquet") == rows
    assert read_rows(tmp_path / "a.json") == rows
    assert read_rows(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "{"), ("a.json", '{"a": 1}'), ("a.jsonl", "[1]"), ("a.parquet", "no"), ("a.csv", "a,b")],
)
def test_annotations_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=name):
        read_rows(path)


def test_files_are_matched_by_the_end_of_their_path(tmp_path: Path) -> None:
    for name in ("json/1_plotQA.json", "json/9_summary.json", "other.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    assert [path.name for path in matching(tmp_path, ("json/[1-7]_*.json",))] == ["1_plotQA.json"]
    assert len(matching(tmp_path, ("json/*.json", "*.json"))) == 3


def test_an_environment_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = VideoSource(env="SOME_VIDEOS", hub_id="org/set")
    monkeypatch.delenv("SOME_VIDEOS", raising=False)
    assert source.local_folder() is None
    monkeypatch.setenv("SOME_VIDEOS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"SOME_VIDEOS names .*nowhere"):
        source.local_folder()


def test_what_lmms_eval_has_unpacked_is_used_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "home" / "theirs" / "data" / "a.mp4")
    for name, value in {"HF_HOME": tmp_path / "home", "HF_HUB_OFFLINE": "1", "VNIAH_CACHE": tmp_path / "c"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "SOME_VIDEOS"):
        monkeypatch.delenv(name, raising=False)
    source = VideoSource(env="SOME_VIDEOS", hub_id="org/set", upstream="theirs")
    report, roots = source.locate({"a": ("a.mp4", ())})
    assert list(report.found) == ["a"] and roots == (tmp_path / "home" / "theirs",)
    # What is not there is asked of the Hub; where that fails, the rest still counts.
    report, _ = source.locate({"a": ("a.mp4", ()), "b": ("b.mp4", ())})
    assert list(report.found) == ["a"] and list(report.missing) == ["b"]
    with pytest.raises(OSError, match="org/set"):
        VideoSource(env="SOME_VIDEOS", hub_id="org/set").locate({"a": ("a.mp4", ())})


def test_a_failure_is_kept_a_while_and_a_result_for_good() -> None:
    calls: list[int] = []

    @load_once
    def load(number: int) -> int:
        calls.append(number)
        if number < 0:
            raise ValueError("no such number")
        return number

    assert [load(1), load(1), load(2)] == [1, 1, 2]
    for _ in range(3):
        with pytest.raises(ValueError, match="no such number"):
            load(-1)
    assert calls == [1, 2, -1]


def test_the_order_of_files_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    for name in ("b/1.mp4", "a/1.mp4"):
        write_video(tmp_path / name)
    os.utime(tmp_path / "b" / "1.mp4", (0, 0))
    with pytest.raises(ValueError, match=r"a.1\.mp4 and .*b.1\.mp4"):
        VideoFolders([tmp_path]).find("1")
