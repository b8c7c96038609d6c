"""The questions of MLVU (Zhou et al., arXiv 2406.04264): dev and test, multiple choice and generation.

From the Hub, or from the folder MLVU_VIDEOS. On the Hub, `sy1998/MLVU_dev` and `sy1998/MLVU_Test` (those of
lmms-eval) hold the multiple choice questions alone; the dev set's generation questions are in `sy1998/MLVU`
(split OE). The test set's are only in `MLVU/MLVU_Test`, which asks each user to accept its terms: download
it and set MLVU_VIDEOS. A local folder may have the layout of MLVU's own release (`json/1_plotQA.json` ...,
`video/1_plotQA/...`; `test-ground-truth/test_mcq_gt.json` ... for the test set) or of the data sets above.

Left out and counted: questions whose video is missing or broken, and multiple choice questions whose
annotated answer is none of their options (MLVU has such), since neither can be scored truly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vniah.answers import answer_letter, bare_option, letter_of, options_in
from vniah.tasks.errors import rows_or_error
from vniah.tasks.videos.source import VideoSource, Wanted, first_of, load_once, matching, read_rows

_log = logging.getLogger(__name__)


# What annotations and folders call each task of the LongVA paper's Table 10: the file, the folder, `question_type`.
# SQA and TQA are in the test set alone (repository JUNJIE99/MLVU, news of 7/28/2024).
NAMES: dict[str, tuple[str, ...]] = {
    "TR": ("topic_reasoning", "7_topic_reasoning"),
    "AR": ("anomaly_reco", "6_anomaly_reco"),
    "VS": ("summary", "9_summary"),
    "NQA": ("findneedle", "needleqa", "needle", "2_needle"),
    "ER": ("ego", "3_ego"),
    "PQA": ("plotqa", "1_plotqa"),
    "SSC": ("subplot", "sub_scene", "8_sub_scene"),
    "AO": ("order", "5_order"),
    "AC": ("count", "4_count"),
    "SQA": ("sportsqa",),
    "TQA": ("tutorialqa",),
}
# Video Summary and Sub-Scene Captioning are answered freely and judged; the others are multiple choice.
GENERATION_CODES = ("VS", "SSC")
CHOICE_CODES = tuple(code for code in NAMES if code not in GENERATION_CODES)
_CODES = {name: code for code, names in NAMES.items() for name in (*names, code.lower())}

ENV = "MLVU_VIDEOS"
SOURCES = {
    ("dev", False): VideoSource(env=ENV, hub_id="sy1998/MLVU_dev", upstream="mlvu"),
    ("test", False): VideoSource(env=ENV, hub_id="sy1998/MLVU_Test", upstream="mlvu_test"),
    ("dev", True): VideoSource(
        env=ENV,
        hub_id="sy1998/MLVU",
        annotations=("data/OE-*.parquet",),
        media=("MLVU/video/summary/*", "MLVU/video/subPlot/*", "MLVU/video/sub_scene/*"),
    ),
    ("test", True): VideoSource(
        env=ENV,
        hub_id="MLVU/MLVU_Test",
        annotations=("test-ground-truth/test_ssc_gt.json", "test-ground-truth/test_vs_gt.json"),
        media=("*.mp4", "*.zip"),
    ),
}
# In a local folder: of MLVU's release, else of the Hub's copies. The first alternative with any file is read.
LOCAL_ANNOTATIONS: dict[tuple[str, bool], tuple[tuple[str, ...], ...]] = {
    ("dev", False): (("json/[1-7]_*.json",), ("mlvu/test-*.parquet",)),
    ("dev", True): (("json/[89]_*.json",), ("OE-*.parquet",)),
    ("test", False): (("test_mcq_gt.json",), ("mlvu_test/test-*.parquet",)),
    ("test", True): (("test_ssc_gt.json", "test_vs_gt.json"),),
}


def process_docs_dev_choice(dataset: Any) -> Any:
    return _process("dev", generation=False)


def process_docs_dev_generation(dataset: Any) -> Any:
    return _process("dev", generation=True)


def process_docs_test_choice(dataset: Any) -> Any:
    return _process("test", generation=False)


def process_docs_test_generation(dataset: Any) -> Any:
    return _process("test", generation=True)


def _process(split: str, *, generation: bool) -> Any:
    """The questions of one part in place of lmms-eval's one-line seed; see ``load``."""
    return rows_or_error(lambda: load(split, generation, SOURCES[split, generation].key()))


