"""The chat templates of the reference, as plain strings around a question.

Each part is tokenised alone (reference section 3), so a template is a pair of strings and never a
formatted whole. Knows nothing about tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """What stands before the visual part and after the question."""

    name: str
    pre: str
    post: str


QWEN_1_5 = PromptTemplate(
    "qwen_1_5",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
PLAIN = PromptTemplate("plain", "", "")
MISTRAL = PromptTemplate("mistral", "<s>[INST] ", " [/INST]")
VICUNA = PromptTemplate(
    "vicuna",
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions. USER: ",
    " ASSISTANT:",
)

TEMPLATES = {template.name: template for template in (QWEN_1_5, PLAIN, MISTRAL, VICUNA)}


def get_template(name: str) -> PromptTemplate:
    """Look a template up by name.

    Raises:
        ValueError: naming the templates that exist.
    """
    if name not in TEMPLATES:
        raise ValueError(f"no prompt template {name!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def question_text(question: str) -> str:
    """The question as it follows the frames: on a new line, exactly one (reference section 3)."""
    return "\n" + question.lstrip("\n")
