"""What an export does to a graph so that it runs faster; up to rounding the values are the same without."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rewrites"]


@dataclass(frozen=True)
class Rewrites:
    """Switches for benchmarks that ask what each rewrite gains; exports take the defaults.

    Attributes:
        mirrored_convolutions: A transposed convolution of stride 1 becomes a plain one with mirrored weights.
        few_channels: A convolution to few channels becomes a transposed one with mirrored weights: engines compute
            plain ones in blocks of channels, most of which would stay empty.
        shared_nodes: Nodes that repeat an earlier one are not added again.
        merged_reshapes: Reshapes of reshapes become one, those that change nothing vanish.
        merged_constants: A factor for each channel, and a sum after it, become a batch normalisation.
        fused_norms: Group normalisation without a gradient becomes an instance normalisation of its rows.
    """

    mirrored_convolutions: bool = True
    few_channels: bool = True
    shared_nodes: bool = True
    merged_reshapes: bool = True
    merged_constants: bool = True
    fused_norms: bool = True
