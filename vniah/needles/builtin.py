"""The built-in needles: twelve counterfactual scenes, drawn by us, in the spirit of the paper's Table 11.

Each question has a locating prompt. The answers contradict what one would guess: the usual answer is among the
options of a multiple choice, and is never right. Each letter is right twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vniah.needles import landscapes, scenes
from vniah.needles.needle import Needle, NeedleSet, Picture

# Bump when a scene or a text changes: it is part of the fingerprint.
VERSION = 1
CHOOSE = "Answer with the option's letter from the given choices directly."
ONE_WORD = "Answer the question using a single word or phrase."


@dataclass(frozen=True, slots=True)
class _Scene:
    id: str
    draw: Callable[[], Image.Image]
    question: str
    answer: str
    options: tuple[str, ...] = ()

    def needle(self) -> Needle:
        options = [f"{letter}. {text}" for letter, text in zip("ABCD", self.options, strict=False)]
        answer = "ABCD"[self.options.index(self.answer)] if options else self.answer
        question = "\n".join([self.question, *options, CHOOSE if options else ONE_WORD])
        picture = Picture(draw=self.draw, name=f"built-in needle {self.id!r}")
        return Needle(id=self.id, question=question, answer=answer, picture=picture)


_SCENES = (
    _Scene(
        "banana", scenes.banana, "Find the frame of a banana on a plate. What is the color of that banana?", "Purple"
    ),
    _Scene(
        "clock",
        scenes.clock,
        "Find the frame of a wall clock. Which number stands at the very top of the clock?",
        "17",
        ("12", "15", "17", "24"),
    ),
    _Scene(
        "street-sign",
        scenes.street_sign,
        "Find the frame of a street sign on a pole. What is the name of that street?",
        "Quillon Way",
        ("Quillon Way", "Velmora Way", "Tarrow Way", "Main Street"),
    ),
    _Scene(
        "chess-king",
        scenes.chess_king,
        "Find the frame of a chess board. What is the color of the king on that board?",
        "Green",
        ("White", "Green", "Red", "Black"),
    ),
    _Scene(
        "bicycle",
        scenes.bicycle,
        "Find the frame of a bicycle. What is the shape of its wheels?",
        "Triangles",
        ("Circles", "Squares", "Hexagons", "Triangles"),
    ),
    _Scene("mug", scenes.mug, "Find the frame of a mug. Which animal is named on that mug?", "Walrus"),
    _Scene(
        "calendar",
        scenes.calendar,
        "Find the frame of a wall calendar. What is the number of the last day on it?",
        "37",
    ),
    _Scene(
        "tree",
        landscapes.fish_tree,
        "Find the frame of a tree with something hanging from its branches. What hangs from that tree?",
        "Fish",
        ("Apples", "Lamps", "Fish", "Keys"),
    ),
    _Scene(
        "snowman",
        landscapes.snowman,
        "Find the frame of a snowman. Where is this snowman?",
        "On a beach",
        ("On a mountain", "In a forest", "On a roof", "On a beach"),
    ),
    _Scene(
        "traffic-light",
        landscapes.traffic_light,
        "Find the frame of a traffic light. What is the color of the light that is on?",
        "Blue",
        ("Red", "Blue", "Yellow", "Green"),
    ),
    _Scene(
        "snail",
        landscapes.snail,
        "Find the frame of a snail. What does this snail carry in place of its shell?",
        "A teapot",
        ("A teapot", "A house", "A drum", "A helmet"),
    ),
    _Scene("die", scenes.die, "Find the frame of a die. How many red dots are on that die?", "8"),
)


def builtin_needles() -> NeedleSet:
    """The twelve needles, 672 x 672 pixels each."""
    return NeedleSet("builtin", (scene.needle() for scene in _SCENES), recipe=f"builtin drawing {VERSION}")
