"""The model card of a merged model: where it comes from, under which licence, how it scores, how it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jevomerge.checkpoint.bom import BOM, bill_of_materials
from jevomerge.checkpoint.licences import DUTIES, duties, merged_licence, obstacles
from jevomerge.checkpoint.lineage import Origin, drawing
from jevomerge.checkpoint.lora import ADAPTER_CONFIG
from jevomerge.checkpoint.scoring import Score, Scoring
from jevomerge.checkpoint.source import Source

TEXT = """
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0], skip_special_tokens=True))
"""
ADAPTED = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "..."  # base_model_name_or_path in adapter_config.json
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), FOLDER)
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0], skip_special_tokens=True))
"""
PICTURES = """
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor, model = AutoProcessor.from_pretrained(FOLDER), AutoModelForImageTextToText.from_pretrained(FOLDER)
asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
given = processor(images=Image.open("picture.png"), text=prompt, return_tensors="pt")
print(processor.decode(model.generate(**given, max_new_tokens=64)[0], skip_special_tokens=True))
"""
DRAWING = """
from diffusers import DiffusionPipeline

DiffusionPipeline.from_pretrained(FOLDER)("a cat on a roof").images[0].save("cat.png")
"""
ORBAX = """
import orbax.checkpoint as ocp

with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.restore(FOLDER)
"""


def write_card(
    folder: Path,
    title: str,
    recipe: str,
    sources: Sequence[Source],
    library: str = "transformers",
    scoring: Scoring | None = None,
    carried: Sequence[str] = (),
) -> None:
    """Write README.md and the bill of materials of a model into its folder, where all else is.

    `carried`: sentences on what is not merged, but some model's, unchanged.
    """
    scoring = scoring or Scoring()
    scoring = scoring._replace(notes=[*scoring.notes, *carried])
    card = model_card(title, recipe, sources, library, scoring, usage(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")
    materials = bill_of_materials(title, origins_of(sources), scoring, card)
    (folder / BOM).write_text(json.dumps(materials, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def usage(folder: Path) -> str | None:
    """Which lines open the model in a folder; None: no library does."""
    if (folder / "model_index.json").exists():
        return DRAWING
    if (folder / "_METADATA").exists():
        return ORBAX
    if (folder / ADAPTER_CONFIG).exists():
        return ADAPTED
    if any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        return PICTURES
    return TEXT if (folder / "tokenizer_config.json").exists() and (folder / "config.json").exists() else None


def origins_of(sources: Sequence[Source]) -> list[Origin]:
    """What a merge of these is made of; a model that occurs with several adapters once."""
    return list(dict.fromkeys(origin for source in sources for origin in source.origins()))


def before_publishing(sources: Sequence[Source]) -> list[str]:
    """What to know of their licences before others get a merge of these."""
    found = obstacles({origin.name: origin.licence for origin in origins_of(sources)})
    return [f"before you publish what comes out: {text}" for text in found]


def verbatim(text: str) -> str:
    """A name as Markdown that shows it as it is: in backticks unless it is of letters, digits and a few marks."""
    text = " ".join(text.split())
    if re.fullmatch(r"(?!www)\w+([ ./+-]{1,3}\w+)*", text) and not re.search(r"(^|[ ./+-])_|_([ ./+-]|$)|www\.", text):
        return text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def escaped(text: str) -> str:
    """A sentence as Markdown that shows it as it is, whatever names are in it."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", text)


def row(*cells: str) -> str:
    """A line of a table; a bar would end a cell even in backticks."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def block(text: str, language: str = "") -> list[str]:
    """The lines of a block that nothing in the text ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence + language, text.strip("\n"), fence]


def model_card(
    title: str,
    recipe: str,
    sources: Sequence[Source],
    library: str = "transformers",
    scoring: Scoring | None = None,
    opened: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        title: its heading.
        recipe: as YAML.
        sources: what was merged.
        library: which opens it, for the hub.
        scoring: how good it is; None: nobody knows.
        opened: the lines that do so, with FOLDER for where it is.
    """
    scoring, origins = scoring or Scoring(), origins_of(sources)
    licences = [origin.licence for origin in origins]
    front: dict[str, Any] = {
        "license": merged_licence(licences),
        "base_model": [origin.name for origin in origins],
        "library_name": library,
        "tags": ["merge", "jevomerge"],
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {verbatim(title)}", ""]
    lines += ["Merged with jevomerge.", ""]
    lines += _table(scoring.scores)
    lines += [line for note in scoring.notes for line in (escaped(note), "")]
    if opened is not None:
        lines += [*block('FOLDER = "..."  # where this is\n' + opened.lstrip("\n"), "python"), ""]
    lines += ["What it was made of:", "", *block(drawing(title, origins, [str(judge) for judge in scoring.judges])), ""]
    lines += ["| source | licence |", "|---|---|"]
    lines += [row(verbatim(origin.name), verbatim(origin.licence or "not stated")) for origin in origins]
    if front["license"] == "other":
        lines += ["", "The sources' licences differ or are not all known: all of them apply, read each."]
    if asked := duties(licences):
        lines += ["", "What they ask of whoever passes it on (a reading aid, no legal advice):", ""]
        lines += [f"- {DUTIES[duty]}: {', '.join(by)}" for duty, by in asked.items()]
    lines += ["", "Recipe (`jevomerge merge recipe.yaml OUT` makes the same weights):", ""]
    return "\n".join([*lines, *block(recipe.strip(), "yaml"), ""])


def _table(scores: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """A line for each model, behind an empty line; [] without scores."""
    if not scores:
        return []
    columns = {name: score.low is not None for name, score in next(iter(scores.values())).items()}
    heads = [verbatim(name) + (" (95 % interval)" if sure else "") for name, sure in columns.items()]
    lines = [row("model", *heads), "|---" * (len(columns) + 1) + "|"]
    return lines + [row(verbatim(name), *(str(own[c]) for c in columns)) for name, own in scores.items()] + [""]
