"""The tasks of MLVU (Zhou et al., arXiv 2406.04264), by the abbreviations of the paper's Table 10.

Annotations name them in several ways (the file, the folder, `question_type`); this is the one list.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One MLVU task.

    Attributes:
        code: as in Table 10.
        title: its name in words.
        names: what annotations and folders call it, in lower case.
        generation: answered freely and judged, rather than multiple choice.
    """

    code: str
    title: str
    names: tuple[str, ...]
    generation: bool = False


# SQA and TQA are in the test set alone (repository JUNJIE99/MLVU, news of 7/28/2024).
KINDS = (
    Kind("TR", "Topic Reasoning", ("topic_reasoning", "7_topic_reasoning")),
    Kind("AR", "Anomaly Recognition", ("anomaly_reco", "6_anomaly_reco")),
    Kind("VS", "Video Summary", ("summary", "9_summary"), generation=True),
    Kind("NQA", "Needle QA", ("findneedle", "needleqa", "needle", "2_needle")),
    Kind("ER", "Ego Reasoning", ("ego", "3_ego")),
    Kind("PQA", "Plot QA", ("plotqa", "1_plotqa")),
    Kind("SSC", "Sub-Scene Captioning", ("subplot", "sub_scene", "8_sub_scene"), generation=True),
    Kind("AO", "Action Order", ("order", "5_order")),
    Kind("AC", "Action Count", ("count", "4_count")),
    Kind("SQA", "Sports QA", ("sportsqa",)),
    Kind("TQA", "Tutorial QA", ("tutorialqa",)),
)
BY_CODE = {kind.code: kind for kind in KINDS}
CHOICE_CODES = tuple(kind.code for kind in KINDS if not kind.generation)
GENERATION_CODES = tuple(kind.code for kind in KINDS if kind.generation)
_BY_NAME = {name: kind for kind in KINDS for name in (*kind.names, kind.code.lower())}


def kind_named(name: str) -> Kind | None:
    """The task that an annotation means by ``name``; ``None`` for one we do not know."""
    return _BY_NAME.get(name.strip().casefold())
