"""Scenes of places: things that are where they do not belong. Used by the built-in needles."""

from __future__ import annotations

import math

from PIL import Image

from vniah.needles.canvas import Canvas, Colour
from vniah.needles.scenes import BLACK, DARK_WOOD, GREY, WHITE, WOOD


def fish_tree() -> Image.Image:
    """A tree with fish hanging from its branches."""
    c = Canvas((164, 214, 240), (222, 238, 240))
    c.ellipse(50, 108, 90, 28, fill=(112, 164, 82))
    c.polygon([(44, 90), (46, 44), (54, 44), (57, 90)], DARK_WOOD)
    for end in ((16, 38), (30, 24), (70, 24), (85, 38)):
        c.line([(50, 52), end], DARK_WOOD, 3.4)
    for x, y, r in ((50, 18, 19), (26, 20, 16), (74, 20, 16), (12, 32, 12), (88, 32, 12), (38, 30, 13), (62, 30, 13)):
        c.ellipse(x, y, r, fill=(52, 128, 60))
    for x, y, r in ((42, 12, 7), (68, 14, 6), (22, 16, 6), (82, 28, 5)):
        c.ellipse(x, y, r, fill=(70, 150, 74))
    for x, y, shade in (
        (12, 62, (240, 120, 30)),
        (32, 58, (40, 110, 210)),
        (69, 58, (240, 120, 30)),
        (88, 62, (40, 110, 210)),
    ):
        c.line([(x, 36), (x, y - 8)], BLACK, 0.6)
        _hanging_fish(c, x, y, shade)
    return c.image()


def _hanging_fish(c: Canvas, x: float, y: float, shade: Colour) -> None:
    """A fish, nose up, on a string."""
    c.polygon([(x, y + 7), (x - 7, y + 18), (x + 7, y + 18)], shade, edge=BLACK, outline=0.6)
    c.ellipse(x, y, 6.4, 10, fill=shade, edge=BLACK, outline=0.6)
    c.polygon([(x + 5.6, y - 2), (x + 9.6, y + 3), (x + 5.4, y + 4)], shade, edge=BLACK, outline=0.5)
    c.ellipse(x - 2, y - 4.4, 1.7, fill=WHITE, edge=BLACK, outline=0.4)
    for row in range(3):
        c.arc(x, y + row * 2.6, 3.4, 2, 20, 160, BLACK, 0.4)


def snowman() -> Image.Image:
    """A snowman on a beach, beside a palm."""
    c = Canvas((86, 186, 236), (190, 230, 246))
    c.ellipse(82, 14, 9, fill=(255, 226, 90))
    c.box(0, 46, 100, 66, (28, 128, 190))
    for y in (50, 55, 60):
        for x in range(2, 100, 16):
            c.line([(x + y % 3 * 3, y), (x + 7 + y % 3 * 3, y)], (120, 196, 230), 0.7)
    c.polygon([(0, 66), (30, 62), (70, 64), (100, 60), (100, 100), (0, 100)], (240, 216, 152))
    c.line([(20, 88), (21, 70), (24, 52), (30, 36)], WOOD, 4)
    for angle in (-160, -125, -60, -25, 10, 165):
        a = math.radians(angle)
        tip = (30 + 23 * math.cos(a), 35 + 17 * math.sin(a) + 6)
        c.polygon(
            [
                (30, 33),
                (30 + 12 * math.cos(a), 30 + 12 * math.sin(a)),
                tip,
                (30 + 9 * math.cos(a), 38 + 9 * math.sin(a)),
            ],
            (38, 140, 62),
            edge=(22, 100, 44),
            outline=0.6,
        )
    c.ellipse(28, 39, 2.6, fill=DARK_WOOD)
    c.ellipse(32.5, 39.5, 2.6, fill=DARK_WOOD)
    c.ellipse(66, 92, 24, 4, fill=(212, 186, 124))
    for y, r in ((79, 15), (58, 11), (41, 8.4)):
        c.ellipse(66, y, r, fill=WHITE, edge=(196, 208, 218), outline=0.8)
    c.box(56, 32.5, 76, 35.5, BLACK, radius=1)
    c.box(60, 21, 72, 34, BLACK, radius=1)
    c.ellipse(63, 40, 1.3, fill=BLACK)
    c.ellipse(69, 40, 1.3, fill=BLACK)
    c.polygon([(66, 42), (78, 44.5), (66, 45.5)], (244, 128, 30))
    for y in (54, 59, 64):
        c.ellipse(66, y, 1.2, fill=BLACK)
    c.line([(56, 56), (42, 48), (38, 42)], DARK_WOOD, 1.4)
    c.line([(76, 56), (90, 48), (94, 43)], DARK_WOOD, 1.4)
    return c.image()


