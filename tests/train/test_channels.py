import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble import L1Norm, RandomChannel, l1_norm_member, random_channel_member
from s2ap_train.ensemble.keep_rates import kept_widths, random_keep_rates
from s2ap_train.ensemble.l1_norm import largest_channels
from s2ap_train.models import SmallCNN, build
from s2ap_train.pruning.channels import fresh_network, gate_channels, remove_channels
from s2ap_train.training import TrainingConfig, accuracy, train_classifier

QUICK = TrainingConfig(epochs=2, lr=0.1, batch_size=20)


def blobs(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return 0.5 * torch.rand(count, 1, 8, 8, generator=generator) + 0.4 * labels[:, None, None, None], labels


@pytest.fixture(scope="module")
def base():
    model = SmallCNN(classes=2, widths=(8, 12, 10), pool_after=(0, 2))
    train_classifier(model, *blobs(), blobs(20, seed=1), QUICK, seed=0)
    generator = torch.Generator().manual_seed(5)
    for block in model.each_block():  # a shift that a gate before the normalisation would let through
        block.norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return model


KEPT = [torch.tensor([0, 3, 7]), torch.tensor([1, 2, 5, 11]), torch.tensor([9])]


def test_removing_channels_equals_gating_them_after_batch_norm(base):
    images, _ = blobs()
    smaller, gated = remove_channels(base, KEPT), gate_channels(base, KEPT)
    assert smaller.widths == (3, 4, 1)
    assert (smaller(images) - gated(images)).abs().max() < 1e-5
    assert (smaller(images) - base(images)).abs().max() > 1e-3


def test_removal_copies_weights_and_batch_norm_statistics(base):
    smaller = remove_channels(base, KEPT)
    first, second = base.each_block()[1], smaller.each_block()[1]
    assert torch.equal(second.convolution.weight, first.convolution.weight[KEPT[1]][:, KEPT[0]])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(second.norm, name), getattr(first.norm, name)[KEPT[1]])
    assert second.norm.num_batches_tracked == first.norm.num_batches_tracked


def test_a_smaller_network_is_rebuilt_from_its_architecture(base):
    smaller = remove_channels(base, KEPT)
    rebuilt = build(smaller.architecture())
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    assert torch.equal(rebuilt.eval()(blobs()[0]), smaller(blobs()[0]))


def test_keeping_everything_changes_nothing(base):
    everything = [torch.arange(width) for width in base.widths]
    assert torch.equal(remove_channels(base, everything)(blobs()[0]), base(blobs()[0]))


@pytest.mark.parametrize("kept", [KEPT[:2], [*KEPT[:2], torch.tensor([10])], [*KEPT[:2], torch.tensor([1, 1])]])
def test_channels_that_do_not_exist_are_refused(base, kept):
    with pytest.raises(ValueError, match=r"kept channels are given for 2 blocks|block 2 keeps channels"):
        remove_channels(base, kept)
    with pytest.raises(ValueError, match="block 2 keeps channels"):
        gate_channels(base, [*KEPT[:2], torch.tensor([], dtype=torch.int64)])


def test_keep_rates_stay_in_range_with_the_mean_asked_for():
    for seed in range(50):
        rates = random_keep_rates(5, torch.Generator().manual_seed(seed))
        assert sum(rates) / 5 == pytest.approx(0.5)
        assert 0.1 <= min(rates) <= max(rates) <= 0.9
    assert random_keep_rates(1, torch.Generator()) == [0.5]
    assert kept_widths([16, 16, 4], [0.1, 0.9, 0.1]) == [2, 14, 1]


def test_impossible_keep_rates_are_refused():
    with pytest.raises(RecipeError, match="keep rates need 0 < low <= mean <= high <= 1"):
        random_keep_rates(3, torch.Generator(), low=0.6)


def test_the_largest_filters_are_kept():
    model = SmallCNN(widths=(3, 2), pool_after=(0, 1))
    for channel, size in enumerate((0.2, -0.5, 0.3)):
        model.each_block()[0].convolution.weight.data[channel] = size
    assert [channels.tolist() for channels in largest_channels(model, [2, 2])] == [[1, 2], [0, 1]]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("method", ["random", "l1"])
def test_members_are_smaller_trained_networks_decided_by_their_seed(base, method, fresh):
    make, config = {
        "random": (random_channel_member, RandomChannel(fresh=fresh, training=QUICK)),
        "l1": (l1_norm_member, L1Norm(fresh=fresh, training=QUICK)),
    }[method]
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    first, again, other = (make(base, *blobs(), blobs(20, seed=1), config, seed=seed) for seed in (0, 0, 1))
    assert first.kept == again.kept != other.kept
    assert first.model.widths == tuple(len(channels) for channels in first.kept)
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert accuracy(first.model, *blobs(40, seed=3)) > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_fresh_networks_inherit_nothing(base):
    fresh, inherited = fresh_network(base, KEPT, seed=4), remove_channels(base, KEPT)
    assert fresh.widths == inherited.widths
    assert not torch.equal(fresh.classifier.weight, inherited.classifier.weight)
    assert torch.equal(fresh.classifier.weight, fresh_network(base, KEPT, seed=4).classifier.weight)
