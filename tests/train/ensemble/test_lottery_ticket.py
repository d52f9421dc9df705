import pytest
import torch
from tests.train.toy_data import bars, same

from s2ap_defend import RecipeError
from s2ap_train.ensemble import LotteryTicket, lottery_ticket
from s2ap_train.pruning.magnitude import magnitude_masks
from s2ap_train.pruning.masks import kept_count
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig, TrainingData, accuracy, train_classifier

MODEL = {"name": "small_cnn", "widths": [6, 8]}
DATA = TrainingData(*bars(), bars(40, seed=1), 4)
SEARCH = TrainingConfig(epochs=2, batch_size=20, loss="natural", eps=0.0)
TRAINING = TrainingConfig(epochs=6, batch_size=20, loss="natural", eps=0.0)
CONFIG = LotteryTicket(search=SEARCH, training=TRAINING)


@pytest.fixture(scope="module")
def ticket():
    return lottery_ticket(MODEL, DATA, CONFIG, run=Run(3))


def test_rewinding_gives_back_exactly_the_initial_weights_under_the_mask(ticket):
    initial = DATA.create(MODEL, 3).state_dict()
    assert ticket.rewound.keys() == initial.keys()
    for name, weight in initial.items():
        expected = torch.where(ticket.masks[name], weight, 0.0) if name in ticket.masks else weight
        assert torch.equal(ticket.rewound[name], expected), name
    assert set(ticket.masks) == {"blocks.0.convolution.weight", "blocks.1.convolution.weight", "classifier.weight"}


def test_the_mask_keeps_half_of_all_weights_or_half_of_every_layer(ticket):
    sizes = {name: mask.numel() for name, mask in ticket.masks.items()}
    kept = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
    assert sum(kept.values()) == kept_count(sum(sizes.values()), 0.5)
    assert any(kept[name] != kept_count(size, 0.5) for name, size in sizes.items()), "layers compete"
    within = lottery_ticket(MODEL, DATA, LotteryTicket(scope="layer", search=SEARCH, training=SEARCH), run=Run(3))
    assert {name: int(mask.sum()) for name, mask in within.masks.items()} == {
        name: kept_count(size, 0.5) for name, size in sizes.items()
    }


def test_the_mask_is_cut_where_the_short_training_ended_and_not_where_it_began(ticket):
    searched = DATA.create(MODEL, 3)
    train_classifier(searched, *DATA.arrays, SEARCH, run=Run(3))
    expected = magnitude_masks(prunable_weights(searched), sparsity=0.5, scope="global")
    at_first = magnitude_masks(prunable_weights(DATA.create(MODEL, 3)), sparsity=0.5, scope="global")
    assert same(ticket.masks, expected)
    assert not same(ticket.masks, at_first)


def test_what_is_pruned_stays_zero_and_the_rest_learns(ticket):
    weights = prunable_weights(ticket.model)
    assert all(torch.equal(weights[name] != 0, mask) for name, mask in ticket.masks.items())
    assert len(ticket.training.history) == 6
    assert accuracy(ticket.model, *bars(60, seed=2)) > 0.9


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("epochs_before", [1, 2, 5])
def test_a_killed_ticket_goes_on_to_the_same_weights(ticket, tmp_path, epochs_before):
    calls = []

    def die(epoch, record):
        calls.append(epoch)
        if len(calls) == epochs_before:
            raise Killed

    with pytest.raises(Killed):
        lottery_ticket(MODEL, DATA, CONFIG, run=Run(3, snapshots=Snapshots(tmp_path, "s"), on_epoch=die))
    again = lottery_ticket(MODEL, DATA, CONFIG, run=Run(3, snapshots=Snapshots(tmp_path, "s")))
    assert same(again.model.state_dict(), ticket.model.state_dict())
    assert again.training == ticket.training


def test_the_seed_decides_the_ticket(ticket):
    assert same(lottery_ticket(MODEL, DATA, CONFIG, run=Run(3)).model.state_dict(), ticket.model.state_dict())
    other = lottery_ticket(MODEL, DATA, CONFIG, run=Run(4))
    assert not same(other.masks, ticket.masks)


@pytest.mark.parametrize("settings", [{"sparsity": 0.0}, {"sparsity": 1.0}, {"scope": "network"}])
def test_a_mask_that_means_nothing_is_refused(settings):
    with pytest.raises(RecipeError, match=r"sparsity|scope"):
        LotteryTicket(**settings)
