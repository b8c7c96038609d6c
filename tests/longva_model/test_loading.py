"""Checkpoints that do not belong together, and configs that make no model: one line, and no other model measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TEXT, letters, write_llava_next_video, write_longva, write_text_model

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import building
from longva_model.backends.loading import load_backend
from longva_model.checkpoints.convert import convert
from vniah.notices import forget, recorded

WRITERS = {"text": write_text_model, "LongVA": write_longva, "LLaVA-NeXT-Video": write_llava_next_video}


def load(folder: Path) -> Any:
    return load_backend(ModelArgs.read({"pretrained": str(folder), "device": "cpu", "dtype": "float32"}))


def refused(folder: Path, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def change(folder: Path, **values: Any) -> None:
    """Set values of a checkpoint's decoder."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.get("text_config", config).update(values)
    file.write_text(json.dumps(config))


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = str(folder / "model.safetensors")
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", WRITERS)
def test_a_part_of_a_checkpoint_is_no_model(kind: str, tmp_path: Path) -> None:
    """Half the layers would load and give other figures."""
    folder = WRITERS[kind](tmp_path / "model")
    change(folder, num_hidden_layers=1, layer_types=None)
    refused(folder, r"tensors that the model does not have, such as model\.\S*layers\.1\.|left over: \S*layers\.1\.")


def test_what_is_no_weight_may_be_left_over(tmp_path: Path) -> None:
    forget()
    folder = write_text_model(tmp_path / "model")
    computed = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(()),
        "model.position_ids": torch.arange(4),
    }
    wanted = load(folder).fingerprint
    add_tensors(folder, **computed)
    assert load(folder).fingerprint != wanted and not recorded()
    add_tensors(folder, **{"lm_head.bias": torch.ones(TEXT["vocab_size"])})
    refused(folder, r"hold 1 tensors that the model does not have, such as lm_head\.bias;")


def test_what_a_models_own_class_leaves_out_is_said(tmp_path: Path) -> None:
    forget()
    sizes = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    config = transformers.DeepseekV3Config(**{**TEXT, **sizes, "num_key_value_heads": 4, "first_k_dense_replace": 2})
    folder = tmp_path / "model"
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(folder)
    letters().save_pretrained(folder)
    load(folder)
    assert not [line for line in recorded() if "left out" in line]
    add_tensors(folder, **{"model.layers.61.eh_proj.weight": torch.ones(2, 2)})
    load(folder)
    (said,) = (line for line in recorded() if "left out" in line)
    assert said.startswith("1 tensors in") and "as DeepseekV3ForCausalLM does, such as model.layers.61.eh_proj" in said


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "KeyError: 'foo' at .*rope_type"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "TypeError: .* at inv_freq"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"num_key_value_heads": 0}, "ZeroDivisionError: .*num_key_value_heads"),
        ({"pad_token_id": 10**6}, "Padding_idx"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_of_a_config_that_make_no_model(values: dict[str, Any], why: str, kind: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path / "model")
    change(folder, **values)
    refused(folder, f"no model can be made of .*{why}.*; check the values in its config.json")


@pytest.mark.parametrize("model_type", [["qwen2"], None, "unheard_of"])
def test_a_kind_that_is_none(model_type: Any, tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model")
    change(folder, model_type=model_type)
    refused(folder, "of no kind that is known here: its config.json has model_type")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model")
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    try:
        import optimum  # noqa: F401
    except ImportError:
        refused(folder, "no model can be made of .*requires")
    else:
        pytest.skip("optimum is installed")


def test_a_value_that_fails_in_a_forward_is_the_configs(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        **TEXT, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    folder = tmp_path / "model"
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    letters().save_pretrained(folder)
    change(folder, num_experts_per_tok=9)
    refused(folder, "no model can be made of .*k.*out of range")


def test_faults_of_our_own_are_not_the_configs() -> None:
    with pytest.raises(KeyError), building("x"):
        # Raised in a module of this package.
        exec("raise KeyError('ours')", {"__name__": "longva_model.engine.some_module"})
    with pytest.raises(OSError, match="disk"), building("x"):
        raise OSError("disk")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_named(name: str, kind: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path / "model")
    file = folder / name
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    refused(folder, rf"{name} begins with a byte order mark, .* save it as UTF-8 without one")


# Fingerprints of a loaded model: whatever changes a score changes them, so that no stale result is taken for one.


def fingerprints(folder: Path) -> tuple[str, str]:
    backend = load_backend(ModelArgs.read({"pretrained": str(folder), "dtype": "float32", "device": "cpu"}))
    return backend.fingerprint, backend.frames_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longva(tmp_path_factory.mktemp("model"))


def in_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def other_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("edit", "scores", "frames"),
    [
        (in_config(lambda config: config.update(vision_feature_layer=-1)), True, True),
        (in_config(lambda config: config["vision_config"].update(hidden_act="gelu")), True, True),
        (in_config(lambda config: config.update(projector_hidden_act="relu")), True, True),
        (in_config(lambda config: config["text_config"].update(rms_norm_eps=1e-5)), True, False),
        (in_config(lambda config: config["text_config"].update(use_cache=False)), False, False),
        (other_words, True, False),
    ],
)
def test_settings_beside_the_weights_tell_models_apart(
    folder: Path, tmp_path: Path, edit: Callable[[Path], None], scores: bool, frames: bool
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = fingerprints(tmp_path)
    assert before == fingerprints(folder)
    edit(tmp_path)
    after = fingerprints(tmp_path)
    assert (after[0] != before[0], after[1] != before[1]) == (scores, frames)


def test_frames_of_one_layout_serve_the_other(shared: Path, tmp_path: Path) -> None:
    released = shared / "parity" / "LongVA-tiny-anyres"
    convert(released, tmp_path / "ours")
    assert fingerprints(tmp_path / "ours")[1] == fingerprints(released)[1]
