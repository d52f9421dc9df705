import copy
import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.train.forked_process import ended, forked
from tests.train.toy_data import bars, same

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.pruning import S2AP, Harp, Hydra, ScratchTicket, search_masks
from s2ap_train.pruning.allocation import UniformKeep
from s2ap_train.pruning.mask_search import _measure_scores
from s2ap_train.pruning.score_surface import score_surface
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.scratch_ticket import random_network
from s2ap_train.pruning.search_state import SearchState
from s2ap_train.pruning.structures import structure_of
from s2ap_train.storage.snapshots import Snapshots, grouped
from s2ap_train.training import CollapseWatch, Run, TrainingConfig

SEARCH = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.1, attack_steps=1, validation_steps=1)


def small():
    return SmallCNN(classes=4, widths=(8, 12), pool_after=(0, 1), seed=3)


def search(config, *, model=None, **more):
    return search_masks(model or small(), *bars(), bars(40, seed=1), config, run=Run(0, **more))


METHODS = [
    Hydra(0.7, training=SEARCH, s2ap=S2AP(warmup_epochs=1)),
    Hydra(0.5, "channel", training=SEARCH, s2ap=S2AP(0.2)),
    Harp(0.7, training=SEARCH, s2ap=S2AP(0.05)),
    ScratchTicket(0.5, training=SEARCH),
]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: f"{config.method}-{config.structure}")
def test_a_search_that_stopped_after_any_epoch_ends_with_the_same_mask(config, tmp_path):
    class StoppedError(Exception):
        pass

    def stop_after(last):
        def hook(epoch, _):
            if epoch == last:
                raise StoppedError

        return hook

    whole = search(config)
    snapshots = Snapshots(tmp_path / "search", "settings")
    for last in range(2):
        with pytest.raises(StoppedError):
            search(config, snapshots=snapshots, on_epoch=stop_after(last))
    epochs = []
    resumed = search(
        config, snapshots=Snapshots(tmp_path / "search", "settings"), on_epoch=lambda n, _: epochs.append(n)
    )
    assert epochs == [0, 1, 2, 3]
    assert same(whole.masks, resumed.masks)
    assert same(whole.scores, resumed.scores)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.searched.state_dict(), resumed.searched.state_dict())
    assert (whole.history, whole.best_epoch) == (resumed.history, resumed.best_epoch)


def search_and_die(folder):
    def die(epoch, record):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    search(METHODS[0], snapshots=Snapshots(folder, "settings"), on_epoch=die)


def test_a_search_that_was_killed_loses_at_most_one_epoch(tmp_path):
    assert ended(forked(search_and_die, tmp_path / "search")) == -signal.SIGKILL
    saved = Snapshots(tmp_path / "search", "settings").load()
    assert saved is not None
    assert len(saved[1]["history"]) == 2
    resumed = search(METHODS[0], snapshots=Snapshots(tmp_path / "search", "settings"))
    assert same(search(METHODS[0]).masks, resumed.masks)


def test_masks_are_cut_once_a_step_and_once_more_for_each_ascent(monkeypatch):
    """Scores do not move during the attack, so its forward passes cut nothing."""
    cuts = []
    original = UniformKeep.masks
    monkeypatch.setattr(UniformKeep, "masks", lambda self, scores: cuts.append(1) or original(self, scores))
    config = replace(SEARCH, attack_steps=7)
    search(Hydra(0.7, training=config))
    steps = 4 * SEARCH.epochs
    assert len(cuts) == steps
    cuts.clear()
    search(Hydra(0.7, training=config, s2ap=S2AP(0.1, warmup_epochs=0, ascent_steps=3)))
    assert len(cuts) == steps * (1 + 3)


def test_running_statistics_count_one_pass_a_step():
    """Neither the attack, nor the ascent, nor logging adds a batch to what batch normalisation has seen."""
    pruned = search(Hydra(0.7, training=replace(SEARCH, epochs=1), s2ap=S2AP(0.1, warmup_epochs=0, ascent_steps=2)))
    counts = {int(t) for name, t in pruned.searched.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {4}


def test_recalibration_measures_the_statistics_of_clean_images_under_the_mask():
    config = Hydra(0.7, training=replace(SEARCH, epochs=1))
    plain, measured = search(config), search(replace(config, recalibrate=True))
    assert same(plain.masks, measured.masks)
    images, _ = bars()
    features = measured.model.blocks[0].convolution(images * 2 - 1)
    expected = torch.stack([part.mean(dim=(0, 2, 3)) for part in features.split(20)]).mean(0)
    torch.testing.assert_close(measured.model.blocks[0].norm.running_mean, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain.model.blocks[0].norm.running_mean, expected, atol=1e-4)


def test_a_scratch_ticket_has_random_weights_of_one_size_that_are_never_trained():
    model = small()
    pruned = search(ScratchTicket(0.5, training=SEARCH), model=model)
    drawn = random_network(model, seed=0)
    for name, weight in prunable_weights(pruned.searched).items():
        assert torch.equal(weight, prunable_weights(drawn)[name])
        assert weight.abs().unique().numel() == 1
        assert float(weight.abs().max()) == pytest.approx((2 / weight[0].numel()) ** 0.5)
    for name, parameter in pruned.model.named_parameters():
        if ".norm." in name:
            assert parameter.unique().tolist() == [1.0 if name.endswith("weight") else 0.0]
    assert not same(dict(random_network(model, seed=1).named_parameters()), dict(drawn.named_parameters()))


@pytest.mark.parametrize("start", ["kaiming_uniform", "kaiming_normal", "xavier_normal", "snip"])
def test_scores_may_start_otherwise(start):
    config = Hydra(0.7, score_start=start, training=SEARCH)
    first, again = search(config), search(config)
    assert same(first.masks, again.masks)
    assert not same(first.masks, search(Hydra(0.7, training=SEARCH)).masks)


def test_snip_scores_are_the_gradients_of_the_loss_in_the_masks():
    model, (images, labels) = small().eval(), bars()
    config = Hydra(0.7, score_start="snip", training=replace(SEARCH, loss="natural", eps=0.0))
    state = SearchState(model, (1, 8, 8), config, CollapseWatch(4, labels), Run(0))
    _measure_scores(state, images, labels)
    gates = {name: torch.ones_like(w, requires_grad=True) for name, w in prunable_weights(model).items()}
    gated = {name: w.detach() * gates[name] for name, w in prunable_weights(model).items()}
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(model, gated, (images[:20],)), labels[:20])
    for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
        expected = gradient.abs() / gradient.abs().max()
        torch.testing.assert_close(state.scores[name].detach(), expected, atol=1e-5, rtol=1e-4)


