import logging
import os
import signal

import pytest
import torch
from tests.train.forked_process import ended, forked

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import Run, TrainingConfig, train_classifier

NAME = "blocks.1.convolution.weight"
CONFIG = TrainingConfig(
    epochs=5,
    lr=0.1,
    batch_size=20,
    eps=0.1,
    attack_steps=2,
    validation_steps=2,
    shift=1,
    flip=True,
    loss="trades",
    weight_radius=0.01,
    weight_warmup_epochs=1,
    average_decay=0.9,
    patience=4,
)


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    bar = torch.nn.functional.one_hot(labels, 4).repeat_interleave(2, dim=1)
    return 0.3 * torch.rand(count, 1, 8, 8, generator=generator) + 0.6 * bar[:, None, :, None], labels


def run(folder, killed_at=None):
    """A training with everything in it that goes from one epoch to the next."""
    seen, steps = [], []
    model = SmallCNN(classes=4, widths=(6, 8), pool_after=(0, 1), seed=0)
    masks = {NAME: torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4}

    def swap(step, parameters, masks, optimiser):
        steps.append(step)
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        swapped = torch.rand(8, 6, 3, 3, generator=torch.Generator().manual_seed(step)) > 0.95
        masks[NAME] = masks[NAME] ^ swapped
        return True

    result = train_classifier(
        model,
        *images(80, 0),
        images(40, 1),
        CONFIG,
        masks=masks,
        mask_update=swap,
        run=Run(0, None, None if folder is None else Snapshots(folder, "settings"), lambda *seen_: seen.append(seen_)),
    )
    return model, masks, result, seen, steps


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_killed_training_goes_on_to_the_very_weights_of_an_unbroken_one(tmp_path):
    killed_at = 13  # within the last step but two of epoch 3
    assert ended(forked(run, tmp_path / "run", killed_at)) == -signal.SIGKILL
    resumed, resumed_masks, resumed_result, resumed_epochs, steps = run(tmp_path / "run")
    unbroken, unbroken_masks, unbroken_result, unbroken_epochs, _ = run(None)
    assert steps == list(range(12, 20))  # only the epoch that was not finished is done again
    assert same(resumed.state_dict(), unbroken.state_dict())
    assert same(resumed_masks, unbroken_masks)
    assert resumed_result == unbroken_result
    assert resumed_epochs == unbroken_epochs
    again, again_masks, again_result, _, steps = run(tmp_path / "run")
    assert steps == []  # a finished training is not trained again
    assert same(again.state_dict(), unbroken.state_dict())
    assert same(again_masks, unbroken_masks)
    assert again_result == unbroken_result


def state(number):
    return {"weight": torch.full((3,), float(number))}, {"epoch": number}


def number_in(loaded):
    tensors, record = loaded
    assert tensors["weight"].tolist() == [record["epoch"]] * 3
    return record["epoch"]


def test_the_newest_state_is_found_by_whoever_looks(tmp_path):
    folder = tmp_path / "training"
    snapshots = Snapshots(folder, "one")
    assert snapshots.load() is None
    for number in range(5):
        snapshots.save(*state(number))
        assert number_in(Snapshots(folder, "one").load()) == number
    later = Snapshots(folder, "one")
    later.save(*state(5))  # without looking first
    assert number_in(Snapshots(folder, "one").load()) == 5


def test_the_state_of_other_settings_is_not_used(tmp_path):
    Snapshots(tmp_path / "a", "one").save(*state(3))
    other = Snapshots(tmp_path / "a", "two")
    assert other.load() is None
    other.save(*state(0))
    assert number_in(Snapshots(tmp_path / "a", "two").load()) == 0


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoint.json"])
def test_a_damaged_state_is_passed_over_with_a_warning_in_the_log(tmp_path, caplog, file):
    snapshots = Snapshots(tmp_path / "a", "one")
    for number in range(2):
        snapshots.save(*state(number))
    newest = tmp_path / "a" / "snapshot-1" / file
    newest.write_bytes(newest.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert number_in(Snapshots(tmp_path / "a", "one").load()) == 0
    assert "a snapshot cannot be used" in caplog.text
    before = tmp_path / "a" / "snapshot-0" / file
    before.write_bytes(b"")
    assert Snapshots(tmp_path / "a", "one").load() is None


def test_a_state_that_was_being_written_when_the_process_died_is_removed(tmp_path):
    snapshots = Snapshots(tmp_path / "a", "one")
    snapshots.save(*state(0))
    half = tmp_path / "a" / ".snapshot-1.abc.new"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert number_in(Snapshots(tmp_path / "a", "one").load()) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["snapshot-0"]


def test_phases_have_states_of_their_own_until_all_are_cleared(tmp_path):
    snapshots = Snapshots(tmp_path / "a", "one")
    snapshots.save(*state(1))
    snapshots.child("finetune").save(*state(2))
    snapshots.save(*state(3))
    assert number_in(snapshots.load()) == 3
    assert number_in(snapshots.child("finetune").load()) == 2
    snapshots.clear()
    assert snapshots.load() is None
    assert snapshots.child("finetune").load() is None
    snapshots.clear()
    assert not (tmp_path / "a").exists()


def test_what_json_does_not_hold_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="is not JSON"):
        Snapshots(tmp_path / "a", "one").save({}, {"epoch": float("nan")})
