"""No code is ever run from a checkpoint, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
# Every folder by one process, of whose answers none may be used up.
LOAD = """import sys
from longva_model.backends.loading import load_backend
from longva_model.arguments import ModelArgs
for folder in sys.argv[1:]:
    try:
        load_backend(ModelArgs(pretrained=folder, device="cpu"))
        print("loaded")
    except ValueError as error:
        print("refused:", error)
assert len(sys.stdin.readlines()) == 50
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


def test_a_checkpoints_code_does_not_run_whatever_is_answered(tmp_path: Path) -> None:
    """Under `yes y |` a planted file ran when only its configuration was looked at."""
    kinds = ("config", "tokenizer of LongVA", "tokenizer of a text model", "generation")
    folders = [tmp_path / kind for kind in kinds]
    for folder, kind in zip(folders, kinds, strict=True):
        write_checkpoint(folder, kind)
        plant(folder, tmp_path / f"{kind} ran")
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, folders)], input="y\n" * 50, capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not list(tmp_path.glob("* ran"))
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.strip().splitlines()
    assert len(said) == len(kinds) and said[0].startswith("refused:") and said[-1] == "loaded"
