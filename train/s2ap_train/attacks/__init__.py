"""Attacks that training needs: on the pixels of an image and on the weights of a network."""

from s2ap_train.attacks.pgd import pgd

__all__ = ["pgd"]
