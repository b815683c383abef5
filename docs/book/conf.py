"""How Sphinx builds the book; `make book` prepares the sources and runs it."""

from set_address import project as address

project = "sims_kit"
author = "the authors of sims_kit"
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to parts of a page, as on GitHub
nb_execution_mode = "off"  # the committed outputs are the book's
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Unfold", "Fold"
html_theme = "sphinx_book_theme"
html_title = "sims_kit"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "repository_url": address()["url"],
    "use_repository_button": True,
    "use_download_button": True,  # of the notebook
    "show_toc_level": 2,
    "navbar_persistent": [],  # one field to search in is enough
}
