"""lmms-eval's own models under `vniah_generate`: what `vniah doctor --host-model` says of each is what was run."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from chat_server import ChatServer
from lmms_requests import cells_of, evaluated
from typer.testing import CliRunner, Result

from vniah.commands.doctor import command
from vniah.visual import hosts

pytest.importorskip("lmms_eval")

FRAMES = (7, 8, 15)
# Beside what doctor says: no GPU, and pictures small enough for one.
ON_CPU = "device=cpu,device_map=cpu"
SMALL = "min_pixels=4096,max_pixels=16384"


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three frame counts, odd and even, by three depths and two needles."""
    for key, value in {
        "VNIAH_FRAMES": ",".join(map(str, FRAMES)),
        "VNIAH_DEPTHS": "0,50,100",
        "VNIAH_HAYSTACK": "synthetic:0:20:64x48",
        "VNIAH_NEEDLES": "icons:0:2",
        "VNIAH_CACHE": str(tmp_path / "cache"),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("VNIAH_PRESENTATION", raising=False)
    return tmp_path


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    yield server
    server.stop()


# What lmms-eval hands to the functions of `vniah_generate`: the lines of its YAML.
TASK = [{"text": "task: vniah_generate"}, {"text": "metadata: {family: vniah}"}]
# Cells and controls of each frame count, all of one length.
EVERY_FRAME = Counter({8: 8, 10: 8, 16: 8})


def run_host(
    name: str, model_args: str, env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """The scored cells of a whole grid on a model of lmms-eval."""
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    return cells_of(evaluated(name, model_args, "vniah_generate"), "vniah_generate")


def check_cells(cells: list[dict[str, Any]]) -> None:
    assert len(cells) == 24 and all(isinstance(cell["predicted"], str) and cell["predicted"] for cell in cells)
    assert Counter(cell["num_video_frames"] for cell in cells) == EVERY_FRAME
    for cell in cells:
        assert cell["fps"] == 1.0
        if cell["control"]:
            assert cell["needle_seconds"] is None and cell["needle_index"] is None
        else:
            index = (cell["num_video_frames"] - 1) * cell["depth_percent"] // 100
            assert cell["needle_index"] == index and cell["needle_seconds"] == [index, index + 1]


def frames_given(given: Mapping[str, Any]) -> int:
    """How many frames a model was asked with: patches of two frames for Qwen's videos, else images."""
    if "video_grid_thw" in given:
        return 2 * int(given["video_grid_thw"][:, 0].sum())
    return len(given["pixel_values"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing `min_pixels`:FutureWarning")  # by lmms-eval's models
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl_hf", "llava_hf", "gemma3"])
def test_a_model_of_lmms_evals_own_is_shown_every_frame(name: str, grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_hosts import CHECKPOINTS
    from transformers.generation.utils import GenerationMixin

    CHECKPOINTS[name](grid / "model")
    told = hosts.advise(name, 16)
    assert told.works is True, told.note
    seen: Counter[int] = Counter()
    generate = GenerationMixin.generate

    def watched(self: Any, *args: Any, **given: Any) -> Any:
        seen[frames_given(given)] += 1
        return generate(self, *args, **given)

    monkeypatch.setattr(GenerationMixin, "generate", watched)
    more = f"{ON_CPU},{SMALL}" if name.startswith("qwen") else ON_CPU
    args = ",".join(one for one in (f"pretrained={grid / 'model'}", told.model_args, more) if one)
    cells = run_host(name, args, told.env, monkeypatch)
    check_cells(cells)
    assert seen == EVERY_FRAME


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing `min_pixels`:FutureWarning")  # by lmms-eval's models
def test_lookalikes_are_shown_by_a_chat_model_and_by_ours(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """V-NIAH-D by messages: every frame of needle and look-alike is shown, and what is answered stands in the cells."""
    from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
    from tiny_hosts import CHECKPOINTS
    from transformers.generation.utils import GenerationMixin

    CHECKPOINTS["qwen2_5_vl"](grid / "model")
    monkeypatch.setenv("VNIAH_DISTANCE", "3")
    seen: Counter[int] = Counter()
    generate, until = GenerationMixin.generate, Qwen2_5_VL.generate_until
    chats: list[int] = []

    def watched(self: Any, *args: Any, **given: Any) -> Any:
        seen[frames_given(given)] += 1
        return generate(self, *args, **given)

    def chat(self: Any, requests: Any) -> Any:
        chats.append(len(requests))
        return until(self, requests)

    told = hosts.advise("qwen2_5_vl", 18)
    args = f"pretrained={grid / 'model'},{told.model_args},{ON_CPU},{SMALL}"
    with monkeypatch.context() as patch:
        patch.setattr(GenerationMixin, "generate", watched)
        patch.setattr(Qwen2_5_VL, "generate_until", chat)
        results = evaluated("qwen2_5_vl", args, "vniah_d_generate")
    cells = cells_of(results, "vniah_d_generate")
    assert chats == [24] and all(cell["predicted"] for cell in cells)
    assert seen == Counter(cell["num_video_frames"] for cell in cells)
    placed = [cell for cell in cells if not cell["control"]]
    for cell in placed:
        (needle,), others = cell["needle_indices"], cell["distractor_indices"]
        assert [3 <= abs(other - needle) <= 4 for other in others] in ([], [True])
    assert sum(map(len, (cell["distractor_indices"] for cell in placed))) >= 12
    for name, model in (("longva_ring", "nano"), ("hf_tree", str(grid / "model"))):
        ours = cells_of(evaluated(name, f"pretrained={model},device=cpu,journal=none", "vniah_d"), "vniah_d")
        assert len(ours) == 24 and sum(bool(cell["distractor_indices"]) for cell in ours if not cell["control"]) >= 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpoint", "presentation"),
    [
        ("llava_hf", "llava_hf", "video"),
        ("huggingface", "qwen2_5_vl", "images"),
        ("huggingface", "internvl_hf", "video"),
        ("async_hf_model", "qwen2_5_vl", "images"),
        ("async_hf_model", "internvl_hf", "video"),
    ],
)
def test_what_the_table_says_to_fail_fails(
    name: str, checkpoint: str, presentation: str, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_hosts import CHECKPOINTS

    CHECKPOINTS[checkpoint](grid / "model")
    args = f"pretrained={grid / 'model'},device=cpu"
    with pytest.raises((IndexError, ValueError)):
        run_host(name, args, {"VNIAH_PRESENTATION": presentation}, monkeypatch)
    told = hosts.advise(name, 16)
    assert told.works is False or told.env == {"VNIAH_PRESENTATION": "images"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai", "async_openai", "gpt4v"])
def test_a_model_behind_a_server_is_shown_every_frame(
    name: str, grid: Path, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hosts.advise(name, 16)
    assert told.works is True, told.note
    model_args = f"model=tiny,base_url={chat_server.url},api_key=none"
    if name == "gpt4v":
        model_args = "model_version=tiny"
        monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    args = ",".join(one for one in (model_args, told.model_args) if one)
    check_cells(run_host(name, args, told.env, monkeypatch))
    assert chat_server.images == EVERY_FRAME


@pytest.mark.slow
@pytest.mark.parametrize("form", ["to_openai_messages", "to_qwen3_vl_openai_messages"])
def test_the_requests_of_vllm_have_every_frame(form: str, grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapter needs a GPU; what it makes of a video or of images is lmms-eval's own."""
    from lmms_eval.protocol import ChatMessages

    from vniah.tasks import generated

    seen: Counter[int] = Counter()
    for presentation in ("video", "images"):
        monkeypatch.setenv("VNIAH_PRESENTATION", presentation)
        for row in generated.process_docs(TASK):
            kind = "video" if presentation == "video" else "image"
            content = [{"type": kind, "url": one} for one in generated.doc_to_visual(row)]
            messages = ChatMessages(messages=[{"role": "user", "content": content}])
            (made,) = getattr(messages, form)({"fps": 1, "max_frames": 16, "max_pixels": 1605632, "min_pixels": 28})
            seen[sum(part["type"] == "image_url" for part in made["content"])] += 1
    assert seen == EVERY_FRAME + EVERY_FRAME


@pytest.mark.parametrize("num_frames", [8, 16, 32, 64, 7, 15])
def test_the_arithmetic_of_qwen_vl_utils_keeps_every_frame(num_frames: int) -> None:
    """vllm, sglang and servers by way of lmms-eval: an even num_frames would lose one, at 50 % the needle."""
    from qwen_vl_utils.vision_process import smart_nframes

    from vniah.visual.compose import composed_frames

    frames = composed_frames(num_frames)
    for ele in ({"nframes": frames}, {"fps": 1, "max_frames": 768}, {"fps": 2, "max_frames": frames}):
        assert smart_nframes(ele, total_frames=frames, video_fps=1.0) == frames


@pytest.mark.parametrize("name", ["internvl2", "internvl3"])
def test_the_segments_of_internvl_lose_a_frame(name: str) -> None:
    """Why it is advised to show images, and not num_frame as many as there are frames."""
    module = importlib.import_module(f"lmms_eval.models.simple.{name}")
    assert len(set(module.get_index(None, 1.0, 15, num_segments=16))) == 15
    assert hosts.advise(name, 16).env == {"VNIAH_PRESENTATION": "images"}


def test_frames_as_images_are_those_of_the_video(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from vniah.haystack import open_haystack
    from vniah.tasks import generated

    row = next(row for row in generated.process_docs(TASK) if row["num_frames"] == 8 and row["depth_percent"] == 50)
    (path,) = generated.doc_to_visual(row)
    film = open_haystack(path)
    monkeypatch.setenv("VNIAH_PRESENTATION", "images")
    row = next(row for row in generated.process_docs(TASK) if row["num_frames"] == 8 and row["depth_percent"] == 50)
    images = generated.doc_to_visual(row)
    assert len(images) == len(film) == row["num_video_frames"] == 10
    for image, frame in zip(images, film.frames(0, 10), strict=True):
        assert np.abs(np.asarray(image, int) - frame).mean() < 8
    assert json.loads(row["provenance"])["presentation"] == "images"


def test_no_such_presentation(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.visual.settings import Settings

    monkeypatch.setenv("VNIAH_PRESENTATION", "image")
    with pytest.raises(ValueError, match=r"no presentation 'image' \(VNIAH_PRESENTATION\); .*did you mean 'images'"):
        Settings.read()


def test_a_presentation_without_effect_is_said(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vniah.runs.open import open_tasks

    monkeypatch.setenv("VNIAH_PRESENTATION", "images")
    open_tasks(["vniah"])
    assert "VNIAH_PRESENTATION=images is for free answers" in capsys.readouterr().err


def test_a_function_is_shown_images_where_asked(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vniah

    shown: list[Any] = []
    monkeypatch.setenv("VNIAH_PRESENTATION", "images")
    vniah.evaluate(lambda images, question: shown.append(images) or "red", "vniah_generate", frames=8, depths=50)
    assert [len(images) for images in shown] == [10] * 4 and shown[0][0].size == (64, 48)


def test_results_say_what_was_shown(grid: Path) -> None:
    from vniah.runs.open import open_tasks

    forced, free = (open_tasks([name])[0] for name in ("vniah", "vniah_generate"))
    told = free.provenance()
    assert told["video_frames"] == {"7": 8, "8": 10, "15": 16} and told["video_fps"] == 1.0
    assert told["presentation"] == "video" and told["held_frames"] == 0
    # Teacher forcing shows segments and no video: its results are as they were.
    assert not {"video_frames", "video_fps", "presentation", "held_frames"} & set(forced.provenance())
    assert not {"num_video_frames", "fps"} & set(forced.rows[0])
    last = next(row for row in forced.rows if row["num_frames"] == 8 and row["depth_percent"] == 100)
    assert last["needle_index"] == 8


# name, --model_args, presentation: a part of what is said, or nothing.
CALLS = [
    ("qwen2_5_vl", "pretrained=x", "video", "max_num_frames is not given; pass max_num_frames=16 (the longest video"),
    ("qwen2_5_vl", "pretrained=x,max_num_frames=8", "video", "max_num_frames=8 is given; pass max_num_frames=16"),
    ("qwen2_5_vl", "pretrained=x,max_num_frames=16", "video", ""),
    ("qwen2_5_vl", "pretrained=x,max_num_frames=64", "video", ""),
    ("qwen2_5_vl", "pretrained=x", "images", ""),
    ("qwen3_vl", "pretrained=x,max_num_frames=64", "video", "fps is not given; pass fps=1,max_num_frames=16"),
    ("qwen3_vl", "pretrained=x,fps=2,max_num_frames=64", "video", "fps=2 is given; pass fps=1,max_num_frames=16"),
    ("qwen3_vl", "pretrained=x,fps=1,max_num_frames=64", "video", ""),
    ("internvl_hf", "pretrained=x,num_frames=16", "video", "set VNIAH_PRESENTATION=images and pass max_patches=1"),
    ("internvl_hf", "pretrained=x,max_patches=1", "images", ""),
    ("llava_hf", "pretrained=x,max_frames_num=64", "video", "set VNIAH_PRESENTATION=images"),
    ("llava_hf", "pretrained=x", "images", ""),
    ("huggingface", "pretrained=x", "video", "is not known to show every frame"),
    ("vllm", "model=x", "video", "VNIAH_PRESENTATION=images"),
    ("vllm", "model=x", "images", ""),
    ("vllm", "model=x,fps=1,max_frame_num=768,is_qwen3_vl=true", "video", ""),
    ("vllm", "model=x,fps=1,max_frame_num=8", "video", "VNIAH_PRESENTATION=images"),
    ("fuyu", "pretrained=x", "video", "what it samples is not known here"),
    ("sglang", "model=x,nframes=64", "video", "VNIAH_PRESENTATION=images"),
    ("openai", "model=x,max_frames_num=64", "video", "VNIAH_PRESENTATION=images"),
    ("openai_compatible", "model=x", "video", "VNIAH_PRESENTATION=images"),
    ("llava_onevision", "pretrained=x", "video", "pass max_frames_num=16"),
    ("llava_onevision", "pretrained=x,max_frames_num=16", "video", ""),
    ("no_such_model", "", "video", ""),
]


def warned(presentation: str, argv: list[str]) -> list[str]:
    from vniah.tasks.called import called_models
    from vniah.tasks.generated import host_warnings

    return host_warnings(16, presentation, called_models(argv))


@pytest.mark.parametrize(("name", "model_args", "presentation", "said"), CALLS)
def test_a_call_that_would_lose_frames_is_warned_of_by_what_works(
    name: str, model_args: str, presentation: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_installed", lambda package: True)
    argv = ["--model", name, "--model_args", model_args, "--tasks", "vniah_generate"]
    warnings = warned(presentation, argv)
    assert [said in one for one in warnings] == ([True] if said else [])
    assert warned(presentation, ["--model", "longva_ring"]) == warned(presentation, []) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VNIAH_HAYSTACK", "synthetic:1:20:64x48"),
        ("VNIAH_DEPTHS", "0,25,100"),
        ("VNIAH_NEEDLES", "icons:3:2"),
        ("VNIAH_PRESENTATION", "images"),
    ],
)
def test_cached_responses_are_of_what_was_measured(
    key: str, value: str, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval's --use_cache knows documents by number and question, and the task by its settings as they print."""
    from lmms_eval.caching.response_cache import ResponseCache
    from lmms_eval.tasks import TaskManager, get_task_dict

    from vniah.lmms_plugin import tasks_dir

    manager = TaskManager(verbosity="ERROR", include_path=str(tasks_dir()), include_defaults=False)

    def fingerprint() -> str:
        found = get_task_dict(["vniah_generate"], manager)
        cache = ResponseCache.create(str(grid / "responses"), model="qwen2_5_vl", task_dict=found)
        (one,) = cache._task_fingerprints.values()
        cache.close()
        return one

    first = fingerprint()
    assert fingerprint() == first
    with monkeypatch.context() as patch:
        patch.setenv(key, value)
        assert fingerprint() != first
    assert fingerprint() == first


@pytest.mark.parametrize("size", ["2", "16", "auto"])
def test_a_batch_that_would_lose_frames_is_warned_of(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 and 18 frames in one batch, lmms-eval's qwen2_5_vl shows 2 of each and says nothing."""
    monkeypatch.setattr(hosts, "_installed", lambda package: True)
    argv = ["--model", "qwen2_5_vl", "--model_args", "pretrained=x,max_num_frames=16", "--batch_size"]
    (warning,) = warned("video", [*argv, size])
    assert f"batch_size={size} is given; leave it at 1" in warning
    assert warned("video", [*argv, "1"]) == warned("images", [*argv, size]) == []


def test_a_config_file_that_would_lose_frames_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_installed", lambda package: True)
    path = tmp_path / "runs.yaml"
    argv = ["--config", str(path)]
    path.write_text("model: qwen2_5_vl\nmodel_args: pretrained=x\nbatch_size: 1\n")
    (warning,) = warned("video", argv)
    assert "max_num_frames is not given; pass max_num_frames=16" in warning
    # The command line wins, as it does for lmms-eval.
    assert warned("video", [*argv, "--model_args", "pretrained=x,max_num_frames=16"]) == []
    path.write_text("model: qwen2_5_vl\nmodel_args: {pretrained: x, max_num_frames: 16}\n")
    assert warned("video", argv) == []
    path.write_text("- {model: qwen2_5_vl, model_args: 'max_num_frames=16', batch_size: 4}\n- model: llava_hf\n")
    batched, images = warned("video", argv)
    assert "batch_size=4" in batched and "VNIAH_PRESENTATION=images" in images
    for text in ("", "7", "[", "- 7"):
        path.write_text(text)
        assert warned("video", argv) == []
    assert warned("video", ["--config", str(tmp_path / "none.yaml")]) == []


def test_videos_that_are_too_long_for_one_are_shown_as_images() -> None:
    assert hosts.advise("qwen2_vl", 768).model_args == "max_num_frames=768"
    told = hosts.advise("qwen2_vl", 770)
    assert told.works and told.env == {"VNIAH_PRESENTATION": "images"} and not told.model_args
    assert "VNIAH_PRESENTATION=images" in hosts.warning("qwen2_vl", "max_num_frames=3000", 770, "video")


def test_every_name_of_the_table_is_lmms_evals() -> None:
    for name, host in hosts.HOSTS.items():
        told = hosts.advise(name, 16)
        assert "{" not in told.model_args and told.note
        assert "hf_tree" in told.note if not told.works else host.works


def test_the_documented_table_is_this_one() -> None:
    told = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text(encoding="utf-8")
    for name, host in hosts.HOSTS.items():
        assert documented(name, host) in told, documented(name, host)


def documented(name: str, host: hosts.Host) -> str:
    """A model's row in docs/hosts.md."""
    works = {True: "run", None: "not run", False: "fails"}[host.works]
    args = f"`{host.model_args}`" if host.model_args else ""
    env = " ".join(f"`{key}={value}`" for key, value in host.env.items())
    return " ".join(f"| `{name}` | {works} | {args} | {env} | {host.note} |".split())


def test_a_package_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_installed", lambda package: package != "decord")
    told = hosts.advise("qwen3_vl", 16)
    assert told.works is False and told.note.startswith("not installed here: decord;") and "hf_tree" in told.note


def test_other_models_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = hosts.advise("llava_onevision", 16)
    assert told.works is None and told.model_args == "max_frames_num=16" and "32 unless told" in told.note
    assert "it may need llava, not installed here" in told.note or importlib.util.find_spec("llava")
    # A chat form takes it from its simple one.
    assert hosts.advise("qwen2_5_omni", 16).model_args == "max_num_frames=16"
    source = tmp_path / "host.py"
    source.write_text("import nowhere_to_be_had.part\n\n\nclass Model:\n    def __init__(self, nframes=4): ...\n")
    monkeypatch.setattr(hosts, "_source", lambda module: source)
    told = hosts.advise("whisper", 16)
    assert told.works is False and told.packages == ("nowhere_to_be_had",) and told.model_args == "nframes=16"


def doctor(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)


@pytest.mark.slow
def test_doctor_knows_every_model_of_lmms_eval(grid: Path) -> None:
    from vniah.lmms_plugin import host_classes

    for name in host_classes():
        done = doctor("--host-model", name, "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.output)
        assert set(told) == {"works", "model_args", "env", "packages", "note"}
        assert told["works"] or "hf_tree" in told["note"]


def test_doctor_says_it_in_words(grid: Path) -> None:
    done = doctor("--host-model", "internvl_hf")
    assert "videos of up to 16 frames: shows every frame" in done.output
    assert "VNIAH_PRESENTATION=images lmms-eval --model internvl_hf --model_args pretrained=CHECKPOINT" in done.output
    assert "cannot" in doctor("--host-model", "huggingface").output


def test_doctor_on_a_name_that_is_none() -> None:
    failed = doctor("--host-model", "qwen25_vl", "--json")
    assert isinstance(failed.exception, ValueError) and "did you mean 'qwen2_5_vl'?" in str(failed.exception)
    assert "no model ''; `lmms-eval models` lists them" in str(doctor("--host-model", "").exception)
    assert "--host-model" in str(doctor("--json").exception)
