import pytest
import torch

from s2ap_train.attacks import pgd
from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.attacks.pgd import margin_sum
from s2ap_train.attacks.weight_perturbation import perturbed, relative_ascent, weight_perturbation
from s2ap_train.models import SmallCNN

ULP = 1.2e-7


def images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    x[0], x[1] = 0.0, 1.0  # on the walls of the box
    return x, torch.randint(0, 10, (count,), generator=generator)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("step_size", [0.01, 0.5])
def test_pgd_never_leaves_the_ball_or_the_box(random_start, step_size):
    x, y = images()
    generator = torch.Generator().manual_seed(1)
    adversarial = pgd(
        SmallCNN().eval(), x, y, eps=0.1, steps=4, step_size=step_size, generator=generator, random_start=random_start
    )
    assert (adversarial - x).abs().max() <= 0.1 + ULP
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def test_pgd_on_a_linear_model_finds_the_corner_of_the_ball():
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 2.0, 1.5, -3.0]])
    x = torch.full((1, 1, 2, 2), 0.5)
    adversarial = pgd(
        lambda pixels: pixels.flatten(1) @ weight.T,
        x,
        torch.tensor([0]),
        eps=0.2,
        steps=5,
        step_size=0.1,
        random_start=False,
    )
    corner = x + 0.2 * (weight[1] - weight[0]).sign().reshape(1, 1, 2, 2)  # the loss of label 0 grows along w1 - w0
    torch.testing.assert_close(adversarial, corner)


def test_pgd_repeats_with_the_same_generator_state_and_leaves_gradients_alone():
    model, (x, y) = SmallCNN().eval(), images()
    runs = [
        pgd(model, x, y, eps=0.1, steps=2, step_size=0.05, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_steps_and_more_eps_never_help_the_model():
    model, (x, _) = SmallCNN(seed=2).eval(), images(64)
    y = model(x).argmax(1)  # right by construction
    curve = [robust_accuracy(model, x, y, eps=eps, steps=10) for eps in (0.01, 0.05, 0.2)]
    assert accuracy(model, x, y) == 1.0
    assert sorted(curve, reverse=True) == curve
    assert robust_accuracy(model, x, y, eps=0.05, steps=20) <= robust_accuracy(model, x, y, eps=0.05, steps=1)


def test_accuracy_takes_arrays_and_plain_functions():
    x, y = images(8)
    assert accuracy(lambda pixels: torch.nn.functional.one_hot(y[: len(pixels)], 10), x.numpy(), y.numpy()) == 1.0


@pytest.mark.parametrize("wrong", [{"eps": -0.1}, {"steps": 0}, {"step_size": -1.0}])
def test_impossible_attacks_are_refused(wrong):
    x, y = images()
    arguments = {"eps": 0.1, "steps": 1, "step_size": 0.1, "random_start": False, **wrong}
    with pytest.raises(ValueError, match="pgd needs eps >= 0, step_size >= 0 and steps >= 1"):
        pgd(SmallCNN(), x, y, **arguments)


def test_a_random_start_without_a_generator_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match="a random start needs a generator"):
        pgd(SmallCNN(), x, y, eps=0.1, steps=1, step_size=0.1)


def test_the_margin_is_the_largest_other_logit_less_the_labels():
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 2.0], [3.0, -1.0, 0.5]])
    assert margin_sum(logits[:1], torch.tensor([1])).item() == 2 - 4
    assert margin_sum(logits, torch.tensor([1, 2, 2])).item() == (2 - 4) + (5 - 2) + (3 - 0.5)


def test_the_ascent_step_is_as_long_as_the_radius_says():
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[2.0]])]
    steps = relative_ascent(tensors, [torch.tensor([0.0, 2.0]), torch.tensor([[-7.0]])], 0.1)
    torch.testing.assert_close(steps, [torch.tensor([0.0, 0.5]), torch.tensor([[-0.2]])])


def test_under_masks_the_norms_count_surviving_weights_only():
    weight, gradient = torch.tensor([3.0, 4.0, 100.0]), torch.tensor([0.0, 2.0, 50.0])
    mask = torch.tensor([True, True, False])
    step = weight_perturbation({"w": weight}, {"w": gradient}, 0.1, {"w": mask})
    torch.testing.assert_close(step["w"], torch.tensor([0.0, 0.5, 0.0]))


def test_perturbed_weights_come_back_bit_for_bit():
    weight = torch.nn.Parameter(torch.tensor([0.1, 1e-8, 12345.678]))
    before = weight.detach().clone()
    with perturbed({"w": weight}, {"w": torch.tensor([1.0, 1.0, 0.3])}):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