@load_once
def load(split: str, generation: bool, key: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """The rows to ask of one part, grouped by video, remembered under ``VideoSource.key()``.

    Raises:
        ValueError: no question can be asked at all.
        OSError: see ``VideoSource.locate``.
    """
    source = SOURCES[split, generation]
    local = source.local_folder()
    # Of the local folder if it has any, else of the Hub.
    alternatives = LOCAL_ANNOTATIONS[split, generation] if local else ()
    files = next((found for patterns in alternatives if local and (found := matching(local, patterns))), None)
    questions, unusable = read_questions(_read(files or source.hub_annotations()), generation=generation)
    part = f"MLVU {split}, {'generation' if generation else 'multiple choice'}"
    rows, _ = source.ask(part, questions, _video_of)
    if unusable:
        _log.warning("%s: %d questions left out, their answer is none of their options", part, unusable)
    return tuple({**row, "unusable_questions": unusable} for row, _ in rows)


def _video_of(question: Mapping[str, Any]) -> tuple[str, Wanted]:
    """One video of one task: two tasks may each have a "1.mp4"."""
    task, name = question["task"], question["video_name"]
    return f"{task}/{name}", (name, NAMES[task])


def _read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of several files; a row that does not say its task takes it from the file's name."""
    rows = []
    for path in files:
        guess = code_of(path.stem) or code_of(path.stem.partition("_")[2].partition("_")[0])
        rows += [{**row, "_code": guess} for row in read_rows(path)]
    return rows


def code_of(name: str) -> str | None:
    """The task that an annotation means by ``name``; ``None`` for one we do not know."""
    return _CODES.get(name.strip().casefold())


def read_questions(rows: Sequence[Mapping[str, Any]], *, generation: bool) -> tuple[list[dict[str, Any]], int]:
    """Annotated rows of one part with the columns that the tasks need, and how many could not be used.

    Rows of the other part are passed over: one file may hold both.

    Raises:
        ValueError: a row of an unknown task, or without video or question; says which.
    """
    questions, unusable = [], 0
    for number, row in enumerate(rows):
        name = str(first_of(row, "task_type", "question_type", "task", "_code", default=""))
        code = code_of(name)
        if code is None:
            raise ValueError(f"question {number} of MLVU is of the task {name!r}; expected one of {', '.join(NAMES)}")
        if (code in GENERATION_CODES) != generation:
            continue
        video, text = first_of(row, "video_name", "video"), first_of(row, "question")
        if not video or not text:
            raise ValueError(f"question {number} of MLVU ({code}) lacks its {'question' if video else 'video'}")
        answer = str(first_of(row, "answer", default=""))
        if generation:
            points = first_of(row, "scoring_points", default=())
            scored_by = {"answer": answer, "scoring_points": [str(point) for point in points]}
        else:
            options = [str(option) for option in first_of(row, "candidates", "options", default=())]
            letter = answer_letter(answer, options)
            if not letter:
                unusable += 1
                continue
            scored_by = {"answer": letter, "options": options}
        questions.append(
            {
                "question_id": str(first_of(row, "question_id", default=f"{code}_{number}")),
                "task": code,
                "video_name": str(video),
                "question": str(text).strip(),
                **scored_by,
            }
        )
    return questions, unusable


def with_options(question: str, options: Sequence[str]) -> str:
    """The question followed by its options as "(A) ...", one a line; the Hub's questions have them already."""
    # As a list with letters: an option such as "2" also stands in a question about 2014.
    listed = options_in(question)
    if [bare_option(option) for option in listed] == [bare_option(option) for option in options]:
        return question
    return "\n".join([question, *(f"({letter_of(index)}) {option}" for index, option in enumerate(options))])
