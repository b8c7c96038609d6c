"""The paper's stages on other decoders: each shipped recipe runs whole on a tiny checkpoint of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

from longva_model import LongVAForConditionalGeneration, LongVAProcessor
from vniah.prompts import DEFAULT_SYSTEM, get_template
from vniah.training.data.llava import pieces
from vniah.training.recipe import load_recipe
from vniah.training.runner import check_recipe, run_recipe
from vniah.training.stages import VisionData
from vniah.training.text import set_rope_theta

MARKS = {
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(family: str) -> Any:
    """A byte-level tokenizer with the family's marks; Llama's has a beginning of text and no padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = {"qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}}
    ends["llama3"] = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=own, **ends[family])
    made.add_special_tokens({"additional_special_tokens": MARKS[family]})
    return made


def decoder(family: str, vocabulary: int) -> Any:
    """Qwen3 with a tied head, as its small ones have; Llama 3.1 with its own head and its scaling."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    if family == "qwen3":
        return Qwen3ForCausalLM(
            Qwen3Config(vocab_size=vocabulary, num_key_value_heads=1, head_dim=24, tie_word_embeddings=True, **SIZES)
        )
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, num_key_value_heads=1, rope_parameters=rope, tie_word_embeddings=False,
            max_position_embeddings=512, **SIZES,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a tower, and four pictures with a question each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "corpus").mkdir()
    (folder / "images").mkdir()
    rows = [{"text": "where is it " * 30, "meta": {"redpajama_set_name": "book"}}] * 20
    (folder / "corpus" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = []
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(folder / "images" / f"{number}.png")
        asked = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "grey"}]
        samples.append({"id": str(number), "image": f"{number}.png", "conversations": asked})
    (folder / "data.json").write_text(json.dumps(samples))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder / "tower")
    return folder


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_a_shipped_recipe_runs_whole_on_a_tiny_decoder(
    family: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tokenizer(family)
    words.save_pretrained(tmp_path / "base")
    decoder(family, len(words)).save_pretrained(tmp_path / "base")
    base, quick = tmp_path / "base", ["precision=fp32", "sharding=none", "checkpointing=none", "steps=1", "workers=0"]
    tower, pictures = data / "tower", [f"data.json=[{data}/data.json]", f"data.images={data}/images"]
    changes = {
        "shards": [f"source={data}/corpus", f"tokenizer={base}", "total_tokens=3000", "sequence_length=512",
                   "workers=1", "short_share=1.0", "held_out=1"],
        "extension": [f"model_from={base}", "sequence_length=512", "max_positions=1024", "train.accumulation=1"],
        "pictures1": [f"model_from={base}", f"tower_from={tower}", "workers=1", *pictures],
        "stage1": [f"tower_from={tower}", "train.batch_size=2", *pictures],
        "pictures2": [f"model_from={base}", f"tower_from={tower}", "workers=1", *pictures],
        "stage2": ["train.batch_size=2", *pictures],
        "asked": ["frames='4'", "depths=0,100", "haystack=synthetic:0", "needle_set=icons:0:1", "text_lengths='300'",
                  "text_depths='50'", "dtype=float32"],
    }  # fmt: skip
    for name in ("extension", "stage1", "stage2"):
        changes[name] += [f"train.{change}" for change in quick]
    overrides = [f"{name}.{change}" for name, values in changes.items() for change in values]
    recipe = load_recipe(f"longva_{family}_8b", [f"output={tmp_path}/out", *overrides])
    check_recipe(recipe)
    run_recipe(recipe, say=lambda _: None)
    folder = tmp_path / "out" / "stage2" / "model"
    model, processor = LongVAForConditionalGeneration.from_pretrained(folder), LongVAProcessor.from_pretrained(folder)
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("default", 1e9) and "factor" not in rope
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (family == "qwen3") and model.config.text_config.max_position_embeddings == 1024
    template = {"qwen3": "qwen_1_5", "llama3": "llama_3"}[family]
    assert model.config.chat_template_name == template
    asked = processor.apply_chat_template([{"role": "user", "content": "What?"}], add_generation_prompt=True)
    assert asked == get_template(template).pre + "What?" + get_template(template).post
    manifest = json.loads((tmp_path / "out" / "shards" / "shards" / "manifest.json").read_text())
    assert words.decode(manifest["separator_id"]) == {"qwen3": "<|endoftext|>", "llama3": "<|begin_of_text|>"}[family]
    assert ("RoPE scaling 'llama3' is left out" in capsys.readouterr().err) == (family == "llama3")
    told = json.loads((tmp_path / "out" / "asked" / "done.json").read_text())
    assert {"accuracy", "control", "text_accuracy", "held_out_loss"} <= told.keys()
    assert not (tmp_path / "out" / "stage2" / "index").exists(), "the stage reads the index of the one before it"


@pytest.mark.parametrize("template", ["qwen_1_5", "llama_3"])
def test_what_is_learnt_is_what_is_asked(template: str) -> None:
    form = get_template(template)
    made = pieces([("user", "Who?"), ("assistant", "I.")], VisionData(json=("x",), template=template))
    assert "".join(piece.text or "" for piece in made) == f"{form.pre}Who?{form.post}I.{form.closing}"
    assert DEFAULT_SYSTEM in form.pre and form.between.startswith(form.closing)
    answers = VisionData(json=("x",), template=template, reference_labels=False)
    made = pieces([("user", "Who?"), ("assistant", "I.")], answers)
    assert "".join(piece.text or "" for piece in made if piece.learn) == f"I.{form.closing}"


def test_a_decoder_with_several_bases_is_refused() -> None:
    from transformers import Gemma3TextConfig

    with pytest.raises(ValueError, match="has a RoPE base for each kind of layer"):
        set_rope_theta(Gemma3TextConfig(), 1e9)


def test_an_index_of_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    from vniah.training.data import llava
    from vniah.training.stages import AlignStage, PrepareImagesStage, Train

    words = tokenizer("qwen3")
    words.save_pretrained(tmp_path / "base")
    decoder("qwen3", len(words)).config.save_pretrained(tmp_path / "base")
    style = {"json": (str(data / "data.json"),), "images": str(data / "images")}
    stage = PrepareImagesStage(
        name="p", model_from=str(tmp_path / "base"), tower_from=str(data / "tower"), data=VisionData(**style), workers=1
    )
    assert llava.run(stage, tmp_path, seed=0, resolve=str)["samples"] == 4
    other = VisionData(**style, max_length=99, index=str(tmp_path / "index"))
    align = AlignStage(name="a", model_from="m", data=other, train=Train(lr=1e-3, steps=1))
    config = type("Config", (), {"layout": llava_layout(data), "image_token_index": 9})()
    with pytest.raises(ValueError, match=r"prepared otherwise than stage 'a' reads it: data\.max_length"):
        llava.build_dataset(align, config, words, 0, tmp_path, str)


def llava_layout(data: Path) -> Any:
    from longva_model import LongVAConfig

    tower = CLIPVisionConfig.from_pretrained(data / "tower")
    return LongVAConfig(vision_config=tower).layout
