import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from s2ap_train.data import ImageSet
from s2ap_train.purifier.variants import bit_depth, noise_and_denoise, off

FEW = {
    "data": '{source = "digits", train_limit = 400}',
    "plain.epochs": 2,
    "adversarial.epochs": 2,
    "pruning.training.epochs": 2,
    "finetune.epochs": 1,
    "score_model.epochs": 2,
    "score_model.width": 8,
    "score_model.multipliers": "[1, 2]",
    "purifier.steps": 1,
    "purifier.mode": '"j_free"',
    "model": '{name = "small_cnn", widths = [8, 8, 16]}',
}


def run(folder: Path, *options: str) -> Result:
    import purification_variants as variants  # type: ignore[import-not-found]
    from purification import main  # type: ignore[import-not-found]

    settings = [part for key, value in FEW.items() for part in ("--set", f"{key}={value}")]
    given = [
        "digits",
        "--samples",
        "10",
        "--steps",
        "1",
        "--queries",
        "3",
        "--workers",
        "1",
        "--work-dir",
        str(folder / "work"),
    ]
    small = replace(variants.DIGITS, eps=(0.0, 0.15), curve_steps=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.PRESETS, "digits", small)
        return CliRunner().invoke(main, [*given, *options, *settings])


@pytest.fixture(scope="module")
def measured(benchmarks: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("purification")
    options = ["--variants", "recipe,recipe, rho 0,bit depth 3,JPEG 75"]
    return folder, run(folder, *options, "--json", str(folder / "figures.json"), "--pictures", str(folder / "pictures"))


def test_every_purifier_stands_before_every_classifier_under_every_attack(measured: tuple[Path, Result]) -> None:
    folder, result = measured
    assert result.exit_code == 0, result.output
    document = json.loads((folder / "figures.json").read_text())
    names = ["off", "recipe", "recipe, rho 0", "bit depth 3", "JPEG 75"]
    for rows in document["figures"].values():
        assert list(rows) == names
        for name, row in rows.items():
            attacks = [row[key] for key in ("clean", "oblivious", "bpda", "unrolled", "apgd", "square", "transfer")]
            assert row["worst_case"] <= min(attacks)
            assert ("against_off" in row) == (name != "off")
            assert ("against_rho_0" in row) == (name == "recipe")
    assert list(document["figures"]) == ["plain", "adversarial", "pruned"]
    assert document["cost"]["recipe"]["work"] > document["cost"]["recipe, rho 0"]["work"] > 0
    assert document["cost"]["JPEG 75"]["by"] == "torch"
    assert len(document["curves"]["recipe"]["eps"]) == len(document["curves"]["eps"])
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        "purifier-digits.png",
        "purifier-digits-curves.png",
    }
    assert "| purifier" in result.output


def test_a_second_run_repeats_no_attack_and_prints_the_same_figures(measured: tuple[Path, Result]) -> None:
    folder, first = measured
    before = {path: path.stat().st_mtime_ns for path in (folder / "work" / "attacked").iterdir()}
    again = run(folder, "--variants", "recipe,recipe, rho 0,bit depth 3,JPEG 75")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in (folder / "work" / "attacked").iterdir()} == before
    deterministic = [
        line for line in first.output.splitlines() if line.startswith(("| off", "| recipe", "| bit", "| JPEG"))
    ]
    tables = [line for line in deterministic if not line.endswith(("ONNX Runtime |", "torch        |"))]  # times differ
    assert len(tables) > 12
    assert all(line in again.output for line in tables)


@pytest.mark.parametrize(("option", "name"), [("--variants", "wider"), ("--classifiers", "prunned")])
def test_a_name_that_is_not_known_is_refused(option: str, name: str, benchmarks: None, tmp_path: Path) -> None:
    known = {"--variants": "recipe", "--classifiers": "plain"}[option]
    result = run(tmp_path, option, f"{known},{name}")
    assert result.exit_code != 0
    assert f"'{name}' is not known; choose from " in result.output


def test_what_is_made_of_some_images_each_is_joined_in_their_order(benchmarks: None) -> None:
    from purification_attacks import Attacked  # type: ignore[import-not-found]
    from purification_runs import _joined  # type: ignore[import-not-found]

    images, right = np.random.default_rng(0).random((5, 1, 2, 2), np.float32), np.arange(5) % 2 == 0
    parts = [
        Attacked({"bpda": right[rows]}, {"bpda": images[rows]}, {"bpda": 1.5}, 1 - images[rows])
        for rows in (slice(0, 3), slice(3, 5))
    ]
    joined = _joined(parts)
    assert (joined.right["bpda"] == right).all()
    assert (joined.images["bpda"] == images).all()
    assert (joined.worst == 1 - images).all()
    assert joined.seconds == {"bpda": 3.0}


def halves(x: Tensor) -> Tensor:
    """Logits of a linear classifier: is the left half brighter than the right? Its margin is known in closed form.

    The third class, which the DLR loss asks for, is never taken.
    """
    left, right = x[..., :4].mean(dim=(1, 2, 3)), x[..., 4:].mean(dim=(1, 2, 3))
    return 20 * torch.stack([left - right, right - left, -1 + 0 * left], dim=1)


