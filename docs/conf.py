"""The documentation site: ``make docs``."""

import hashlib
import os
import shutil
from importlib.metadata import version as version_of
from pathlib import Path

import sphinx_autosummary_accessors

project = "cosmofields"
author = "the cosmofields developers"
copyright = "the cosmofields developers"
version = release = version_of("cosmofields")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_autosummary_accessors",
    "sphinx_copybutton",
]
templates_path = [sphinx_autosummary_accessors.templates_path]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "pydata_sphinx_theme"
html_title = "cosmofields"
html_favicon = "icon.svg"
html_theme_options = {
    "header_links_before_dropdown": 4,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Only these have pages below them, which the other pages need no empty column for.
html_sidebars = {"*": [], "notebooks": ["sidebar-nav-bs"], "reference": ["sidebar-nav-bs"]}
html_context = {"default_mode": "auto"}  # unset, the theme warns of it on the console
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3

# The notebooks as pages of the site; their links are for readers of the repository.
HERE = Path(__file__).parent
for notebook in sorted(HERE.parent.glob("notebooks/*.ipynb")):
    page = HERE / "notebooks" / notebook.name
    text = notebook.read_text().replace("](../docs/", "](../")
    if not page.is_file() or page.read_text() != text:
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
# They are run when they, or what they show, have changed; pages of text are not.
nb_execution_mode = "cache"
shown = hashlib.sha256()
for source in sorted(path for path in HERE.parent.glob("cosmofields/**/*") if path.is_file()):
    if source.suffix not in (".pyc", ".nbc", ".nbi"):
        shown.update(source.read_bytes())
executed = HERE / "_build" / f"executed-{shown.hexdigest()[:12]}"
nb_execution_cache_path = str(executed)
for earlier in executed.parent.glob("executed-*"):
    if earlier != executed:
        shutil.rmtree(earlier)
nb_execution_timeout = 900
nb_execution_raise_on_error = True
# Bars belong to who waits for them; a page shows what a cell printed as one.
nb_output_stderr = "remove"
nb_merge_streams = True
# A page has no kernel for controls: their picture, without scripts from elsewhere.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say more
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Addresses of examples; and all of the web without a way to it: OFFLINE=1 make docs DOCS=linkcheck
# checks what is between the pages.
linkcheck_ignore = [
    r"http://localhost",
    r"https://127\.0\.0\.1",
    r"https://host/",
    r"https://\.\.\.",
]
if os.environ.get("OFFLINE"):
    linkcheck_ignore = [r"https?://"]
linkcheck_timeout = 20
linkcheck_retries = 2
