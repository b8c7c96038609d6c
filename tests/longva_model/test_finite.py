"""NaN and infinite logits are no answer: every way to be asked ends, and names the tensor or layer to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backends as tiny
import torch
from PIL import Image
from tiny_checkpoints import write_longva, write_text_model
from typer.testing import CliRunner

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend
from longva_model.engine.engine import PlainEngine, TreeEngine
from longva_model.engine.perplexity import measure
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import build_prompt
from longva_model.run.runner import Runner
from vniah.cli import app
from vniah.contract.requests import Generate, Leaf, Request, Target, Text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))


def damage(folder: Path, name: str, value: float = float("nan")) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (found,) = (key for key in tensors if key.endswith(name))
    tensors[found].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, **args: Any) -> Any:
    return load_backend(ModelArgs.read({"pretrained": str(folder), "device": "cpu", "dtype": "float32", **args}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "embed_tokens.weight", "lm_head.weight"])
def test_a_damaged_checkpoint_is_refused_when_it_is_loaded(name: str, value: float, tmp_path: Path) -> None:
    """Three of them scored 0.0 without a message."""
    folder = write_text_model(tmp_path / "model")
    if name == "embed_tokens.weight":
        # Row 0, the letter a, which every prompt holds.
        name = "model.embed_tokens.weight"
    damage(folder, name, value)
    with pytest.raises(ValueError, match=r"not finite \(NaN or infinite\): 1 of .* values of its weight .*" + name):
        load(folder)


@pytest.mark.parametrize("command", ["perplexity", "ask"])
def test_commands_end_with_one_line(command: str, tmp_path: Path) -> None:
    folder = write_longva(tmp_path / "model")
    damage(folder, "language_model.norm.weight")
    (tmp_path / "text.txt").write_text("abc " * 50)
    Image.new("RGB", (30, 30), (200, 30, 90)).save(tmp_path / "picture.png")
    arguments = {
        "perplexity": ["perplexity", "--text", str(tmp_path / "text.txt"), "--lengths", "100"],
        "ask": ["ask", str(tmp_path / "picture.png"), "What is it?"],
    }[command]
    result = CliRunner().invoke(app, [*arguments, "--model", str(folder), "--model-args", "device=cpu"])
    assert isinstance(result.exception, ValueError)
    told = str(result.exception)
    assert "not finite" in told and "language_model.norm.weight" in told and "\n" not in told


LEAVES = {
    "greedy": Generate(max_new_tokens=4),
    "sampled": Generate(max_new_tokens=4, temperature=0.8),
    "beams": Generate(max_new_tokens=4, num_beams=2),
    "forced": Target("ok"),
    "forced, one token": Target("o"),
}


@pytest.mark.parametrize("scoring", ["tree", "plain"])
@pytest.mark.parametrize("name", LEAVES)
def test_what_arises_in_a_layer_is_found_by_running_the_prompt_again(name: str, scoring: str, tmp_path: Path) -> None:
    """Weights are finite, and a long prompt overflows: no check at load would show it."""
    backend = load(write_text_model(tmp_path / "model"))

    def overflow(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        return output * torch.inf if len(given[0][0]) > 3 or given[0].shape[1] == 1 else output

    backend.decoder.layers[1].mlp.register_forward_hook(overflow)
    engine = {"tree": TreeEngine, "plain": PlainEngine}[scoring](backend, FrameEmbeddings(backend))
    request = Request((Text("where is it? "), Text("it is")), LEAVES[name])
    with pytest.raises(ValueError, match=r"the logits of .* are not finite .*: they arise in model\.layers\.1\.mlp"):
        engine.run(tiny.prompts([request]))


def test_a_token_that_breaks_the_model_later_ends_the_answer(tmp_path: Path) -> None:
    """The prompt's own logits are numbers, those behind the third new token are not."""
    backend = load(write_text_model(tmp_path / "model"))
    length = len(backend.token_ids("where is it?"))
    plain = backend.embed_ids
    seen: list[int] = []

    def embed(ids: Any) -> torch.Tensor:
        seen.extend(ids)
        return plain(ids) * (torch.nan if len(seen) == length + 3 else 1.0)

    backend.embed_ids = embed
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    with pytest.raises(ValueError, match="not finite"):
        engine.run(tiny.prompts([Request((Text("where is it?"),), Generate(max_new_tokens=8, min_new_tokens=8))]))


def test_visual_tokens_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder = write_longva(tmp_path / "model")
    runner = Runner.load(ModelArgs.read({"pretrained": str(folder), "device": "cpu", "dtype": "float32"}))
    runner.backend.model.model.multi_modal_projector.register_forward_hook(lambda *given: given[2] * torch.nan)
    leaf: Leaf = Generate(max_new_tokens=2)
    prompt = build_prompt("What?", [Image.new("RGB", (40, 30))], leaf, runner.backend.template, max_frames=2)
    with pytest.raises(ValueError, match=r"not finite .*: the embedding of prompt token \d+ is not finite"):
        runner.run_one(prompt)


def test_perplexity_of_numbers_only(tmp_path: Path) -> None:
    backend = load(write_text_model(tmp_path / "model"))
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    ids = backend.token_ids("it is where it was, and nobody saw it") * 3
    assert measure(engine, [ids], 40).nll > 0
    backend.decoder.layers[0].register_forward_hook(lambda module, given, output: output * torch.nan)
    with pytest.raises(ValueError, match=r"not finite .*: they arise in model\.layers\.0"):
        measure(engine, [ids], 40)
