"""lmms-eval's requests made by hand, and what the model itself answers to the same prompts.

What a request must give is worked out without the engine: by the processor and ``generate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vniah.prompts import QWEN_1_5


def picture(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(frames: int = 5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 30, 40, 3), dtype=np.uint8)


def make(checkpoint: Path, *, chat: bool = False, **args: Any) -> Any:
    """The adapter on the CPU in fp32, without a journal."""
    from longva_model.lmms.longva_ring import LongVARing, LongVARingChat

    kind = LongVARingChat if chat else LongVARing
    lm = kind(pretrained=str(checkpoint), dtype="float32", device="cpu", journal="none", **args)
    lm.task_dict = {}
    return lm


def instance(
    kind: str, arguments: tuple[Any, ...], doc_id: int = 0, idx: int = 0, task: str = "task", repeats: int = 1
) -> Any:
    from lmms_eval.api.instance import Instance

    metadata = {"task": task, "doc_id": doc_id, "repeats": repeats, "split": "test"}
    return Instance(request_type=kind, arguments=arguments, idx=idx, metadata=metadata)


def show(lm: Any, docs: Sequence[Mapping[str, Any]], task: str = "task") -> None:
    lm.task_dict[task] = {"test": list(docs)}


def visuals_of(doc: Mapping[str, Any]) -> Any:
    return doc["visuals"]


def generate(lm: Any, docs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None) -> list[str]:
    """Answers to ``doc["text"]`` about ``doc["visuals"]`` by the simple protocol."""
    show(lm, docs)
    settings = settings or {"max_new_tokens": 8, "until": ["\n\n"]}
    requests = [
        instance("generate_until", (doc["text"], dict(settings), visuals_of, number, "task", "test"), number)
        for number, doc in enumerate(docs)
    ]
    return list(lm.generate_until(requests))


def user(*items: Any) -> list[dict[str, Any]]:
    """A user message of strings (text) and (kind, visual) pairs."""
    content = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": item[0], "url": item[1]} for item in items
    ]
    return [{"role": "user", "content": content}]


def generate_chat(lm: Any, docs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None) -> list[str]:
    """Answers to ``doc["messages"]`` by the chat protocol."""
    show(lm, docs)
    settings = settings or {"max_new_tokens": 8}
    requests = [
        instance("generate_until", ("", lambda doc: doc["messages"], dict(settings), number, "task", "test"), number)
        for number, _ in enumerate(docs)
    ]
    return list(lm.generate_until(requests))


def prompt_of(text: str, num_visuals: int = 0) -> str:
    """One user turn as a string, placeholders first as lmms-eval's LongVA has it."""
    before = " ".join(["<image>"] * num_visuals) + "\n" if num_visuals else ""
    return QWEN_1_5.pre + before + text + QWEN_1_5.post


def expected(model: Any, processor: Any, prompt: str, *, num_frames: int | None = None, **given: Any) -> str:
    """What ``model.generate`` answers: ``given`` are images, videos, and options of ``generate``."""
    visuals = {key: given.pop(key) for key in ("images", "videos") if key in given}
    inputs = processor(text=prompt, **visuals, num_frames=num_frames, return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False, **given}
    out = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    ids = out[: out.index(end)] if end in out else out
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def evaluated(model: str, model_args: str, *tasks: str, **more: Any) -> dict[str, Any]:
    """What lmms-eval gives of those tasks of ours, samples too."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from vniah.lmms_plugin import tasks_dir

    if "task_manager" not in more:
        # Without lmms-eval's own tasks, whose index takes seconds.
        more["task_manager"] = TaskManager("ERROR", str(tasks_dir()), include_defaults=False, model_name=model)
    given = {"model": model, "model_args": model_args, "tasks": list(tasks), **more}
    return dict(simple_evaluate(log_samples=True, verbosity="ERROR", **given))


def cells_of(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """The scored cells of a needle task, controls too, in the order in which they were asked."""
    return [sample.get("vniah_acc") or sample["vniah_control"] for sample in results["samples"][task]]