def test_a_search_whose_loss_is_not_finite_says_so():
    config = Hydra(0.7, training=replace(SEARCH, lr=1e20, momentum=0.99))
    with pytest.raises(RecipeError, match=r"the loss is not finite .* lower lr"):
        search(config)


def test_a_search_that_collapses_stops_with_the_last_good_mask():
    """From epoch 2 on, the labels of training are those of one class: the network answers it for everything."""
    images, labels = bars()
    config = Hydra(0.3, training=replace(SEARCH, epochs=8, lr=0.2, loss="natural", eps=0.0))
    trained = search_masks(small(), images, labels, bars(40, seed=1), config, run=Run(0))
    good = trained.history[-1]["validation_accuracy"]
    assert good > 0.5
    poisoned = labels.clone()

    def poison(epoch, _):
        if epoch == 1:
            poisoned.fill_(0)

    pruned = search_masks(trained.searched, images, poisoned, bars(40, seed=1), config, run=Run(0, on_epoch=poison))
    assert pruned.collapse is not None
    assert "of the mask search" in pruned.collapse
    assert pruned.best_epoch < len(pruned.history) - 1
    with torch.no_grad():
        predicted = pruned.model(bars(40, seed=1)[0]).argmax(1)
    assert predicted.bincount().max() <= 30, "the mask that is kept still tells classes apart"


@pytest.mark.parametrize("structure", ["unstructured", "channel", "2:4"])
def test_the_surface_at_its_own_scores_is_the_loss_of_the_pruned_network(structure):
    pruned = search(Hydra(0.5, structure, training=replace(SEARCH, epochs=1)))
    before = copy.deepcopy(pruned.model.state_dict())
    x, y = bars(30, seed=2)
    surface = score_surface(pruned, structure_of(structure, pruned.searched, (1, 8, 8)), x, y)
    expected = torch.nn.functional.cross_entropy(pruned.model(x), y)
    torch.testing.assert_close(surface(pruned.scores), expected, atol=1e-5, rtol=1e-5)
    assert same(before, pruned.model.state_dict())


@pytest.mark.parametrize("last", [0, 2])
def test_a_resumed_search_goes_on_with_the_automatic_radius_that_it_had(tmp_path, last):
    """The band is above every flip rate here, so that the radius grows at each of the four steps of an epoch."""
    config = Hydra(0.7, training=SEARCH, s2ap=S2AP("auto", flip_band=(0.9, 1.0), warmup_epochs=0))

    class StoppedError(Exception):
        pass

    def stop(epoch, _):
        if epoch == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        search(config, snapshots=Snapshots(tmp_path, "settings"), on_epoch=stop)
    whole, resumed = search(config), search(config, snapshots=Snapshots(tmp_path, "settings"))
    radii = [record["radius"] for record in whole.history]
    assert radii == pytest.approx(
        [0.01 * 1.25 ** (4 * epoch) * sum(1.25**n for n in range(4)) / 4 for epoch in range(4)]
    )
    assert [record["radius"] for record in resumed.history] == radii
    assert resumed.history == whole.history
    assert same(whole.scores, resumed.scores)
    assert same(whole.masks, resumed.masks)


def test_an_epoch_that_is_clearly_worse_is_not_the_one_that_is_kept(tmp_path):
    """In the last epoch two classes have each other's labels: worse by far, and no collapse."""
    (images, labels), (x, y) = bars(160), bars(200, seed=1)
    poisoned, snapshots, masks = labels.clone(), Snapshots(tmp_path, "settings"), []

    def note_and_poison(epoch, _):
        masks.append(grouped(snapshots.load()[0])["mask"])
        poisoned.copy_(torch.tensor([1, 0, 2, 3])[labels])

    training = replace(SEARCH, epochs=2, lr=1.0, batch_size=10, loss="natural", eps=0.0)
    pruned = search_masks(
        small(),
        images,
        poisoned,
        (x, y),
        Hydra(0.7, training=training),
        run=Run(0, snapshots=snapshots, on_epoch=note_and_poison),
    )
    accuracies = [record["validation_accuracy"] for record in pruned.history]
    assert pruned.collapse is None
    assert accuracies[1] < accuracies[0] - 0.2
    assert pruned.best_epoch == 0
    assert same(pruned.masks, masks[0])
    assert not same(pruned.masks, masks[1])
    assert float((pruned.model(x).argmax(1) == y).float().mean()) == pytest.approx(accuracies[0])
