"""What a training is given, and the loop over its epochs."""

import pytest
import torch

from s2ap_train.compute import Compute
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import EpochState, Run, run_epochs


class Sums(EpochState):
    """A training of one weight: every epoch adds a random number of its generator and one of the global state."""

    def __init__(self, epochs, run):
        super().__init__(torch.nn.LayerNorm(1, bias=False), epochs=epochs, run=run)
        self.diverged = False

    @property
    def finished(self):
        return super().finished or self.diverged

    def add(self):
        drawn = torch.rand((), generator=self.generator) + torch.rand(())
        with torch.no_grad():
            self.model.weight += drawn
        self.history.append({"drawn": float(drawn)})

    def snapshot(self):
        groups, record = super().snapshot()
        return groups, record | {"diverged": self.diverged}


class StoppedError(Exception):
    pass


def stop_at(last):
    def hook(epoch, _):
        if epoch == last:
            raise StoppedError

    return hook


def other_process():
    compute = Compute()
    compute.rank = 1
    return compute


def trained(epochs=4, **context):
    run = Run(7, **context)
    state = Sums(epochs, run)
    run_epochs(state, run, state.add)
    return state


@pytest.mark.parametrize("last", [0, 2, 3])
def test_a_training_that_was_stopped_reports_every_epoch_again_and_ends_as_an_unbroken_one(tmp_path, last):
    with pytest.raises(StoppedError):
        trained(snapshots=Snapshots(tmp_path, "s"), on_epoch=stop_at(last))
    assert len(Run(7, snapshots=Snapshots(tmp_path, "s")).load()[1]["history"]) == last + 1, "saved, then reported"
    seen, whole = [], trained()
    resumed = trained(snapshots=Snapshots(tmp_path, "s"), on_epoch=lambda *told: seen.append(told))
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert seen == list(enumerate(whole.history))
    assert resumed.history == whole.history


def test_the_beginning_is_not_repeated_by_a_training_that_goes_on(tmp_path):
    begun = []
    for epochs in (1, 3):
        run = Run(0, snapshots=Snapshots(tmp_path, "s"))
        state = Sums(epochs, run)
        run_epochs(state, run, state.add, lambda epochs=epochs: begun.append(epochs))
        assert state.epoch == epochs
    assert begun == [1]


def test_an_epoch_that_leaves_no_record_is_saved_and_not_reported(tmp_path):
    seen, run = [], Run(0, snapshots=Snapshots(tmp_path, "s"), on_epoch=lambda epoch, _: seen.append(epoch))
    state = Sums(9, run)

    def epoch():
        if state.epoch == 2:
            state.diverged = True
        else:
            state.add()

    run_epochs(state, run, epoch)
    assert seen == [0, 1]
    assert state.epoch == 2
    assert run.load()[1]["diverged"]


def test_epochs_leave_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trained()
    assert torch.equal(torch.rand(3), expected)


def test_phases_have_snapshots_and_seeds_of_their_own(tmp_path):
    run = Run(3, Compute(), Snapshots(tmp_path, "s"), stop_at(0))
    search, tuning = run.phase("search"), run.phase("tuning", seed=8)
    assert (search.seed, tuning.seed) == (3, 8)
    assert search.compute is run.compute
    assert search.on_epoch is run.on_epoch
    search.save({}, {"who": "search"})
    assert run.load() is None
    assert tuning.load() is None
    assert Snapshots(tmp_path, "s").child("search").load()[1] == {"who": "search"}
    run.clear()
    assert search.load() is None
    assert Run(3).phase("search").snapshots is None


def test_records_of_a_phase_are_extended_and_its_epochs_counted_on():
    seen = []
    run = Run(0, on_epoch=lambda *told: seen.append(told))
    run.extending(lambda epoch, record: {**record, "here": epoch}, first=5).report(2, {"loss": 1.0})
    assert seen == [(7, {"loss": 1.0, "here": 2})]
    Run(0).extending(lambda _, record: record).report(0, {})


def test_only_the_first_process_writes_and_reports_and_all_of_them_go_on(tmp_path):
    def told(*_):
        raise AssertionError

    second = Run(0, other_process(), Snapshots(tmp_path, "s"), told)
    second.save({}, {})
    second.report(0, {})
    assert second.load() is None
    trained(2, snapshots=Snapshots(tmp_path, "s"))
    second.clear()
    state = Sums(2, second)
    assert second.resume(state)
    assert state.epoch == 2


def test_without_a_compute_a_model_stays_where_it_is():
    model = torch.nn.Linear(2, 2, device="meta")
    assert Run(0).place(model) is model
    assert Run(0).compute_for(model).device == torch.device("meta")
    given = Compute()
    assert Run(0, given).compute_for(model) is given
