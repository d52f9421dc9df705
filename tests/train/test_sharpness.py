import pytest
import torch

from s2ap_train.pruning.masks import layer_masks
from s2ap_train.pruning.scores import masked_weights
from s2ap_train.pruning.sharpness import largest_eigenvalue, mask_sharpness


def toy(sign=1.0):
    """A two-layer network of 50 weights on fixed data, in float64: (loss of scores, loss of effective weights, ...)."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(8, 5, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, 5, generator=generator, dtype=torch.float64),
    }
    scores = {name: w * torch.rand(w.shape, generator=generator, dtype=torch.float64) for name, w in weights.items()}
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (30,), generator=generator)

    def loss_of_weights(effective):
        logits = torch.tanh(x @ effective["a"]) @ effective["b"].T
        return sign * torch.nn.functional.cross_entropy(logits, y)

    def loss(point):
        return loss_of_weights(masked_weights(weights, point, layer_masks(point, 0.6)))

    return loss, loss_of_weights, weights, scores


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("relative", [False, True])
def test_power_iteration_finds_the_largest_eigenvalue_of_the_exact_surrogate_hessian(relative, sign):
    loss, loss_of_weights, weights, scores = toy(sign)
    masks = layer_masks(scores, 0.6)
    effective = torch.cat([(weights[name] * masks[name]).flatten() for name in scores])

    def flat(vector):
        return loss_of_weights({"a": vector[:40].reshape(8, 5), "b": vector[40:].reshape(2, 5)})

    hessian = torch.autograd.functional.hessian(flat, effective)
    chain = torch.cat([(weights[name] * scores[name].sign()).flatten() for name in scores])
    if relative:
        chain = chain * torch.cat([scores[n].norm().expand(scores[n].numel()) for n in scores])
    exact = torch.linalg.eigvalsh(chain[:, None] * hessian * chain[None, :]).max().item()
    found = largest_eigenvalue(
        loss, scores, generator=torch.Generator().manual_seed(1), iterations=400, relative=relative
    )
    assert found == pytest.approx(exact, rel=1e-3)


def test_sharpness_grows_with_the_radius_and_is_zero_where_no_mask_changes():
    loss, _, _, scores = toy()
    sharpness = [
        mask_sharpness(loss, scores, radius=radius, generator=torch.Generator().manual_seed(0))
        for radius in (1e-9, 0.3, 1.0)
    ]
    assert sharpness[0] == 0.0
    assert 0 < sharpness[1] < sharpness[2]


def test_sharpness_of_a_loss_known_by_hand():
    """Two weights, one kept: the only other mask costs 5 more, and a large enough step reaches it."""
    scores = {"w": torch.tensor([1.0, 0.9])}

    def loss(point):
        mask = layer_masks(point, 0.5)
        kept = masked_weights({"w": torch.tensor([1.0, 1.0])}, point, mask)["w"]
        return 5 * kept[1]

    assert mask_sharpness(loss, scores, radius=0.5, generator=torch.Generator().manual_seed(0)) == 5.0
    assert mask_sharpness(loss, scores, radius=0.01, generator=torch.Generator().manual_seed(0)) == 0.0
