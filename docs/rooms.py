"""Draw the rooms of the package as SVG, from the layers that setup.cfg holds them to.

Used by the page "Architecture" as the directive ``rooms``.  The colours are furo's variables, so
the drawing is right on a light and on a dark page.
"""

from __future__ import annotations

import ast
import configparser
import html
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP = 720, 92, 14  # pixels
LETTER = 6.2  # pixels a letter of a purpose takes


def rows() -> list[list[str]]:
    """Return the names of the rooms, from top to bottom and side by side."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:layers"]["layers"].strip().splitlines()
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def purpose(name: str) -> str:
    """Return the first sentence of what a room, or a file, says of itself."""
    place = ROOT / "ignite_evalhook" / name
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].replace("``", "").split()).rstrip(".")


def draw() -> str:
    """Return the drawing."""
    boxes = []
    layers = rows()
    for number, names in enumerate(layers):
        width = (WIDTH - GAP * (len(names) - 1)) / len(names)
        y = number * (HEIGHT + GAP)
        for place, name in enumerate(names):
            x = place * (width + GAP)
            lines = textwrap.wrap(purpose(name), int((width - 24) / LETTER))[:4]
            spans = "".join(
                f'<tspan x="{x + 12:.0f}" dy="16">{html.escape(line)}</tspan>' for line in lines
            )
            boxes.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="8"/>'
                f'<text x="{x + 12:.0f}" y="{y + 22}" class="name">{name}</text>'
                f'<text x="{x + 12:.0f}" y="{y + 24}">{spans}</text>'
            )
    height = len(layers) * (HEIGHT + GAP)
    style = (
        "<style>.rooms rect{fill:var(--color-background-secondary);"
        "stroke:var(--color-brand-primary)}.rooms text{fill:var(--color-foreground-primary);"
        "font:12px sans-serif}.rooms .name{font:bold 14px monospace}</style>"
    )
    return (
        f'<svg class="rooms" role="img" viewBox="-1 -1 {WIDTH + 2} {height}" width="100%" '
        f'xmlns="http://www.w3.org/2000/svg"><title>The rooms: each imports only from the rows '
        f"below its own</title>{style}{''.join(boxes)}</svg>"
    )


class Rooms(SphinxDirective):
    """The directive ``rooms``: the drawing, in the page."""

    def run(self) -> list[nodes.Node]:
        """Return the drawing."""
        self.env.note_dependency(str(ROOT / "setup.cfg"))
        return [nodes.raw("", draw(), format="html")]
