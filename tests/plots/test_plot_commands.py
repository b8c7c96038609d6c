"""``vniah heatmap``, ``compare`` and ``figure`` on real files, through the command line's own entry."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from run_files import DATE, sample_rows, write_evaluation, write_lines, write_metrics


def test_published_longva_as_table_figure_pdf_and_csv(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    png, data = tmp_path / "a.png", tmp_path / "a.csv"
    code, out, _ = main("heatmap", "--published", "LongVA-7B", "-o", png, "--pdf", "--csv", data)
    assert code == 0
    assert out.startswith("LongVA (published): mean 0.909, effective 2,200 frames (columns >= 0.9)\n")
    with Image.open(png) as image:
        assert image.size == (1400, 550)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    rows = list(csv.DictReader(data.open()))
    assert len(rows) == 90 and sum(float(row["score"]) for row in rows) / 90 == pytest.approx(0.90889, abs=1e-5)


def test_a_run_beside_the_published_is_one_figure(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = write_evaluation(tmp_path / "out", sample_rows(), model="me/tiny")
    code, out, _ = main("heatmap", run, "--name", "mine", "--published", "LongVA-7B", "-o", tmp_path / "p.svg")
    assert code == 0 and "mine: mean 0.778, effective 8 frames" in out
    text = (tmp_path / "p.svg").read_text()
    assert "(i) mine" in text and "(ii) LongVA (published)" in text


def test_the_training_length_is_known_by_name_or_told(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = write_evaluation(tmp_path / "out", sample_rows(), model="lmms-lab/LongVA-7B")
    assert "training length 1,556 frames, outside this grid" in main("heatmap", run)[1]
    assert "training length 10 frames" in main("heatmap", run, "--train-frames", "10")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heatmap"], "nothing to show: name a RUN"),
        (["heatmap", "--published", "nope"], "no published grid 'nope'"),
        (["heatmap", "absent"], "no such run: absent"),
        (["heatmap", "--published", "LongVA-7B", "--pdf"], "--pdf goes with -o"),
        (["heatmap", "--published", "LongVA-7B", "-o", "x.json"], "cannot tell the format of 'x.json'"),
        (["heatmap", "--published", "LongVA-7B", "-o", "no/x.png"], "the folder no does not exist"),
        (["heatmap", "--published", "LongVA-7B", "--csv", "x.json"], "expected a name ending in .csv"),
        (["heatmap", "--published", "LongVA-7B", "--name", "a"], "1 names (--name) for 0 runs"),
        (["compare"], "nothing to"),
        (["compare", "x", "--format", "html"], "no format 'html'; expected one of table, markdown, latex, csv"),
        (["figure", "6", "-o", "x.png"], "no figure '6'; expected one of 4, 5, 7, frames"),
        (["figure", "4"], "nowhere to draw to"),
        (["figure", "5", "-o", "x.png"], "name at least one dataset"),
        (["figure", "perplexity", "-o", "x.png"], "name at least one CSV file"),
        (["report", "absent", "-o", "x.html"], "no such run: absent"),
        (["report", "absent", "-o", "x.png"], "expected a name ending in .html, .htm"),
        (["heatmap", "--published", "LongVA-7b"], "did you mean 'LongVA-7B'?"),
        (["compare", "x", "--format", "marcdown"], "did you mean 'markdown'?"),
        (["figure", "perplexty", "-o", "x.png"], "did you mean 'perplexity'?"),
        (["heatmap", "--published", "LongVA-7B", "--threshold", "0"], "above 0 and at most 1"),
        (["compare", "x", "--threshold", "90"], "above 0 and at most 1, such as 0.9, got 90"),
        (["heatmap", "--published", "LongVA-7B", "--width", "700"], "--width takes 2 to 40"),
        (["heatmap", "--published", "LongVA-7B", "--dpi", "9"], "--dpi takes 30 to 1200"),
        (["heatmap", "--published", "LongVA-7B", "--cmap", "virids"], "no colour map 'virids'; try viridis"),
        (["figure", "frames", "-o", "x.png", "--cmap", "viridis"], "nothing to colour in figure frames"),
        (["heatmap", "--published", "LongVA-7B", "--train-length", "0"], "--train-length must be above 0"),
    ],
)
def test_bad_input_is_one_line_and_code_2(main, tmp_path, monkeypatch, arguments, message) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    code, out, err = main(*arguments)
    assert code == 2 and message in err and err.startswith("vniah: error: ") and err.count("\n") == 1
    assert out == "" and list(tmp_path.iterdir()) == [], "nothing was written"


def test_an_input_is_never_overwritten(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "ppl.csv"
    source.write_text("context_length,perplexity\n1000,8\n")
    before = source.read_bytes()
    code, _, err = main("figure", "perplexity", source, "--csv", source)
    assert code == 2 and "is one of the inputs" in err
    assert source.read_bytes() == before


def test_compare_writes_each_form(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    a = write_evaluation(tmp_path / "a", sample_rows(), model="me/a")
    b = write_evaluation(tmp_path / "b", sample_rows(lambda *_: True), model="me/b")
    code, out, _ = main("compare", a, b)
    assert code == 0 and out.splitlines()[3].split() == ["mean", "0.778", "1.000", "+0.222"]
    assert "\\toprule" in main("compare", a, b, "--format", "latex")[1]
    target = tmp_path / "t.md"
    assert main("compare", a, b, "--format", "markdown", "-o", target)[0] == 0
    assert "| mean | 0.778 | 1.000 | +0.222 |" in target.read_text()
    for ending, part in ((".csv", "mean,0.778,1.000"), (".TEX", r"\toprule"), (".md", "| mean |"), (".txt", "----")):
        target = tmp_path / f"by_ending{ending}"
        assert main("compare", a, b, "-o", target)[0] == 0 and part in target.read_text()
    assert main("compare", a, b, "--format", "csv", "-o", tmp_path / "c.txt")[0] == 0
    assert "mean,0.778" in (tmp_path / "c.txt").read_text()
    code, _, err = main("compare", a, b, "--format", "latex", "-o", tmp_path / "c.csv")
    assert code == 2 and "--format latex and 'c.csv' contradict each other" in err


def test_runs_of_one_name_are_told_apart(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = sample_rows()
    a, b = (write_evaluation(tmp_path / one, rows) for one in "ab")
    assert "LongVA-7B (1)  LongVA-7B (2)" in main("compare", a, b)[1]
    values = {"videomme_overall": 50.0}
    c, d = (
        write_metrics(tmp_path / f"c{frames}", "videomme_longva", values, model_args=f"max_frames_num={frames}")
        for frames in (8, 64)
    )
    assert "LongVA-7B@8  LongVA-7B@64" in main("compare", c, d)[1]


def test_all_grids_of_one_run_become_panels(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for task in ("text_niah_0", "text_niah_5"):
        rows = [
            {"acc": {"context_length": length, "depth_percent": 0, "needle": "1", "correct": length < 2000}}
            for length in (1000, 2000)
        ]
        write_lines(tmp_path / "run" / f"{DATE}_samples_{task}.jsonl", rows)
    code, out, _ = main("heatmap", tmp_path / "run")
    assert code == 0
    assert "run, text_niah_0: mean 0.500, effective 1K tokens" in out and "run, text_niah_5: mean" in out
    assert main("heatmap", tmp_path / "run", "--task", "text_niah_5")[1].startswith("run: mean 0.500")
    assert main("figure", "7", tmp_path / "run", "-o", tmp_path / "f.png")[0] == 0
    code, _, err = main("figure", "4", tmp_path / "run", "-o", tmp_path / "f.png")
    assert code == 2 and "no grid over frames among run, text_niah_0, run, text_niah_5" in err


@pytest.mark.parametrize(("kind", "rows"), [("4", 3 * 90), ("7", 3 * 176), ("frames", 4 * 6)])
def test_the_papers_figures_need_no_run(main, tmp_path: Path, kind: str, rows: int) -> None:  # type: ignore[no-untyped-def]
    code, _, _ = main("figure", kind, "-o", tmp_path / "f.png", "--csv", tmp_path / "f.csv")
    assert code == 0 and (tmp_path / "f.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((tmp_path / "f.csv").open()))) == rows


def test_frames_and_categories_of_our_runs(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    runs = [
        write_metrics(
            tmp_path / f"{frames}",
            "videomme_longva",
            {"videomme_overall": score, "videomme_short": score},
            model_args=f"pretrained=x,max_frames_num={frames}",
        )
        for frames, score in ((8, 40.0), (64, 45.0))
    ]
    # A folder may hold runs of other tasks too, such as those of the whole group.
    (results,) = runs[0].rglob("*_results.json")
    told = json.loads(results.read_text())
    results.write_text(json.dumps({**told, "results": {**told["results"], "activitynetqa": {"gpt_eval_score": 2.0}}}))
    data = tmp_path / "f.csv"
    assert main("figure", "frames", *runs, "--published", "none", "--csv", data)[0] == 0
    assert data.read_text().splitlines()[1:] == [
        "Short,LongVA-7B,8,40",
        "Short,LongVA-7B,64,45",
        "Overall,LongVA-7B,8,40",
        "Overall,LongVA-7B,64,45",
    ]
    of_one = ("--task", "videomme_longva")
    assert main("figure", "categories", *runs, *of_one, "--csv", data, "-o", tmp_path / "b.png")[0] == 0
    assert data.read_text().splitlines()[-1] == "LongVA-7B@64,Short,45"


def test_figure_perplexity_draws_every_curve_of_a_file(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "p.csv"
    source.write_text(
        "panel,curve,context_length,perplexity\nnano,full context,1000,9\nnano,sliding window,1000,7\n"
        "nano,full context,2000,8\nnano,sliding window,2000,6\n"
    )
    code, _, err = main("figure", "perplexity", source, "-o", tmp_path / "p.svg", "--csv", tmp_path / "out.csv")
    assert code == 0, err
    assert len(list(csv.DictReader((tmp_path / "out.csv").open()))) == 4
    drawn = (tmp_path / "p.svg").read_text()
    assert "nano, full context" in drawn and "nano, sliding window" in drawn


def test_a_figure_has_the_size_colours_and_title_that_are_chosen(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    look = ("--width", "5", "--dpi", "100", "--title", "Mine & yours")
    assert main("heatmap", "--published", "LongVA-7B", "-o", tmp_path / "a.png", "--cmap", "viridis", *look)[0] == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 500 and image.text["Title"] == "Mine & yours"  # type: ignore[attr-defined]
    assert main("figure", "frames", "-o", tmp_path / "b.svg", *look)[0] == 0
    assert "Mine &amp; yours" in (tmp_path / "b.svg").read_text()


def test_files_and_forms_go_by_the_names_people_use(main, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    a = write_evaluation(tmp_path / "a", sample_rows(), model="me/a")
    assert main("compare", a, "--format", "md") == main("compare", a, "--format", "markdown")
    lines = [main("heatmap", a, option, "10")[1] for option in ("--train-length", "--train-frames")]
    assert lines[0] == lines[1] and "training length 10 frames" in lines[0]
    source = tmp_path / "p.csv"
    source.write_text("context_length,perplexity\n1000,8\n")
    drawn = [
        main("figure", "perplexity", source, "--csv", tmp_path / "o.csv", f"--train-{one}", "9")
        for one in ("length", "frames")
    ]
    assert [code for code, _, _ in drawn] == [0, 0]
