"""The report page as a file: whole, self-contained, escaped, with every number of the runs in it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from run_files import sample_rows, small_run, without, write_evaluation, write_metrics

from vniah import cli
from vniah.plots.published import read_published
from vniah.plots.report import THUMBNAIL, build_page, needle_pictures, script_json
from vniah.runs.read import read_run
from vniah.runs.run import Run, cells_table

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>@@DATA@@"\'&\u2028\ud800'


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts, as a browser's parser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._in_script = True

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    def having(self, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.replace("_", "-"): value for key, value in attributes.items()}
        return [found for _, found in self.elements if all(found.get(key) == value for key, value in wanted.items())]

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded


def test_a_page_holds_a_bounded_number_of_pictures() -> None:
    from vniah.needles import open_needles

    ids = open_needles("icons:0:2000").ids
    cells = cells_table({"num_frames": 4, "depth_percent": 0, "needle": needle, "correct": True} for needle in ids)
    run = with_task(dataclasses.replace(small_run(), cells=cells), needles="icons:0:2000")
    pictures, note = needle_pictures(run)
    assert len(pictures) == 300 and note.endswith("the frames of 300 of its 2,000 needles are shown")


def test_every_cell_is_in_the_grid_with_a_label_that_says_it_all() -> None:
    page = Page(build_page([small_run(train_frames=10)]))
    cells = page.having(role="gridcell")
    assert len(cells) == 9 + 3
    (cell,) = page.having(data_place="16/50")
    assert cell["aria-label"] == "16 frames, depth 50 %, 0 of 2 correct, 95 % 0.00 to 0.66"
    assert cell["class"] == "s0"
    assert page.having(data_place="8/100")[0]["class"] == "s100 edge", "the training length lies right of 8 frames"
    assert page.having(data_place="4/control")[0]["aria-label"] == "4 frames, no needle, 50% correct"
    assert len(page.having(role="grid")) == 1 and len(page.having(role="status")) == 1
    assert len(page.having(role="columnheader")) == 1 + 3 and len(page.having(role="rowheader")) == 3 + 1


def test_the_data_holds_needles_predictions_log_probabilities_and_controls(tmp_path: Path) -> None:
    run = read_run(write_evaluation(tmp_path, sample_rows(wrong=HOSTILE.replace("\ud800", ""))))
    (shown,) = Page(build_page([run])).data["runs"]
    cat, dog = shown["cells"]["16/50"]
    assert cat["needle"] == "cat" and dog["question"] == "Find the frame of a dog. What is it?"
    assert dog["predicted"].startswith("</script><script>") and dog["correct"] is False
    assert (dog["logprobs"], dog["answerIds"], dog["predictedIds"], dog["index"]) == ([-0.25, -4], [7, 8], [7, 9], 8)
    assert [one["correct"] for one in shown["cells"]["4/control"]] == [False, True]


def test_nothing_a_run_says_can_leave_its_place() -> None:
    cell = {"num_frames": 4, "depth_percent": 0, "correct": False}
    cells = cells_table([{**cell, **dict.fromkeys(("needle", "predicted", "question"), HOSTILE)}])
    settings = {HOSTILE: {HOSTILE: HOSTILE, "nested": {"a": [HOSTILE]}}}
    run = Run(name=HOSTILE, task=HOSTILE, model=HOSTILE, cells=cells, metrics={HOSTILE: 1.0}, settings=settings)
    text = build_page([run], title=HOSTILE, notes=[HOSTILE])
    text.encode("utf-8")
    page = Page(text)
    assert len(page.scripts) == 2, "the data and our script"
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert page.data["runs"][0]["cells"]["4/0"][0]["predicted"] == HOSTILE
    assert not [found for _, found in page.elements if any(key.startswith("on") for key in found)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_script_json_is_the_same_value_without_markup(value: Any) -> None:
    text = script_json(value)
    assert not set(text) & set("<>&") and text.isascii()
    assert json.loads(text) == value


def test_the_policy_allows_one_script_and_one_style_and_no_address() -> None:
    text = build_page([small_run()])
    (policy,) = Page(text).having(http_equiv="Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy["content"]).split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag in ("style", "script"):
        body = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(body) == 1
        digest = base64.b64encode(hashlib.sha256(body[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "http://" not in text and "https://" not in text and " style=" not in text


def test_infinite_log_probabilities_are_valid_json() -> None:
    run = small_run()
    run.cells.at[0, "answer_logprobs"] = (-0.5, -float("inf"))
    page = Page(build_page([run]))
    assert page.data["runs"][0]["cells"]["4/0"][0]["logprobs"] == [-0.5, None]


def test_pictures_are_small_and_shared_between_runs() -> None:
    image = Image.new("RGB", (3000, 1500), "red")
    runs = [small_run(name="a"), small_run(name="b")]
    page = Page(build_page(runs, pictures=[{"cat": image}, {"cat": image.copy(), "other": image}]))
    (uri,) = page.data["images"]
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) as small:
        assert small.size == (THUMBNAIL, THUMBNAIL // 2)
    assert [run["pictures"] for run in page.data["runs"]] == [{"cat": 0}, {"cat": 0}]


def test_tasks_without_a_grid_stand_side_by_side() -> None:
    def run(name: str, metrics: dict[str, float], *unscored: str, task: str = "mlvu") -> Run:
        return Run(name=name, task=task, model="m", metrics=metrics, unscored=unscored)

    runs = [run("a", {"vs": 3.25, "n": 123456.0}), run("x", {"acc": 1.0}, task="x"), run("b", {"n": 0.0}, "vs")]
    text = build_page(runs)
    assert '<h2 id="task-0">mlvu</h2>' in text and '<h2 id="task-1">x</h2>' in text
    assert "<th scope=col>a</th><th scope=col>b</th>" in text
    assert "<th scope=row>vs</th><td>3.25</td><td>not scored</td>" in text
    assert "<th scope=row>n</th><td>123456</td><td>0</td>" in text


def test_grids_of_one_run_are_told_apart_and_kept_by_task() -> None:
    text = read_published("Qwen2-7B-224K-distractors-3")
    grids = [small_run(name="a"), dataclasses.replace(text, name="a"), small_run(name="b")]
    page = build_page(grids)
    assert [run["name"] for run in Page(page).data["runs"]] == ["a, vniah", "a, text_niah_3", "b"]
    assert re.findall(r'<h2 id="run-(\d)">', page) == ["0", "2", "1"], "one task after the other"


def test_runs_of_other_kinds_are_shown_too(tmp_path: Path) -> None:
    metrics = Run(name="m", task="ai2d", model="m", metrics={"exact_match": 0.7071})
    text = build_page([metrics, read_published("LongVA-7B"), read_published("Qwen2-7B-224K-distractors-0")])
    page = Page(text)
    assert "<td>0.7071</td>" in text and "Figure 4 (i)" in text
    assert [run["aggregate"] for run in page.data["runs"]] == [False, True, True]
    assert page.having(data_place="32000/0")[0]["aria-label"] == "32000 tokens, depth 0 %, 5 of 5 correct"


def test_a_hole_is_a_cell_that_cannot_be_chosen() -> None:
    page = Page(build_page([without(small_run(), num_frames=4, depth_percent=0)]))
    (hole,) = page.having(aria_label="4 frames, depth 0 %, not scored")
    assert "data-place" not in hole


def test_a_report_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        build_page([])


def with_task(run: Run, **task: object) -> Run:
    return dataclasses.replace(run, settings={"task": task})


def test_pictures_come_from_the_runs_own_needles_if_they_are_still_the_same() -> None:
    from vniah.needles import open_needles

    needles = open_needles("builtin")
    run = small_run()
    ids = dict(zip(("cat", "dog"), needles.ids, strict=False))
    run = dataclasses.replace(run, cells=run.cells.replace({"needle": ids}))
    same = with_task(run, needles="builtin", needles_fingerprint=needles.fingerprint)
    pictures, note = needle_pictures(same)
    assert set(pictures) == set(ids.values()) and note == ""
    changed = with_task(run, needles="builtin", needles_fingerprint="0")
    assert needle_pictures(changed) == (
        {},
        "tiny: frames are not shown, since the needle set 'builtin' has changed since the run",
    )
    told, note = needle_pictures(changed, "builtin")
    assert set(told) == set(pictures) and "its frames may differ" in note
    assert needle_pictures(with_task(run, needles="owner/set"))[1].endswith("name its needle set with --needles")
    assert needle_pictures(run) == ({}, "")
    with pytest.raises(ValueError, match="has none of the needles of 'tiny'"):
        needle_pictures(small_run(), "builtin")


def test_the_command_writes_the_page_and_shows_other_tasks(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    a = write_evaluation(tmp_path / "a", sample_rows(), model="me/a")
    b = write_metrics(tmp_path / "b", "ai2d", {"exact_match": 0.5}, model="me/b")
    page = tmp_path / "r.html"
    monkeypatch.setattr(sys, "argv", ["vniah", "report", str(a), str(b), "-o", str(page), "--published", "LongVA-7B"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    note, wrote = capsys.readouterr().out.splitlines()
    assert note.startswith("Not measured on what the paper's were (a: haystack f00d, needles unknown; ")
    assert wrote == f"wrote {page}" and note.replace("'", "&#39;") in page.read_text("utf-8")
    assert [run["name"] for run in Page(page.read_text("utf-8")).data["runs"]] == ["a", "b", "LongVA (published)"]


def test_what_was_shown_in_a_column_is_a_line_of_the_settings() -> None:
    shown = [{"columns": "8, 9", "tokens_a_unit": [300]}, {"columns": "16", "tokens_a_unit": [234, 12]}]
    page = build_page([dataclasses.replace(small_run(), settings={"model": {"frames_shown": shown}})], pictures=[{}])
    assert "frames_shown.1" in page and "columns 8, 9; tokens_a_unit 300<" in page
    assert "frames_shown.2" in page and "columns 16; tokens_a_unit 234, 12<" in page


def test_a_grids_warning_stands_once_on_the_page(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    warning = "the built-in needles stand in for those of the paper"
    out, page = write_evaluation(tmp_path / "out", sample_rows(), model="me/a"), tmp_path / "r.html"
    (file,) = out.glob("*/*_results.json")
    told = json.loads(file.read_text("utf-8"))
    told["results"]["vniah"].setdefault("vniah_provenance,none", {})["warnings"] = [warning]
    file.write_text(json.dumps(told), "utf-8")
    monkeypatch.setattr(sys, "argv", ["vniah", "report", str(out), "-o", str(page)])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"warning: {warning}" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert f"warning: {warning}" not in text and f"<p>{warning.capitalize()}.</p>" in text
