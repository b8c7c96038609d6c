"""``vniah inspect``: what would be sampled of a file, and whether it reads to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_files import write_numbered

from vniah.haystack import open_haystack

EVEN = [number * 100 for number in range(100)]  # ten frames a second


def inspect(*arguments: str) -> tuple[int, dict, str]:
    done = subprocess.run(
        [sys.executable, "-m", "vniah", "inspect", *arguments, "--json"], capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_inspect_says_what_would_be_sampled(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", EVEN, others=[("mjpeg", (32, 16), 0)])
    code, said, _ = inspect(str(path))
    haystack = open_haystack(str(path))
    assert code == 0 and said["readable_to_end"] is True and said["error"] == ""
    assert said["num_frames"] == len(haystack) == 10 and said["rule"] == "every10+stream1"
    assert said["size"] == [64, 128] and said["seconds"] == pytest.approx(10) and said["fps"] == 1.0
    assert said["fingerprint"] == haystack.fingerprint
    assert said["stream"] == 1 and said["warnings"] == ["it has 2 video streams; stream 1 (128x64) is taken"]


def test_inspect_of_a_damaged_film_is_valid_json_and_exit_code_1(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", EVEN)
    data = bytearray(path.read_bytes())
    middle = len(data) * 40 // 100
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    code, said, errors = inspect(str(path))
    assert code == 1 and said["readable_to_end"] is False and said["num_frames"] == 10
    assert errors.splitlines()[-1].startswith("vniah: error: ") and str(path) in said["error"]
    code, said, errors = inspect(str(tmp_path / "gone.mp4"))
    assert code == 1 and said["readable_to_end"] is False and "no haystack at" in said["error"]
    assert len(errors.splitlines()) == 1


def test_inspect_sends_no_escapes_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb.mp4"
    path.write_text("no film")
    done = subprocess.run([sys.executable, "-m", "vniah", "inspect", str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "\x1b" not in done.stdout + done.stderr and len(done.stderr.splitlines()) == 1


def test_inspect_of_folders_pictures_and_specs(tmp_path: Path) -> None:
    from PIL import Image

    from vniah.haystack.opening import inspect_file

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGBA", (20, 10), (9, 9, 9, 100)).save(folder / f"{number}.png")
    said = inspect_file(str(folder))
    assert (said.kind, said.num_frames, said.rule, said.size) == ("images", 3, "image", (10, 20))
    assert said.readable_to_end and said.fingerprint == open_haystack(str(folder)).fingerprint
    assert said.notes == [
        "3 of 3 images: alpha is dropped and not blended: behind it stands the stored colour, often black"
    ]
    said = inspect_file(f"{folder}?loop=7")
    assert (said.kind, said.num_frames, said.seconds) == ("loop", 7, 7.0)
    said = inspect_file(str(folder / "0.png"))
    assert (said.kind, said.num_frames, said.size, said.readable_to_end) == ("picture", 1, (10, 20), True)
    assert inspect_file("synthetic").num_frames is None
    assert inspect_file("synthetic:0:9").num_frames == 9
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    said = inspect_file(str(folder))
    assert not said.readable_to_end and "2.png" in said.error and said.num_frames == 3


def test_every_picture_of_a_folder_is_a_frame_and_what_is_passed_over_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image, features

    from vniah.haystack.opening import inspect_file
    from vniah.haystack.pictures import FORMATS, IMAGE_SUFFIXES

    Image.init()
    assert set(IMAGE_SUFFIXES) >= {suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS}
    suffixes = [".png", ".apng", ".jfif", ".ppm", ".pgm", ".pnm", ".webp", ".gif", ".TIF"]
    suffixes += [".jp2", ".j2k"] if features.check("jpg_2000") else []
    suffixes += [".avif"] if features.check("avif") else []
    for number, suffix in enumerate(suffixes):
        Image.new("L" if suffix == ".pgm" else "RGB", (32, 16), number).save(
            tmp_path / f"{number}{suffix}", format=Image.registered_extensions()[suffix.lower()]
        )
    for name in (".hidden", "notes.txt", "needles.json", "README.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    said = inspect_file(str(tmp_path))
    assert (said.num_frames, said.error, said.warnings) == (len(suffixes), "", [])
    assert "no pictures" not in capsys.readouterr().err
    for number in range(7):
        (tmp_path / f"frame{number}.heic").write_text("x")
    said = inspect_file(str(tmp_path))
    assert said.num_frames == len(suffixes)
    assert said.warnings == [
        "files that are no pictures by their endings are passed over, 7 of them: "
        "frame0.heic, frame1.heic, frame2.heic, frame3.heic, frame4.heic and 2 more"
    ]
    assert capsys.readouterr().err.count(said.warnings[0]) == 1
    (tmp_path / "99.png").symlink_to(tmp_path / "gone.png")
    said = inspect_file(str(tmp_path))
    assert "99.png: it is a link to" in said.error and "gone.png, where no file is" in said.error


def test_inspect_notes_hdr_and_alpha(tmp_path: Path) -> None:
    import av

    from vniah.haystack.opening import inspect_file

    hdr, clear = tmp_path / "hdr.mp4", tmp_path / "alpha.mov"
    for path, codec, pixels in ((hdr, "libx264", "yuv420p10le"), (clear, "qtrle", "argb")):
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            if path == hdr:
                stream.codec_context.color_trc = 16
            for _ in range(3):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            out.mux(stream.encode())
    assert "HDR (PQ): not tone-mapped" in inspect_file(str(hdr)).notes[0]
    assert "alpha: dropped" in inspect_file(str(clear)).notes[0]
