"""Networks beside a model file that an evaluation compares it with, or that an attacker trained itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import ModelProto
from torch import nn

__all__ = ["Networks"]


@dataclass(frozen=True)
class Networks:
    """What there is beside the file.

    Attributes:
        stages: Exported classifiers `image` -> `log_probabilities` by the name of their row in the ablation.
        surrogates: The attacker's own networks, images -> logits: its base, then its members.
        missing: Rows that could not be had, and why.
    """

    stages: Mapping[str, ModelProto] = field(default_factory=dict)
    surrogates: tuple[nn.Module, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
