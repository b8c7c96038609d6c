"""The grid and its plan: the design's figures for the paper's grid, and its errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import output_of
from typer.testing import CliRunner

from vniah.cli import app
from vniah.commands.plan import plan_needles
from vniah.contract.cost import SHAPES, request_tokens, tree_flops
from vniah.contract.requests import Request, RequestTree
from vniah.needles import open_needles
from vniah.runs.grid import Cell, Grid, needle_index, parse_range, with_step
from vniah.runs.plan import checkpoint_tokens, get_gpu, grid_requests, kv_plans, make_plan, shape_of, shared_cost
from vniah.text.settings import TextSettings
from vniah.text.task import TextTask
from vniah.visual.settings import Settings

TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "vocab_size": 9,
}
NEEDLES = [(f"n{number}", "What is it?" * 10, "Panda") for number in range(5)]


def test_the_papers_grid() -> None:
    cells, controls = grid_requests(Grid.parse("200-3000:200", "0-100:20"), NEEDLES)
    plan = make_plan(cells, controls, SHAPES["LongVA-7B"])
    assert (plan.cells, plan.controls) == (450, 75)
    assert round(plan.plain_flops / plan.tree_flops, 2) == 2.34
    assert 432_000 < plan.longest_tokens < 432_500
    assert round(plan.kv_bytes / 1e9, 1) == 24.8
    assert plan.peak_bytes < 48e9
    assert plan.seconds(get_gpu("A100-80GB"), 312 * 10**12) == pytest.approx(2.0)


def test_each_way_of_keeping_keys_and_values() -> None:
    shape = SHAPES["LongVA-7B"]
    cells, controls = grid_requests(Grid.parse("10000", "50"), NEEDLES)
    plan = make_plan(cells, controls, shape)
    assert 10_000 * 144 < plan.longest_tokens < 10_002 * 144
    device, host, fp8 = kv_plans(plan, shape, get_gpu("H100"), host_gb=128)
    # 28 layers of 4 heads of 128 numbers, keys and values, of two bytes each; or of one, and 4 for each head.
    assert (device.token_bytes, host.token_bytes, fp8.token_bytes) == (57_344, 57_344, 28 * 2 * 4 * (128 + 4))
    assert round(host.longest_bytes / 1e9, 1) == 82.6 and round(fp8.longest_bytes / 1e9, 1) == 42.6
    # The aim: it does not fit 80 GB, and does where keys and values are elsewhere or shorter.
    fitting = [one.fits_tokens is not None and one.fits_tokens >= plan.longest_tokens for one in (device, host, fp8)]
    assert fitting == [False, True, True]
    assert device.fits_tokens == int(72e9 - plan.weight_bytes - plan.chunk_bytes) // 57_344
    assert host.fits_tokens == int(0.9 * 128e9) // 57_344
    # A layer's part of the whole past, and of the past of each of 175 chunks in 28 layers.
    assert host.layer_bytes == host.longest_bytes // 28 and device.layer_bytes == device.prompt_bytes == 0
    assert host.prompt_bytes == 57_344 * 8192 * (175 * 176 // 2)
    small = kv_plans(plan, shape, get_gpu("RTX-4090"))
    assert small[1].fits_tokens is None
    tiny = get_gpu("RTX-4090")._replace(memory_gb=16)
    assert [one.fits_tokens for one in kv_plans(plan, shape, tiny, host_gb=128)] == [0, 0, 0]


def test_the_command_says_where_ten_thousand_frames_fit() -> None:
    asked = ("plan", "--frames", "10000", "--depths", "50", "--gpu", "H100", "--needles", "5")
    said = output_of(*asked, "--host-memory", "128")
    rows = {line.split()[0]: line for line in said.splitlines() if line.startswith("    ")}
    assert rows["device"].endswith("968,330 tokens, 6,724 frames")
    assert "host's memory of 128 GB  57,344         82.6 GB" in rows["host"]
    assert rows["fp8"].endswith("1,875,703 tokens, 13,025 frames") and "kv=fp8 is an approximation" in said
    assert "brings 2.9 GB to the device for each layer" in said
    assert "kv=host with 91.8 GB of the host's memory or kv=fp8 would do with one" in said
    assert "as the host's memory (--host-memory)" in output_of(*asked)
    # What the table above it says does not fit is no advice.
    said = output_of(*asked, "--host-memory", "40")
    assert "does not fit: parallel=ring over at least 2 of them" in said and ", and kv=fp8 would do with one" in said
    longest = output_of("plan", "--frames", "7500", "--depths", "50", "--gpu", "H100", "--needles", "5")
    assert "968,330 tokens, 6,724 frames" in longest, "of 90% of the memory"
    assert "the longest prompt does not fit" in longest, "though less than all of it is needed"


def test_a_shape_is_read_from_either_layout(tmp_path: Path) -> None:
    for config in (TEXT, {"text_config": TEXT, "vision_config": {"image_size": 32, "patch_size": 8}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shape = shape_of(str(tmp_path))
        assert (shape.layers, shape.kv_heads, shape.head_dim) == (2, 4, 2)
    assert shape.tokens_per_frame == 4


def test_the_tower_is_that_beside_the_checkpoint(tmp_path: Path) -> None:
    released = {**TEXT, "mm_vision_tower": "openai/tower", "tie_word_embeddings": True}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(released))
    assert shape_of(str(tmp_path / "model")).tokens_per_frame == 144
    (tmp_path / "openai/tower").mkdir(parents=True)
    (tmp_path / "openai/tower/config.json").write_text(json.dumps({"image_size": 28, "patch_size": 7}))
    shape = shape_of(str(tmp_path / "model"))
    assert shape.tokens_per_frame == 4
    cells, controls = grid_requests(Grid.parse("4", "50"), NEEDLES)
    assert make_plan(cells, controls, shape).weight_bytes == 2 * (shape.decoder_params + 9 * 8)


def test_the_shipped_models_shape_is_the_one_that_is_known() -> None:
    from longva_model.backends.loading import nano_folder

    assert shape_of(str(nano_folder())) == SHAPES["nano"]


def test_configs_of_other_things_are_named(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for text, said in (("{", "is not JSON"), ("[]", "holds no object"), ('{"num_attention_heads": 2}', "no language")):
        config.write_text(text)
        with pytest.raises(ValueError, match=f"config.json .*{said}"):
            shape_of(str(tmp_path))


def test_text_is_counted_by_the_checkpoints_tokenizer(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(shared / "parity" / "LongVA-tiny-unires")
    encode = checkpoint_tokens(folder)
    assert encode is not None and encode("<|im_end|>") == [600] and checkpoint_tokens("LongVA-7B") is None
    # What is not given is read as a run reads it.
    monkeypatch.setenv("VNIAH_FRAMES", "3,8")
    monkeypatch.setenv("VNIAH_DEPTHS", "0-100:30")
    output = CliRunner().invoke(app, ["plan", "--model", folder, "--needles", "2"]).output
    assert "3,8 frames, depths 0-100:30 %" in output and f"by the tokenizer in {folder}" in output
    monkeypatch.setenv("TEXT_NIAH_SAMPLES", "3")
    output = CliRunner().invoke(app, ["plan", "--model", folder, "--text", "1K,2K"]).output
    assert "depths 0-100:10 %" in output and "66 (2)" in output
    # Prompts are a sentence shorter at most, and longer by template and needle.
    found = re.search(r"longest prompt\s+([\d,]+) tokens", output)
    assert found is not None and 2000 < int(found[1].replace(",", "")) < 2200


@pytest.fixture(scope="module")
def text_prompts() -> list[Request]:
    settings = TextSettings(lengths="1K-4K:1K", depths="0-100:25", samples=2, haystack="builtin", num_distractors=3)
    return TextTask("text_niah_3", "teacher-forced", settings).requests()


def test_flops_without_a_tree_are_those_of_the_tree(text_prompts: list[Request]) -> None:
    films = [
        grid_requests(Grid.parse(frames, depths), NEEDLES)
        for frames, depths in (("1-40:1", "0-100:10"), ("7", "50"), ("3,4,9", "0,1,99,100"))
    ]
    for requests in (*([*cells, *controls] for cells, controls in films), text_prompts):
        assert shared_cost(requests, SHAPES["nano"]).flops == tree_flops(RequestTree(requests), SHAPES["nano"])


def test_a_forgotten_step_is_refused_with_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Hundreds of columns are planned, ...
    assert output_of("plan", "--frames", "3-3000:3")
    # ... and thousands are a mistake, wherever the grid comes from.
    monkeypatch.setenv("VNIAH_FRAMES", "200-3000")
    with pytest.raises(ValueError, match=r"'200-3000' are 2,801 columns, and at most 1,000 .* such as '200-3000:200'"):
        output_of("plan")
    with pytest.raises(ValueError, match=r"lengths '1000-3000' are 2,001 columns"):
        output_of("plan", "--text", "1000-3000")
    with pytest.raises(ValueError, match="are 2,100,000 cells, and at most 1,000,000"):
        output_of("plan", "--frames", "200-3000:200", "--needles", "icons:0:20000")


@pytest.mark.parametrize(
    ("first", "last", "said"), [(1, 100_000, "1-100000:5000"), (4, 8, "4-8:1"), (0, 100, "0-100:5")]
)
def test_a_step_that_is_suggested_is_a_round_one(first: int, last: int, said: str) -> None:
    assert with_step(first, last) == said
    assert len(parse_range(said, "frames")) <= 21


def test_needles_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``VNIAH_NEEDLES``, else the paper's; a set or number that is given wins."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("VNIAH_FRAMES", "4,8")

    def first_lines(*arguments: str) -> str:
        return " ".join(" ".join(output_of("plan", "--depths", "0,100", *arguments).splitlines()[:2]).split())

    assumed = "5 needles (assumed: lmms-lab/v_niah_needles is not in the cache; `vniah download needles` fetches it)"
    assert assumed in first_lines() and "cells (and controls) 20 (10)" in first_lines()
    monkeypatch.setenv("VNIAH_NEEDLES", "builtin")
    assert "12 needles of builtin cells (and controls) 48 (24)" in first_lines()
    assert "3 needles of icons:0:3:heldout cells (and controls) 12 (6)" in first_lines("--needles", "icons:0:3")
    assert "1 needle cells (and controls) 4 (2)" in first_lines("--needles", "1")
    with pytest.raises(ValueError, match="--needles 0 leaves nothing to plan"):
        plan_needles("0")
    with pytest.raises(FileNotFoundError, match=r"no folder of needles at '\./none'"):
        plan_needles("./none")
    # Their questions are counted, and not five of one length.
    found = {needle_id: (question, answer) for needle_id, question, answer in plan_needles("builtin")[0]}
    assert found == {needle.id: (needle.question, needle.answer) for needle in open_needles("builtin")}


def test_the_command_prints_the_ratio_and_refuses_what_it_does_not_know() -> None:
    assert "2.34x fewer" in output_of("plan", "--frames", "200-3000:200")
    small = output_of("plan", "--frames", "10000", "--depths", "50", "--needles", "2")
    assert "1.24x more, for it has the controls too" in small and "(no controls)" in small
    assert "text NIAH" in output_of("plan", "--text", "32K-64K:32K", "--samples", "2")
    with pytest.raises(ValueError, match="LongVA-7B, "):
        shape_of("LongVA-8B")
    with pytest.raises(ValueError, match=r"did you mean 'LongVA-7B'\?"):
        shape_of("longva-7b")


def test_a_gpu_goes_by_a_beginning_that_fits_one_alone() -> None:
    assert [get_gpu(name).name for name in ("H100", "h200", "l40s")] == ["H100-80GB", "H200-141GB", "L40S"]
    assert get_gpu("h100").name == get_gpu("H100-80GB").name == "H100-80GB"
    assert "1 x H100-80GB" in output_of("plan", "--frames", "200", "--gpu", "H100")
    with pytest.raises(ValueError, match="'A100' comes in A100-40GB and A100-80GB; say which"):
        get_gpu("A100")
    with pytest.raises(
        ValueError, match=r"no figures for the GPU 'RTX4090'; expected one of .*; did you mean 'RTX-4090'\?"
    ):
        get_gpu("RTX4090")


def test_a_prompt_is_estimated_alike_wherever_it_is_counted() -> None:
    settings = TextSettings.read({"lengths": "1000", "depths": "50", "num_distractors": 3, "samples": 1}, {})
    task = TextTask("text_niah_3", "teacher-forced", replace(settings, haystack="builtin"))
    for cell in task.cells:
        composed = task.compose(cell)
        assert request_tokens(composed.request(), SHAPES["LongVA-7B"]) == composed.num_tokens


# The grid: integer depths, specs, and errors that name the piece.


def test_the_papers_grid_has_450_cells_and_a_control_for_each_needle_and_length() -> None:
    grid = Grid.parse("200-3000:200", "0-100:20")
    cells = list(grid.cells("abcde"))
    assert len([cell for cell in cells if not cell.is_control]) == 450
    assert len([cell for cell in cells if cell.is_control]) == 15 * 5
    assert grid.longest == 3000
    assert cells[0] == Cell(200, 0, "a")


@pytest.mark.parametrize(
    ("num_frames", "depth", "index"), [(4, 0, 0), (4, 50, 2), (4, 100, 4), (7, 30, 2), (3, 33, 0), (1000, 29, 290)]
)
def test_the_needle_index_is_integer_arithmetic(num_frames: int, depth: int, index: int) -> None:
    assert needle_index(num_frames, depth) == index
    assert Cell(num_frames, depth, "n").needle_index == index


def test_a_control_has_no_needle_index() -> None:
    assert Cell(4, None, "n").needle_index is None


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("4,8,12", (4, 8, 12)),
        ("0-100:25", (0, 25, 50, 75, 100)),
        ("3-5", (3, 4, 5)),
        ("8, 4, 4", (4, 8)),
        ("1-6:4", (1, 5)),
    ],
)
def test_specs(spec: str, values: tuple[int, ...]) -> None:
    assert parse_range(spec, "frames") == values


@pytest.mark.parametrize("spec", ["", "a", "4,x", "8-4:1", "1-9:0", "4:2", "1.5", "1-2-3"])
def test_a_bad_spec_names_the_piece(spec: str) -> None:
    with pytest.raises(ValueError, match="frames"):
        parse_range(spec, "frames")


def test_a_range_that_no_one_means_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"'0-100000000000' in depths .* is 100,000,000,001 values"):
        parse_range("0-100000000000", "depths")


@pytest.mark.parametrize(
    ("frames", "depths", "said"), [("0,4", "0", "positive, got 0"), ("4", "0,101", "got 101"), ("4", "-5", "got -5")]
)
def test_values_out_of_range(frames: str, depths: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Grid.parse(frames, depths)


@pytest.mark.parametrize(("gigabytes", "size"), [("20", 20_000_000_000), ("0.003", 3_000_000)])
def test_the_bound_of_the_cache_in_bytes(gigabytes: str, size: int) -> None:
    assert Settings.read({}, {"VNIAH_CACHE_GB": gigabytes}).cache_bytes == size


@pytest.mark.parametrize("gigabytes", ["inf", "1e308"])
def test_a_cache_without_end_is_larger_than_any_disk(gigabytes: str) -> None:
    assert Settings.read({}, {"VNIAH_CACHE_GB": gigabytes}).cache_bytes >= 10**18


def test_a_task_is_planned_as_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own scenes: what is counted is tested against a run in test_ruler_tree.py."""
    for name in ("FRAMES", "DEPTHS", "HAYSTACK", "NEEDLES"):
        monkeypatch.delenv(f"VNIAH_{name}", raising=False)
    given = ("--frames", "20,40", "--depths", "0,100")

    def shared(*more: str) -> float:
        found = re.search(r"tree feeds +[\d,]+ \(([\d.]+)% fewer", output_of("plan", *more, *given))
        assert found is not None
        return float(found[1])

    few = shared("--task", "vruler_when")
    # Look-alikes all over the film leave less of it to share.
    assert shared("--task", "vruler_chain") < few
    monkeypatch.setenv("VNIAH_CIRCULAR", "1")
    assert shared("--task", "vruler_when") > few, "turned options are asked of the same film"
    group = output_of("plan", "--task", "vruler", *given)
    assert group.count("    vruler_") == 7 and "all in one run" in group
    for task, said in (
        ("vruler_keys_generate", "vruler_keys_generate is answered freely.*; plan vruler_keys"),
        ("vruler_counts", "no task 'vruler_counts'; did you mean"),
    ):
        with pytest.raises(ValueError, match=said):
            output_of("plan", "--task", task, *given)
    with pytest.raises(ValueError, match="text_niah_0 is not on film; plan text NIAH by --text"):
        output_of("plan", "--task", "text_niah_0")
    with pytest.raises(ValueError, match="give one of them"):
        output_of("plan", "--task", "vruler", "--text", "1K")
    with pytest.raises(ValueError, match="needs films of 10 frames at least, got num_frames 4; give more"):
        output_of("plan", "--task", "vruler_count", "--frames", "4")
