"""The chat template of a merged model: the sources' own, one of five known formats, or the recipe's text.

Only templates whose beginning-of-sequence token is part of the documented format write it (`bos_token`).
"""

from __future__ import annotations

import collections
import difflib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import RootModel

from jevomerge.checkpoint.files import read_json
from jevomerge.checkpoint.source import MORE_TEMPLATES, Source
from jevomerge.errors import InputError
from jevomerge.schema import Part, check, read_text

if TYPE_CHECKING:
    import jinja2

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
        found = [text for c in checkpoints if (text := template_of(c))]
        counts = collections.Counter(text.strip() for text in found)
        return max(found, key=lambda text: counts[text.strip()], default=None)
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    if "{" not in setting:
        known = ("auto", *TEMPLATES)
        close = difflib.get_close_matches(setting, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"it is one of {', '.join(known)} or jinja"
        raise InputError(f"`{setting}` is not known; {hint}")
    import jinja2

    try:
        _compiled(setting)
    except jinja2.TemplateError as error:
        raise InputError(f"not valid jinja: {error}") from None
    return setting


def _compiled(text: str) -> jinja2.Template:
    """A template as transformers compiles it, which also knows a `generation` block."""
    import jinja2.sandbox  # imported late: only a recipe's `chat_template` needs it

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"strftime_now": time.strftime}
    return environment.from_string(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text))


def turn_end(template: str, tokens: Iterable[str], roles: Mapping[str, str]) -> str | None:
    """Which of `tokens` an assistant's turn ends with; None if it is none of them, or the template wants more.

    `roles`: the tokenizer's "bos_token", "eos_token", ... by name.
    """
    answer = "an answer of its own"
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = _compiled(template).render(messages=chat, add_generation_prompt=False, **roles)
    except Exception:  # whatever it does: it says nothing of how it ends
        return None
    _, found, rest = text.rpartition(answer)
    return max((t for t in tokens if found and rest.lstrip().startswith(t)), key=len, default=None)


def template_of(checkpoint: Source) -> str | None:
    """A checkpoint's own chat template, the default one if it has several."""
    return templates_of(checkpoint).get("default")


def templates_of(checkpoint: Source) -> dict[str, str]:
    """A checkpoint's chat templates by name, found where transformers looks: in files of their own, then the config."""
    files = sorted(checkpoint.folder.glob(f"{MORE_TEMPLATES}/*.jinja"))
    found = {path.stem: read_text(path) for path in files}
    if (path := checkpoint.folder / "chat_template.jinja").exists():
        found = {"default": read_text(path)} | found
    path = checkpoint.folder / "tokenizer_config.json"
    if found or not path.exists() or not (given := read_json(path).get("chat_template")):
        return found
    check(Templates, given, f"{path}: `chat_template`", "it is a text, or a list of {name, template}")
    return {t["name"]: t["template"] for t in given} if isinstance(given, list) else {"default": given}


def write_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Store templates, of which one is the "default", in `folder`, where transformers 5 and older readers look."""
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    for name, text in templates.items():
        path = folder / ("chat_template.jinja" if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    several = [{"name": name, "template": text} for name, text in templates.items()]
    given = several if len(several) > 1 else templates["default"]
    for file, value in (("tokenizer_config.json", given), ("chat_template.json", templates["default"])):
        if (path := folder / file).exists():
            config = read_json(path) | {"chat_template": value}
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
