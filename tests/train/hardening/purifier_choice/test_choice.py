"""The choice of a purifier: planted defences whose answer is known, and the words that are said of them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.train.toy_purifiers import EPS, STRONG, Denoiser, Threshold, both_halves, two_halves, upper_half
from torch import nn

from s2ap_defend.progress import Reporter
from s2ap_train.hardening.purifier_choice import choose, choose_purifier, print_choice
from s2ap_train.hardening.purifier_choice.attack import Behind, Jury, oblivious_attack
from s2ap_train.hardening.purifier_choice.decision import twin_of
from s2ap_train.hardening.purifier_choice.sweep import OBLIVIOUS, Defence, Sweep
from s2ap_train.jobs import Store, run_resumable
from s2ap_train.purifier import Purification
from s2ap_train.recipe import load_recipe
from s2ap_train.recipe.purifier_grid import ChoiceSettings, PurifierValues, canonical, grid
from s2ap_train.storage.fingerprint import weights_digest

BEHIND = Behind(upper_half, (upper_half,), "a classifier and 1 member")
ATTACK = ChoiceSettings(steps=4, square_queries=20)
OFF = canonical(Purification(steps=0))


def sweep(margin, *, honest, folder=None, key="toy", told=None, **changes):
    """A sweep over planted images, and what it reports."""
    defence = Defence(Denoiser(honest), BEHIND, two_halves(margin), EPS, 0)
    reporter = Reporter(Console(file=told or io.StringIO(), width=200), line_every_s=0)
    return Sweep(
        **(
            {
                "defence": defence,
                "settings": ATTACK,
                "store": Store(folder, key),
                "reporter": reporter,
                "workers": 1,
            }
            | changes
        )
    )


def test_a_purifier_that_hurts_is_called_out_when_the_recipe_insists_and_not_chosen_by_validation():
    # the margin is out of reach of the attack; a denoiser that lies moves the upper half across the boundary
    insisted, table = choose(sweep(0.2, honest=False), grid(STRONG, ()), own=STRONG, by="recipe")
    assert insisted == STRONG
    assert [row.adaptive_accuracy for row in table.rows] == [1.0, 0.0]
    assert table.rows[1].p_against_off == pytest.approx(2 * 0.5**12), "all of 12 images are lost"
    assert table.rows[table.chosen].steps == 1
    assert "0.0% stay right, 100.0% without a purifier" in table.reason
    assert "The purifier LOWERS the adaptive figure beyond noise (exact McNemar p = 0.00049)." in table.reason
    assert "The best of all rows: off, 100.0%." in table.reason
    chosen, table = choose(sweep(0.2, honest=False), grid(STRONG, ()), own=STRONG, by="validation")
    assert chosen.off
    assert table.rows[table.chosen].off
    assert "The purifier is off, the best of 2 on validation images" in table.reason
    assert "That one LOWERS the adaptive figure beyond noise" in table.reason


def test_a_purifier_that_helps_is_chosen_and_its_gain_is_told():
    # the margin is within reach of the attack, the denoiser's correction is larger than both
    chosen, table = choose(sweep(0.05, honest=True), grid(STRONG, ()), own=STRONG, by="validation")
    assert chosen == STRONG
    assert [row.adaptive_accuracy for row in table.rows] == [0.0, 1.0]
    assert [row.clean_accuracy for row in table.rows] == [1.0, 1.0]
    assert (table.by, table.split, table.samples, table.eps) == ("validation", "validation", 12, EPS)
    assert table.defended == "a classifier and 1 member"
    assert "100.0% stay right, 0.0% without a purifier" in table.reason
    assert "The purifier raises the adaptive figure beyond noise (exact McNemar p = 0.00049)." in table.reason


def in_front_of(score, classify, data, **settings):
    """A sweep over purifiers with that score model in front of that classifier alone."""
    defence = Defence(score, Behind(classify, (), "a classifier"), data, EPS, 0)
    return sweep(0.0, honest=True, defence=defence, settings=replace(ATTACK, **settings))


def test_a_purifier_that_only_its_own_gradient_breaks_is_not_chosen():
    # Margins of the upper half: one in reach of an attack, one not. The denoiser reads the lower half, whose margin is
    # in reach of an attack, but which the classifier does not read: no attack that knows of no purifier touches it.
    own = replace(STRONG, radius=0.5)
    attacked = in_front_of(Denoiser(True), upper_half, two_halves((0.05, 0.2), lower=0.08))
    chosen, table = choose(attacked, grid(own, ()), own=own, by="validation")
    off, row = table.rows
    assert [row.oblivious_accuracy, row.adaptive_accuracy] == [1.0, 0.0]
    assert [off.oblivious_accuracy, off.adaptive_accuracy] == [0.5, 0.5]
    assert chosen.off
    assert row.ungraded.total == 0
    assert "That one LOWERS the adaptive figure beyond noise (exact McNemar p = 0.031)." in table.reason


def test_a_purifier_whose_gradient_is_zero_is_broken_by_bpda_and_called_masked():
    own = replace(STRONG, radius=1.0, step_size=1.0)
    attacked = in_front_of(Threshold(), both_halves, two_halves(0.05, lower=0.08))
    chosen, table = choose(attacked, grid(own, ()), own=own, by="validation")
    row = table.rows[1]
    assert (row.oblivious_accuracy, row.gradient_accuracy, row.adaptive_accuracy) == (1.0, 1.0, 0.0)
    assert (row.ungraded.bpda, row.ungraded.surrogate, row.ungraded.square) == (12, 0, None)
    assert chosen.off
    assert (
        "Its gradients are masked: of 12 images that its exact gradient left, 12 were broken without it (BPDA 12, the "
        "surrogate 0)." in table.reason
    )


def test_a_purifier_that_only_answers_break_is_called_masked_and_not_said_to_raise():
    # the classifier reads the upper half alone, so no gradient, not even of the identity, shows the lower half
    own = replace(STRONG, radius=1.0, step_size=1.0)
    data = two_halves(0.05, lower=0.08)
    _, fooled = choose(
        in_front_of(Threshold(), upper_half, data, square_queries=0), grid(own, ()), own=own, by="validation"
    )
    assert fooled.rows[1].adaptive_accuracy == 1.0
    assert "raises" in fooled.reason
    assert "no black-box attack" in fooled.attack
    _, table = choose(
        in_front_of(Threshold(), upper_half, data, square_queries=300), grid(own, ()), own=own, by="validation"
    )
    row = table.rows[1]
    assert row.gradient_accuracy == 1.0
    assert row.ungraded.square >= 6, "chance breaks fewer"
    assert row.adaptive_accuracy == 1.0 - row.ungraded.square / 12
    assert f"12 images that its exact gradient left, {row.ungraded.square} were broken without it" in table.reason
    assert "raises" not in table.reason
    assert "Square, 300 queries" in table.attack


def test_a_winner_that_falls_to_square_gives_way_to_the_next_best():
    # half of the margins are out of reach without a purifier; behind it only the lower half counts, all in reach
    own = replace(STRONG, radius=1.0, step_size=1.0)
    attacked = in_front_of(Threshold(), upper_half, two_halves((0.05, 0.2), lower=0.08), square_queries=300)
    chosen, table = choose(attacked, grid(own, ()), own=own, by="validation")
    off, row = table.rows
    assert (off.adaptive_accuracy, row.gradient_accuracy) == (0.5, 1.0)
    assert row.ungraded.square > 6
    assert chosen.off
    assert "Its gradients are masked" in table.reason


def test_a_reference_is_attacked_without_a_purifier_and_told_beside_the_table():
    alone = in_front_of(Denoiser(True), upper_half, two_halves((0.05, 0.2)))
    _, table = choose(sweep(0.05, honest=True), grid(STRONG, ()), own=STRONG, by="validation", reference=alone)
    assert table.reference.name == "a classifier"
    assert (table.reference.clean_accuracy, table.reference.adaptive_accuracy) == (1.0, 0.5)
    told = io.StringIO()
    print_choice(table, Console(file=told, width=120))
    assert "to beat:   a classifier, without a purifier, under the same attack: 100.0% clean, 50.0%" in told.getvalue()


def test_equal_purifiers_are_told_apart_by_network_passes():
    tables = [PurifierValues(bank_size=(4,), rho=(0.0, 0.1))]
    own = replace(STRONG, bank_size=4)
    chosen, table = choose(
        sweep(0.05, honest=True), grid(own, [*tables, PurifierValues(bank_size=(2,))]), own=own, by="validation"
    )
    assert chosen == STRONG
    assert "as good as 2 more with no fewer network passes" in table.reason
    # where nothing is in reach of the attack, off is as good as any and costs nothing
    chosen, table = choose(sweep(0.2, honest=True), grid(own, tables), own=own, by="validation")
    assert chosen.off
    assert "That one changes the adaptive figure by no more than noise (exact McNemar p = 1)." in table.reason


def test_a_winner_with_ascent_is_compared_with_rho_0_even_where_the_table_lacks_it():
    own = replace(STRONG, radius=0.01)
    configs = grid(own, [PurifierValues(radius=(0.3,), rho=(0.1,))])
    assert replace(STRONG, rho=0.0) not in configs
    chosen, table = choose(sweep(0.05, honest=True), configs, own=own, by="validation")
    ascending = next(row for row in table.rows if row.rho > 0)
    assert twin_of(table.rows, ascending) is table.rows[-1]
    assert ascending.p_against_rho_0 == 1.0
    assert chosen == STRONG, "as good without ascent, in half the passes"


def test_the_recipe_is_told_which_setting_with_ascent_was_better():
    own = replace(STRONG, radius=0.01, rho=0.05)
    configs = grid(own, [PurifierValues(radius=(0.3,), rho=(0.1,))])
    chosen, table = choose(sweep(0.05, honest=True), configs, own=own, by="recipe")
    assert chosen == own
    assert "0.0% stay right, 0.0% without a purifier, 0.0% with rho 0" in table.reason
    assert (
        "Another SAM setting was better: J-free, sigma 0.05, radius 0.3 linf, 1 step of 0.7, rho 0.1, bank of 2, "
        "100.0%, before Square." in table.reason
    )


def test_where_nothing_is_to_be_measured_the_recipe_decides_alone(tmp_path):
    recipe = load_recipe("digits")
    parts = splits = reporter = None  # nothing is asked of them
    assert choose_purifier(recipe, parts, splits, tmp_path, reporter, by=None) == (recipe.purifier, None)
    assert not list(tmp_path.iterdir())


def test_every_purifier_faces_the_attacks_on_all_others(tmp_path):
    weak = replace(STRONG, radius=0.04)
    one = sweep(0.05, honest=True, folder=tmp_path)
    tried = one.run([OFF, weak, STRONG])
    assert len(list(tmp_path.iterdir())) == 4, "three purifiers and the attack that knows of none"
    found = run_resumable(one.jobs([OFF, weak, STRONG]), one.store, one.reporter, title="stored")
    images = [found.pop(OBLIVIOUS).images, *(other.images for other in found.values())]
    assert len(images) == 4
    data = one.defence.data
    for result in tried:
        jury = Jury(BEHIND.view(one.defence.variant(result.config)))
        expected = jury.right(data.images, data.labels)
        for found in images:
            assert np.abs(found - data.images).max() <= EPS + 1e-6
            expected &= jury.right(found, data.labels)
        assert np.array_equal(result.adaptive, expected)
        assert np.array_equal(result.oblivious, jury.right(images[0], data.labels))


def test_an_interrupted_sweep_goes_on_and_a_damaged_or_foreign_record_is_measured_again(tmp_path):
    first = sweep(0.05, honest=True, folder=tmp_path).run([OFF, STRONG])
    told = io.StringIO()
    again = sweep(0.05, honest=True, folder=tmp_path, told=told).run([OFF, STRONG, replace(STRONG, rho=0.1)])
    assert "3 of 4 reused" in told.getvalue()
    assert told.getvalue().count("right under its own attack") == 1
    for before, after in zip(first, again, strict=False):
        assert (before.config, before.milliseconds) == (after.config, after.milliseconds)
        assert np.array_equal(before.gradient, after.gradient)
        assert np.array_equal(before.adaptive, after.adaptive)
    for damage in (b"{", b"[]", b"{}"):
        for path in tmp_path.iterdir():
            path.write_bytes(damage)
        told = io.StringIO()
        repaired = sweep(0.05, honest=True, folder=tmp_path, told=told).run([OFF, STRONG])
        assert "reused" not in told.getvalue()
        assert [row.adaptive.mean() for row in repaired] == [0.0, 1.0]
    files = sorted(tmp_path.iterdir())
    for path, other in zip(files, [path.read_bytes() for path in reversed(files)], strict=True):
        path.write_bytes(other)  # what another key found
    assert [row.adaptive.mean() for row in sweep(0.05, honest=True, folder=tmp_path).run([OFF, STRONG])] == [0.0, 1.0]
    for other in ({"key": "other networks"}, {"settings": replace(ATTACK, steps=5)}):
        told = io.StringIO()
        sweep(0.05, honest=True, folder=tmp_path, **{"told": told, **other}).run([STRONG])
        assert told.getvalue().count("right under its own attack") == 1
        assert ("1 of 2 reused" in told.getvalue()) == ("settings" in other), "PGD without the purifier is the same"


def test_two_processes_find_what_one_finds():
    configs = [OFF, STRONG, replace(STRONG, radius=0.04)]
    alone, together = (sweep(0.05, honest=True, workers=count).run(configs) for count in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert one.config == other.config
        assert np.array_equal(one.adaptive, other.adaptive)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_the_cpu_finds():
    there = replace(sweep(0.05, honest=True).defence, behind=replace(BEHIND, device="cuda"))
    configs = [OFF, STRONG]
    for one, other in zip(
        sweep(0.05, honest=True).run(configs), sweep(0.05, honest=True, defence=there).run(configs), strict=True
    ):
        assert np.array_equal(one.adaptive, other.adaptive)


def test_the_attack_that_knows_of_no_purifier_is_the_same_for_all_of_them():
    data = two_halves(0.05)
    images = oblivious_attack(BEHIND, data, eps=EPS, seed=0)
    assert np.abs(images - data.images).max() <= EPS + 1e-6
    assert not Jury(BEHIND.view(sweep(0.05, honest=True).defence.variant(OFF))).right(images, data.labels).any()


def test_the_table_marks_what_was_chosen_and_says_how_to_read_it():
    _, record = choose(sweep(0.05, honest=True), grid(STRONG, ()), own=STRONG, by="validation")
    told = io.StringIO()
    print_choice(record, Console(file=told, width=120))
    text = told.getvalue()
    assert next(line for line in text.splitlines() if line.lstrip().startswith(">")).split()[1] == "J-free,"
    assert record.reason in text
    assert "behind it: a classifier and 1 member" in text
    assert "12 validation images, l_inf eps 0.1" in text


def test_networks_with_equal_tensors_that_compute_differently_are_kept_apart():
    layer = nn.Linear(2, 2)
    plain, strided = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2)
    strided.load_state_dict(plain.state_dict())
    networks = [nn.Sequential(layer), nn.Sequential(layer, nn.ReLU()), plain, strided]
    assert len({weights_digest([one]) for one in networks}) == 4
    assert weights_digest(networks) == weights_digest(networks)
    with torch.no_grad():
        before = weights_digest([plain])
        plain.weight += 1.0
        assert weights_digest([plain]) != before
