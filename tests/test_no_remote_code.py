"""No code is ever run from a checkpoint, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("vniah", "longva_model", "tasks", "training", "plots", "benchmarks")
LOADING = ("from_pretrained", "from_config", "_from_config")
# Made of what is given, and of nothing on disk.
GIVEN = ("LongVAProcessor.from_config", "cls.from_config", "LongVAForConditionalGeneration._from_config")


def loading_calls() -> list[tuple[str, ast.Call]]:
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADING:
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}", node))
    return found


def test_every_call_that_loads_says_that_no_code_is_trusted() -> None:
    calls = [(place, call) for place, call in loading_calls() if place.rpartition(" ")[2] not in GIVEN]
    assert len(calls) > 20, "the calls are found"
    silent = []
    for place, call in calls:
        said = {keyword.arg: keyword.value for keyword in call.keywords}
        value = said.get("trust_remote_code")
        if not (isinstance(value, ast.Constant) and value.value is False):
            silent.append(place)
    assert not silent


PLANTED = """open({marker!r}, "w").close()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
class EvilConfig(PreTrainedConfig):
    model_type = "evil"
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    pass
"""


def plant(folder: Path, marker: Path) -> None:
    for place in ("evil.py", "custom_generate/generate.py"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(PLANTED.format(marker=str(marker)))


def write_checkpoint(folder: Path, kind: str) -> None:
    """A small checkpoint whose ``kind`` of file names a class of its own, beside which there is code."""
    from tiny_checkpoints import write_text_model

    import longva_model.nano as nano

    if kind == "tokenizer of a text model":
        write_text_model(folder, "qwen2")
    else:
        shutil.copytree(Path(str(nano.__file__)).parent, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))

    def change(name: str, **values: Any) -> None:
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**held, **values}))

    if kind == "config":
        change("config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    elif kind.startswith("tokenizer"):
        named = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        change("tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=named)


def test_a_checkpoints_code_does_not_run_whatever_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `yes y |` a planted file ran when only its configuration was looked at."""
    kinds = ("config", "tokenizer of LongVA", "tokenizer of a text model", "generation")
    folders = [tmp_path / kind for kind in kinds]
    for folder, kind in zip(folders, kinds, strict=True):
        write_checkpoint(folder, kind)
        plant(folder, tmp_path / f"{kind} ran")
    answers = io.StringIO("y\n" * 50)
    monkeypatch.setattr(sys, "stdin", answers)
    with pytest.raises(ValueError):
        load_backend(ModelArgs(pretrained=str(folders[0]), device="cpu"))
    for folder in folders[1:-1]:
        with contextlib.suppress(ValueError):
            load_backend(ModelArgs(pretrained=str(folder), device="cpu"))
    load_backend(ModelArgs(pretrained=str(folders[-1]), device="cpu"))
    assert not list(tmp_path.glob("* ran"))
    assert answers.tell() == 0, "nobody was asked"
