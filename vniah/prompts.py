"""The chat templates of the reference, as plain strings around a question.

Each part is tokenised alone (reference section 3), so a template is a pair of strings and never a
formatted whole. Knows nothing about tokenizers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOS = re.compile(r"<(?:s|bos|\|begin_of_text\|)>")
DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A conversation's fixed parts.

    Attributes:
        name: how the template is chosen.
        system: what opens a conversation, with ``{system}`` for the system prompt; up to the first
            user turn's text.
        default_system: the system prompt when none is given.
        post: between a user's turn and the answer.
        answer: between ``post`` and the words of an answer that is part of the prompt.
        between: between an answer and the next user turn's text.
        end: what closes an answer, the first part of ``between``; all of it unless given.
    """

    name: str
    system: str = ""
    default_system: str = ""
    post: str = ""
    answer: str = ""
    between: str = "\n"
    end: str | None = None

    @property
    def closing(self) -> str:
        """What closes an answer."""
        return self.between if self.end is None else self.end

    @property
    def bos(self) -> str:
        """The mark that every sequence of this model begins with, raw prompts included; "" for most."""
        found = _BOS.match(self.system)
        return found[0] if found else ""

    @property
    def pre(self) -> str:
        """What stands before the first user turn's text, with the default system prompt."""
        return self.opening(None)

    def opening(self, system: str | None) -> str:
        """What stands before the first user turn's text; ValueError where there is no place for a system prompt."""
        if system is not None and "{system}" not in self.system:
            raise ValueError(f"the template {self.name!r} has no place for a system prompt; leave it out")
        return self.system.replace("{system}", self.default_system if system is None else system)


QWEN_1_5 = PromptTemplate(
    name="qwen_1_5",
    system="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
    default_system=DEFAULT_SYSTEM,
    post="<|im_end|>\n<|im_start|>assistant\n",
    between="<|im_end|>\n<|im_start|>user\n",
    end="<|im_end|>\n",
)
PLAIN = PromptTemplate(name="plain")
MISTRAL = PromptTemplate(
    name="mistral", system="<s>[INST] ", post=" [/INST]", answer=" ", between="</s>[INST] ", end="</s>"
)
VICUNA = PromptTemplate(
    name="vicuna",
    system="<s>{system} USER: ",
    default_system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
    post=" ASSISTANT:",
    answer=" ",
    between="</s>USER: ",
    end="</s>",
)
LLAMA_3 = PromptTemplate(
    name="llama_3",
    system=(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    ),
    default_system=DEFAULT_SYSTEM,
    post="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    between="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    end="<|eot_id|>",
)
# The shipped nano model was trained with a question straight after the frames.
NANO = PromptTemplate(name="nano", system="<bos>", between="<|im_end|>\n")

TEMPLATES = {template.name: template for template in (QWEN_1_5, PLAIN, MISTRAL, VICUNA, LLAMA_3, NANO)}


def get_template(name: str) -> PromptTemplate:
    """Look a template up by name; ValueError names those that exist."""
    if name not in TEMPLATES:
        raise ValueError(f"no prompt template {name!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def question_text(question: str) -> str:
    """The question as it follows the frames: on a new line, exactly one (reference section 3)."""
    return "\n" + question.lstrip("\n")
