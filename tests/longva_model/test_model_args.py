"""Arguments of the model and settings of a generation, read from what lmms-eval hands over; and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longva_model.arguments import ModelArgs, generate_leaf, parse_model_args
from vniah.contract.requests import Generate
from vniah.notices import recorded


def test_values_are_read_whatever_lmms_eval_guessed_of_their_type() -> None:
    args = ModelArgs.read(
        {
            "pretrained": "some/model",
            "max_frames_num": "128",
            "rope_theta": "1e8",
            "max_length": 500_000.0,
            "batch_size": "1",
            "device": None,
            "max_batch_size": 64,
            "use_cache": True,
        }
    )
    assert args == ModelArgs(pretrained="some/model", max_frames_num=128, rope_theta=1e8, max_length=500_000)
    assert args.device == "auto" and isinstance(args.max_frames_num, int)
    assert ModelArgs.read({}) == ModelArgs(pretrained="nano")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_num_frames": 8}, "unknown model argument max_num_frames=8; did you mean 'max_frames_num'"),
        ({"pretrian": "x"}, "did you mean 'pretrained'"),
        ({"zzz": 1}, "expected one of pretrained, revision"),
        ({"max_frames_num": "many"}, "max_frames_num='many': expected a number"),
        ({"max_frames_num": 1.5}, "expected a whole number"),
        ({"max_frames_num": True}, "expected a whole number"),
        ({"max_frames_num": 0}, "must be positive"),
        ({"rope_theta": -1}, "must be positive"),
        ({"rope_theta": "nan"}, "rope_theta='nan'"),
        ({"max_length": "inf"}, "max_length='inf'"),
        ({"scoring": "fast"}, "scoring='fast': expected one of tree, plain"),
        ({"parallel": "data"}, "expected one of auto, branch, ring"),
        ({"preprocess": "stretch"}, "expected one of auto, pad, crop"),
        ({"dtype": "int8"}, "expected one of auto, float32"),
    ],
)
def test_bad_arguments_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelArgs.read(values)


def test_a_command_line_of_arguments() -> None:
    assert parse_model_args("a=1, b = x=y ,") == {"a": "1", "b": "x=y"}
    assert parse_model_args("") == {}
    with pytest.raises(ValueError, match="cannot read 'pretrained'"):
        parse_model_args("pretrained,device=cpu")


@pytest.mark.parametrize(
    ("settings", "leaf"),
    [
        ({}, Generate(max_new_tokens=1024)),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]},
         Generate(max_new_tokens=16)),
        ({"max_gen_toks": 9, "until": "Q:"}, Generate(max_new_tokens=9, stop=("Q:",))),
        ({"until": ["\n\n", "Q:"]}, Generate(max_new_tokens=1024, stop=("\n\n", "Q:"))),
        ({"until": None, "temperature": None, "top_p": None}, Generate(max_new_tokens=1024)),
        ({"temperature": 0.7}, Generate(max_new_tokens=1024, temperature=0.7, top_k=50)),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0}, Generate(max_new_tokens=1024)),
        ({"do_sample": True, "top_p": 0.5, "top_k": 3, "seed": 4},
         Generate(max_new_tokens=1024, temperature=1.0, top_p=0.5, top_k=3, seed=4)),
        ({"num_beams": 4, "repetition_penalty": 1.1, "min_new_tokens": 2, "image_aspect_ratio": "pad"},
         Generate(max_new_tokens=1024, num_beams=4, repetition_penalty=1.1, min_new_tokens=2)),
    ],
)  # fmt: skip
def test_settings_of_a_generation(settings: dict[str, Any], leaf: Generate) -> None:
    assert generate_leaf(settings) == leaf


def test_the_checkpoints_preferences_fill_what_a_task_leaves_open() -> None:
    own = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    greedy = Generate(max_new_tokens=8, repetition_penalty=1.05)
    assert generate_leaf({"max_new_tokens": 8}, own) == greedy
    sampled = Generate(max_new_tokens=8, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert generate_leaf({"max_new_tokens": 8, "do_sample": True}, own) == sampled
    settings = {"max_new_tokens": 8, "temperature": 2, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    assert generate_leaf(settings, own) == Generate(max_new_tokens=8, temperature=2.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": "warm"}, "temperature='warm': expected a number"),
        ({"temperature": -1, "do_sample": True}, "temperature=-1.0: must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0.0: must be positive"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate_leaf(settings)


def test_settings_that_are_not_honoured_are_said() -> None:
    generate_leaf({"typical_p": 0.3, "length_penalty": 2.0})
    assert "not honoured: length_penalty, typical_p" in "".join(recorded())


def test_checkpoints_that_cannot_be_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from tiny_checkpoints import write_text_model

    from longva_model.backends.loading import load_backend

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(name: Any, **args: Any) -> Any:
        return load_backend(ModelArgs.read({"pretrained": str(name), "device": "cpu", "dtype": "float32", **args}))

    with pytest.raises(FileNotFoundError, match="'no/such-model' is no folder here"):
        load("no/such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(tmp_path / "empty")
    folder = write_text_model(tmp_path / "text", "llama")
    assert load(folder, rope_theta=5e5).decoder.config.rope_parameters["rope_theta"] == 5e5
    with pytest.raises(ValueError, match="attn='none_such' cannot be used"):
        load(folder, attn="none_such")
    with pytest.raises(ValueError, match="no prompt template 'gpt'"):
        load(folder, template="gpt")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            load(folder, device="cuda:0")
    with pytest.raises(ValueError, match="device='tpu9' is not a device"):
        load(folder, device="tpu9")

    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match=r"lack \d+ tensors of the model, such as"):
        load(folder)
    (folder / "config.json").write_text(config.replace('"intermediate_size": 48', '"intermediate_size": 52'))
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        load(folder)
    (folder / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "unheard_of"'))
    with pytest.raises(ValueError, match="of no kind that is known here"):
        load(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights only"):
        load(folder)
