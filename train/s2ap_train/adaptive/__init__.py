"""Machinery of attacks on defended systems: what is attacked, gradient searches, objectives, and how success counts."""

from s2ap_train.adaptive.budget import AdaptiveBudget

__all__ = ["AdaptiveBudget"]
