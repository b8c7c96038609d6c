"""What a model itself says of a clip: one plain forward of prompt and answer, nothing shared or kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from any_model.families import Presentation


def own_inputs(
    processor: Any, clip_NHWC: np.ndarray, question: str, presentation: Presentation, fps: float = 1.0
) -> dict[str, Any]:
    """The processor's tensors (batch of 1) for a clip and a question behind it, by the model's own chat template.

    Every frame is shown. ``clip_NHWC`` is uint8 RGB, ``fps`` its frames a second.
    """
    from PIL import Image
    from transformers.video_utils import VideoMetadata

    frames = list(clip_NHWC)
    visuals = [{"type": "video"}] if presentation == "video" else [{"type": "image"} for _ in frames]
    messages = [{"role": "user", "content": [*visuals, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown: dict[str, Any]
    if presentation == "video":
        length, height, width = clip_NHWC.shape[:3]
        metadata = VideoMetadata(
            total_num_frames=length,
            fps=fps,
            duration=length / fps,
            width=width,
            height=height,
            frames_indices=list(range(length)),
        )
        shown = {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
    else:
        shown = {"images": [[Image.fromarray(frame) for frame in frames]]}
    bos = processor.tokenizer.bos_token
    if bos and prompt.startswith(bos):
        shown["add_special_tokens"] = False
    inputs = processor(text=[prompt], return_tensors="pt", **shown)
    return {name: value for name, value in inputs.items() if name != "video_metadata"}


def own_logits(model: Any, inputs: dict[str, Any]) -> Any:
    """(T, V) logits of one plain forward; a position that an earlier prompt left behind is forgotten first."""
    import torch

    inner = getattr(model, "model", model)
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits[0]


def own_logprobs(
    model: Any,
    processor: Any,
    clip_NHWC: np.ndarray,
    question: str,
    answer: str,
    presentation: Presentation,
    fps: float = 1.0,
) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities over the vocabulary at each token of ``answer``, (L, V) fp32, and the prompt's ids."""
    import torch

    inputs = own_inputs(processor, clip_NHWC, question, presentation, fps)
    prompt_ids = inputs["input_ids"][0].tolist()
    answer_ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    for name, behind in (
        ("input_ids", answer_ids),
        ("attention_mask", [1] * len(answer_ids)),
        ("token_type_ids", [0] * len(answer_ids)),
        ("mm_token_type_ids", [0] * len(answer_ids)),
    ):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.tensor([behind]).to(inputs[name])], dim=1)
    logits_TV = own_logits(model, inputs)
    # Counted from the end: a model that leaves out tokens of a video has fewer logits than ids.
    logprobs_LV = logits_TV[-len(answer_ids) - 1 : -1].log_softmax(-1)
    return logprobs_LV.numpy(), prompt_ids
