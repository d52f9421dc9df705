"""Attention that lost some of its heads: its projections are narrower than its tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from s2ap_defend.errors import RecipeError

__all__ = ["FewerHeads", "fewer_heads"]

_NARROWED = ("attn_dim", "all_head_dim", "inner_dim")
"""What modules call the numbers of all their heads."""


class FewerHeads(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` without some heads; `fewer_heads` makes one of another, whose parameters it keeps.

    torch's own computes the numbers of a head from those of a token and from the heads that are there.
    """

    def forward(  # the arguments of torch's
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(what is attended to, the weights where they are asked for); tokens [N, T, E], or [T, N, E] as torch's.

        Raises:
            RecipeError: If tokens are masked.
        """
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise RecipeError("an attention with a mask keeps its heads")
        tokens = [x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if query is key is value:
            q, k, v = self._heads(linear(tokens[0], self.in_proj_weight, self.in_proj_bias), 3)
        else:
            weights = self.in_proj_weight.chunk(3)
            projected = (linear(x, w, b) for x, w, b in zip(tokens, weights, biases, strict=True))
            q, k, v = (self._heads(x, 1)[0] for x in projected)
        shares = (q @ k.transpose(2, 3) * self.head_dim**-0.5).softmax(3) if need_weights else None
        attended = scaled_dot_product_attention(q, k, v) if shares is None else shares @ v
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        if shares is not None and average_attn_weights:
            shares = shares.mean(1)
        return out if self.batch_first else out.transpose(0, 1), shares

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[N, T, parts * heads * D] -> so many of [N, heads, T, D]."""
        heads: tuple[Tensor, ...] = (
            x.reshape(x.shape[0], x.shape[1], parts, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return heads


def fewer_heads(module: nn.Module, share: float) -> None:
    """Let an attention whose projections lost heads compute with those that are left, in place.

    Args:
        module: An `nn.MultiheadAttention`, or a module with a layer `qkv` and a number `num_heads` that it reads, as
            the transformers of timm have; any other is left alone.
        share: Of its heads that are left.

    Raises:
        RecipeError: If this attention has keys besides those of its tokens.
    """
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise RecipeError("an attention with keys of its own (add_bias_kv, add_zero_attn) keeps its heads")
        module.__class__ = FewerHeads
        module._qkv_same_embed_dim = False  # an encoder layer then calls it, instead of torch's operator for all of it
    names = ("num_heads", *(() if isinstance(module, nn.MultiheadAttention) else _NARROWED))
    for name in names:
        if isinstance(value := getattr(module, name, None), int):
            setattr(module, name, round(value * share))
