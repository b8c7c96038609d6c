"""Loading and converting checkpoints of both layouts: bit-exact round trips, and an error for each thing amiss."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longva_model import LongVAConfig, LongVAForConditionalGeneration, LongVAProcessor
from longva_model.checkpoints import checkpoint, layouts
from longva_model.checkpoints.convert import convert
from longva_model.checkpoints.layouts import find_tower, to_our_key, to_released_key


def write_released(folder: Path, model: Any, shards: int = 1, **changes: Any) -> Path:
    """A checkpoint of the released layout, with the tower's config beside it; changed keys of ``None`` are removed."""
    folder.mkdir(parents=True)
    config = {**layouts.write_config(model.config), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    (folder / "vision_tower").mkdir()
    (folder / "vision_tower/config.json").write_text(json.dumps(model.config.vision_config.to_dict()))
    tensors = {to_released_key(name): tensor.clone() for name, tensor in model.state_dict().items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same_weights(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


@pytest.mark.parametrize("tag", ["unires", "anyres"])
def test_there_and_back_tensors_and_config_keys_are_the_same(tag: str, shared: Path, tmp_path: Path) -> None:
    source = shared / f"parity/LongVA-tiny-{tag}"
    assert convert(source, tmp_path / "ours") == "ours"
    assert convert(tmp_path / "ours", tmp_path / "new/back") == "released"
    original, back = load_file(source / "model.safetensors"), load_file(tmp_path / "new/back/model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[k].dtype == back[k].dtype and torch.equal(original[k], back[k]) for k in original)
    assert json.loads((source / "config.json").read_text()) == json.loads(
        (tmp_path / "new/back/config.json").read_text()
    )
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json", "merges.txt"):
        assert (source / file).read_bytes() == (tmp_path / "new/back" / file).read_bytes()
    # All three load alike, the last far away from the tower that its config names.
    prompt = "<image>\nWhat?"
    image = torch.zeros(30, 40, 3, dtype=torch.uint8)
    results = []
    for folder in (source, tmp_path / "ours", tmp_path / "new/back"):
        loaded = LongVAForConditionalGeneration.from_pretrained(folder)
        inputs = LongVAProcessor.from_pretrained(folder)(text=prompt, images=[image], return_tensors="pt")
        assert loaded.dtype == torch.bfloat16
        results.append((loaded, loaded(**inputs, logits_to_keep=1).logits))
        assert checkpoint.weights_fingerprint(folder) == checkpoint.weights_fingerprint(source)
    for loaded, logits in results[1:]:
        assert same_weights(loaded, results[0][0]) and torch.equal(logits, results[0][1])


@pytest.mark.parametrize("text_type", ["qwen2", "llama", "mistral"])
@pytest.mark.parametrize("merge", ["unires", "spatial_unpad"])
def test_models_of_our_own_go_to_the_released_layout_and_back(
    text_type: str, merge: str, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e6}
    model = tiny_model(text_type, text={"rope_parameters": rope}, mm_patch_merge_type=merge)
    model.save_pretrained(tmp_path / "ours", max_shard_size="50KB")
    assert len(checkpoint.weight_files(tmp_path / "ours")) > 1
    convert(tmp_path / "ours", tmp_path / "released")
    names = set(checkpoint.read_tensor_index(tmp_path / "released"))
    assert {"model.embed_tokens.weight", "model.mm_projector.0.weight", "lm_head.weight"} <= names
    assert "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight" in names
    assert ("model.image_newline" in names) == (merge == "spatial_unpad")
    convert(tmp_path / "released", tmp_path / "back")
    for folder in ("ours", "released", "back"):
        loaded = LongVAForConditionalGeneration.from_pretrained(tmp_path / folder)
        assert same_weights(loaded, model) and loaded.config.text_config.model_type == text_type
        assert loaded.config.text_config.rope_parameters == model.config.text_config.rope_parameters
        assert loaded.config.layout == model.config.layout
        ours, theirs = (c.vision_config.to_dict() | {"dtype": None} for c in (loaded.config, model.config))
        assert ours == theirs


def test_a_model_loaded_from_the_released_layout_saves_in_ours(model: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    loaded = LongVAForConditionalGeneration.from_pretrained(write_released(tmp_path / "a", model))
    loaded.save_pretrained(tmp_path / "b")
    assert set(load_file(tmp_path / "b/model.safetensors")) == set(model.state_dict())
    # The same after transformers' own loader, which remembers the names it found.
    theirs, _ = LongVAForConditionalGeneration.from_pretrained(tmp_path / "a", output_loading_info=True)
    theirs.save_pretrained(tmp_path / "c")
    assert set(load_file(tmp_path / "c/model.safetensors")) == set(model.state_dict())
    assert type(AutoConfig.from_pretrained(tmp_path / "b")) is LongVAConfig
    assert same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path / "b"), model)


def test_keys_changed_since_reach_the_released_config_and_no_others(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model, rope_theta=1e6, extra_key=[1, None], tokenizer_model_max_length=77)
    before = json.loads((folder / "config.json").read_text())
    config = LongVAConfig.from_pretrained(folder)
    assert layouts.write_config(config) == before
    config = LongVAConfig.from_pretrained(folder, rope_theta=2e7, mm_spatial_pool_mode="max")
    assert config.rope_theta == 2e7 and config.tokenizer_model_max_length == 77
    assert layouts.write_config(config) == {**before, "rope_theta": 2e7, "mm_spatial_pool_mode": "max"}


def test_sharded_loading_types_and_options(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model, shards=3)
    load = LongVAForConditionalGeneration.from_pretrained
    assert same_weights(load(folder), model) and load(folder).dtype == torch.float32
    for dtype in (torch.bfloat16, "bfloat16"):
        half = load(folder, dtype=dtype, device_map="cpu", attn_implementation="eager")
        assert half.dtype == torch.bfloat16 and half.config.text_config.dtype == torch.bfloat16
        assert half.language_model.rotary_emb.inv_freq.dtype == torch.float32
        assert (
            half.language_model.config._attn_implementation == half.vision_tower.config._attn_implementation == "eager"
        )
        assert torch.equal(half.lm_head.weight, model.lm_head.weight.bfloat16()) and not half.training
    changed = load(
        folder, rope_theta=1e7, rope_scaling={"rope_type": "yarn", "factor": 2.0}, max_position_embeddings=99
    )
    assert changed.config.rope_theta == 1e7 and changed.config.context_length == 198
    with pytest.raises(ValueError, match="float33"):
        load(folder, dtype="float33")
    # What a plain load does not know is left to transformers, which gives the same weights.
    theirs, info = load(folder, output_loading_info=True)
    assert same_weights(theirs, model) and not info["missing_keys"] and not info["unexpected_keys"]
    assert same_weights(load(folder, config=theirs.config, device_map={"": "cpu"}), model)


def test_weights_are_copies_and_not_views_of_the_file(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    loaded = LongVAForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert same_weights(loaded, model)


def test_tied_heads_need_no_tensor(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model(text={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path / "a")
    loaded = LongVAForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight and same_weights(loaded, model)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


PROJECTOR = "model.mm_projector.0.weight"


def drop_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        del tensors[name]


RESHAPED = r"1 of another shape: .*linear_1.weight is \[3, 4\], the config says \[32, 16\]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(PROJECTOR), "1 missing: model.multi_modal_projector.linear_1.weight"),
        (lambda t: t.update({"model.more": torch.zeros(1)}), "1 left over: model.more"),
        (lambda t: t.update({PROJECTOR: torch.zeros(3, 4)}), RESHAPED),
        (drop_layer, r"12 missing: .* and 4 more"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    change: Callable[[dict[str, torch.Tensor]], None], words: str, model: Any, tmp_path: Path
) -> None:
    folder = write_released(tmp_path / "a", model)
    edit(folder, change)
    with pytest.raises(ValueError, match=words):
        LongVAForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match=words):
        convert(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists() and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_old_position_indices_are_no_weights(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    name = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
    edit(folder, lambda tensors: tensors.update({name: torch.arange(17)[None]}))
    assert same_weights(LongVAForConditionalGeneration.from_pretrained(folder), model)


def test_a_tower_of_the_wrong_size_is_named(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    path = folder / "vision_tower/config.json"
    tower = json.loads(path.read_text())
    path.write_text(json.dumps({**tower, "num_hidden_layers": 2, "intermediate_size": 30}))
    with pytest.raises(ValueError, match="all the vision tower's: mm_vision_tower names a tower of another size"):
        LongVAForConditionalGeneration.from_pretrained(folder)
    path.write_text(json.dumps({**tower, "hidden_size": 64}))
    with pytest.raises(ValueError, match="hidden_size 64, but the checkpoint says mm_hidden_size 16"):
        LongVAForConditionalGeneration.from_pretrained(folder)
    path.write_text(json.dumps({"model_type": "siglip_vision_model"}))
    with pytest.raises(ValueError, match="is no CLIP vision tower"):
        LongVAForConditionalGeneration.from_pretrained(folder)


def test_a_config_without_pooling_says_what_to_do(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model, mm_spatial_pool_mode=..., mm_spatial_pool_stride=...)
    with pytest.raises(ValueError, match=r'mm_spatial_pool_mode and mm_spatial_pool_stride absent.*"average"'):
        LongVAForConditionalGeneration.from_pretrained(folder)
    loaded = LongVAForConditionalGeneration.from_pretrained(
        folder, mm_spatial_pool_mode="average", mm_spatial_pool_stride=2
    )
    assert loaded.config.layout == model.config.layout


def test_a_resampler_is_refused_unless_taken_out(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model, mm_resampler_type="spatial_pool")
    with pytest.raises(ValueError, match=r"'spatial_pool'.*mm_resampler_type=None"):
        LongVAForConditionalGeneration.from_pretrained(folder)
    assert same_weights(LongVAForConditionalGeneration.from_pretrained(folder, mm_resampler_type=None), model)


def test_other_projectors_and_features_are_refused(model: Any, tmp_path: Path) -> None:
    for key, value in (
        ("mm_projector_type", "linear"),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_patch_merge_type", "spatial"),
    ):
        folder = write_released(tmp_path / key, model, **{key: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=value):
            LongVAConfig.from_pretrained(folder)


def test_missing_shards_pickles_and_empty_folders(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 weight files are missing: model-00002-of-00003.safetensors"):
        LongVAForConditionalGeneration.from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights: expected model.safetensors"):
        LongVAForConditionalGeneration.from_pretrained(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model.bin\).*weights_only=True.*save_file"):
        LongVAForConditionalGeneration.from_pretrained(folder)


def test_damaged_files_are_said_to_be(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for data, words in (
        (whole[:-100], "cut short"),
        (whole[:20], "header is damaged"),
        (b"", "header is damaged"),
        (b"PK" * 40, "no safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            LongVAForConditionalGeneration.from_pretrained(folder)
    path.unlink()
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its folder"):
        LongVAForConditionalGeneration.from_pretrained(folder)


def test_neither_folder_nor_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("no/such-model", str(tmp_path / "absent")):
        for load in (LongVAForConditionalGeneration, LongVAProcessor):
            with pytest.raises(FileNotFoundError, match=Path(name).name):
                load.from_pretrained(name)


def test_from_a_hub(
    loopback_hub: Any, model: Any, letter_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", loopback_hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = write_released(tmp_path / "a", model, shards=2, mm_vision_tower="towers/tiny")
    letter_tokenizer.save_pretrained(folder)
    shutil.move(folder / "vision_tower", tmp_path / "tower")
    (tmp_path / "tower/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    loopback_hub.add_repo("towers/tiny", tmp_path / "tower", repo_type="model")
    loopback_hub.add_repo("user/model", folder, repo_type="model")
    assert same_weights(LongVAForConditionalGeneration.from_pretrained("user/model"), model)
    processor = LongVAProcessor.from_pretrained("user/model")
    assert processor.image_mean == [0.5] * 3 and processor.image_std == [0.25] * 3


def test_towers_are_looked_for_near_before_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    checkpoint_folder = tmp_path / "models/a"
    places = [here, checkpoint_folder, tmp_path / "models"]
    for width, place in enumerate(places):
        (place / "openai/clip").mkdir(parents=True)
        (place / "openai/clip/config.json").write_text(
            json.dumps({"model_type": "clip_vision_model", "hidden_size": width})
        )
    for width, place in enumerate(places):
        assert (find_tower("openai/clip", checkpoint_folder).config or {})["hidden_size"] == width
        shutil.rmtree(place / "openai")
    for name in ("openai/clip", None, "no such name at all"):
        assert find_tower(name, checkpoint_folder).config is None
    (here / "whole").mkdir()
    (here / "whole/config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_size": 5}}))
    assert find_tower("whole", checkpoint_folder).config == {"model_type": "clip_vision_model", "hidden_size": 5}


def test_nothing_is_overwritten_or_converted_twice(model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        convert(folder, tmp_path / "full")
    with pytest.raises(ValueError, match="has the layout released already"):
        convert(folder, tmp_path / "b", to="released")
    with pytest.raises(ValueError, match="ours or released"):
        convert(folder, tmp_path / "b", to="theirs")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    assert convert(folder, tmp_path / "empty") == "ours"


def test_the_command(main: Callable[..., tuple[int, str, str]], model: Any, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "a", model)
    code, out, _ = main("convert", folder, tmp_path / "b")
    assert not code and out.endswith(", layout ours\n")
    code, _, err = main("convert", folder, tmp_path / "b")
    assert code == 2 and "is there already" in err


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    for load in (LongVAConfig, LongVAForConditionalGeneration):
        with pytest.raises(ValueError, match=r"'qwen2' model and no LongVA.*AutoModelForCausalLM"):
            load.from_pretrained(tmp_path)


def test_names_go_both_ways(tiny_model: Callable[..., Any]) -> None:
    names = list(tiny_model(mm_patch_merge_type="spatial_unpad").state_dict())
    assert "model.image_newline" in names and len({to_released_key(name) for name in names}) == len(names)
    for name in names:
        assert to_our_key(to_released_key(name)) == name == to_our_key(name)


def add_one(folder: Path, name: str) -> None:
    edit(folder, lambda tensors: tensors[name].view(-1)[-1].add_(1))


def test_fingerprint_sees_every_tensor_and_no_layout(model: Any, tmp_path: Path) -> None:
    one = write_released(tmp_path / "one", model)
    three = write_released(tmp_path / "three", model, shards=3)
    first = checkpoint.weights_fingerprint(one)
    assert len(first) == 32 and checkpoint.weights_fingerprint(three) == first
    for name in (PROJECTOR, "model.norm.weight", "lm_head.weight"):
        add_one(one, name)
        changed = checkpoint.weights_fingerprint(one)
        assert changed != first
        first = changed


def test_fingerprint_sees_every_value(tmp_path: Path) -> None:
    tensor = torch.zeros(200_000)
    seen = set()
    places = (None, 0, 199_999, 13_400, 1023, 1024, 5000, 77_777, 123_456)
    for place in places:
        changed = tensor.clone()
        if place is not None:
            changed[place] = 1
        save_file({"model.embed_tokens.weight": changed}, tmp_path / "model.safetensors")
        seen.add(checkpoint.weights_fingerprint(tmp_path))
    assert len(seen) == len(places)


class Clock:
    """The time of day, so many seconds ahead: what was just written is of long ago."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def time(self) -> float:
        return time.time() + self.ahead


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    hash_tensors = checkpoint._hash_tensors

    def counting(path: Path) -> dict[str, str]:
        read.append(path)
        return hash_tensors(path)

    monkeypatch.setattr(checkpoint, "_hash_tensors", counting)
    return read


def test_weights_are_read_once_and_again_when_they_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, memory, read = tmp_path / "model.safetensors", tmp_path / "memory", counted(monkeypatch)
    save_file({"model.embed_tokens.weight": torch.zeros(50_000)}, path)
    monkeypatch.setattr(checkpoint, "time", Clock(0))
    first = checkpoint.weights_fingerprint(tmp_path, memory)
    assert not list(memory.glob("*")), "another change could look the same: it is too young to be remembered"
    monkeypatch.setattr(checkpoint, "time", Clock(60))
    assert [checkpoint.weights_fingerprint(tmp_path, memory) for _ in range(3)] == [first] * 3
    assert len(read) == 2
    # A value changes in place, and the file is dated back to when it was.
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert checkpoint.weights_fingerprint(tmp_path, memory) != first
    assert len(read) == 3


def test_a_damaged_memory_of_hashes_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, read = tmp_path / "memory", counted(monkeypatch)
    monkeypatch.setattr(checkpoint, "time", Clock(60))
    save_file({"model.embed_tokens.weight": torch.zeros(50_000)}, tmp_path / "model.safetensors")
    first = checkpoint.weights_fingerprint(tmp_path, memory)
    (note,) = memory.iterdir()
    whole = note.read_bytes()
    for damaged in (whole[:-9], whole.replace(b'"result": {"model', b'"result": {"wodel'), b"", b"[" * 9999):
        note.write_bytes(damaged)
        assert checkpoint.weights_fingerprint(tmp_path, memory) == first
    assert len(read) == 5 and note.read_bytes() == whole


def test_a_note_of_another_files_hashes_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, found = tmp_path / "memory", []
    monkeypatch.setattr(checkpoint, "time", Clock(60))
    for name, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"model.embed_tokens.weight": torch.full((50_000,), value)}, tmp_path / name / "model.safetensors")
        found.append(checkpoint.weights_fingerprint(tmp_path / name, memory))
    first, second = memory.iterdir()
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other), second.write_bytes(one)
    assert [checkpoint.weights_fingerprint(tmp_path / name, memory) for name in "ab"] == found
    assert found[0] != found[1]


def test_weights_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"model.embed_tokens.weight": torch.zeros(50_000)}, path)
    read_header = checkpoint.read_header

    def growing(path: Path) -> Any:
        found = read_header(path)
        os.utime(path)
        return found

    monkeypatch.setattr(checkpoint, "read_header", growing)
    with pytest.raises(ValueError, match="changes while it is read; wait until it is written"):
        checkpoint._tensor_hashes(path, tmp_path / "memory")


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("config.json", '{"a": ' + "[" * 200_000, "nested deeper"),
        ("tokenizer_config.json", "[" * 200_000, "nested deeper"),
        ("generation_config.json", '{"a": 1' + "0" * 5000 + "}", "digits"),
        ("config.json", "[]", "no JSON object"),
    ],
)
def test_json_that_a_library_would_fall_over_is_one_line(tmp_path: Path, name: str, body: str, said: str) -> None:
    for file in ("config.json", name):
        (tmp_path / file).write_text(body if file == name else "{}")
    with pytest.raises(ValueError, match=f"{name} .*{said}"):
        checkpoint.resolve_folder(tmp_path)


@pytest.mark.parametrize("body", ["{}", "[]", '{"weight_map": {"a": [1]}}', '{"weight_map": 7}', "[" * 200_000])
def test_an_index_that_makes_no_sense_is_one_line(tmp_path: Path, body: str) -> None:
    (tmp_path / checkpoint.INDEX).write_text(body)
    with pytest.raises(ValueError, match=re.escape(checkpoint.INDEX)):
        checkpoint.weight_files(tmp_path)
