"""From a template to a page in one file: with its looks, and with scripts, of which none but ours can run."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jevomerge.reports.words import cut, number, thousands
from jevomerge.schema import read_text

HERE = Path(__file__).parent
MARK = "<!-- jevomerge report -->"  # in the first lines of what may be overwritten
DRAWING = ("vega.min.js", "vega-lite.min.js")  # a page without charts does without


def render(template: str, *, live: str = "", **context: Any) -> str:
    """A page from its template; `live`, which says what it shows: it asks its server for what is newer."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jevomerge.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "cut": cut, "thousands": thousands}
    body = environment.get_template(template).render(**context)
    drawing = DRAWING if live or 'class="chart"' in body else ()
    scripts = [read_text(HERE / name) for name in (*drawing, "page.js")]
    return environment.get_template("base.html.jinja").render(
        mark=Markup(MARK),
        name=context["name"],
        policy=policy(scripts, bool(live)),
        style=Markup(read_text(HERE / "page.css")),
        contents=re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body),
        body=Markup(body),
        scripts=[Markup(script) for script in scripts],
        live=live,
    )


def policy(scripts: list[str], live: bool) -> str:
    """What a browser lets the page do: run these very scripts, and reach nobody but the server of a live page."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    reach = "connect-src 'self'; " if live else ""
    # Vega compiles its expressions, which are of our making.
    return f"default-src 'none'; {reach}img-src data:; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'"
