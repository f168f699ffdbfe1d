"""The chat template of a merged model: the sources' own, one of five known formats, or the recipe's text.

Only templates whose beginning-of-sequence token is part of the documented format write it (`bos_token`).
"""

from __future__ import annotations

import collections
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import Source
from jevomerge.errors import InputError
from jevomerge.schema import Part, check, read_text

# Stanford Alpaca's prompt; a system message takes the place of its first paragraph.
ALPACA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}
{%- else %}{{ 'Below is an instruction that describes a task. ' }}
{{- 'Write a response that appropriately completes the request.' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' + message['content'] }}
{%- elif message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' + message['content'] ~ eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}
"""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
# LG's EXAONE 3: there is always a system turn, and only a user's turn ends without a mark.
EXAONE = """\
{%- if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}
{%- for message in messages %}
{%- set end = '' if message['role'] == 'user' else '[|endofturn|]' %}
{{- '[|' + message['role'] + '|]' + message['content'] + end + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
# Mistral 7B Instruct: no system turn, so the first user's turn begins with it.
MISTRAL = """\
{{- bos_token }}
{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}
{%- for message in messages if message['role'] != 'system' %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] ~ eos_token }}
{%- endif %}
{%- endfor %}
"""


class NamedTemplate(Part):
    """One of several templates of a tokenizer."""

    name: str
    template: str


class Templates(RootModel[str | list[NamedTemplate]]):
    """`chat_template` of tokenizer_config.json."""


TEMPLATES = {"alpaca": ALPACA, "chatml": CHATML, "exaone": EXAONE, "llama3": LLAMA3, "mistral": MISTRAL}


def chat_template(setting: str | None, checkpoints: Sequence[Source]) -> str | None:
    """The jinja text that a recipe's `chat_template` stands for, None where the tokenizer's files stay as they are.

    Args:
        setting: `auto` (the template that most checkpoints have, the first one's in a tie), a known format's name,
            or jinja.
        checkpoints: of all models of the merge.

    Raises:
        InputError: for a name that is not known, and for jinja that does not compile.
    """
    if setting is None:
        return None
    if setting == "auto":
        counts = collections.Counter(text for c in checkpoints if (text := template_of(c)))
        return max(counts, key=counts.__getitem__, default=None)
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    if "{" not in setting:
        known = ("auto", *TEMPLATES)
        close = difflib.get_close_matches(setting, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"it is one of {', '.join(known)} or jinja"
        raise InputError(f"`{setting}` is not known; {hint}")
    import jinja2.sandbox  # imported late: only jinja in a recipe needs it

    # As transformers compiles it, which also knows a `generation` block.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.from_string(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", setting))
    except jinja2.TemplateError as error:
        raise InputError(f"not valid jinja: {error}") from None
    return setting


def template_of(checkpoint: Source) -> str | None:
    """A checkpoint's own chat template, found where transformers looks: chat_template.jinja, then the config."""
    if (path := checkpoint.folder / "chat_template.jinja").exists():
        return read_text(path)
    path = checkpoint.folder / "tokenizer_config.json"
    found = read_json(path).get("chat_template") if path.exists() else None
    if found is not None:
        check(Templates, found, f"{path}: `chat_template`", "it is a text, or a list of {name, template}")
    if isinstance(found, list):
        found = {t["name"]: t["template"] for t in found}.get("default")
    return found


def write_chat_template(folder: Path, text: str) -> None:
    """Store a template beside the tokenizer's files in `folder`, where transformers 5 and older readers look."""
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    if (path := folder / "tokenizer_config.json").exists():
        config = read_json(path) | {"chat_template": text}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
