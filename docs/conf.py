"""Sphinx's settings for `make docs`; `pictures` draws while the pages are built."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "host")]

project = "Sprout"
html_title = "Sprout"
html_theme = "furo"
html_copy_source = False
extensions = ["myst_parser", "api", "pictures"]
exclude_patterns = ["pictures"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # `--rows` is an option
default_role = "literal"  # docstrings write `x`
suppress_warnings = ["misc.highlighting_failure"]  # sessions at a prompt, with ... for the rest
python_maximum_signature_line_length = 80
