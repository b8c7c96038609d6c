"""What a needle is: an image, a question with a locating prompt, and the answer (paper, Table 11).

Images are decoded or drawn when they are asked for. Knows nothing about where sets come from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vniah.haystack.pictures import UnreadableImageError, open_image

_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*\S", re.MULTILINE)


class Picture:
    """An image that is made when needed, with the fingerprint of what it is made from.

    Args:
        source: the bytes of an image file, the file, or a function that draws the image.
        name: what to call it in an error.
    """

    def __init__(self, source: bytes | Path | Callable[[], Image.Image], name: str) -> None:
        self.source, self.name = source, name

    def load(self) -> Image.Image:
        """The image as RGB; see ``vniah.haystack.pictures``.

        Raises:
            ValueError: the stored bytes are no readable image.
            FileNotFoundError: the file is gone.
        """
        if callable(self.source):
            return self._drawn
        try:
            return open_image(self._stored(self.source), f"the image of {self.name}")
        except UnreadableImageError as error:
            raise ValueError(f"the image of {self.name} cannot be read: it {error.reason}; replace the file") from None

    @property
    def image(self) -> Image.Image:
        """As ``load``, and kept for a while; a copy that the caller may change."""
        return _loaded(self).copy()

    @property
    def shown(self) -> Any:
        """What a model is handed: the image, or a source of one frame that draws it when it is encoded."""
        return self.image

    @functools.cached_property
    def _drawn(self) -> Image.Image:
        """Kept: it is small, and takes longer to draw than to score."""
        assert callable(self.source)
        return self.source()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the stored bytes; of size and pixels where the image is drawn."""
        if not callable(self.source):
            return hashlib.sha256(self._stored(self.source)).hexdigest()
        image = self.load()
        return hashlib.sha256(b"%dx%d" % image.size + image.tobytes()).hexdigest()

    @staticmethod
    def _stored(source: bytes | Path) -> bytes:
        return source if isinstance(source, bytes) else source.read_bytes()


# A grid asks for the same few images hundreds of times; more than these are cheaper to make again than to keep.
_loaded = functools.lru_cache(maxsize=16)(Picture.load)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAlike:
    """A picture that a needle is mistaken for.

    Attributes:
        answer: what it would answer to the needle's question; "" where nobody says.
    """

    picture: Picture
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """One needle.

    Raises:
        ValueError: the question or the answer is empty.
    """

    id: str  # unique in its set
    question: str  # as in the source but for trailing space; options of a multiple choice stand in it
    answer: str  # exactly as in the source
    picture: Picture  # where the image comes from
    distractors: tuple[LookAlike, ...] = ()  # from the one that is shown first
    among: str = ""  # the question that tells it from those, where ``question`` does not

    def __post_init__(self) -> None:
        for name, value in (("question", self.question), ("answer", self.answer)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"the {name} of needle {self.id!r} must be a text that is not empty, got {value!r}")
        object.__setattr__(self, "question", self.question.rstrip())

    @property
    def image(self) -> Image.Image:
        """The image, RGB; a copy that the caller may change."""
        return self.picture.image

    @property
    def fingerprint(self) -> str:
        """A hash of the image alone, so that needles which share an image share its encoding."""
        return self.picture.fingerprint

    @property
    def kind(self) -> Literal["choice", "word"]:
        """``choice`` if the answer is one of the letters that the question lists options for, else ``word``."""
        options = set(_OPTION.findall(self.question))
        return "choice" if len(options) > 1 and self.answer.strip() in options else "word"


class NeedleSet:
    """Needles in order, found by id.

    Args:
        name: the spec that was opened; differs from what was asked for when a fallback was used.
        needles: at least one.
        recipe: for drawn sets, what determines the images; it takes the place of the pixels in the
            fingerprint, which may differ in a shade between versions of the drawing library.

    Raises:
        ValueError: no needles, or ids that occur twice.
    """

    def __init__(self, name: str, needles: Iterable[Needle], *, recipe: str | None = None) -> None:
        self.name = name
        self._needles = tuple(needles)
        self._recipe = recipe
        if not self._needles:
            raise ValueError(f"the needle set {name!r} is empty; expected at least one needle")
        self._by_id = {needle.id: needle for needle in self._needles}
        if len(self._by_id) < len(self._needles):
            counts = Counter(needle.id for needle in self._needles)
            twice = sorted(needle_id for needle_id, count in counts.items() if count > 1)
            raise ValueError(f"the needle set {name!r} has ids that occur more than once: {', '.join(twice)}")

    def __len__(self) -> int:
        return len(self._needles)

    def __iter__(self) -> Iterator[Needle]:
        return iter(self._needles)

    def __repr__(self) -> str:
        return f"NeedleSet({self.name!r}, {len(self)} needles)"

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._by_id)

    def get(self, needle_id: str) -> Needle:
        """The needle of that id.

        Raises:
            ValueError: naming the ids that exist.
        """
        if needle_id not in self._by_id:
            shown = ", ".join(self.ids[:20]) + (", ..." if len(self) > 20 else "")
            raise ValueError(f"no needle {needle_id!r} in {self.name!r}; it has {shown}")
        return self._by_id[needle_id]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of every id, question, answer, image and look-alike (or of the recipe that draws the images)."""
        images = self._recipe or [needle.fingerprint for needle in self]
        texts = [(needle.id, needle.question, needle.answer) for needle in self]
        told: list[object] = [texts, images]
        if not self._recipe and any(needle.distractors for needle in self):
            told.append([[(one.picture.fingerprint, one.answer) for one in needle.distractors] for needle in self])
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
