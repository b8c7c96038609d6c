"""Is a video file all there? Read off the container's own lengths, without decoding.

MP4/MOV, Matroska/WebM and AVI say at the top how long their parts are; a download that broke off is
shorter than that. FLV says it of each of its tags, before and behind it. MPEG-TS comes in packets of one size, so
one cut inside a packet shows. Other streams made to be cut anywhere (raw H.264) say nothing, and what is there is
all there is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
_TS_PACKET, _TS_SYNC = 188, 0x47
_MP4_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def missing_bytes(path: Path) -> int:
    """How many bytes the file is short of what it says; 0 when it is whole or does not say."""
    have = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _MP4_FIRST_BOXES:
            need = _mp4_end(file, have)
        elif head[:4] == _EBML_HEADER.to_bytes(4, "big"):
            need = _matroska_end(file, have)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            need = int.from_bytes(head[4:8], "little") + 8
        elif head[:4] == b"FLV\x01":
            need = _flv_end(file, have)
        elif _is_mpeg_ts(file):
            need = -(-have // _TS_PACKET) * _TS_PACKET
        else:
            return 0
    return max(0, need - have)


def _mp4_end(file: BinaryIO, have: int) -> int:
    """Where the last top-level box ends: each is a 4-byte size, a 4-byte type, and for size 1 an 8-byte size."""
    end = 0
    while end < have:
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:  # the box runs to the end of the file
            return have
        if size < 8 or not head[4:8].isascii():
            # Not a box: bytes appended after the film, or a header cut inside its own eight bytes.
            return end + 8 if have - end < 8 and end else have
        end += size
    return end


def _matroska_end(file: BinaryIO, have: int) -> int:
    """Where the segment ends, after the EBML header; live recordings leave its size unknown."""
    while file.tell() < have:
        kind = _ebml_number(file, keep_marker=True)
        size = _ebml_number(file, keep_marker=False)
        if kind is None or size is None:
            return have
        if kind == _SEGMENT:
            return file.tell() + size
        file.seek(size, os.SEEK_CUR)
    return have


def _flv_end(file: BinaryIO, have: int) -> int:
    """Where the last tag ends: each is a type, a 3-byte size, 7 bytes more, its data, and its whole size in 4 bytes."""
    if have >= 24:
        file.seek(have - 4)
        last = int.from_bytes(file.read(4), "big")
        if 11 <= last <= have - 17:
            file.seek(have - 4 - last)
            if int.from_bytes(file.read(4)[1:], "big") + 11 == last:
                return have
    # The end is not that of a tag: go through them all, up to the one that is cut or to what is none.
    end = 13
    while end < have:
        file.seek(end)
        head = file.read(11)
        if len(head) == 11 and head[0] & 31 not in (8, 9, 18):
            return have
        end += 15 + int.from_bytes(head[1:4], "big")
    return end


def _is_mpeg_ts(file: BinaryIO) -> bool:
    """Every packet starts with the same byte; five in a row are no accident."""
    file.seek(0)
    starts = file.read(4 * _TS_PACKET + 1)[::_TS_PACKET]
    return len(starts) == 5 and set(starts) == {_TS_SYNC}


def _ebml_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A variable-length number: leading zero bits of the first byte tell its length. ``None``: unknown or none."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    data = first + file.read(length - 1)
    number = int.from_bytes(data, "big")
    if keep_marker:
        return number
    value_bits = 7 * length
    number &= (1 << value_bits) - 1
    return None if number == (1 << value_bits) - 1 else number
