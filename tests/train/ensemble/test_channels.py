import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble import ChannelPruning, channel_member, largest_channels, random_channels
from s2ap_train.ensemble.channel_families import kept_sizes, random_keep_rates
from s2ap_train.models import ResNet18, SmallCNN, build
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.training import Run, TrainingConfig, accuracy, train_classifier

QUICK = TrainingConfig(epochs=2, lr=0.1, batch_size=20, loss="natural", eps=0.0)


def blobs(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return 0.5 * torch.rand(count, 1, 8, 8, generator=generator) + 0.4 * labels[:, None, None, None], labels


@pytest.fixture(scope="module")
def base():
    model = SmallCNN(classes=2, widths=(8, 12, 10), pool_after=(0, 2))
    train_classifier(model, *blobs(), blobs(20, seed=1), QUICK, run=Run(0))
    return model


KEPT = [[0, 3, 7], [1, 2, 5, 11], [9]]


def cut(model):
    groups = channel_groups(model, model.image_shape)
    kept = {
        group.name: torch.isin(torch.arange(group.size), torch.tensor(rows))
        for group, rows in zip(groups, KEPT, strict=True)
    }
    return remove_channels(model, groups, kept)


def test_removal_copies_weights_and_batch_norm_statistics(base):
    smaller = cut(base)
    first, second = base.each_block()[1], smaller.each_block()[1]
    assert smaller.widths == (3, 4, 1)
    assert torch.equal(second.convolution.weight, first.convolution.weight[KEPT[1]][:, KEPT[0]])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(second.norm, name), getattr(first.norm, name)[KEPT[1]])
    assert second.norm.num_batches_tracked == first.norm.num_batches_tracked
    columns = base.classifier.weight.unflatten(1, (10, -1))[:, KEPT[2]].flatten(1)
    assert torch.equal(smaller.classifier.weight, columns), "a channel is one column a pixel"


def test_a_smaller_network_is_described_by_its_widths(base):
    smaller = cut(base)
    assert smaller.architecture() == {**base.architecture(), "widths": [3, 4, 1]}
    rebuilt = build(smaller.architecture())
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    assert torch.equal(rebuilt.eval()(blobs()[0]), smaller(blobs()[0]))


def test_keeping_everything_changes_nothing(base):
    groups = channel_groups(base, base.image_shape)
    everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    same = remove_channels(base, groups, everything)
    assert torch.equal(same(blobs()[0]), base.eval()(blobs()[0]))


def test_keep_rates_stay_in_range_with_the_mean_asked_for():
    for seed in range(50):
        rates = random_keep_rates(5, torch.Generator().manual_seed(seed))
        assert sum(rates) / 5 == pytest.approx(0.5)
        assert 0.1 <= min(rates) <= max(rates) <= 0.9
    assert random_keep_rates(1, torch.Generator()) == [0.5]
    assert kept_sizes([16, 16, 4], [0.1, 0.9, 0.1]) == [2, 14, 1]


def test_impossible_keep_rates_are_refused():
    with pytest.raises(RecipeError, match="keep rates need 0 < low <= mean <= high <= 1"):
        random_keep_rates(3, torch.Generator(), low=0.6)


def test_the_largest_filters_are_kept():
    model = SmallCNN(widths=(3, 2), pool_after=(0, 1))
    for channel, size in enumerate((0.2, -0.5, 0.3)):
        model.each_block()[0].convolution.weight.data[channel] = size
    groups = channel_groups(model, model.image_shape)
    kept = largest_channels(model, groups, [2, 2], torch.Generator())
    assert [channels.tolist() for channels in kept.values()] == [[False, True, True], [True, True]]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("method", ["random", "l1"])
def test_members_are_smaller_trained_networks_decided_by_their_seed(base, method, fresh):
    choose, config = (
        {"random": random_channels, "l1": largest_channels}[method],
        ChannelPruning(fresh=fresh, training=QUICK),
    )
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    first, again, other = (
        channel_member(base, choose, *blobs(), blobs(20, seed=1), config, run=Run(seed)) for seed in (0, 0, 1)
    )
    assert first.kept == again.kept != other.kept
    assert first.model.widths == tuple(len(channels) for channels in first.kept.values())
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert accuracy(first.model, *blobs(40, seed=3)) > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_members_can_be_cut_from_a_residual_network():
    base = ResNet18(1, 2, 8, width=0.0625)
    config = ChannelPruning(fresh=True, training=TrainingConfig(epochs=1, batch_size=30, loss="natural", eps=0.0))
    member = channel_member(base, random_channels, *blobs(), blobs(20, seed=1), config, run=Run(0))
    assert member.model.architecture()["channels"] == {name: len(kept) for name, kept in member.kept.items()}
    assert member.model(blobs(3)[0]).shape == (3, 2)


def test_fresh_weights_inherit_nothing_and_have_the_scale_of_their_own_fan_in():
    base = ResNet18(width=0.25)
    groups = channel_groups(base, base.image_shape, verify=False)
    kept = {group.name: torch.arange(group.size) < group.size // 4 for group in groups}
    inherited = remove_channels(base, groups, kept)
    fresh, same = (build(inherited.architecture(), seed=4) for _ in range(2))
    weight = fresh.stages[3][1].conv1.weight
    assert not torch.equal(weight, inherited.stages[3][1].conv1.weight)
    assert torch.equal(weight, same.stages[3][1].conv1.weight)
    expected = (2 / weight[0].numel()) ** 0.5
    assert weight.detach().std().item() == pytest.approx(expected, rel=3 / (2 * weight.numel()) ** 0.5)
