"""How results are shown: blocks that a terminal and a page print, and the templates of pages."""
