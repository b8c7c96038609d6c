"""Chat templates for ``processor.apply_chat_template``, as Jinja, one turn equal to ``vniah.prompts``.

A message's content is a string, or a list of parts: text, image, video. A visual is followed by a newline
where text comes next ("<image>" newline question, as the model was trained), by a space before another visual.
"""

from __future__ import annotations

from vniah.prompts import MISTRAL, PLAIN, QWEN_1_5, VICUNA, PromptTemplate

_CONTENT = (
    "{%- macro content(message) -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type in ('image', 'video') -%}"
    "{{ '<' ~ part.type ~ '>' }}"
    "{%- if not loop.last -%}"
    "{%- if loop.nextitem.type in ('image', 'video') -%}{{ ' ' }}"
    "{%- elif not loop.nextitem.text.startswith('\\n') -%}{{ '\\n' }}{%- endif -%}"
    "{%- endif -%}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)


def _jinja(template: PromptTemplate, *, system: str, user: str, close: str, answer: str, end: str) -> str:
    """A conversation as Jinja.

    Args:
        template: what stands before the first question and after each.
        system: Jinja that replaces ``template.pre`` where there is a system message ``{{ system }}``.
        user: what stands before each question but the first.
        close: the part of ``template.post`` that ends a question; the rest opens the answer.
        answer: between ``template.post`` and an answer.
        end: after an answer.
    """

    def quote(text: str) -> str:
        return "{{ " + repr(text) + " }}"

    opening = template.post.removeprefix(close)
    return (
        _CONTENT + "{%- set ns = namespace(first=true) -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{%- set ns.first = false -%}"
        "{%- set system = content(message) -%}" + system + "{%- elif message.role == 'user' -%}"
        "{%- if ns.first -%}"
        + quote(template.pre)
        + "{%- elif loop.previtem.role != 'system' -%}"
        + quote(user)
        + "{%- endif -%}"
        "{%- set ns.first = false -%}{{ content(message) }}"
        + quote(close)
        + "{%- if not loop.last or add_generation_prompt -%}"
        + quote(opening)
        + "{%- endif -%}"
        "{%- else -%}" + quote(answer) + "{% generation %}{{ content(message) ~ " + repr(end) + " }}{% endgeneration %}"
        "{%- endif -%}"
        "{%- endfor -%}"
    )


_QWEN_SYSTEM = "{{ '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n<|im_start|>user\\n' }}"
CHAT_TEMPLATES: dict[str, str] = {
    QWEN_1_5.name: _jinja(
        QWEN_1_5, system=_QWEN_SYSTEM, user="<|im_start|>user\n", close="<|im_end|>\n", answer="", end="<|im_end|>\n"
    ),
    PLAIN.name: _jinja(PLAIN, system="{{ system }}", user="", close="", answer="", end="\n"),
    MISTRAL.name: _jinja(
        MISTRAL, system="{{ '<s>[INST] ' ~ system ~ '\\n' }}", user="[INST] ", close=" [/INST]", answer=" ", end="</s>"
    ),
    VICUNA.name: _jinja(VICUNA, system="{{ system ~ ' USER: ' }}", user="USER: ", close="", answer=" ", end="</s>"),
}

# By the decoder's model_type: what its checkpoints were trained with.
DEFAULT_TEMPLATES = {"qwen2": QWEN_1_5.name, "mistral": MISTRAL.name, "llama": VICUNA.name}
