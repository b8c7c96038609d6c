"""Models larger than a device (``device_map``): parts that wait on the host or the disk, scores as on one device."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_requests import film, picture
from tiny_checkpoints import write_llava_next_video, write_longva, write_text_model
from video_files import inserted

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import Backend
from longva_model.backends.loading import load_backend
from longva_model.backends.spreading import _offload_folder, _remove, check_room, place_of, spreading
from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.run import processes
from longva_model.run.runner import Runner
from vniah.contract.requests import Generate, Target
from vniah.haystack import SyntheticHaystack
from vniah.visual.compose import SplicedVideo
from vniah.visual.settings import Settings

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("module_cache")
WRITERS: dict[str, Callable[[Path], Path]] = {
    "longva": write_longva,
    "llava_next_video": write_llava_next_video,
    "text": write_text_model,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("spread")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).exists() else WRITERS[kind](root / kind)

    return folder


def load(folder: Path, **args: Any) -> Backend:
    given = {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "journal": "none", **args}
    return load_backend(ModelArgs.read(given))


def answers(backend: Backend, kind: type[TreeEngine] = TreeEngine) -> list[Any]:
    """Forced and free answers about a film's cells, an image and plain text, by the tree in short chunks."""
    leaves = (Target("A red kite."), Target("Red"), Generate(max_new_tokens=4))
    visuals: list[list[Any]] = [[]]
    if backend.layout is not None:
        hay = SyntheticHaystack(0, num_frames=6, width=48, height=32)
        cells = [SplicedVideo(haystack=hay, num_frames=6, inserted=inserted(picture(40, 40, 1), at)) for at in (1, 4)]
        visuals += [[cells[0]], [cells[1]], [picture(50, 30, 2)]]
    prompts = [backend.question("What is it?", shown, leaf, max_frames=8) for shown in visuals for leaf in leaves]
    # Nothing of another model's frames is taken from a disk.
    return kind(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=16)).run(prompts)


def assert_same(found: list[Any], wanted: list[Any], atol: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.text, one.predicted_ids) == (other.text, other.predicted_ids)
        assert one.answer_logprobs == pytest.approx(other.answer_logprobs, abs=atol)


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_on_the_disk_give_the_scores_of_one_device(
    folder_of: Callable[[str], Path], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = load(folder_of(kind), device_map="auto", max_memory="40KB")
    spread = backend.model.hf_device_map
    assert "disk" in spread.values() and any(weight.is_meta for weight in backend.model.parameters())
    assert "wait on the disk" in capfd.readouterr().err
    assert backend.device == torch.device("cpu")
    assert_same(answers(backend), answers(load(folder_of(kind))))


def test_a_device_without_room_is_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"no room even for model.image_newline of .*raise max_memory"):
        load(folder_of("llava_next_video"), device_map="auto", max_memory="1KB")


@pytest.mark.parametrize("kind", ["longva", "text"])
def test_weights_on_the_host_give_the_scores_of_one_device(folder_of: Callable[[str], Path], kind: str) -> None:
    """The hooks that a device has whose weights wait on the host; here the CPU stands for the device."""
    from accelerate import cpu_offload

    whole = load(folder_of(kind))
    wanted, plain = answers(whole), answers(whole, PlainEngine)
    cpu_offload(whole.model, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in whole.model.parameters())
    assert place_of(whole.model) == torch.device("cpu")
    assert_same(answers(whole), wanted)
    assert_same(answers(whole, PlainEngine), plain)


def test_of_another_type_weights_are_put_on_the_disk_for_as_long_as_the_model_is(
    folder_of: Callable[[str], Path],
) -> None:
    cache = Settings.read().cache_dir
    backend = load(folder_of("text"), device_map="auto", max_memory="30KB", dtype="bfloat16")
    assert_same(answers(backend), answers(load(folder_of("text"), dtype="bfloat16")))
    assert list(cache.glob("offload-*"))
    del backend
    gc.collect()
    assert not list(cache.glob("offload-*"))


def test_weights_that_a_killed_process_left_on_the_disk_are_removed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path))

    def killed() -> Path:
        """The folder of a process that ended without a word."""
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(write, os.fsencode(_offload_folder()))
            finally:
                os._exit(9)
        os.waitpid(child, 0)
        os.close(write)
        with open(read, "rb") as told:
            return Path(os.fsdecode(told.read()))

    left = killed()
    assert left.is_dir()
    mine = Path(_offload_folder())
    assert not left.exists() and sorted(tmp_path.glob("offload-*")) == [mine, Path(f"{mine}.lock")]
    # That of a process that runs stays.
    another = killed()
    assert mine.is_dir() and another.is_dir()
    _remove(str(mine))
    assert not mine.exists() and not Path(f"{mine}.lock").exists()


