"""Scenes of things: single objects that are not as they should be. Used by the built-in needles."""

from __future__ import annotations

import math

from PIL import Image

from vniah.needles.canvas import Canvas, Colour, Point

BLACK: Colour = (25, 25, 28)
WHITE: Colour = (248, 248, 245)
GREY: Colour = (150, 152, 155)
WOOD: Colour = (171, 118, 72)
DARK_WOOD: Colour = (112, 72, 42)


def around(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[Point]:
    """The corners of a regular polygon; ``turn`` is in degrees, 0 has a corner on top."""
    steps = (math.radians(turn - 90 + 360 * k / corners) for k in range(corners))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in steps]


def banana() -> Image.Image:
    """A purple banana on a plate."""
    c = Canvas((226, 196, 152), (204, 166, 118))
    for y in (18, 38, 58, 78, 96):
        c.line([(0, y), (100, y + 2)], (188, 150, 104), 0.6)
    c.ellipse(50, 54, 42, 34, fill=(178, 142, 100))
    c.ellipse(50, 52, 42, 34, fill=WHITE, edge=(206, 210, 214), outline=1)
    c.ellipse(50, 52, 31, 24, fill=(238, 240, 240))
    outer = [(50 + 30 * math.cos(math.radians(a)), 34 + 32 * math.sin(math.radians(a))) for a in range(8, 173, 4)]
    inner = [(50 + 27 * math.cos(math.radians(a)), 32 + 17 * math.sin(math.radians(a))) for a in range(172, 7, -4)]
    c.polygon([*outer, *inner], (130, 40, 175), edge=(88, 22, 122), outline=0.9)
    ridge = [(50 + 28 * math.cos(math.radians(a)), 33 + 25 * math.sin(math.radians(a))) for a in range(14, 167, 4)]
    c.line(ridge, (164, 86, 205), 1.6)
    c.line([(78.5, 37), (81, 29)], (70, 48, 30), 4)
    c.ellipse(21.5, 37.5, 2.2, fill=(50, 34, 24))
    return c.image()


def clock() -> Image.Image:
    """A wall clock with 17 where 12 belongs."""
    c = Canvas((120, 150, 160), (98, 128, 140))
    c.ellipse(51.5, 52, 43, fill=(78, 104, 116))
    c.ellipse(50, 50, 43, fill=DARK_WOOD)
    c.ellipse(50, 50, 39, fill=WHITE)
    for hour in range(1, 13):
        a = math.radians(hour * 30 - 90)
        x, y = 50 + 30.5 * math.cos(a), 50 + 30.5 * math.sin(a)
        c.text(x, y, "17" if hour == 12 else str(hour), 11 if hour == 12 else 8, BLACK)
    for minute in range(60):
        a = math.radians(minute * 6)
        near = 35.6 if minute % 5 else 36.0
        c.line(
            [(50 + near * math.cos(a), 50 + near * math.sin(a)), (50 + 37 * math.cos(a), 50 + 37 * math.sin(a))],
            GREY,
            0.5,
        )
    c.line([(50, 50), (38, 57)], BLACK, 2.6)
    c.line([(50, 50), (70, 60)], BLACK, 1.7)
    c.ellipse(50, 50, 2.6, fill=(190, 40, 40))
    return c.image()


def street_sign() -> Image.Image:
    """A street name sign on a pole."""
    c = Canvas((150, 200, 235), (214, 232, 242))
    c.box(0, 80, 100, 100, (120, 124, 126))
    c.box(0, 77, 100, 82, (186, 182, 172))
    for left, top, shade in ((2, 40, (196, 120, 96)), (70, 46, (206, 184, 140))):
        c.box(left, top, left + 28, 78, shade)
        for row in range(3):
            for column in range(3):
                x, y = left + 4 + column * 8, top + 5 + row * 10
                c.box(x, y, x + 4.5, y + 6, (92, 112, 130))
    c.box(47, 26, 53, 97, (84, 88, 92))
    c.box(5, 12, 95, 36, (16, 104, 62), radius=3, edge=WHITE, outline=1.2)
    c.text(50, 24, "QUILLON WAY", 12.5, WHITE)
    return c.image()


