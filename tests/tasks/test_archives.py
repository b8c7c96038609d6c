"""Names and archives that try to leave their folder or to fill the disk."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

from vniah.files import check_relative_name, safe_relative_path
from vniah.tasks.videos.archives import archive_stem, safe_extract

ESCAPES = ["../x", "a/../../x", "/x", "\\x", "..\\x", "C:\\x", "c:x", "//host/x", "x\0y", "", "  ", "a/.."]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        safe_relative_path(name, tmp_path)


def test_harmless_names(tmp_path: Path) -> None:
    assert safe_relative_path("a/b..c.png", tmp_path) == tmp_path / "a" / "b..c.png"
    assert str(check_relative_name("./a.png")) == "a.png"


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "blob").write_text("x")
    (root / "out").symlink_to(tmp_path / "blob")
    (root / "inner").symlink_to("real")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link that leads out"):
        safe_relative_path("out", root)
    with pytest.raises(ValueError, match="link that leads out"):
        safe_relative_path("folder/blob", root)
    assert safe_relative_path("inner", root) == root / "inner"
    assert safe_relative_path("out", root, links_within=tmp_path) == root / "out"


def make_zip(path: Path, files: dict[str, bytes], *, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tarred(*members: tuple[str, bytes | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path.write_bytes(gzip.compress(tarred(*members.items())))
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_unpacks_and_repeats(make: object, tmp_path: Path) -> None:
    archive = make(tmp_path / "a", {"v/one.mp4": b"1" * 1000, "two.mp4": b"22"})  # type: ignore[operator]
    dest = tmp_path / "out"
    files = safe_extract(archive, dest)
    assert files == [dest / "two.mp4", dest / "v" / "one.mp4"]
    assert (dest / "v" / "one.mp4").read_bytes() == b"1" * 1000
    (dest / "two.mp4").unlink()
    assert safe_extract(archive, dest) == files
    assert sorted(p.name for p in dest.rglob("*") if p.is_file()) == ["one.mp4", "two.mp4"]
    (dest / "two.mp4").write_bytes(b"mine, longer")
    with pytest.raises(FileExistsError, match="move it away"):
        safe_extract(archive, dest)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_slip(make: object, name: str, tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "out"
    archive = make(tmp_path / "a", {"good": b"g", name: b"e"})  # type: ignore[operator]
    with pytest.raises(ValueError, match="leaves its folder"):
        safe_extract(archive, dest)
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("good"))


def test_links_in_archives(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(ValueError, match="no plain file"):
        safe_extract(make_tar(tmp_path / "t", {"link": link}), tmp_path / "out")
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    with pytest.raises(ValueError, match="no plain file"):
        safe_extract(make_tar(tmp_path / "d", {"device": device}), tmp_path / "out")
    with pytest.raises(ValueError, match="no plain file"):
        safe_extract(make_zip(tmp_path / "z", {"link": b"/etc"}, mode=0o120777), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_decompression_bomb(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bomb.zip", {"zeros": bytes(70 << 20)})
    with pytest.raises(ValueError, match="decompression bomb"):
        safe_extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_archives_leave_nothing(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tarred(("x.mp4", content))[:5000])

    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_STORED) as stored:
        stored.writestr("x.mp4", content)
    packed = bytearray(broken.read_bytes())
    packed[2000] ^= 1
    broken.write_bytes(packed)

    for archive_path in (cut, broken):
        with pytest.raises(ValueError, match=r"is damaged .* download it again"):
            safe_extract(archive_path, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        safe_extract(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no archive"):
        safe_extract(tmp_path / "none.zip", tmp_path / "out")


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": b"12345"})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4})())
    with pytest.raises(OSError, match="needs 5 bytes"):
        safe_extract(archive, tmp_path / "out")


def header(name: bytes, kind: bytes, size: int) -> bytes:
    """A tar header by hand: the library would not write a bomb."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\x000000000\0"
    block[124:136] = b"%011o\0" % size if size >= 0 else b"\xff" * 4 + struct.pack(">q", size)
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("first", [True, False])
def test_a_header_without_end_is_refused_before_it_is_read(kind: bytes, first: bool, tmp_path: Path) -> None:
    """A file of 300 KB whose one header unpacks to 300 MB, read by a process that may not have the memory."""
    bomb = tmp_path / "bomb.tar.gz"
    before = b"" if first else header(b"a.mp4", tarfile.REGTYPE, 1) + b"x".ljust(512, b"\0")
    parts = [before + header(b"././@LongLink", kind, 300 << 20), *[b"a" * (1 << 20)] * 300]
    parts.append(header(b"b.mp4", tarfile.REGTYPE, 0) + bytes(1024))
    # Packed part by part, which gzip reads as one: the parts that are alike are packed once.
    pack = functools.cache(gzip.compress)
    bomb.write_bytes(b"".join(map(pack, parts)))
    code = (
        "import sys; from pathlib import Path; from vniah.tasks.videos.archives import safe_extract\n"
        "try: safe_extract(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ValueError as error: print(error)"
    )

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))

    command = [sys.executable, "-c", code, str(bomb), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_memory, timeout=120)
    assert run.stdout.count("\n") == 1 and "header of 314,572,800 bytes" in run.stdout, run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_each_kind_of_tar_unpacks_and_a_torn_one_is_one_line(pack: object, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    packed = pack(tarred(("a.mp4", content), ("long/" * 30 + "é.mp4", content)))  # type: ignore[operator]
    (tmp_path / "whole").write_bytes(packed)
    files = safe_extract(tmp_path / "whole", tmp_path / "out")
    assert [file.name for file in files] == ["a.mp4", "é.mp4"] and all(file.read_bytes() == content for file in files)
    (tmp_path / "torn").write_bytes(packed[: len(packed) * 2 // 3])
    broken = bytearray(packed)
    for place in range(len(packed) // 3, len(packed) // 3 + 40):
        broken[place] ^= 0x55
    (tmp_path / "broken").write_bytes(broken)
    for name in ("torn", *(() if pack is bytes else ("broken",))):
        with pytest.raises(ValueError, match="is damaged"):
            safe_extract(tmp_path / name, tmp_path / name[:3])


def test_a_tar_that_unpacks_to_too_much_is_refused_while_it_is_listed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        for number in range(90):
            file.write(header(b"%d.mp4" % number, tarfile.REGTYPE, 1 << 20) + bytes(1 << 20))
        file.write(bytes(1024))
    with pytest.raises(ValueError, match="decompression bomb"):
        safe_extract(tmp_path / "a.tgz", tmp_path / "out")


def test_headers_that_lead_nowhere_are_one_line(tmp_path: Path) -> None:
    chain = header(b"././@LongLink", tarfile.GNUTYPE_LONGNAME, 2) + b"a\0".ljust(512, b"\0")
    (tmp_path / "chain").write_bytes(header(b"a", tarfile.REGTYPE, 0) + chain * 3000 + bytes(1024))
    (tmp_path / "negative").write_bytes(header(b"a", tarfile.REGTYPE, 0) + header(b"b", tarfile.REGTYPE, -512) * 2)
    for name in ("chain", "negative"):
        with pytest.raises(ValueError, match="is damaged"):
            safe_extract(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [1, 6, 9, 98, 99])
def test_a_zip_method_that_cannot_be_read_is_one_line(method: int, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.mp4": b"good", "odd.mp4": b"odd"})
    raw = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = raw.rindex(magic) + offset
        raw[place : place + 2] = struct.pack("<H", method)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"'odd.mp4', which is packed in a way .* nothing was unpacked"):
        safe_extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (6, b"\xff\x00"),
        (8, b"\x01\x08"),
        (46, b"\xff\xfe"),
        (24, b"\xff\xff\xff\xff"),
        (42, b"\xff\xff\xff\x7f"),
    ],
)
def test_an_odd_entry_of_a_zip_is_one_line(place: int, value: bytes, tmp_path: Path) -> None:
    """Version, flags, a name that is no text, size, and where it begins."""
    path = make_zip(tmp_path / "a.zip", {"good.mp4": b"good"})
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\x01\x02")
    if place == 46:
        raw[start + 8 : start + 10] = b"\x00\x08"  # the name is said to be UTF-8
    raw[start + place : start + place + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        safe_extract(path, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_more_files_than_anyone_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vniah.tasks.videos.archives._MAX_MEMBERS", 3)
    files = {f"{number}": b"" for number in range(4)}
    for make in (make_zip, make_tar):
        with pytest.raises(ValueError, match="more than 3 files"):
            safe_extract(make(tmp_path / make.__name__, files), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.zip", "a"), ("a.b.tar.gz", "a.b"), ("A.TGZ", "A"), ("videos_1.part2.zip", "videos_1.part2"), ("a", "a")],
)
def test_an_archives_stem(name: str, stem: str) -> None:
    assert archive_stem(name) == stem


def test_damaged_bz2_in_a_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.mp4", bytes(range(256)) * 40)
    raw = bytearray(path.read_bytes())
    raw[60:64] = b"\0\0\0\0"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged"):
        safe_extract(path, tmp_path / "out")


@pytest.mark.slow
def test_mutated_archives_are_unpacked_or_refused_in_one_line(tmp_path: Path) -> None:
    """A thousand archives with bytes changed or cut off: nothing else is raised, and nothing lands elsewhere."""
    random = Random(5)
    for number in range(1000):
        pack = random.choice([None, bytes, gzip.compress, bz2.compress, lzma.compress])
        first, second = random.randbytes(300), random.randbytes(300)
        if pack is None:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", random.choice([0, 8, 12, 14])) as made:
                made.writestr("a.mp4", first)
                made.writestr("v/b.mp4", second)
            raw = bytearray(buffer.getvalue())
        else:
            members = ("a.mp4", first), ("v/" * 60 + "b.mp4", second)
            raw = bytearray(pack(tarred(*members, format=random.choice([0, 1, 2]))))
        for _ in range(random.randrange(6)):
            raw[random.randrange(len(raw))] = random.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        archive = folder / "archive"
        archive.write_bytes(raw[: random.randrange(len(raw))] if random.random() < 0.2 else raw)
        try:
            safe_extract(archive, folder / "out")
        except ValueError as error:
            assert str(archive) in str(error) and len(str(error).splitlines()) == 1
        assert {path.name for path in folder.iterdir()} <= {"archive", "out"}
        shutil.rmtree(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
@pytest.mark.parametrize("damage", ["checksum", "zeros", "second archive", "half a header"])
def test_a_tar_damaged_behind_its_first_file_loses_none_in_silence(pack: object, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    raw = bytearray(tarred(("a.mp4", b"a" * 700), ("b.mp4", b"b" * 700), ("c.mp4", b"c" * 700)))
    second = 512 + 1024
    if damage == "checksum":
        raw[second] ^= 1
    elif damage == "zeros":
        raw[second : second + 512] = bytes(512)
    elif damage == "second archive":
        raw = raw * 2
    else:
        raw = raw[: second + 100]
    path.write_bytes(pack(bytes(raw)))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"a\.tar is damaged \(more follows the last file"):
        safe_extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", [b"old", b"older, and longer"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_files_of_one_name_the_last_is_taken(first: bytes, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(tarred(("x.mp4", first), ("y.mp4", b"y"), ("./x.mp4", b"new")))
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for content in (first, b"new"):
            archive.writestr("x.mp4", content)
    for path in (tar, packed):
        safe_extract(path, tmp_path / path.suffix)
        assert (tmp_path / path.suffix / "x.mp4").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a" * 300,), "cannot be written as .* name too long"),
        (("a", "a/b/c"), "holds 'a' as a file and as a folder"),
        ((".Unpacked/x",), "a name that is ours"),
    ],
)
def test_a_name_that_no_disk_has_is_one_line(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for make in (make_tar, make_zip):
        path = make(tmp_path / make.__name__, dict.fromkeys(names, b"x"))  # type: ignore[operator]
        with pytest.raises(ValueError, match=f"(?i){said}") as caught:
            safe_extract(path, tmp_path / "out")
        assert len(str(caught.value)) < 500 and str(path) in str(caught.value)
