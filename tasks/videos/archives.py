"""The zip and tar files that benchmarks ship: nothing unpacked here can land outside its folder or fill the disk."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vniah.files import check_relative_name, safe_relative_path

# A video or image hardly compresses; an archive that grows more than this is built to fill a disk.
MAX_RATIO = 100
# Below this size no ratio is dangerous: a short text file may compress a thousandfold.
_RATIO_APPLIES_FROM = 64 << 20
_CHUNK = 1 << 20
# A tar's header may carry a long name or attributes; more than this is no name of a file.
_MAX_HEADER = 64 << 10
_MAX_MEMBERS = 200_000
_NAME_SHOWN = 120
# What a disk says of a name that it cannot have, as opposed to one that is full or may not be written.
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL)
_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of an archive: its checked name, its size in bytes and the member object of its library."""

    path: PurePosixPath
    size: int
    handle: zipfile.ZipInfo | tarfile.TarInfo


def archive_stem(name: str) -> str:
    """An archive's name without its ending: "videos.part1.tar.gz" -> "videos.part1"."""
    ending = next((suffix for suffix in _SUFFIXES if name.casefold().endswith(suffix)), "")
    return name[: len(name) - len(ending)] or name


def safe_extract(
    archive: Path, dest: Path, *, max_ratio: float = MAX_RATIO, reserved: Collection[str] = ()
) -> list[Path]:
    """Unpack a ``.zip``, ``.tar``, ``.tar.gz`` or the like into ``dest`` and return the files, sorted.

    Every name and size is checked before the first byte is written. Each file appears whole or not at all,
    and one that is already there with the right size is kept, so an interrupted run can be repeated. Of files of
    one name the last is taken, as tar and zip do. Memory is bounded whatever the archive says of itself.

    Args:
        archive: the file.
        dest: a folder; made if it is not there.
        max_ratio: how many times its own size it may unpack to.
        reserved: names in ``dest`` that are the caller's, and no file of an archive may have.

    Raises:
        FileNotFoundError: no such archive.
        FileExistsError: ``dest`` holds a file of that name and another size.
        ValueError: not an archive, encrypted, damaged, packed by a method that Python cannot read, holds a link or
            device, a name that leaves ``dest``, is reserved or that the disk cannot have, a header beyond reason, too
            many files, or more than ``max_ratio`` times its own size.
        OSError: not enough room on the disk.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive at {archive}")
    with _plain_errors(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                members = list(_zip_members(archive, opened))
                return _extract(archive, dest, members, opened, max_ratio, reserved)
        with archive.open("rb") as raw:
            content = _TarContent(archive, raw, max_ratio)
            try:
                tar = tarfile.open(fileobj=content, mode="r:")  # noqa: SIM115, closed below
            except tarfile.ReadError:
                raise ValueError(f"{archive} is neither a zip nor a tar file") from None
            with tar:
                members = list(_tar_members(archive, tar))
                content.read_to_end()
                return _extract(archive, dest, members, tar, max_ratio, reserved)


@contextlib.contextmanager
def _plain_errors(archive: Path) -> Iterator[None]:
    """What the libraries say of a damaged or odd archive as one line of ours."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete it and download it again") from None
    except (RecursionError, OverflowError, MemoryError, NotImplementedError, UnicodeError) as error:
        reason = f"its headers cannot be read, {type(error).__name__}"
        raise ValueError(f"{archive} is damaged ({reason}); delete it and download it again") from None
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise
        name = str(error.filename)
        shown = name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}..."
        raise ValueError(
            f"{archive} holds a file that cannot be written as {shown!r} ({error.strerror}); unpack it otherwise"
        ) from None


