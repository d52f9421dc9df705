import numpy as np
import pytest
import torch
from tests.train.linear_target import classifier, task_of, with_margin
from tests.train.toy_classifier import WEIGHTS

from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_train.adaptive.purified import UnflaggingSystem
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.attacks.budget import distortion
from s2ap_train.attacks.called_layer import MIDDLE, CalledLayer
from s2ap_train.attacks.fia import fia
from s2ap_train.attacks.hidden_layer import hidden_layer
from s2ap_train.attacks.ila import ila
from s2ap_train.data import ImageSet
from s2ap_train.models import SmallCNN
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.other_norms import ATTACKS
from s2ap_train.redteam.target import Target, open_targets
from s2ap_train.twin import Twin

BY_NAME = {attack.name: attack for attack in ATTACKS}
LENGTH = float(WEIGHTS.norm())
LITTLE = AdaptiveBudget(steps=3, cheap_steps=5, targets=2, square_queries=60)
FALLING = WEIGHTS.sort().values  # -.9, -.8, -.6, -.5 ...: a grey pixel takes half of that from the score


def small_network():
    return SmallCNN(1, 10, (4, 6, 6, 8), 8, seed=5).eval()


def right_images(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images)).argmax(1).numpy()


def convolutions(network):
    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]


def test_the_layer_that_is_hooked_is_the_middle_one_that_the_function_calls(random_images):
    network = small_network()
    layers = [*convolutions(network), "classifier"]
    middle = layers[(len(layers) - 1) // 2]
    images = torch.from_numpy(random_images[:5])
    called, known = hidden_layer(CalledLayer(network.forward), MIDDLE), hidden_layer(network, middle)
    for found, expected in zip(called(images), known(images), strict=True):
        assert torch.equal(found, expected)
    x = images.clone().requires_grad_()
    h, logits = called(x)
    (through,) = torch.autograd.grad(logits[:, 0].sum(), h)
    assert through.abs().max() > 0  # the logits are a function of h, as FIA needs it


@pytest.mark.parametrize("attack", [ila, fia])
def test_feature_attacks_on_a_function_are_those_on_its_network(attack, random_images):
    network = small_network()
    layers = [*convolutions(network), "classifier"]
    images = random_images[:6]
    labels = right_images(network, images)
    for n in range(2):
        through = CalledLayer(network) if n else CalledLayer(network.forward)
        found = attack(through, images, labels, seed=0, eps=0.1, layer=MIDDLE)
        named = attack(network, images, labels, seed=0, eps=0.1, layer=layers[(len(layers) - 1) // 2])
        np.testing.assert_array_equal(found, named)
        assert (found != images).any()


def test_the_classifier_of_a_file_has_a_hidden_layer(tiny_model_path, random_images):
    file = open_model_file(tiny_model_path)
    twin = Twin.from_file(file)
    h, logits = hidden_layer(CalledLayer(twin.classify), MIDDLE)(torch.from_numpy(random_images[:3]))
    weighted = [
        node for node in cut_stage(file.proto, CLASSIFIER).graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}
    ]
    middle = weighted[(len(weighted) - 1) // 2]
    sizes = {tensor.name: tensor.dims for tensor in cut_stage(file.proto, CLASSIFIER).graph.initializer}
    assert h.shape[1] == sizes[middle.input[1]][0]  # output channels of that layer's weights
    assert torch.equal(logits, twin.classify(torch.from_numpy(random_images[:3])))


def test_a_function_without_layers_is_refused():
    with pytest.raises(RecipeError, match="no hidden layer to attack; leave out the attacks ila and fia"):
        CalledLayer(lambda x: x.flatten(1)[:, :2] * 1.0)(torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_keeps_to_its_budget_and_its_seed(attack: RedTeamAttack, tiny_model_path, random_images):
    defended, bare = open_targets(tiny_model_path)
    labels = right_images(bare.classify, random_images[:8])
    task = task_of(ImageSet(random_images[:8], labels), eps=0.05, l2=0.3, pixels=3, budget=LITTLE)
    for target in (defended, bare):
        first, second = (attack.run(target, task).images for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert 0.0 <= first.min() <= first.max() <= 1.0
        norms = dict(zip(("linf", "l2", "l0"), distortion(task.data.images, first), strict=True))
        assert norms[attack.norm].max() <= {"linf": 0.05, "l2": 0.3, "l0": 3}[attack.norm] * (1 + 1e-6)
    assert (first != task.data.images).any()


@pytest.mark.parametrize("name", ["deepfool", "cw-l2"])
@pytest.mark.parametrize(("factor", "wins"), [(1.05, True), (0.95, False)])
def test_the_least_l2_change_wins_if_the_ball_holds_it_and_is_cut_to_the_ball_if_not(name, factor, wins):
    target, data = with_margin(WEIGHTS, 0.3, 2)  # the border is .3 / ||w|| away
    radius = factor * 0.3 / LENGTH
    found = BY_NAME[name].run(target, task_of(data, l2=radius, budget=AdaptiveBudget(steps=100)))
    assert target.system(found.images, data.labels).success.all() == wins
    if not wins:  # towards the border as far as it goes
        np.testing.assert_allclose(distortion(data.images, found.images)[1], radius, rtol=1e-4)


@pytest.mark.parametrize(("pixels", "wins"), [(1, False), (2, True)])
def test_one_pixel_wins_exactly_where_enough_pixels_may_change(pixels, wins):
    target, data = with_margin(WEIGHTS, 0.6, 2)  # white in pixel 3 takes .45 from the score, in 3 and 9 .85
    found = BY_NAME["one-pixel"].run(target, task_of(data, pixels=pixels, budget=AdaptiveBudget(square_queries=300)))
    assert target.system(found.images, data.labels).success.all() == wins


@pytest.mark.parametrize(("pixels", "wins"), [(1, False), (2, True)])
def test_local_search_wins_exactly_where_enough_pixels_may_change(pixels, wins):
    # All pixels are where the score likes them, .9 or .1, and go to the other when changed: .8 |w| off the score. The
    # first is the better of two drawn ones, so at least .08, the second the best that is left: .72, or .64 after it.
    images = torch.where(WEIGHTS > 0, 0.9, 0.1)
    target, grey = with_margin(WEIGHTS, 0.76 - float(WEIGHTS @ (images - 0.5)))
    data = ImageSet(images.reshape(1, 1, 4, 4).numpy(), grey.labels)
    assert target.system(data.images, data.labels).score == pytest.approx(0.76, abs=1e-5)
    for seed in range(5):
        found = BY_NAME["local-search"].run(target, task_of(data, pixels=pixels, seed=seed))
        assert target.system(found.images, data.labels).success.all() == wins


@pytest.mark.parametrize(("margin", "wins"), [(0.84, True), (0.86, False)])
def test_jsma_wins_where_its_best_pair_is_enough(margin, wins):
    assert 0.5 * float(FALLING[0] + FALLING[1]) == pytest.approx(-0.85)  # both brightened from grey to white
    target, data = with_margin(WEIGHTS, margin, 2)
    found = BY_NAME["jsma"].run(target, task_of(data, pixels=2))
    assert target.system(found.images, data.labels).success.all() == wins
    assert (distortion(data.images, found.images)[2] == 2).all()


def ensemble(classifiers):
    """A classifier and members that are all asked, judged by the mean of all: no flag."""
    first, *members = classifiers

    def mean(images):
        return torch.stack([one(images) for one in classifiers]).mean(0).log_softmax(1)

    def view(images, path, count):
        return first(images), torch.stack([one(images) for one in members[:count]])

    return Target(
        name="ensemble",
        system=UnflaggingSystem(mean),
        view=view,
        classify=first,
        members=len(members),
    )


def test_jsma_on_the_ensemble_takes_the_pixels_that_all_of_it_reads_and_darkens_where_that_helps():
    for sign, value in ((1.0, 0.0), (-1.0, 1.0)):  # weights that want light, or dark
        own, theirs = torch.zeros(16), torch.zeros(16)
        own[0], own[1] = -0.3 * sign, -0.3 * sign  # the classifier alone would take these
        own[2] = own[3] = -0.2 * sign
        theirs[2] = theirs[3] = -0.9 * sign
        images = np.full((1, 1, 4, 4), value, dtype=np.float32)
        target = ensemble([classifier(part, 0.7 - float(part.sum()) * value) for part in (own, theirs, theirs)])
        task = task_of(ImageSet(images, np.ones(1, dtype=np.int64)), pixels=2)
        found = BY_NAME["jsma-joint"].run(target, task)
        assert np.flatnonzero((found.images != images).ravel()).tolist() == [2, 3]
        assert target.system(found.images, task.data.labels).success.all()
        alone = BY_NAME["jsma"].run(target, task)
        assert not target.system(alone.images, task.data.labels).success.any()


@pytest.mark.parametrize("name", ["jsma", "one-pixel", "local-search", "jsma-joint"])
def test_without_pixels_to_change_images_stay(name):
    target, data = with_margin(WEIGHTS, 0.1)
    found = BY_NAME[name].run(target, task_of(data, pixels=0))
    np.testing.assert_array_equal(found.images, data.images)