def test_arguments_say_what_a_device_may_hold() -> None:
    def told(**args: Any) -> dict[str, Any]:
        return spreading(ModelArgs.read(args), torch.device("cpu"))

    assert told() == {"device_map": None}
    assert told(device_map="auto", max_memory="1MB")["max_memory"] == {"cpu": 1_000_000}
    with pytest.raises(ValueError, match=r"max_memory='much': expected a size, such as 40GB"):
        told(device_map="auto", max_memory="much")
    with pytest.raises(ValueError, match=r"max_memory='1GB' says how device_map=auto places weights; give both"):
        load_backend(ModelArgs.read({"pretrained": "nano", "max_memory": "1GB"}))


def test_what_does_not_fit_beside_the_weights_is_refused_with_what_is_missing(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (folder_of("longva") / "model.safetensors").stat().st_size
    args = {"device_map": "auto", "max_memory": f"{weights * 2 // 3 // 1000}KB", "journal": "none"}
    runner = Runner.load(ModelArgs.read({"pretrained": str(folder_of("longva")), "device": "cpu", **args}))
    # Of two layers in fp32, 2 key-value heads of 8: 256 bytes a token.
    assert runner.backend.shape.kv_bytes_per_token == 256
    monkeypatch.setattr(processes, "free_bytes", lambda device: 1_000_000)
    check_room(runner.backend, 3906)
    with pytest.raises(ValueError, match=r"2 layers .* on cpu need 0.00128 GB .*, 0.00028 GB more than are free"):
        check_room(runner.backend, 5000)
    monkeypatch.setattr(processes, "free_bytes", lambda device: 256 * 40)
    prompt = runner.backend.question("What is it?", [film(8)], Target("A red kite."), max_frames=8)
    with pytest.raises(ValueError, match=r"the longest prompt .* does not fit: 2 layers .* more than are free there"):
        runner._run_window([prompt], {}, lambda *_: None, answered=0, of=1, ring=False)


def test_devices_are_summed_before_weights_are_read(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longva_model.run.needle_model import NeedleModel

    class Task:
        name, unit, adds, rows = "cells", "frames", 1, ({"num_frames": 2000},)
        describe = staticmethod(lambda: {"needles_name": "icons"})

    def check(**args: Any) -> None:
        model = NeedleModel(ModelArgs.read({"pretrained": str(folder_of("longva")), "device": "cpu", **args}))
        model.check([Task()])  # type: ignore[list-item]

    # (2,001 frames of 4 tokens and 256 of text) of 256 bytes: 2.1 MB, and weights of some 0.1 MB.
    monkeypatch.setattr(processes, "total_bytes", lambda device: 1_100_000)
    with pytest.raises(ValueError, match="does not fit cpu"):
        check()
    with pytest.raises(ValueError, match=r"does not fit cpu: .* are 0.0 GB more than the 0.0 GB there"):
        check(device_map="auto")
    two = [torch.device("cuda", index) for index in range(2)]
    monkeypatch.setattr(processes, "visible_devices", lambda device: two)
    check(device_map="auto")
    # No ring takes 8 bits.
    monkeypatch.setattr(processes, "total_bytes", lambda device: 600_000)
    ways = r"or use 2 such devices: .*=tensor,kv=fp8; or, without kv=fp8, use 4 such devices: .*parallel=ring"
    with pytest.raises(ValueError, match=ways):
        check(kv="fp8")


@pytest.mark.parametrize(
    ("weights", "cache", "heads", "kv", "said"),
    [
        (15, 70, 8, "", r"use 2 such devices: .*--nproc_per_node 2 .* parallel=ring$"),
        (140, 100, 8, "", r"use 4 such devices: .* parallel=tensor$"),
        (15, 600, 4, "", r"use 8 such devices: .* parallel=ring,tensor_parallel_size=4$"),
        (700, 1, 8, "", r"device_map=auto in one process"),
        (15, 120, 8, "kv=fp8", r"use 2 such devices: .* parallel=tensor,kv=fp8$"),
        (140, 0, 8, "kv=host", r"use 2 such devices: .* parallel=tensor,kv=host$"),
        (15, 600, 4, "kv=fp8", r"leave kv=fp8 out, since no number of such devices would do"),
    ],
)
def test_what_does_not_fit_is_told_how_many_devices_would_do(
    weights: float, cache: float, heads: int, kv: str, said: str
) -> None:
    from longva_model.run.needle_model import _enough

    assert re.search(said, _enough(weights, cache, 80, heads, kv))
