import os
import sys
from dataclasses import replace

import pytest
import torch
from tests.train.toy_data import bars
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.compute import LOCAL, Compute, ComputeSettings, launch
from s2ap_train.models import SmallCNN
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig, draw_batch, train_classifier

# What processes run must be importable by them, and test modules are not.
JOBS = """
import os, signal

import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, train_classifier


def train(compute, folder, data, *trainings):
    found = []
    for number, (model, config) in enumerate(trainings):
        snapshots = Snapshots(folder / str(number), "two processes")
        result = train_classifier(model, *data, config, run=Run(0, compute, snapshots))
        weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
        spread = compute.mean([weights])[0] - weights
        found.append((model, result, float(spread.abs().max())))
    return compute.world_size, torch.get_num_threads(), found


def fail(compute, rank, how):
    if compute.rank == rank and how == "refuse":
        raise RecipeError(f"process {rank} cannot go on; do something")
    if compute.rank == rank and how == "bug":
        raise KeyError("missing key")
    if compute.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    compute.mean([torch.zeros(3)])  # waits for the other, which does not come
"""

two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores for two processes")


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "compute_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    import compute_jobs

    yield compute_jobs
    del sys.modules["compute_jobs"]


def is_quiet(captured):
    return not captured.out and not any(word in captured.err for word in ("istributed", "erminat", "Traceback"))


def small():
    return SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=0)


def without_batch_norm():
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


# 81 images in batches of 21 or 20: no batch is shared evenly.
CLEAN = TrainingConfig(
    epochs=2, lr=0.1, batch_size=21, shift=1, flip=True, weight_radius=0.01, average_decay=0.9, loss="natural", eps=0.0
)
ATTACKED = replace(CLEAN, loss="trades", eps=0.1, attack_steps=2, validation_steps=2)


@two_cores
def test_two_processes_train_the_weights_of_one(jobs, tmp_path, capfd):
    data = (*bars(81), bars(40, seed=1))
    settings = [ComputeSettings("cpu", devices, channels_last=False) for devices in (1, 2)]
    trainings = [(without_batch_norm(), CLEAN), (without_batch_norm(), ATTACKED)]
    count, threads, two = launch(settings[1], jobs.train, tmp_path / "two", data, *trainings, (small(), ATTACKED))
    assert (count, threads) == (2, 1)
    _, _, one = launch(settings[0], jobs.train, tmp_path / "one", data, *trainings)
    start = without_batch_norm().state_dict()
    # Sums are taken in another order; and an attack moves a pixel whose gradient is a rounding error either way.
    for (alone, _, _), (shared, _, _), tolerance in zip(one, two, (1e-5, 1e-2), strict=False):
        for name, weight in alone.state_dict().items():
            moved = (weight - start[name]).abs().max()
            assert (shared.state_dict()[name] - weight).abs().max() <= tolerance * moved
    for ours, theirs in zip(two[0][1].history, one[0][1].history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert [spread for _, _, spread in two] == [0.0, 0.0, 0.0]  # alike in both processes, statistics included
    assert not torch.equal(two[2][0].each_block()[0].norm.running_mean, torch.zeros(6))
    resumed = without_batch_norm()  # what two processes kept, one can go on from
    kept = Snapshots(tmp_path / "two" / "0", "two processes")
    assert train_classifier(resumed, *data, CLEAN, run=Run(0, snapshots=kept)) == two[0][1]
    assert all(torch.equal(value, two[0][0].state_dict()[name]) for name, value in resumed.state_dict().items())
    assert "MASTER_PORT" not in os.environ  # of the next launch another
    assert is_quiet(capfd.readouterr())


@two_cores
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("refuse", RecipeError, r"^process 1 cannot go on; do something$"),
        pytest.param(
            "bug",
            RuntimeError,
            r"a training process failed:\n(?s:.*)KeyError: 'missing key'",
            marks=pytest.mark.slow,  # starting processes takes seconds
        ),
        (
            "killed",
            RecipeError,
            r"^a training process was killed (by SIGKILL|or cut off \(.*\)) before it was done; if memory",
        ),
    ],
)
def test_the_error_of_one_process_ends_all_and_reaches_the_caller(jobs, capfd, how, error, message):
    with pytest.raises(error, match=message):
        launch(ComputeSettings("cpu", 2), jobs.fail, 1, how)
    assert is_quiet(capfd.readouterr())


