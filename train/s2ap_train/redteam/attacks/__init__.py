"""Attacks on a defended file: one file an attack, with its entry in the catalogue."""
