"""Attacks that know everything on a defended model file, and the report of what they left of it."""
