"""The questions of MLVU: dev and test, multiple choice and generation.

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
from vniah.tasks.mlvu.kinds import BY_CODE, kind_named
from vniah.tasks.videos.source import VideoSource, first_of, load_once, matching, playable, read_rows

_log = logging.getLogger(__name__)
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
    questions, unusable = read_questions(_annotations(source, split, generation), generation=generation)
    wanted = {_label(question): (question["video_name"], BY_CODE[question["task"]].names) for question in questions}
    report, _ = source.locate(wanted)
    part = f"MLVU {split}, {'generation' if generation else 'multiple choice'}"
    if report.missing:
        _log.warning("%s: %s", part, report.summary())
    if unusable:
        _log.warning("%s: %d questions left out, their answer is none of their options", part, unusable)
    rows = [{**row, "unusable_questions": unusable} for row, _ in playable(questions, _label, report.found)]
    if not rows:
        raise ValueError(f"{part}: none of its {len(wanted)} videos is there; point {ENV} at a folder that has them")
    return tuple(rows)


def _annotations(source: VideoSource, split: str, generation: bool) -> list[dict[str, Any]]:
    """The rows as annotated: of the local folder if it has any, else of the Hub."""
    local = source.local_folder()
    if local is not None:
        for patterns in LOCAL_ANNOTATIONS[split, generation]:
            files = matching(local, patterns)
            if files:
                return _read(files)
    return _read(source.hub_annotations())


def _read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of several files; a row that does not say its task takes it from the file's name."""
    rows = []
    for path in files:
        guess = kind_named(path.stem) or kind_named(path.stem.split("_")[1] if "_" in path.stem else "")
        for row in read_rows(path):
            rows.append({**row, "_kind": guess.code if guess else ""})
    return rows


def read_questions(rows: Sequence[Mapping[str, Any]], *, generation: bool) -> tuple[list[dict[str, Any]], int]:
    """Annotated rows of one part with the columns that the tasks need, and how many could not be used.

    Rows of the other part are passed over: one file may hold both.

    Raises:
        ValueError: a row of an unknown task, or without video or question; says which.
    """
    questions, unusable = [], 0
    for number, row in enumerate(rows):
        name = str(first_of(row, "task_type", "question_type", "task", "_kind", default=""))
        kind = kind_named(name)
        if kind is None:
            raise ValueError(f"question {number} of MLVU is of the task {name!r}; expected one of {', '.join(BY_CODE)}")
        if kind.generation != generation:
            continue
        video, text = first_of(row, "video_name", "video"), first_of(row, "question")
        if not video or not text:
            raise ValueError(f"question {number} of MLVU ({kind.code}) lacks its {'question' if video else 'video'}")
        question = {
            "question_id": str(first_of(row, "question_id", default=f"{kind.code}_{number}")),
            "task": kind.code,
            "video_name": str(video),
            "question": str(text).strip(),
        }
        answer = str(first_of(row, "answer", default=""))
        if generation:
            points = [str(point) for point in first_of(row, "scoring_points", default=())]
            questions.append({**question, "answer": answer, "scoring_points": points})
            continue
        options = [str(option) for option in first_of(row, "candidates", "options", default=())]
        letter = answer_letter(answer, options)
        if not letter:
            unusable += 1
            continue
        questions.append({**question, "answer": letter, "options": options})
    return questions, unusable


def with_options(question: str, options: Sequence[str]) -> str:
    """The question followed by its options as "(A) ...", one a line; the Hub's questions have them already."""
    # As a list with letters: an option such as "2" also stands in a question about 2014.
    listed = options_in(question)
    if [bare_option(option) for option in listed] == [bare_option(option) for option in options]:
        return question
    return "\n".join([question, *(f"({letter_of(index)}) {option}" for index, option in enumerate(options))])


def _label(question: Mapping[str, Any]) -> str:
    """One video of one task: two tasks may each have a "1.mp4"."""
    return f"{question['task']}/{question['video_name']}"
