"""Attacks on a defended model file, from random noise to those that know everything, and the report on them."""
