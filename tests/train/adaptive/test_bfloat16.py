"""Descents in bfloat16: what computes in it, that the system still judges, and what of the gradient is left."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.adaptive.test_attacks import DATA, EPS, REACHABLE, Linear, inside, logits

from s2ap_export.tracing.trace import frozen, trace_classifier
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.objectives import classifier_objective
from s2ap_train.adaptive.purified import variant_view
from s2ap_train.adaptive.search import Descent, adaptive_attack
from s2ap_train.compute.bfloat16 import in_bfloat16
from s2ap_train.models import create, fold_batch_norm
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier.variants import off

BUDGET = AdaptiveBudget(steps=20, cheap_steps=20, restarts=1, targets=1, thorough=False)
PLAN = [Descent(classifier_objective("margin"), "none", "random")]


@pytest.mark.parametrize(("gradients", "kind"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_compute_in_it_and_what_can_be_broken_is(gradients, kind):
    kinds = set()

    def view(images, path, members):
        values = logits(images)
        kinds.add(values.dtype)
        return values.float().log_softmax(1), None

    work = replace(BUDGET, gradients=gradients)
    found = adaptive_attack(Linear(), view, PLAN, DATA, eps=EPS, budget=work, seed=0)
    assert kinds == {kind}
    assert inside(found.images)
    np.testing.assert_array_equal(Linear()(found.images, DATA.labels).score < 0, REACHABLE)


def test_only_the_system_says_what_succeeded():
    """A view that rounds to bfloat16 calls every image wrong; the system, which is right, none."""

    class Right(Linear):
        def __call__(self, images, labels):
            return replace(super().__call__(images, labels), score=np.ones(len(labels)))

    work = replace(BUDGET, gradients="bfloat16")
    found = adaptive_attack(Right(), lambda *_: (logits(_[0]) * 1e3, None), PLAN, DATA, eps=EPS, budget=work, seed=0)
    assert sum(found.broken_by.values()) == 0


@pytest.mark.parametrize(("name", "width"), [("small_cnn", 0.5), ("resnet18", 0.125), ("wide_resnet_28_4", 0.25)])
@pytest.mark.parametrize("exported", [True, False])
def test_log_probabilities_are_float32_and_the_gradient_points_the_same_way(name, width, exported):
    network = fold_batch_norm(frozen(create({"name": name, "width": width}, (3, 16, 16), 10, seed=0)))
    if exported:
        stage = torch_stage(trace_classifier(network, (3, 16, 16), scope="classifier"))
        classify = lambda images: stage(images)[0]  # noqa: E731
    else:
        classify = lambda images: variant_view(off(), network, [])(images, "none", 0)[0]  # noqa: E731
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for wanted in (False, True):
        x = images.clone().requires_grad_()
        with in_bfloat16(x.device, wanted=wanted):
            values = classify(x)
        assert values.dtype == torch.float32
        (gradient,) = torch.autograd.grad(values[:, 0].sum(), x)
        found.append((values.detach(), gradient.flatten(1)))
    (exact, one), (rounded, other) = found
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert torch.cosine_similarity(one, other).min() > 0.95
