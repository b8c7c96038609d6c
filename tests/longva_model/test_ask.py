"""``vniah ask``: answers stream, and a follow-up goes on from what is computed, as if asked in one go."""

from __future__ import annotations

import itertools
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import output_of
from PIL import Image
from tiny_checkpoints import write_longva
from typer.testing import CliRunner
from video_files import write_video

from longva_model import LongVAForConditionalGeneration, LongVAProcessor
from longva_model.arguments import ModelArgs
from longva_model.engine import conversation as conversation_module
from longva_model.engine.chunks import Chunk
from longva_model.engine.conversation import Conversation
from longva_model.engine.engine import TreeEngine
from longva_model.run.runner import Runner
from vniah.cli import app
from vniah.contract.requests import Generate

TOKENS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ask")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "cat.png")
    Image.fromarray(pixels[::-1].copy()).save(root / "dog.png")
    return {
        "model": write_longva(root / "model", max_position_embeddings=4096),
        "video": write_video(root / "film.mp4", num_frames=7),
        "cat": root / "cat.png",
        "dog": root / "dog.png",
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))


def ask(files: dict[str, Path], *words: str, **given: Any) -> str:
    arguments = ["ask", "--model", str(files["model"]), "--max-new-tokens", str(TOKENS)]
    arguments += ["--model-args", "device=cpu,dtype=float32", *words]
    return output_of(*arguments, **given)