def chess_king() -> Image.Image:
    """A chess board with pawns and one bright green king."""
    c = Canvas((70, 60, 58), (46, 40, 40))
    for row in range(6):
        for column in range(8):
            light = (row + column) % 2 == 0
            c.box(
                column * 12.5,
                40 + row * 10,
                column * 12.5 + 12.5,
                50 + row * 10,
                (236, 216, 178) if light else (130, 86, 56),
            )
    for x, y, shade in ((14, 58, WHITE), (84, 60, BLACK), (20, 84, BLACK), (80, 86, WHITE)):
        edge = GREY
        c.polygon([(x - 4, y - 8), (x + 4, y - 8), (x + 7, y + 7), (x - 7, y + 7)], shade, edge=edge, outline=0.6)
        c.ellipse(x, y - 12, 5.5, fill=shade, edge=edge, outline=0.6)
        c.box(x - 8, y + 6, x + 8, y + 10, shade, radius=1, edge=edge, outline=0.6)
    green, dark = (30, 205, 70), (10, 110, 36)
    c.polygon([(41, 44), (59, 44), (63, 80), (37, 80)], green, edge=dark, outline=1)
    c.box(32, 79, 68, 88, green, radius=2, edge=dark, outline=1)
    c.box(29, 87, 71, 94, green, radius=2, edge=dark, outline=1)
    c.box(36, 39, 64, 45, green, radius=2, edge=dark, outline=1)
    c.polygon([(37, 39), (32, 23), (44, 27), (50, 22), (56, 27), (68, 23), (63, 39)], green, edge=dark, outline=1)
    c.box(47.5, 5, 52.5, 24, green, edge=dark, outline=0.8)
    c.box(41.5, 10, 58.5, 15, green, edge=dark, outline=0.8)
    c.box(48.2, 6, 51.8, 23, green)
    return c.image()


def bicycle() -> Image.Image:
    """A bicycle on triangular wheels."""
    c = Canvas((188, 222, 240), (228, 240, 244))
    c.box(0, 80, 100, 100, (150, 154, 150))
    c.line([(0, 90), (100, 90)], (232, 228, 208), 1)
    for x in (25, 75):
        c.polygon(around(x, 66, 24, 3), (218, 226, 228), edge=BLACK, outline=3)
        for corner in around(x, 66, 22, 3):
            c.line([(x, 66), corner], GREY, 0.7)
        c.ellipse(x, 66, 2.4, fill=BLACK)
    red = (205, 40, 40)
    crank = (47, 66)
    c.line([(25, 66), crank, (68, 40), (38, 40), (25, 66)], red, 2.4)
    c.line([crank, (36, 34)], red, 2.4)
    c.line([(75, 66), (66, 32), (73, 28)], red, 2.4)
    c.line([(73, 28), (78, 31)], BLACK, 2.6)
    c.line([(30, 33), (42, 33)], BLACK, 3.6)
    c.ellipse(*crank, 4, fill=GREY, edge=BLACK, outline=1)
    c.line([crank, (52, 74)], BLACK, 1.6)
    c.line([(49, 75), (55, 75)], BLACK, 2)
    return c.image()


def mug() -> Image.Image:
    """A mug with a word on it."""
    c = Canvas((246, 222, 190), (236, 200, 160))
    c.box(0, 74, 100, 100, WOOD)
    c.line([(0, 74), (100, 74)], DARK_WOOD, 1.2)
    c.ellipse(46, 85, 34, 4, fill=(134, 90, 54))
    c.arc(76, 52, 15, 17, 0, 360, (20, 110, 150), 5.5)
    c.box(14, 26, 76, 85, (28, 140, 186), radius=5)
    c.ellipse(45, 27, 31, 6, fill=(20, 110, 150))
    c.ellipse(45, 27.5, 28, 4.6, fill=(70, 42, 26))
    c.box(18, 40, 72, 68, WHITE, radius=3)
    c.text(45, 54.5, "WALRUS", 12.5, (170, 30, 40))
    for x in (34, 45, 56):
        c.line([(x, 19), (x + 2, 14), (x - 2, 9), (x, 4)], WHITE, 1.2)
    return c.image()


def calendar() -> Image.Image:
    """A wall calendar that runs to the 37th."""
    c = Canvas((174, 190, 168), (150, 168, 148))
    c.box(12, 9, 90, 97, (116, 132, 114))
    c.box(10, 6, 88, 94, WHITE, edge=(210, 210, 206), outline=0.6)
    c.box(10, 6, 88, 22, (196, 48, 56))
    for x in (26, 49, 72):
        c.box(x - 1.2, 2, x + 1.2, 10, GREY, radius=1)
    c.text(49, 15, "MARCH", 9, WHITE)
    for number in range(1, 38):
        row, column = divmod(number - 1, 7)
        x, y = 16 + column * 11, 29.5 + row * 11.2
        c.box(x - 5, y - 5, x + 5, y + 5, (240, 241, 238), radius=1)
        c.text(x, y, str(number), 6.8, (196, 48, 56) if column == 6 else BLACK)
    return c.image()


def die() -> Image.Image:
    """One die whose face shows eight dots."""
    c = Canvas((36, 112, 78), (22, 84, 58))
    c.polygon([(22, 90), (84, 90), (92, 78), (92, 24)], (16, 62, 44))
    c.polygon([(16, 26), (30, 12), (88, 12), (74, 26)], (232, 230, 224), edge=GREY, outline=0.8)
    c.polygon([(74, 26), (88, 12), (88, 70), (74, 84)], (206, 204, 198), edge=GREY, outline=0.8)
    c.box(16, 26, 74, 84, WHITE, radius=4, edge=GREY, outline=0.8)
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                c.ellipse(27 + column * 18, 37 + row * 18, 5, fill=(190, 28, 36))
    return c.image()
