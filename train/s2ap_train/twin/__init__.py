"""The differentiable twin of a defended model file: what an attacker that knows everything computes gradients with."""

from s2ap_train.twin.pipeline import Twin

__all__ = ["Twin"]