def in_one_go(
    files: dict[str, Path], kinds: list[tuple[str, Path]], turns: list[str], folder: Path | None = None
) -> str:
    """What ``model.generate`` answers to the whole conversation; ``turns`` are questions and answers in turn."""
    folder = folder or files["model"]
    model = LongVAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = LongVAProcessor.from_pretrained(folder)
    messages: list[dict[str, Any]] = [
        {"role": "assistant" if number % 2 else "user", "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(turns)
    ]
    messages[0]["content"] = [{"type": kind} for kind, _ in kinds] + messages[0]["content"]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    visuals = {
        f"{one}s": found for one in ("image", "video") if (found := [path for kind, path in kinds if kind == one])
    }
    inputs = processor(text=prompt, **visuals, num_frames=4, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return str(processor.tokenizer.decode(out[: out.index(end)] if end in out else out, skip_special_tokens=True))


def test_a_video_and_images_are_asked_about(files: dict[str, Path]) -> None:
    for kinds in (
        [("video", files["video"])],
        [("image", files["cat"]), ("image", files["dog"])],
        [("image", files["dog"]), ("video", files["video"])],
        [],
    ):
        said = ask(files, *(str(path) for _, path in kinds), "What is it?", "--frames", "4")
        assert said == in_one_go(files, kinds, ["What is it?"]) + "\n", kinds


def test_follow_ups_are_as_asked_in_one_go(files: dict[str, Path]) -> None:
    said = ask(files, str(files["video"]), "What is it?", "--frames", "4", "--then", "Why?", "--then", "And who?")
    kinds, turns, lines = [("video", files["video"])], [], []
    for question in ("What is it?", "Why?", "And who?"):
        turns.append(question)
        turns.append(in_one_go(files, kinds, turns))
        lines += [f"> {question}", turns[-1]]
    assert said == "\n".join(lines) + "\n"
    assert len({turns[1], turns[3], turns[5]}) > 1


def conversation(folder: Path, *visuals: Path) -> Conversation:
    runner = Runner.load(ModelArgs.read({"pretrained": str(folder), "device": "cpu", "dtype": "float32"}))
    return Conversation(runner.engine(ring=False), list(visuals), max_frames=4)


def test_a_follow_up_computes_only_what_is_new(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    original = TreeEngine.hidden

    def hidden(self: TreeEngine, chunk: Chunk, keep: int) -> torch.Tensor:
        computed.append(len(chunk))
        return original(self, chunk, keep)

    monkeypatch.setattr(TreeEngine, "hidden", hidden)
    talk = conversation(files["model"], files["video"], files["cat"])
    first = talk.ask("What is it?", Generate(max_new_tokens=TOKENS))
    frames: Any = talk.engine.feeder.frames
    assert frames.frames_encoded == 4 and talk.length == first.prompt_tokens
    computed.clear()
    second = talk.ask("Why?", Generate(max_new_tokens=TOKENS))
    template, ids = talk.engine.backend.template, talk.engine.backend.token_ids
    new = len(ids(first.text)) + len(ids(template.between + "Why?" + template.post))
    assert second.prompt_tokens == first.prompt_tokens + new
    assert computed[0] == new and set(computed[1:]) == {1}
    assert frames.frames_encoded == 4


def test_a_conversation_plans_its_rows(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 rows and then doubles: 524,288 for a prompt of 432,000 tokens."""
    talk = conversation(files["model"], files["video"], files["cat"])
    monkeypatch.setattr(conversation_module, "_ROOM", 40)
    first = talk.ask("What is it?", Generate(max_new_tokens=TOKENS))
    cache: Any = talk.engine.state
    assert cache.layers[0].keys.shape[2] == first.prompt_tokens + TOKENS + 40
    talk.ask("Why? " * 20, Generate(max_new_tokens=TOKENS))
    assert talk.length < cache.layers[0].keys.shape[2] <= talk.length + TOKENS + 256


def test_answers_stream_token_by_token(files: dict[str, Path]) -> None:
    pieces: list[str] = []
    result = conversation(files["model"], files["cat"]).ask("What?", Generate(max_new_tokens=TOKENS), pieces.append)
    assert len(pieces) == len(result.predicted_ids) > 2 and pieces[-1] == result.text
    assert all(after.startswith(before) for before, after in itertools.pairwise(pieces))


def test_an_empty_answer_does_not_show_the_video_again(files: dict[str, Path]) -> None:
    talk = conversation(files["model"], files["video"])
    anything = (*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n")
    first = talk.ask("What is it?", Generate(max_new_tokens=1, stop=anything))
    assert first.text == ""
    second = talk.ask("Why?", Generate(max_new_tokens=2))
    template, ids = talk.engine.backend.template, talk.engine.backend.token_ids
    assert second.prompt_tokens == first.prompt_tokens + len(ids(template.between + "Why?" + template.post))


def test_a_real_tokenizer_gives_the_same_follow_up(files: dict[str, Path], shared: Path) -> None:
    folder = shared / "parity/LongVA-tiny-unires"
    talk = conversation(folder, files["cat"])
    leaf = Generate(max_new_tokens=TOKENS)
    first = talk.ask("what is this?", leaf)
    second = talk.ask("why?", leaf)
    kinds = [("image", files["cat"])]
    assert first.text == in_one_go(files, kinds, ["what is this?"], folder)
    assert second.text == in_one_go(files, kinds, ["what is this?", first.text, "why?"], folder)


def test_questions_may_go_on_from_the_input(files: dict[str, Path]) -> None:
    once = ask(files, str(files["cat"]), "What?", "--then", "Why?", "--then", "Who?")
    for ending in ("", "\n", "\nnever read\n"):
        assert ask(files, str(files["cat"]), "What?", "--chat", input="Why?\nWho?\n" + ending) == once


def test_what_is_no_picture_or_film_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    # Long enough a text is a "film" to FFmpeg, which draws it on a terminal.
    (tmp_path / "text.txt").write_text("Lorem ipsum dolor sit amet.\n" * 400)
    (tmp_path / "short.txt").write_text("hello\n")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    names = {
        "text.txt": "neither a picture nor a film, but text",
        "short.txt": "neither a picture nor a film",
        "noise.mp4": "neither a picture nor a film",
        "gone.mp4": "no file",
    }
    code = (
        "import sys; from vniah import cli\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = ['vniah', 'ask', name, 'What?']\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: assert ended.code == 2 and 'torch' not in sys.modules\n"
        "    else: raise AssertionError(name)\n"
    )
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == len(names), done.stderr
    for line, said in zip(lines, names.values(), strict=True):
        assert line.startswith("vniah: error: ") and said in line


def test_nano_is_called_a_test_model_and_says_one_thing_no_longer_than_a_word(files: dict[str, Path]) -> None:
    command = ["ask", str(files["video"]), "What is in this video?", "--model-args", "device=cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "nano is a tiny test model" in result.stderr
    assert len(result.stdout.split()) <= 8
    told = CliRunner().invoke(app, [*command, "--max-new-tokens", "20"])
    assert told.stdout.startswith(result.stdout.strip()), "a length that is given wins"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{cat}"], "a question is missing behind"),
        (["{cat}", "{dog}"], "a question is missing behind"),
        (["gone.png", "What?"], "no file 'gone.png'"),
        (["{cat}", "<image> and <image>?"], "2 placeholders.*1 visuals"),
        (["{cat}", "What?", "--model-args", "pretrian=x"], "did you mean 'pretrained'"),
        (["What? " * 900], r"the conversation would be \d+ tokens and the context of .* is 4096"),
        (["{cat}", "What?", "--temperature", "-1"], "'--temperature'"),
    ],
)
def test_mistakes_are_said(words: list[str], said: str, files: dict[str, Path]) -> None:
    named = [word.format(**files) if word.startswith("{") else word for word in words]
    with pytest.raises((ValueError, OSError, AssertionError), match=said):
        ask(files, *named)
