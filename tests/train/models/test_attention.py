"""Heads of attention: pruned as one channel each, taken out of torch's attention and of a module that counts them."""

import copy

import pytest
import torch
from tests.train.small_networks import CLASSES, IMAGE, vision_transformer
from torch import Tensor, nn

from s2ap_train.models.attention import FewerHeads, fewer_heads
from s2ap_train.models.channel_groups import channel_report, gate_channels, remove_channels
from s2ap_train.models.cost import flops

ATTENTION = "encoder.layers.encoder_layer_0.self_attention"


class Counting(nn.Module):
    """Attention as timm writes it: one layer for queries, keys and values, and sizes in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 4, 6, 24
        self.qkv, self.proj = nn.Linear(16, 72), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, self.attn_dim))


class ByTokens(Counting):
    """The same, its last size that of the tokens, which no fewer heads have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.qkv(x).reshape(*x.shape[:2], 72)[..., :1]


class Encoder(nn.Module):
    """Tokens of an image, an attention or encoder over them, and their mean."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patches, self.attention, self.head = nn.Conv2d(3, 16, 8, 8), attention, nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def encoder() -> nn.Module:
    return Encoder(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 1)).eval()


def images() -> Tensor:
    return torch.rand(4, *IMAGE)


def without(model: nn.Module, group, heads: list[int]) -> tuple[nn.Module, nn.Module]:
    """(gated, smaller), both without the heads."""
    kept = {group.name: torch.tensor([head not in heads for head in range(group.size)])}
    return gate_channels(model, (group,), kept), remove_channels(model, (group,), kept)


@pytest.mark.parametrize(
    ("make", "name", "heads"),
    [
        (vision_transformer, f"{ATTENTION}.in_proj_weight", 2),
        (encoder, "attention.layers.0.self_attn.in_proj_weight", 4),
        (lambda: Encoder(Counting()), "attention.qkv.weight", 4),
    ],
)
def test_a_head_is_one_channel_of_its_queries_keys_and_values(make, name, heads):
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    groups = {group.name: group for group in channel_report(model, IMAGE).groups}
    group = groups[name]
    assert group.size == heads
    rows = torch.tensor(group.producers[name].rows).reshape(3, heads, -1)
    assert bool((rows == torch.arange(heads).reshape(1, -1, 1)).all())
    (read,) = group.consumers.values()
    assert read.rows == tuple(torch.arange(heads).repeat_interleave(rows.shape[2]).tolist())
    gated, smaller = without(model, group, [0])
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), gated(x), atol=1e-5, rtol=1e-5)
        assert (smaller(x) - model(x)).abs().max() > 1e-4
    assert flops(smaller, IMAGE) < flops(model, IMAGE)
    assert [key for key, _ in smaller.named_parameters()] == [key for key, _ in model.named_parameters()]


def test_heads_can_be_removed_twice():
    model = encoder()
    once = without(model, channel_report(model, IMAGE).groups[0], [1])[1]
    group = channel_report(once, IMAGE).groups[0]
    gated, twice = without(once, group, [0, 2])
    assert (group.size, channel_report(twice, IMAGE).groups[0].name) == (3, "attention.layers.0.linear1.weight")
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(twice(x), gated(x))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_with_all_its_heads_it_is_torchs_attention(batch_first, same, bias):
    torch.manual_seed(0)
    torchs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    ours = copy.deepcopy(torchs)
    fewer_heads(ours, 1.0)
    assert isinstance(ours, FewerHeads)
    query = torch.rand(2, 2, 12)
    key = query if same else torch.rand(2, 2, 12)
    for options in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        for found, expected in zip(ours(query, key, key, **options), torchs(query, key, key, **options), strict=True):
            assert (found is None) is (expected is None)
            assert found is None or torch.allclose(found, expected, atol=1e-6)


def test_what_an_attention_does_besides_keeps_its_heads_and_is_said():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(x.shape[1], x.shape[1])
            return self.inner(x, x, x, need_weights=False, attn_mask=mask)[0]

    for attention, name, reason in (
        (Masked(), "attention.inner.in_proj_weight", "an attention with a mask keeps its heads"),
        (ByTokens(), "attention.qkv.weight", "the network does not work with fewer of its channels"),
    ):
        report = channel_report(Encoder(attention).eval(), IMAGE)
        assert reason in report.whole[name]


def test_attention_is_counted_wherever_torch_has_one_operator_for_all_of_it():
    model = encoder()
    tokens, width, inner = 4, 16, 24
    products = 2 * tokens * width * (3 * width + width + 2 * inner + 2 * tokens)
    patches, head = 2 * tokens * width * 3 * 64, 2 * width * CLASSES
    assert flops(model, IMAGE) == products + patches + head
