"""``vniah sweep-rope``: one run a RoPE base, frames encoded once, going on after a stop, and the best named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import output_of
from tiny_checkpoints import write_llava_next_video

from longva_model.backends.llava_next_video import LlavaNextVideoBackend
from longva_model.engine.engine import TreeEngine
from vniah.commands.sweep_rope import PAPER_THETAS, best, label, parse_thetas, table, verdict
from vniah.runs.read import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = write_llava_next_video(tmp_path_factory.mktemp("baseline"))
    return made


@pytest.fixture(autouse=True)
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in ("FRAMES", "DEPTHS", "HAYSTACK", "NEEDLES", "DECODER"):
        monkeypatch.delenv(f"VNIAH_{key}", raising=False)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VNIAH_FRAMES", "3,6")


def options(folder: Path, out: Path, **more: str) -> list[str]:
    chosen = {"model": str(folder), "thetas": "1e6,3e6,1e8", "output": str(out), "depths": "0,100"}
    chosen |= {"haystack": "synthetic:0:8:64x48", "needles": "icons:0:2", "model-args": "device=cpu,dtype=float32"}
    return [part for key, value in {**chosen, **more}.items() for part in (f"--{key}", value)]


def test_each_base_is_a_run_and_frames_are_encoded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = LlavaNextVideoBackend.encode_pixels

    def encode(self: Any, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels_NHWC))
        return original(self, pixels_NHWC)

    monkeypatch.setattr(LlavaNextVideoBackend, "encode_pixels", encode)
    out = tmp_path / "out"
    said = output_of("sweep-rope", *options(folder, out))
    assert sum(encoded) == 8 + 2, "the haystack's block and two needles, for three bases"

    runs = {base: read_run(out / f"rope_theta_{base}") for base in ("1e6", "3e6", "1e8")}
    summary = json.loads((out / "sweep.json").read_text())
    for base, run in runs.items():
        assert run.name == f"{folder.name}, RoPE base {base}" and run.task == "vniah"
        assert len(run.placed) == 2 * 2 * 2 and len(run.cells) == 8 + 4
        mean = run.placed["correct"].sum() / 8
        assert summary["bases"][base]["mean"] == pytest.approx(mean)
        assert f"RoPE base {base}: mean {mean:.3f}" in said
    logprobs = {base: list(run.cells["answer_logprobs"]) for base, run in runs.items()}
    assert logprobs["1e6"] != logprobs["3e6"] != logprobs["1e8"], "the base changes what the model says"
    assert "best RoPE base:" in said and summary["haystack_fingerprint"] and summary["frames"] == "3,6"

    assert "RoPE base 1e8" in output_of("heatmap", *(str(out / f"rope_theta_{base}") for base in runs))

    # Again: nothing is computed, and the figures are the same.
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished sweep computes nothing")

    # What a prompt goes through; the check of a model that is loaded does not.
    monkeypatch.setattr(TreeEngine, "_extend", refuse)
    assert output_of("sweep-rope", *options(folder, out)) == said
    # Another base joins; only it is computed.
    with pytest.raises(AssertionError, match="computes nothing"):
        output_of("sweep-rope", *options(folder, out, thetas="1e6,5e7"))


def test_a_folder_holds_one_sweep(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output_of("sweep-rope", *options(folder, out, thetas="1e6", depths="0"))
    with pytest.raises(ValueError, match=r"holds a sweep of haystack_fingerprint.*choose another folder"):
        output_of("sweep-rope", *options(folder, out, haystack="synthetic:1:8:64x48"))
    with pytest.raises(ValueError, match="holds a sweep of model_args 'device=cpu,dtype=float32'"):
        output_of("sweep-rope", *options(folder, out, **{"model-args": "device=cpu,dtype=float32,preprocess=crop"}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"thetas": "1e6,fast"}, "cannot read the RoPE base 'fast'"),
        ({"thetas": "1e6,-3"}, "cannot read the RoPE base '-3'"),
        ({"thetas": "nan"}, "cannot read the RoPE base 'nan'"),
        ({"thetas": "1e6,1000000"}, "1000000 comes twice"),
        ({"thetas": ","}, "no RoPE bases"),
        ({"model-args": "rope_theta=1e6"}, "rope_theta is not for --model-args here; use --thetas"),
        ({"model-args": "journal=x"}, "use --output"),
        ({"haystack": "synthetic:0:4"}, "4 frames"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_loaded(
    changed: dict[str, str], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        output_of("sweep-rope", *options(folder, tmp_path / "out", **changed))
    assert not list(tmp_path.glob("out/rope_theta_*"))


def test_bases_are_written_as_people_write_them() -> None:
    assert [label(base) for base in parse_thetas(PAPER_THETAS)] == ["3e6", "1e7", "3e7", "1e8", "3e8", "1e9"]
    assert [label(base) for base in (10_000.0, 500_000.0, 1_234_567.0, 12_000.0)] == [
        "1e4",
        "5e5",
        "1.23457e6",
        "12000",
    ]


def test_the_best_is_the_highest_mean_then_the_longest_reach() -> None:
    def found(mean: float, effective: int) -> dict[str, Any]:
        return {"mean": mean, "effective_frames": effective, "control": None, "by_frames": {"200": mean}}

    scores = {1e6: found(0.5, 200), 3e6: found(0.5, 400), 1e7: found(0.5, 400), 1e8: found(0.4, 600)}
    assert best(scores) == 3e6
    assert verdict(scores) == "3e6 (a tie with 1e7; the smallest is named)"
    assert verdict({3e6: found(0.5, 400), 1e7: found(0.6, 400)}) == "1e7"
    assert table(scores).splitlines()[2].split() == ["3e6", "0.500", "400", "-", "0.50"]
