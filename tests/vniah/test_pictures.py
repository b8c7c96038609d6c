"""One way to open an image: each kind's right pixels, and one clear line for what is none."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from vniah import notices
from vniah.haystack import pictures
from vniah.haystack.pictures import UnreadableImageError, image_size, is_picture, open_image, to_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def grey16(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("factor", [257, 256])
def test_16_bits_keep_the_upper_8(tmp_path: Path, name: str, factor: int) -> None:
    """Either way of widening 8 bits to 16 comes back exactly; a dark picture is not taken for 8 bits."""
    grey16(RAMP.astype(np.uint32) * factor).save(tmp_path / name)
    np.testing.assert_array_equal(pixels(open_image(tmp_path / name)), np.stack([RAMP] * 3, -1))
    grey16(RAMP).save(tmp_path / name)
    assert not pixels(open_image(tmp_path / name)).any()


def test_a_grey_tiff_may_begin_with_white(tmp_path: Path) -> None:
    for name, image in (("8.tif", Image.fromarray(RAMP)), ("16.tif", grey16(RAMP.astype(np.uint32) * 257))):
        image.save(tmp_path / name)
        stored = bytearray((tmp_path / name).read_bytes())
        at = stored.find(struct.pack("<HHI", 262, 3, 1)) + 8  # photometric interpretation; 0: white is zero
        stored[at : at + 2] = b"\0\0"
        (tmp_path / name).write_bytes(stored)
        np.testing.assert_array_equal(pixels(open_image(tmp_path / name))[..., 0], 255 - RAMP)


def test_16_bit_colour_keeps_the_upper_8(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for depth, kind in ((16, 2), (16, 6)):
        channels = np.dstack([colours, np.full((5, 7), 90, np.uint8)]) if kind == 6 else colours
        path = tmp_path / f"{kind}.png"
        path.write_bytes(png(channels.astype(np.uint16) * 257, depth, kind))
        np.testing.assert_array_equal(pixels(open_image(path)), colours)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("most", [65535, 1023])
def test_a_deep_ppm_keeps_the_upper_8_in_colour_as_in_grey(tmp_path: Path, plain: bool, most: int) -> None:
    values = np.array([[0, 255, 256], [most // 3, most // 2, most], [511, 640, 1000]], np.uint16)
    for name, magic, levels in (("grey.ppm", 2, values), ("colour.ppm", 3, np.stack([values] * 3, -1))):
        body = " ".join(map(str, levels.flatten())).encode() if plain else levels.astype(">u2").tobytes()
        (tmp_path / name).write_bytes(b"P%d 3 3 %d\n" % (magic if plain else magic + 3, most) + body)
    shown = pixels(open_image(tmp_path / "colour.ppm"))
    np.testing.assert_array_equal(shown, pixels(open_image(tmp_path / "grey.ppm")))
    if most == 65535:
        np.testing.assert_array_equal(shown[..., 0], values >> 8)
    (tmp_path / "short.ppm").write_bytes((tmp_path / "colour.ppm").read_bytes()[:-8])
    with pytest.raises(UnreadableImageError, match="truncated"):
        open_image(tmp_path / "short.ppm")


def png(values: np.ndarray, depth: int, kind: int) -> bytes:
    """A PNG of big-endian samples, which PIL itself does not write in 16-bit colour."""
    height, width = values.shape[:2]

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_exif_turns_every_kind_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    tall = RAMP[:4, :]
    for name, image in (("a.png", grey16(tall.astype(np.uint32) * 257)), ("b.png", Image.fromarray(tall))):
        image.save(tmp_path / name, exif=exif)
        shown = pixels(open_image(tmp_path / name))
        np.testing.assert_array_equal(shown[..., 0], np.rot90(tall, -1))
        assert image_size(tmp_path / name) == shown.shape[:2] == (16, 4)


@pytest.mark.parametrize("turn", [1, 3, 6, 8, 5])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path: Path, name: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.zeros((16, 48, 3), np.uint8)).save(tmp_path / name, exif=exif)
    assert image_size(tmp_path / name) == pixels(open_image(tmp_path / name)).shape[:2]


def test_palette_alpha_cmyk_and_bits(tmp_path: Path) -> None:
    colours = np.array([[[250, 10, 20], [1, 2, 3]]], np.uint8)
    alpha = np.array([[0, 128]], np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([colours[..., 0], alpha])).save(tmp_path / "la.png")
    palette = Image.fromarray(colours).quantize(2)
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    palette.save(tmp_path / "p8.png", transparency=bytes([0, 200]))
    for name in ("rgba.png", "p.png", "p8.png", "p.gif"):
        np.testing.assert_array_equal(pixels(open_image(tmp_path / name)), colours)
    assert pixels(open_image(tmp_path / "la.png"))[..., 1].tolist() == [[250, 1]]
    Image.fromarray(alpha > 0).save(tmp_path / "bits.png")
    assert pixels(open_image(tmp_path / "bits.png"))[0, :, 0].tolist() == [0, 255]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red = pixels(open_image(tmp_path / "cmyk.jpg")).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 3


def test_an_animation_shows_its_first_picture_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notices.forget()
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 200)]
    for name in ("a.gif", "a.png", "a.webp"):
        options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert (pixels(open_image(tmp_path / name)) == 10).all()
        assert is_picture(tmp_path / name) and not is_picture(tmp_path / name, still=True)
        assert f"{name} is animated; its first picture is shown" in capsys.readouterr().err


def test_what_has_no_scale_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(tmp_path / "i.tif")
    for name, kind in (("f.tif", "floating-point"), ("i.tif", "32-bit")):
        with pytest.raises(ValueError, match=rf"{name} holds {kind} values and does not say which is white"):
            open_image(tmp_path / name)


def test_an_image_in_memory_counts_its_bits_by_its_values() -> None:
    assert (pixels(to_rgb(Image.fromarray(np.full((2, 2), 200, np.int32)))) == 200).all()
    assert (pixels(to_rgb(Image.fromarray(np.full((2, 2), 200 * 257, np.int32)))) == 200).all()


def test_only_picture_formats_are_opened(tmp_path: Path) -> None:
    eps = tmp_path / "a.png"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with Image.open(eps) as opened:
        assert opened.format == "EPS"  # what PIL would hand to Ghostscript
    with pytest.raises(ValueError, match=r"a\.png is no image that PIL can read as PNG"):
        open_image(eps)
    with pytest.raises(FileNotFoundError, match=r"no image at .*none\.png"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="the needle is no image"):
        open_image(b"text", "the needle")


def test_more_pixels_than_the_limit_are_refused_unread(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for side in (9500, 13500, 30000):  # below, above and far above where PIL itself stops
        path = tmp_path / f"{side}.png"
        rows = zlib.compressobj(9)
        data = b"".join([*(rows.compress(bytes(1 + side // 8)) for _ in range(64)), rows.flush()])
        head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
        whole = [b"\x89PNG\r\n\x1a\n"]
        for name, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")):
            whole.append(len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big"))
        path.write_bytes(b"".join(whole))
        with pytest.raises(ValueError, match=f"{pictures.MAX_PIXELS:,}"):
            open_image(path)


def test_a_picture_cut_short_is_refused_whatever_pil_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stored, "PNG")
    with pytest.raises(ValueError, match="the needle cannot be decoded"):
        open_image(stored.getvalue()[:6000], "the needle")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_overlapping_threads_leave_pil_as_they_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    entered, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with pictures.whole_images():
            entered.set()
            leave.wait(10)
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with pictures.whole_images():
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    leave.set()
    thread.join(10)
    assert seen == [False] and ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_every_way_to_show_a_picture_shows_the_same(tmp_path: Path) -> None:
    """A haystack's frame, a needle, a prompt and a training sample."""
    from longva_model.pictures.opening import load_image
    from longva_model.prompts.prompting import visual_part
    from vniah.haystack import open_haystack
    from vniah.needles.needle import Picture
    from vniah.training.data.llava import open_image as open_sample

    exif = Image.Exif()
    exif[0x0112] = 6
    grey16(RAMP[:4].astype(np.uint32) * 257).save(tmp_path / "a.png", exif=exif)
    Image.new("CMYK", (8, 8), (0, 200, 10, 30)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGBA", (8, 8), (40, 90, 10, 30)).save(tmp_path / "c.png")
    Image.new("RGB", (8, 8), (40, 90, 10)).quantize(2).save(tmp_path / "d.gif", transparency=0)
    for path in sorted(tmp_path.iterdir()):
        expected = pixels(open_image(path))
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        np.testing.assert_array_equal(open_haystack(str(folder)).frames(0, 1)[0], expected)
        np.testing.assert_array_equal(pixels(Picture(path, name="it").load()), expected)
        np.testing.assert_array_equal(pixels(Picture(path.read_bytes(), name="it").load()), expected)
        np.testing.assert_array_equal(pixels(load_image(path)), expected)
        np.testing.assert_array_equal(pixels(next(iter(visual_part(str(path), 1).media.values()))), expected)
        np.testing.assert_array_equal(pixels(open_sample(str(tmp_path), path.name)), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_a_damaged_picture_of_any_kind_is_a_clear_error_or_a_picture(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this PIL writes no {kind}")
    stored = io.BytesIO()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(stored, kind)
    for _ in range(60):
        data = bytearray(stored.getvalue())
        for at in generator.integers(0, len(data), 6):
            data[at] = generator.integers(256)
        try:
            pixels(open_image(bytes(data), "the needle"))
        except pictures.UnreadableImageError as error:
            assert str(error) == f"the needle {error.reason}" and "\n" not in error.reason
