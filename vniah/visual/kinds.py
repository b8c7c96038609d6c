"""The kinds of needle tests on film by name: what a user may set of each, and how its scenes are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vniah.haystack import Haystack
from vniah.needles import open_needles
from vniah.notices import did_you_mean
from vniah.ruler.kinds import KINDS as RULER
from vniah.ruler.kinds import RulerSettings
from vniah.visual.scenes import LOOKALIKE_FRAMES, LookAlikes, Scenes
from vniah.visual.settings import Settings


@dataclass(frozen=True, kw_only=True)
class LookAlikeSettings(Settings):
    """V-NIAH-D's.

    Attributes:
        distractors: look-alikes in a cell at most.
        distance: haystack frames from the needle to the first of them, and from one to the next.
    """

    distractors: int = 1
    distance: int = LOOKALIKE_FRAMES

    def open_scenes(self, film: Haystack) -> Scenes:
        return LookAlikes(open_needles(self.needles), distance=self.distance, count=self.distractors)


KINDS: dict[str, type[Settings]] = {
    "needles": Settings,
    "lookalikes": LookAlikeSettings,
    **dict.fromkeys(RULER, RulerSettings),
}


def read_settings(metadata: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a task's kind, which its YAML names; see ``TaskSettings.read``."""
    kind = str(metadata.get("kind", "needles"))
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise ValueError(f"no kind of needle test {kind!r}; expected one of {', '.join(KINDS)}{near}")
    if kind in RULER and (given or {}).get("needles"):
        raise ValueError(f"{kind} draws what it shows and takes no needles; leave them out")
    return KINDS[kind].read(metadata, given=given)
