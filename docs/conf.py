"""Build the documentation of ignite-evalhook with Sphinx; ``make docs`` runs it.

Nothing is fetched while building: references to other projects stay plain text, references to
our own names must resolve.
"""

from __future__ import annotations

import builtins
import sys
import typing
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils.nodes import Element, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import ignite_evalhook

sys.path.insert(0, str(Path(__file__).parent))
from rooms import Rooms  # beside this file

project = "ignite-evalhook"
author = "The ignite-evalhook authors"
copyright = f"2026, {author}"
release = installed_version("ignite-evalhook")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]

# Names of Python and of other projects have no page here to link to.
FOREIGN = "|".join(sorted({*sys.stdlib_module_names, "ignite", "mmengine", "numpy", "torch"}))
nitpick_ignore = [("py:class", name) for name in (*dir(builtins), "optional")]
# Type variables are private and have no page either.
PRIVATE = r"ignite_evalhook(\.\w+)+\.(_\w+|T)"
nitpick_ignore_regex = [("py:.*", rf"({FOREIGN})(\..+)?"), ("py:class", PRIVATE)]


def resolve_to_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: TextElement
) -> Element | None:
    """Link ``ignite_evalhook._decide.rules.Rule``, where a type was defined, to its public name."""
    package, _, rest = node.get("reftarget", "").partition(".")
    name = rest.rpartition(".")[2]
    if package != "ignite_evalhook" or name not in ignite_evalhook.__all__:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"{package}.{name}", node, contnode
    )


def spell_out_types(app: Sphinx) -> None:
    """Replace the names of our private type aliases, which autodoc cannot resolve for a class."""
    for name in ignite_evalhook.__all__:
        found = getattr(ignite_evalhook, name)
        if isinstance(found, type) and "__init__" in vars(found):
            found.__init__.__annotations__ = typing.get_type_hints(found.__init__)


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.add_directive("rooms", Rooms)
    app.connect("builder-inited", spell_out_types)
    app.connect("missing-reference", resolve_to_public_name)
