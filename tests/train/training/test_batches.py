import math
from dataclasses import replace

import torch
from tests.train.toy_data import bars

from s2ap_train.training import (
    TrainingConfig,
    augment,
    batches,
    cosine,
    draw_batch,
    shifted,
)

NATURAL = TrainingConfig(epochs=4, lr=0.1, batch_size=20, loss="natural", eps=0.0)
ROBUST = TrainingConfig(epochs=4, lr=0.1, batch_size=20, eps=0.15, attack_steps=2, validation_steps=3)


def test_a_batch_is_augmented_labelled_and_given_its_start():
    images, labels = bars()
    rows = torch.tensor([5, 3])
    batch = draw_batch(images, labels, rows, NATURAL, torch.Generator())
    assert torch.equal(batch.x, images[rows])
    assert torch.equal(batch.y, labels[rows])
    assert (batch.start, batch.weight) == (None, 1.0)
    assert draw_batch(images, labels, rows, ROBUST, torch.Generator()).start.shape == batch.x.shape


def test_about_half_of_the_images_are_mirrored_each_as_a_whole():
    images = torch.zeros(1000, 2, 3, 4)
    images[:, :, 1, 0] = 1.0
    flipped = augment(images, replace(NATURAL, flip=True), torch.Generator().manual_seed(0))
    mirrored = flipped[:, :, 1, 3].sum(1)  # 2 where both channels were mirrored
    assert set(mirrored.tolist()) == {0.0, 2.0}
    assert torch.equal(flipped[:, :, 1, 0].sum(1), 2 - mirrored)
    assert abs((mirrored == 2).float().mean().item() - 0.5) < 3 * math.sqrt(0.25 / 1000)
    assert augment(images, NATURAL, torch.Generator()) is images


def test_batches_are_a_permutation_in_nearly_equal_parts():
    parts = batches(101, 50, torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [34, 34, 33]
    assert sorted(torch.cat(parts).tolist()) == list(range(101))


def test_the_cosine_starts_at_the_rate_and_ends_at_zero():
    assert [round(cosine(0.1, epoch, 10), 12) for epoch in (0, 5, 10)] == [0.1, 0.05, 0.0]


def test_shifts_move_the_image_by_at_most_the_limit_and_fill_with_zeros():
    images = torch.zeros(200, 1, 5, 5)
    images[:, :, 2, 2] = 1.0
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(200))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    edge = shifted(torch.ones(50, 1, 4, 4), 1, torch.Generator().manual_seed(0))
    assert set(edge.sum(dim=(1, 2, 3)).tolist()) == {9.0, 12.0, 16.0}
    assert shifted(images, 0, torch.Generator()) is images
