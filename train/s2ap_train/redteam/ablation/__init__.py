"""Rows of less and less defence, each attacked and compared with the whole."""
