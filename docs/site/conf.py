"""How Sphinx makes the site: `make site`. Pages are the Markdown files of the repository, where they lie."""

import re
from importlib.metadata import version as version_of
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "LightningRL"
author = "The LightningRL developers"
version = release = version_of("lightningrl")

_ITEM = re.compile(r"\s*- ")
_BEFORE_A_LETTER = re.compile(r"(?<!`)`[^`]+`(?=\w)")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**",
    "benchmarks/*/README.md",
    "examples/*/README.md",
    "packages/*/README.md",
]
exclude_patterns = ["docs/site/**"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = f"LightningRL {version}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_extra_path = ["index.html"]  # the first page lies where it lies in the repository


def setup(app: Sphinx) -> None:
    """Docstrings are read as they are written."""
    app.connect("autodoc-process-docstring", _as_written)


def _as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Bring a docstring into the form that Sphinx reads, in place.

    Sections are those of functions and classes: an attribute's "such as: ..." is no section. A list needs no empty line
    before it, and `name`s no space.
    """
    if what not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(list(lines), Config(), app, what, name, obj, options).lines()
    lines[:] = [_BEFORE_A_LETTER.sub(r"\g<0>\\ ", line) for line in lines]
    for number in range(len(lines) - 1, 0, -1):
        before, line = lines[number - 1], lines[number]
        begins = _ITEM.match(line) and before.strip() and not _ITEM.match(before)
        if begins and _indent(line) <= _indent(before):
            lines.insert(number, "")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