def attacker(make: Any, eps: float) -> Any:
    from purification_attacks import Attacker  # type: ignore[import-not-found]
    from purification_variants import DIGITS  # type: ignore[import-not-found]

    images = np.full((6, 1, 8, 8), 0.3, dtype=np.float32)
    images[:3, ..., :4] += 0.24
    images[3:, ..., 4:] += 0.24
    data = ImageSet(images, np.array([0] * 3 + [1] * 3))
    return Attacker(make, halves, data, eps, 0, DIGITS)


def test_a_margin_of_024_breaks_just_beyond_half_of_it(benchmarks: None) -> None:
    below, beyond, far = (attacker(off, eps) for eps in (0.11, 0.13, 0.2))
    assert all(right.all() for right in below.run(below.data.images).right.values())
    broken = beyond.run(beyond.data.images).right
    assert not any(broken[attack].any() for attack in ("bpda", "unrolled", "straight-through", "surrogate", "apgd"))
    assert not far.run(far.data.images).right["square"].any()  # a search without gradients needs some room


def test_rounding_hides_from_the_exact_gradient_and_is_called_masked(benchmarks: None) -> None:
    from purification_tables import figures, findings, worst_case  # type: ignore[import-not-found]

    masked = attacker(lambda: bit_depth(3), 0.2)
    attacked = masked.run(masked.data.images)
    assert attacked.right["unrolled"].all()  # its exact gradient is zero
    assert not attacked.right["bpda"].any()
    attacked.right["transfer"] = np.ones(6, dtype=bool)
    assert not worst_case(attacked).any()
    for attack in ("bpda", "straight-through", "surrogate"):  # an author who forgets to go around the rounding
        attacked.right[attack] = np.ones(6, dtype=bool)
    curve = {"eps": [1, 0.5], "noise": [1, 0.9], "steps": [0, 1], "helped": 6, "helped_p_value": 0.03}
    document = {
        "figures": figures({("plain", "bit depth 3"): attacked}, ["bit depth 3"], ["plain"]),
        "curves": {"classifier": "plain", "eps": [0, 0.2], "steps": [1, 2], "bit depth 3": curve},
    }
    lines = " ".join(findings(document))
    assert "images that Square breaks and no gradient does: bit depth 3 6." in lines
    assert "NOT at 0: masked" in lines
    assert "helps the defence beyond noise: MASKED (at most 6 images survive only the most steps, p 0.03)" in lines
    assert "SAM" not in lines  # nothing was compared with rho 0


def test_without_a_purifier_square_shows_what_it_finds_by_itself(benchmarks: None) -> None:
    from purification_tables import figures

    plain = attacker(off, 0.2)
    attacked = plain.run(plain.data.images)
    attacked.right["transfer"] = np.ones(6, dtype=bool)
    row = figures({("plain", "off"): attacked}, ["off"], ["plain"])["plain"]["off"]
    assert row["square_finds"] == 1.0
    assert row["square_alone"] == 0


def test_the_best_of_many_rows_is_held_to_more_than_the_only_one(benchmarks: None) -> None:
    from purification_tables import significant

    def rows(*p_values: float) -> dict[str, Any]:
        return {f"{p}": {"against_off": {"p_value": p, "difference": 0.1}} for p in p_values}

    assert significant(rows(0.03), "against_off") == {"0.03": pytest.approx(10)}
    assert significant(rows(0.03, 0.5), "against_off") == {}  # .03 x 2
    assert list(significant(rows(0.04, 0.001, 0.02, 0.9), "against_off")) == ["0.001"]  # .001 x 4, but .02 x 3


def test_curves_say_whether_more_steps_help_and_what_noise_alone_leaves(benchmarks: None) -> None:
    plain = attacker(off, 0.13)
    assert plain.random_noise().all()
    assert not plain.union(steps=10).any()
    assert attacker(off, 0.11).union(steps=10).all()


def test_a_purifier_with_noise_is_judged_by_most_of_several_draws(benchmarks: None) -> None:
    from purification_attacks import PurifiedSystem

    def no_noise_found(y: Tensor, sigma: float) -> Tensor:
        return torch.zeros_like(y)

    noisy = attacker(lambda: noise_and_denoise(no_noise_found, 0.5, 0), 0.25)
    images = np.full((400, 1, 8, 8), 0.4, dtype=np.float32)
    images[..., :4] += 0.1  # a draw of the margin: mean about .06 where clamped, deviation .29 sqrt(1 / 32 + 1 / 32)
    labels = np.zeros(400, dtype=np.int64)
    system = PurifiedSystem(noisy.make, halves)
    right = system.right(images, labels)
    assert np.array_equal(right, system.right(images, labels))  # the same draws judge every attack
    assert not np.array_equal(system(images, labels).score, system(images, labels).score)  # attacks get fresh ones
    single = float((halves(noisy.make().purify(torch.from_numpy(images))).argmax(1) == 0).float().mean())
    assert 0.6 < single < 0.95
    assert right.mean() > single + 0.05  # a majority of draws is surer than one
    broken = noisy.run(noisy.data.images).right
    assert not broken["unrolled"].any()