@two_cores
def test_what_other_processes_cannot_import_is_said():
    with pytest.raises(RuntimeError, match="cannot be sent to other processes"):
        launch(ComputeSettings("cpu", 2), lambda compute: compute.rank)


def test_one_device_runs_in_this_process():
    assert launch(ComputeSettings("cpu"), lambda compute, x: (compute.rank, compute.world_size, x), 3) == (0, 1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 0}, "devices is 0; training needs at least 1"),
        ({"accelerator": "tpu"}, r"accelerator 'tpu' is not known; choose from auto, cpu, cuda"),
        ({"precision": "8"}, r"precision '8' is not known; choose from auto, 32, bf16, 16"),
        ({"accelerator": "cpu", "devices": 4096}, r"devices is 4096, but this machine has no CUDA device to use and"),
        (
            {"accelerator": "cpu", "precision": "16"},
            r'precision "16" needs a CUDA device; on the CPU use "32" or "bf16"',
        ),
    ],
)
def test_what_no_machine_or_not_this_one_has_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        launch(ComputeSettings(**settings), lambda _: None)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "avx512_f"])
def test_auto_is_bfloat16_where_the_processor_computes_in_it(monkeypatch, flag):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, flag: True})
    settings = ComputeSettings("cpu", precision="auto")
    assert launch(settings, lambda compute: compute.precision) == ("32" if flag == "avx512_f" else "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_must_be_there_when_it_is_asked_for():
    with pytest.raises(RecipeError, match='accelerator is "cuda", but this machine has no CUDA device; use "cpu" or'):
        launch(ComputeSettings("cuda"), lambda _: None)


class Part(Compute):
    """One of several processes, as far as sharing rows goes."""

    def __init__(self, rank, world_size):
        super().__init__()
        self.rank, self.world_size = rank, world_size


def test_the_shares_of_a_batch_are_the_batch_and_their_weighted_means_its_mean():
    images, labels = bars(23)
    rows, parts = torch.arange(22), [Part(rank, 4) for rank in range(4)]
    drawn = [draw_batch(images, labels, rows, ATTACKED, torch.Generator().manual_seed(0), part) for part in parts]
    whole = draw_batch(images, labels, rows, ATTACKED, torch.Generator().manual_seed(0), LOCAL)
    assert [len(batch.x) for batch in drawn] == [6, 6, 5, 5]
    assert torch.equal(torch.cat([batch.x for batch in drawn]), whole.x)
    assert torch.equal(torch.cat([batch.start for batch in drawn]), whole.start)
    assert torch.equal(torch.cat([batch.y for batch in drawn]), whole.y)
    mean = sum(batch.x.mean() * batch.weight for batch in drawn) / 4
    assert mean.item() == pytest.approx(whole.x.mean().item(), rel=1e-6)
    with pytest.raises(RecipeError, match="a batch of 3 images cannot be shared by 4 processes; raise batch_size"):
        draw_batch(images, labels, rows[:3], ATTACKED, torch.Generator(), parts[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_gpu_trains_in_every_precision(jobs, tmp_path, precision):
    settings, data = ComputeSettings("cuda", precision=precision), (*bars(), bars(40, seed=1))
    _, _, found = launch(settings, jobs.train, tmp_path, data, (small(), ATTACKED))
    model, result, _ = found[0]
    assert next(model.parameters()).is_cuda
    assert all(value.dtype in {torch.float32, torch.int64} for value in model.state_dict().values())
    assert result.collapse is None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_the_weights_of_one(jobs, tmp_path):
    data, trainings = (*bars(81), bars(40, seed=1)), [(without_batch_norm(), CLEAN), (small(), ATTACKED)]
    one, two = (
        launch(ComputeSettings("cuda", devices), jobs.train, tmp_path / str(devices), data, *trainings)[2]
        for devices in (1, 2)
    )
    for name, weight in one[0][0].state_dict().items():
        assert torch.allclose(two[0][0].state_dict()[name], weight.cpu(), atol=1e-4)
    assert [spread for _, _, spread in two] == [0.0, 0.0]


def test_one_process_is_the_main_one_and_has_every_row():
    rows = torch.arange(5)
    assert LOCAL.is_main
    assert LOCAL.share(rows) is rows
    assert LOCAL.mean([rows])[0] is rows
