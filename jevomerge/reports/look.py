"""How figures look, and how they become part of a page.

Texts stay texts, in the page's font; the greys and the blue become the page's CSS variables, so that figures follow its
light or dark colours. All functions that make figures are `styled`; matplotlib's global state is as before afterwards.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1b1e23", "#6b727c", "#eceef2"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"  # Okabe and Ito
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
WIDTH = 5.0  # inches; a phone shows so much without scrolling, letters of 9 units then being 9 pixels high

styled = matplotlib.rc_context(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "jevomerge",
        "text.parse_math": False,  # a $ in a model's name is a $
        "text.color": INK,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches, with a canvas of its own."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # measured with a font that lacks it
        figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()


@styled
def png(figure: Figure) -> bytes:
    """A picture for anywhere."""
    return _save(figure, "png", dpi=160, facecolor="white")


@styled
def svg(figure: Figure, label: str) -> Markup:
    """An <svg> for inside a page; `label` says what is to be seen to those who cannot see it."""
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = _save(figure, "svg", transparent=True, metadata=nothing).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?:line2d|[A-Za-z.]+)_\d+"', "", text)  # of no use, and the same in every figure
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (FAINT, "faint"), (BLUE, "blue")):
        text = text.replace(colour, f"var(--{variable})")
    # Letters of 9 units are 8 to 15 pixels high; what is too wide for a phone then scrolls.
    width = 72 * figure.get_figwidth()
    style = f"min-width:{0.9 * width:.0f}px;max-width:{1.7 * width:.0f}px"
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    body = text[text.index(">", box.end()) + 1 :]
    return Markup(f'<svg {box[0]} role="img" aria-label="{escape(label)}" style="{style}">{body}')