class _TarContent(io.RawIOBase):
    """The unpacked bytes of a tar file, for the library to read: no header is larger than ``largest_read``, and no more
    bytes come than the ratio allows, however small the file that holds them."""

    def __init__(self, archive: Path, raw: IO[bytes], max_ratio: float) -> None:
        self._archive, self._max_ratio = archive, max_ratio
        start = raw.read(8)
        raw.seek(0)
        self._file: Any = next((unpack(raw) for magic, unpack in _PACKED if start.startswith(magic)), raw)
        self._packed = os.fstat(raw.fileno()).st_size
        self._most = max(_RATIO_APPLIES_FROM, self._packed * max_ratio)
        self.largest_read = _MAX_HEADER
        self._latest = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.largest_read:
            told = f"of {size:,} bytes" if size >= 0 else "without a size"
            raise ValueError(f"{self._archive} holds a header {told}, which is no file's name; nothing was unpacked")
        self._check(self._file.tell() + size)
        with _reading():
            self._latest = bytes(self._file.read(size))
            return self._latest

    def read_to_end(self) -> None:
        """Once the library has listed the files, read what follows the last one; contents may be read after this.

        A checksum of the packed bytes stands there. And the library takes any header that it cannot read, but for the
        first, for the end: what it read last, and all behind it, must be the zeros that an archive ends in.
        """
        self.largest_read = _CHUNK
        rest = self._latest
        while rest:
            if rest.count(0) != len(rest):
                raise tarfile.ReadError("more follows the last file that is listed, and its header cannot be read")
            rest = self.read(_CHUNK)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "the library seeks from the beginning"
        if offset < 0:
            raise tarfile.ReadError("a negative size")
        self._check(offset)
        with _reading():
            return int(self._file.seek(offset))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check(self, place: int) -> None:
        # A file that is not packed ends by itself; reading behind its end gives nothing.
        if place > self._most + _CHUNK:
            raise ValueError(
                f"{self._archive} ({self._packed:,} bytes) would unpack to {place:,} bytes or more, more than "
                f"{self._max_ratio:g} times its size; refused as a decompression bomb"
            )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Tell damaged data, of which some libraries say ``OSError``, from a disk that fails."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EINVAL):
            raise EOFError(str(error)) from None
        raise


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    _check_number(archive, len(opened.infolist()))
    for info in opened.infolist():
        if info.is_dir():
            check_relative_name(info.filename)
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise ValueError(f"{archive} holds {info.filename!r}, which is no plain file; nothing was unpacked")
        if info.flag_bits & 1:
            raise ValueError(f"{archive} is encrypted ({info.filename!r}); nothing was unpacked")
        try:
            with _reading():
                opened.open(info).close()
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"{archive} holds {info.filename!r}, which is packed in a way that Python cannot read ({error}); "
                "unpack it by another program; nothing was unpacked"
            ) from None
        yield _Member(check_relative_name(info.filename), info.file_size, info)


def _check_number(archive: Path, members: int) -> None:
    if members > _MAX_MEMBERS:
        raise ValueError(f"{archive} holds more than {_MAX_MEMBERS:,} files; nothing was unpacked")


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    for number, info in enumerate(opened, start=1):
        _check_number(archive, number)
        if info.size < 0:
            raise tarfile.ReadError(f"{info.name!r} has a negative size")
        if info.isdir():
            # A tar of a folder often starts with './'.
            check_relative_name(info.name)
            continue
        if not info.isreg():
            raise ValueError(f"{archive} holds {info.name!r}, which is no plain file; nothing was unpacked")
        yield _Member(check_relative_name(info.name), info.size, info)


def _extract(
    archive: Path,
    dest: Path,
    listed: list[_Member],
    opened: zipfile.ZipFile | tarfile.TarFile,
    max_ratio: float,
    reserved: Collection[str],
) -> list[Path]:
    last = {member.path: member for member in listed}
    members = list(last.values())
    for member in members:
        if member.path.parts[:1] and member.path.parts[0].casefold() in reserved:
            raise ValueError(f"{archive} holds {str(member.path)!r}, a name that is ours here; nothing was unpacked")
        folder = next((parent for parent in member.path.parents if parent in last), None)
        if folder is not None:
            raise ValueError(f"{archive} holds {str(folder)!r} as a file and as a folder; nothing was unpacked")
    total, packed = sum(member.size for member in members), max(1, archive.stat().st_size)
    if total > _RATIO_APPLIES_FROM and total > max_ratio * packed:
        raise ValueError(
            f"{archive} ({packed:,} bytes) would unpack to {total:,} bytes, more than {max_ratio:g} times its size; "
            "refused as a decompression bomb"
        )
    dest.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(dest).free
    if total > free:
        raise OSError(f"unpacking {archive} needs {total:,} bytes, but {dest} has {free:,} free")
    written = []
    for member in members:
        target = safe_relative_path(str(member.path), dest)
        written.append(target)
        if target.exists():
            if not target.is_file() or target.stat().st_size != member.size:
                raise FileExistsError(f"{target} is there already and differs from the one in {archive}; move it away")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reading():
            source = (
                opened.open(member.handle)  # type: ignore[arg-type]
                if isinstance(opened, zipfile.ZipFile)
                else _open_tar(opened, member)
            )
        with source:
            _write_atomically(source, target, member.size)
    return sorted(written)


def _open_tar(opened: tarfile.TarFile, member: _Member) -> IO[bytes]:
    assert isinstance(member.handle, tarfile.TarInfo)
    source = opened.extractfile(member.handle)
    assert source is not None, "a regular file has content"
    return source


def _read(source: IO[bytes], size: int) -> bytes:
    with _reading():
        return source.read(size)


def _write_atomically(source: IO[bytes], target: Path, size: int) -> None:
    """Copy ``size`` bytes into a temporary file beside ``target`` and move it there."""
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as out:
            left = size
            while left and (chunk := _read(source, min(_CHUNK, left))):
                out.write(chunk)
                left -= len(chunk)
            if left or _read(source, 1):
                raise EOFError(f"{target.name} is not of the size its header gives")
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
