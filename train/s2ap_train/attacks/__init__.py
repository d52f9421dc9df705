"""Attacks: what training needs, on pixels and on weights, and the catalogue under which detection is measured."""

from s2ap_train.attacks.pgd import pgd

__all__ = ["pgd"]
