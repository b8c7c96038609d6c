"""The zip and tar files that benchmarks ship: nothing unpacked here can land outside its folder or fill the disk."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from vniah.files import check_relative_name, replacing, safe_relative_path

# A video or image hardly compresses; an archive that grows more than this is built to fill a disk.
_MAX_RATIO = 100
# Below this size no ratio is dangerous: a short text file may compress a thousandfold.
_RATIO_APPLIES_FROM = 64 << 20
_CHUNK = 1 << 20
# A tar's header may carry a long name or attributes; more than this is no name of a file.
_MAX_HEADER = 64 << 10
_MAX_MEMBERS = 200_000
# What a disk says of a name that it cannot have, as opposed to one that is full or may not be written.
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL)
# Says that an archive was unpacked whole, in the folder of what it held.
_STAMP = ".unpacked"


def unpack_archives(archives: Iterable[Path], dest: Path) -> tuple[list[Path], list[str]]:
    """Unpack each archive into a folder of its own below ``dest``, once; a bad one is a line in the report.

    Returns:
        The folders, and for every archive that was refused or is damaged one line that says why. What a
        damaged archive gave before it broke stays usable.

    Raises:
        OSError: the disk is full or cannot be written, which no other archive would mend.
    """
    folders, problems = [], []
    archives = list(archives)
    stems = Counter(archive_stem(archive.name) for archive in archives)
    names = Counter(archive.name for archive in archives)
    for archive in archives:
        # Of archives that are called alike, such as "a.zip" and "a.tar", each has a folder of its own all the same.
        stem = archive_stem(archive.name)
        called = archive.name if names[archive.name] == 1 else f"{archive.parent.name}--{archive.name}"
        folder = dest / (stem if stems[stem] == 1 else called)
        try:
            # A name and a size: the Hub's cache gives changed content a new name behind the link.
            mark = os.fsencode(f"{archive.resolve().name} {archive.stat().st_size}\n")
            stamp = folder / _STAMP
            if not stamp.is_file() or stamp.read_bytes() != mark:
                safe_extract(archive, folder)
                with replacing(stamp) as part:
                    part.write_bytes(mark)
        except (ValueError, FileExistsError, FileNotFoundError) as error:
            problems.append(str(error))
        if folder.is_dir():
            folders.append(folder)
    return folders, problems


def archive_stem(name: str) -> str:
    """An archive's name without its ending: "videos.part1.tar.gz" -> "videos.part1"."""
    return re.sub(r"(?<=.)\.(tar\.gz|tar\.bz2|tar\.xz|tgz|tbz2|txz|tar|zip)\Z", "", name, flags=re.IGNORECASE)


def safe_extract(archive: Path, dest: Path) -> list[Path]:
    """Unpack a ``.zip``, ``.tar``, ``.tar.gz`` or the like into ``dest`` and return the files, sorted.

    Every name and size is checked before the first byte is written. Each file appears whole or not at all,
    and one that is already there with the right size is kept, so an interrupted run can be repeated. Of files of
    one name the last is taken, as tar and zip do. Memory is bounded whatever the archive says of itself.

    Raises:
        FileNotFoundError: no such archive.
        FileExistsError: ``dest`` holds a file of that name and another size.
        ValueError: not an archive, encrypted, damaged, packed by a method that Python cannot read, holds a link or
            device, a name that leaves ``dest``, is ours or that the disk cannot have, a header beyond reason, too
            many files, or more than a hundred times its own size.
        OSError: not enough room on the disk.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no archive at {archive}")
    with contextlib.ExitStack() as stack:
        with _plain_errors(archive):
            opened, members = _listed(archive, stack)
            targets = {path: safe_relative_path(str(path), dest) for path in members}
            present = {path for path, target in targets.items() if target.exists()}
        for path in present:
            if not targets[path].is_file() or targets[path].stat().st_size != members[path][0]:
                raise FileExistsError(
                    f"{targets[path]} is there already and differs from the one in {archive}; move it away"
                )
        dest.mkdir(parents=True, exist_ok=True)
        needed, free = sum(size for size, _ in members.values()), shutil.disk_usage(dest).free
        if needed > free:
            raise OSError(f"unpacking {archive} needs {needed:,} bytes, but {dest} has {free:,} free")
        with _plain_errors(archive):
            for path in [path for path in targets if path not in present]:
                size, info = members[path]
                targets[path].parent.mkdir(parents=True, exist_ok=True)
                source = opened.open(info) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(info)
                with source, replacing(targets[path]) as part, part.open("wb") as out:
                    shutil.copyfileobj(source, out, _CHUNK)
                    if out.tell() != size:
                        raise EOFError(f"{path.name} is not of the size its header gives")
    return sorted(targets.values())


@contextlib.contextmanager
def _plain_errors(archive: Path) -> Iterator[None]:
    """What the libraries say of a damaged or odd archive as one line of ours."""

    def damaged(reason: object) -> ValueError:
        return ValueError(f"{archive} is damaged ({reason}); delete it and download it again")

    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise damaged(error) from None
    except (RecursionError, OverflowError, MemoryError, NotImplementedError, UnicodeError) as error:
        raise damaged(f"its headers cannot be read, {type(error).__name__}") from None
    except OSError as error:
        # Damaged data, of which some libraries say ``OSError``, names no file.
        if error.filename is None and error.errno in (None, errno.EINVAL):
            raise damaged(error) from None
        if error.errno not in _NAME_ERRORS:
            raise
        name = str(error.filename)
        shown = name if len(name) <= 120 else f"{name[:120]}..."
        raise ValueError(
            f"{archive} holds a file that cannot be written as {shown!r} ({error.strerror}); unpack it otherwise"
        ) from None


def _listed(archive: Path, stack: contextlib.ExitStack) -> tuple[Any, dict[PurePosixPath, tuple[int, Any]]]:
    """The archive, opened in ``stack``, and its files: size in bytes and the library's object, by checked name."""
    if zipfile.is_zipfile(archive):
        opened: Any = stack.enter_context(zipfile.ZipFile(archive))
        return opened, _members(archive, opened.infolist(), opened)
    content: Any = _TarContent(archive, stack.enter_context(archive.open("rb")))
    try:
        opened = stack.enter_context(tarfile.TarFile(fileobj=content))
    except tarfile.ReadError:
        raise ValueError(f"{archive} is neither a zip nor a tar file") from None
    members = _members(archive, opened, None)
    content.read_to_end()
    return opened, members


