"""How the documentation is built: `make docs`, without a network, every warning an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "deqgen"
author = "The deqgen authors"
project_copyright = "The deqgen authors. MIT licence."
(version,) = re.findall(r'^version = "(.+)"$', (DOCS.parent / "pyproject.toml").read_text(), re.M)
release = version

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # our docstrings have sections: Args, Returns, Raises
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "plain_arguments",
    "public_names",
    "repository_links",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py"]
nitpicky = True
suppress_warnings = ["config.cache"]  # the gallery's settings hold objects, and that is fine

# ------------------------------------------------------------------------------------ the pages

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# MathJax 3.2.2: es5/tex-svg.js of its npm package (Apache 2.0, the licence is beside it). What
# is built opens from a disk, on a machine without a network.
mathjax_path = "mathjax/tex-svg.js"
# Its menu offers spoken mathematics, which it would fetch.
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_title = f"deqgen {version}"
html_static_path = ["_static"]
html_css_files = ["deqgen.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#17527a", "color-brand-content": "#17628f"},
    "dark_css_variables": {"color-brand-primary": "#8cc4e8", "color-brand-content": "#8cc4e8"},
}

# ----------------------------------------------------------------------------------------- API

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# An example of a docstring has torch, and the names of all rooms.
doctest_global_setup = """
import torch
from deqgen import *
from deqgen.solvers import *
from deqgen.gradients import *
from deqgen.models import *
from deqgen.teachers import *
from deqgen.data import *
from deqgen.layers import *
from deqgen.training import *
from deqgen.evaluation import *
"""

# What others document. Python's inventory is Debian's (python3.11-doc); the others are plain text,
# in version 1 of the format, and hold the names that we refer to: add a line where one is missing.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", str(DOCS / "inventories" / "python.inv")),
    "numpy": ("https://numpy.org/doc/stable", str(DOCS / "inventories" / "numpy.inv")),
    "accelerate": (
        "https://huggingface.co/docs/accelerate",
        str(DOCS / "inventories" / "accelerate.inv"),
    ),
    "pillow": ("https://pillow.readthedocs.io/en/stable", str(DOCS / "inventories" / "pillow.inv")),
    "torch": ("https://docs.pytorch.org/docs/stable", str(DOCS / "inventories" / "torch.inv")),
}
nitpick_ignore_regex = [
    ("py:class", r"deqgen[\w.]*\.[A-Z]"),  # type variables
    ("py:class", r"huggingface_hub\..*"),
    ("py:class", r"deqgen_solvers\.methods\.\w+\.(\w+State|Pairs)"),  # a method's memory is its own
]

# ------------------------------------------------------------------------------------- gallery

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "matplotlib_animations": False,
    "download_all_examples": False,
    "write_computation_times": False,  # its page asks a server on the net for a table widget
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 5,
    "plot_gallery": True,
    "abort_on_example_error": True,
    "capture_repr": (),  # what a program prints, and not what its last line is worth
}