def traffic_light() -> Image.Image:
    """A traffic light that shines blue on top."""
    c = Canvas((232, 196, 160), (198, 206, 220))
    for left, top, shade in (
        (0, 40, (122, 130, 142)),
        (18, 54, (146, 150, 158)),
        (70, 34, (116, 124, 138)),
        (86, 50, (140, 146, 156)),
    ):
        c.box(left, top, left + 20, 100, shade)
        for row in range(6):
            for x in (left + 4, left + 12):
                c.box(x, top + 5 + row * 9, x + 4, top + 10 + row * 9, (240, 224, 160))
    c.box(47, 84, 53, 100, (60, 62, 66))
    c.box(31, 4, 69, 88, (38, 40, 44), radius=6, edge=(18, 18, 20), outline=1.2)
    for y, shade, lit in ((19, (40, 110, 255), True), (46, (84, 74, 40), False), (73, (34, 74, 44), False)):
        if lit:
            c.ellipse(50, y, 13.4, fill=(150, 190, 255))
        c.ellipse(50, y, 11.5, fill=shade, edge=BLACK, outline=0.6)
        c.arc(50, y, 13.4, 13.4, 190, 350, BLACK, 1.6)
    return c.image()


def snail() -> Image.Image:
    """A snail with a teapot in place of its shell."""
    c = Canvas((206, 230, 196), (176, 210, 160))
    c.ellipse(50, 104, 86, 28, fill=(120, 166, 88))
    body, edge = (214, 178, 120), (150, 112, 66)
    c.polygon(
        [(6, 86), (18, 76), (66, 76), (74, 56), (86, 54), (93, 64), (88, 82), (78, 88)], body, edge=edge, outline=1
    )
    for eye, foot in (((78, 36), (79, 56)), ((92, 38), (86, 56))):
        c.line([foot, eye], body, 2)
        c.ellipse(*eye, 3, fill=WHITE, edge=edge, outline=0.8)
        c.ellipse(eye[0] + 0.8, eye[1], 1.3, fill=BLACK)
    c.arc(85, 66, 4, 4, 20, 130, edge, 0.9)
    china, line = (240, 244, 250), (40, 84, 160)
    c.arc(13, 52, 10, 13, 0, 360, line, 3.6)
    c.arc(13, 52, 9.4, 12.4, 0, 360, china, 2.2)
    c.polygon([(54, 62), (60, 44), (66, 33), (71, 35), (66, 50), (56, 66)], china, edge=line, outline=0.9)
    c.ellipse(38, 55, 25, 22, fill=china, edge=line, outline=1)
    c.box(26, 30, 50, 35, china, radius=2, edge=line, outline=0.9)
    c.ellipse(38, 26.5, 4, fill=china, edge=line, outline=0.9)
    for k in range(5):
        x, y = 24 + k * 7, 55 + (k % 2) * 4
        c.ellipse(x, y, 2.6, fill=line)
        c.ellipse(x, y, 1, fill=GREY)
    c.line([(17, 66), (59, 66)], line, 1)
    return c.image()