def _members(
    archive: Path, infos: Iterable[Any], zipped: zipfile.ZipFile | None
) -> dict[PurePosixPath, tuple[int, Any]]:
    """The files of an archive by name: of those of one name the last.

    Raises:
        ValueError: see ``safe_extract``; nothing has been unpacked.
    """

    def refuse(what: str) -> NoReturn:
        raise ValueError(f"{archive} {what}; nothing was unpacked")

    members: dict[PurePosixPath, tuple[int, Any]] = {}
    for number, info in enumerate(infos, start=1):
        if number > _MAX_MEMBERS:
            refuse(f"holds more than {_MAX_MEMBERS:,} files")
        if zipped:
            name, size, is_folder = info.filename, info.file_size, info.is_dir()
            is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
        else:
            name, size, is_folder, is_file = info.name, info.size, info.isdir(), info.isreg()
            if size < 0:
                raise tarfile.ReadError(f"{name!r} has a negative size")
        path = check_relative_name(name)
        if is_folder:
            continue
        if not is_file:
            refuse(f"holds {name!r}, which is no plain file")
        if zipped and info.flag_bits & 1:
            refuse(f"is encrypted ({name!r})")
        if zipped:
            try:
                zipped.open(info).close()
            except (NotImplementedError, RuntimeError) as error:
                refuse(
                    f"holds {name!r}, which is packed in a way that Python cannot read ({error}); "
                    "unpack it by another program"
                )
        if path.parts[:1] and path.parts[0].casefold() == _STAMP:
            refuse(f"holds {str(path)!r}, a name that is ours here")
        members[path] = size, info
    for path in members:
        if folder := next((parent for parent in path.parents if parent in members), None):
            refuse(f"holds {str(folder)!r} as a file and as a folder")
    _check_growth(archive, sum(size for size, _ in members.values()))
    return members


def _check_growth(archive: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > max(_RATIO_APPLIES_FROM, _MAX_RATIO * packed):
        raise ValueError(
            f"{archive} ({packed:,} bytes) would unpack to {size:,} bytes or more, more than {_MAX_RATIO} times its "
            "size; refused as a decompression bomb"
        )


class _TarContent:
    """The unpacked bytes of a tar file, for the library to read: no header is larger than ``largest_read``, and no more
    bytes come than the ratio allows, however small the file that holds them."""

    def __init__(self, archive: Path, raw: IO[bytes]) -> None:
        self._archive = archive
        start = raw.read(6)
        raw.seek(0)
        self._file: Any = raw
        if start.startswith(b"\x1f\x8b"):
            self._file = gzip.GzipFile(fileobj=raw)
        elif start.startswith((b"BZh", b"\xfd7zXZ\0")):
            self._file = (bz2.BZ2File if start.startswith(b"BZh") else lzma.LZMAFile)(raw)
        self.largest_read = _MAX_HEADER
        self._latest = b""
        self.tell = self._file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.largest_read:
            told = f"of {size:,} bytes" if size >= 0 else "without a size"
            raise ValueError(f"{self._archive} holds a header {told}, which is no file's name; nothing was unpacked")
        self._check_place(self._file.tell() + size)
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

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise tarfile.ReadError("a negative size")
        self._check_place(offset)
        return int(self._file.seek(offset))

    def _check_place(self, place: int) -> None:
        # A file that is not packed ends by itself; reading behind its end gives nothing.
        _check_growth(self._archive, place - _CHUNK)
