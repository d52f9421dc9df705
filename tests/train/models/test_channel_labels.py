import torch

from s2ap_train.models.channel_labels import Labels, varies


def test_channels_that_meet_are_one_by_way_of_others_too():
    labels = Labels()
    first, second, third = labels.fresh(3), labels.fresh(3), labels.fresh(2)
    labels.unify(first, second)
    labels.unify(second[1:], third)
    root, reasons = labels.components()
    found = [root[each.long()].tolist() for each in (first, second, third)]
    assert found == [[1, 2, 3], [1, 2, 3], [2, 3]]
    assert reasons == {}


def test_a_chain_of_any_length_is_one_channel():
    labels = Labels()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    chain = labels.fresh(1000)[order]
    labels.unify(chain[1:], chain[:-1])
    assert set(labels.components()[0].tolist()) == {0, 1}


def test_nothing_meets_what_has_no_label():
    labels = Labels()
    first = labels.fresh(4)
    labels.unify(first, torch.zeros(2, 4))
    labels.unify(torch.zeros(4), first)
    assert labels.components()[0].tolist() == [0, 1, 2, 3, 4]


def test_what_is_kept_keeps_what_it_is_coupled_with_for_its_first_reason():
    labels = Labels()
    first, second = labels.fresh(3), labels.fresh(3)
    labels.unify(first, second.flip(0))
    labels.keep(second[:1], "one")
    labels.keep(first, "all")
    assert labels.components()[1] == {1: "all", 2: "all", 3: "one"}


def test_labels_vary_where_there_are_several_channels():
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    assert varies(labels, (1,)).flatten().tolist() == [False, True]
    assert varies(labels, (0,)).flatten().tolist() == [False, True, False]
    assert not varies(labels, ()).any()
