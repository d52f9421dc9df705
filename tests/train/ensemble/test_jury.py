"""Jurors trained on together, on images that fool all of them at once."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.train.toy_data import bars, same
from torch.nn.functional import cross_entropy

from s2ap_train.attacks.accuracy import robust_accuracy
from s2ap_train.ensemble import Jury, train_on_together
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig, TrainingData, train_classifier

DATA = TrainingData(*bars(), bars(40, seed=1), 4)
EPS = 0.2
CONFIG = TrainingConfig(epochs=8, batch_size=20, lr=0.1, weight_decay=0.0, eps=EPS, attack_steps=2)


@pytest.fixture(scope="module")
def jurors():
    """Three naturally trained networks, a third of the first one's weights pruned."""
    found = [DATA.create({"name": "small_cnn", "widths": [6, 8]}, seed) for seed in range(3)]
    for seed, one in enumerate(found):
        natural = replace(CONFIG, loss="natural", eps=0.0)
        train_classifier(one, *DATA.arrays, natural, run=Run(seed))
    with torch.no_grad():
        weight = found[0].blocks[1].convolution.weight
        weight[weight.abs() < weight.abs().quantile(1 / 3)] = 0.0
    return found


def trained_on(jurors, config=CONFIG, run=Run(5)):  # noqa: B008 - frozen
    jury = Jury(copy.deepcopy(jurors))
    return jury, train_on_together(jury, DATA, config, run=run)


def test_a_jury_answers_with_the_mean_probability(jurors):
    x, _ = DATA.validation
    jury = Jury(jurors).eval()
    expected = torch.stack([one.eval()(x).softmax(1) for one in jurors]).mean(0)
    torch.testing.assert_close(jury(x).exp(), expected)


def test_a_jury_that_was_fooled_is_fooled_less(jurors):
    jury, training = trained_on(jurors)
    before, after = (robust_accuracy(one, *DATA.validation, eps=EPS) for one in (Jury(jurors), jury))
    assert training.collapse is None
    assert after > before + 0.2


def test_what_was_pruned_does_not_come_back(jurors):
    jury, _ = trained_on(jurors)
    before, after = (one.blocks[1].convolution.weight for one in (jurors[0], jury.jurors[0]))
    assert 0.3 < (before == 0).float().mean() < 0.4
    assert torch.equal(before == 0, after == 0)
    assert not torch.equal(before, after)


def test_a_step_is_each_jurors_own_on_images_that_fool_all(jurors):
    """The gradient of each is that of its own loss, with no part of the others'."""
    images, labels = DATA.images, DATA.labels
    config = replace(CONFIG, epochs=1, batch_size=len(images), attack_steps=1, attack_step_size=0.0, eps=1e-9)
    jury, _ = trained_on(jurors, config)
    for one, stepped in zip(copy.deepcopy(jurors), jury.jurors, strict=True):
        one.train()
        cross_entropy(one(images), labels).backward()
        gradient, weight = one.classifier.weight.grad, one.classifier.weight
        torch.testing.assert_close(stepped.classifier.weight, weight - config.lr * gradient, rtol=1e-4, atol=1e-6)


def test_an_interrupted_training_goes_on_to_the_same_weights(jurors, tmp_path):
    def stop(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    snapshots = Snapshots(tmp_path / "jury", "key")
    with pytest.raises(KeyboardInterrupt):
        trained_on(jurors, run=Run(5, snapshots=snapshots, on_epoch=stop))
    resumed, _ = trained_on(jurors, run=Run(5, snapshots=snapshots))
    whole, _ = trained_on(jurors)
    assert same(whole.state_dict(), resumed.state_dict())
