"""Sphinx's settings, for `make docs`. The source folder is the repository: the README is one of the pages."""

import re
from typing import Any

import transformers_apt

# The signatures and docstrings in the API reference are ours, not those of the classes that the patch has edited.
transformers_apt.revert()

project = "transformers-apt"
author = "The transformers-apt authors"
release = transformers_apt.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/quality/*.md"]
exclude_patterns = [".*", "build", "dist", "node_modules", "runs", "site", "venv", "**/__pycache__"]

# Headings are link targets under the names that GitHub gives them, so a link works there and here.
myst_heading_anchors = 4
# The benchmark's README and the tables per phase are reached from the pages that need them.
suppress_warnings = ["toc.not_included"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "transformers-apt"
html_static_path: list[str] = ["static"]
html_css_files = ["apt.css"]
html_extra_path = ["site_root"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def double_backticks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings mark code as Markdown does, with single backticks; Sphinx wants two."""
    lines[:] = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", "\n".join(lines)).split("\n")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", double_backticks, priority=400)  # before napoleon, which is at 500
