"""Models that a tree of shared prefixes cannot be right for, told by their config before anything is computed.

What no config tells is left to the check against the model's own forward (``visual_check.py``).
"""

from __future__ import annotations

from typing import Any

BY_ITS_OWN_CODE = "Measure it by its own code: a function given to vniah.evaluate"
_CROSS_ATTENTION = "frames reach its decoder by cross-attention and stand at no place of the prompt"
_BY_QUESTION = "its visual tokens depend on the question, so that frames cannot be shared by questions"
_WHOLE_PROMPT = "a prompt sees itself both ways, so that no prefix stands for itself"
_NO_TEXT = "it does not predict a text's next token"
# By ``model_type``.
_KINDS = {
    "molmo2": "all visual tokens of a prompt see each other both ways, so that no frame stands for itself",
    "paligemma": _WHOLE_PROMPT,
    "git": _WHOLE_PROMPT,
    "mllama": _CROSS_ATTENTION,
    "idefics": _CROSS_ATTENTION,
    "evolla": _CROSS_ATTENTION,
    "instructblip": _BY_QUESTION,
    "instructblipvideo": _BY_QUESTION,
    "diffusion_gemma": _NO_TEXT,
    "pi0": _NO_TEXT,
    "ernie4_5_vl_moe": "its processor draws each frame's time into its pixels, so that a frame is another picture at "
    "another place of a clip, and its experts are chosen by kinds of tokens that a chunk does not tell",
}
# Towers that are made for whole clips, by the ``model_type`` of a ``vision_config``.
_CLIP_TOWERS = ("timesformer", "videomae", "videoprism", "vivit", "vjepa2")


def refusal(config: Any) -> str:
    """Why a model of this config is refused; "" where it is not."""
    if reason := _KINDS.get(str(config.model_type)):
        return reason
    if getattr(config, "is_encoder_decoder", False) or getattr(config.get_text_config(), "is_encoder_decoder", False):
        return "an encoder reads the whole prompt, so that no prefix stands for itself"
    rate = getattr(config, "video_pruning_rate", None) or 0
    if rate > 0:
        return f"video_pruning_rate={rate} drops tokens by a look at the whole video; set it to 0 in config.json"
    if str(config.model_type) == "nemotron_h_omni":
        return (
            "its processor packs a pair of frames into one picture, and all images' patches into one row: it tells no "
            "pixels of single frames"
        )
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    if tower in _CLIP_TOWERS:
        return f"its tower ({tower}) attends across a clip's frames, so that no frame stands for itself"
    return ""


def refuse_by_config(name: str, config: Any) -> None:
    """Refuse a model that cannot be computed a frame and a prefix at a time.

    Raises:
        ValueError: naming the model, its kind and the reason.
    """
    if reason := refusal(config):
        raise ValueError(f"{name} ({config.model_type}) is refused: {reason}. {BY_ITS_OWN_CODE}")
