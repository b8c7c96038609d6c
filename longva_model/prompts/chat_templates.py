"""Chat templates for ``processor.apply_chat_template``, as Jinja, made from ``vniah.prompts``.

A message's content is a string, or a list of parts: text, image, video. A visual is followed by a newline
where text comes next ("<image>" newline question, as the model was trained), by a space before another visual.
"""

from __future__ import annotations

import re

from vniah.prompts import TEMPLATES, PromptTemplate

# Where a visual stands in a text.
PLACEHOLDER = re.compile(r"<image>|<video>")

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


# Where a template's ``post`` may be cut, which Jinja needs and one prompt does not: the part that ends a question.
_CLOSE = {"qwen_1_5": "<|im_end|>\n", "mistral": " [/INST]", "llama_3": "<|eot_id|>"}


def to_jinja(template: PromptTemplate) -> str:
    """A conversation in this template; one question with a generation prompt is ``pre``, question, ``post``."""
    close, end = _CLOSE.get(template.name, ""), template.closing
    if "{system}" in template.system:
        before, _, after = template.system.partition("{system}")
        system = f"{{{{ {before!r} ~ content(message) ~ {after!r} }}}}"
    else:
        system = f"{{{{ raise_exception({f'the template {template.name} has no place for a system prompt'!r}) }}}}"
    return (
        _CONTENT + "{%- set ns = namespace(opened=false) -%}{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}" + system + "{%- set ns.opened = true -%}"
        "{%- elif message.role == 'user' -%}"
        f"{{%- if loop.first -%}}{{{{ {template.pre!r} }}}}"
        f"{{%- elif not ns.opened -%}}{{{{ {template.between.removeprefix(end)!r} }}}}{{%- endif -%}}"
        "{%- set ns.opened = false -%}{{ content(message) }}"
        f"{{{{ {close!r} }}}}"
        f"{{%- if not loop.last or add_generation_prompt -%}}{{{{ {template.post.removeprefix(close)!r} }}}}"
        "{%- endif -%}"
        f"{{%- else -%}}{{{{ {template.answer!r} }}}}"
        f"{{% generation %}}{{{{ content(message) ~ {end!r} }}}}{{% endgeneration %}}"
        "{%- endif -%}{%- endfor -%}"
    )


CHAT_TEMPLATES: dict[str, str] = {name: to_jinja(template) for name, template in TEMPLATES.items()}

# By the decoder's model_type: what its checkpoints were trained with.
DEFAULT_TEMPLATES = {"qwen2": "qwen_1_5", "qwen3": "qwen_1_5", "mistral": "mistral", "llama": "vicuna"}
