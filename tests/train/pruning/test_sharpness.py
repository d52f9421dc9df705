import itertools

import pytest
import torch

from s2ap_train.models.second_derivative import twice_differentiable
from s2ap_train.pruning.allocation import UniformKeep
from s2ap_train.pruning.sharpness import largest_eigenvalue, mask_sharpness
from s2ap_train.pruning.structures import Unstructured


def masked(weights, scores, keep_ratio):
    keep = UniformKeep(Unstructured(), keep_ratio)
    return Unstructured().effective(weights, keep.values(scores, keep.masks(scores)))


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
        return loss_of_weights(masked(weights, point, 0.6))

    return loss, loss_of_weights, weights, scores


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("relative", [False, True])
def test_power_iteration_finds_the_largest_eigenvalue_of_the_exact_surrogate_hessian(relative, sign):
    loss, loss_of_weights, weights, scores = toy(sign)
    masks = UniformKeep(Unstructured(), 0.6).masks(scores)
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
        kept = masked({"w": torch.tensor([1.0, 1.0])}, point, 0.5)["w"]
        return 5 * kept[1]

    assert mask_sharpness(loss, scores, radius=0.5, generator=torch.Generator().manual_seed(0)) == 5.0
    assert mask_sharpness(loss, scores, radius=0.01, generator=torch.Generator().manual_seed(0)) == 0.0


def test_what_rescaling_the_scores_changes():
    """No mask changes, so the sharpness does not; the straight-through slope is 1 at every scale, nor does D H D.

    The relative one is in units of the norms: ten times the scores, a hundred times the eigenvalue.
    """
    loss, _, _, scores = toy()
    found = []
    for scale in (1, 10):
        point = {name: scale * s for name, s in scores.items()}
        sharpness = mask_sharpness(loss, point, radius=0.3, generator=torch.Generator().manual_seed(0))
        eigenvalues = [
            largest_eigenvalue(loss, point, generator=torch.Generator().manual_seed(1), relative=relative)
            for relative in (False, True)
        ]
        found.append([sharpness, *eigenvalues])
    assert found[1] == pytest.approx([found[0][0], found[0][1], 100 * found[0][2]])


def test_sharpness_is_never_above_the_worst_of_all_masks():
    """Six weights, three kept: all 20 masks, enumerated."""
    generator = torch.Generator().manual_seed(0)
    scores, costs = torch.rand(6, generator=generator), torch.randn(6, generator=generator)

    def loss(point):
        return masked({"w": costs}, point, 0.5)["w"].sum().square()

    worst = max(float(costs[list(kept)].sum().square()) for kept in itertools.combinations(range(6), 3))
    worst -= float(loss({"w": scores}))
    found = [
        mask_sharpness(loss, {"w": scores}, radius=radius, generator=torch.Generator().manual_seed(1), directions=200)
        for radius in (0.2, 5.0)
    ]
    assert 0 <= found[0] <= found[1] == pytest.approx(worst)


def test_a_network_of_hardsigmoids_and_attention_has_a_curvature():
    """Torch has first derivatives only of both; the values are those of the same network without the replacement."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    x, y = torch.randn(6, 5, 4), torch.randint(0, 4, (6,))

    def loss(point):
        gated = torch.nn.functional.hardsigmoid(x @ point["w"])
        return torch.nn.functional.cross_entropy(attention(gated, gated, gated)[0].mean(dim=1), y)

    scores = {"w": torch.randn(4, 4)}
    found = largest_eigenvalue(loss, scores, generator=torch.Generator().manual_seed(1), iterations=200)

    def flat(vector):
        with twice_differentiable():
            return loss({"w": vector.reshape(4, 4)})

    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, scores["w"].flatten())).max().item()
    assert found == pytest.approx(exact, rel=1e-2, abs=1e-5)
    torch.testing.assert_close(flat(scores["w"].flatten()), loss(scores))
