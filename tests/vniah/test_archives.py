"""Names and archives that try to leave their folder or to fill the disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vniah.archives import check_relative_name, safe_extract, safe_relative_path

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


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
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
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        info = tarfile.TarInfo("x.mp4")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "whole.tar").read_bytes()[:5000])

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
