"""Networks that were really trained, joined badly on purpose: the evaluation must find what the attacker then owns."""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from onnx import ModelProto
from rich.console import Console
from tests.export.defended_files import SHAPE

from s2ap_defend.manifest import DecisionDescription
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import PURIFIER
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.networks import to_stage
from s2ap_export.tracing.trace import trace_purifier
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.data import Splits
from s2ap_train.hardening.parts import train_dense
from s2ap_train.purifier import Purification, UNet, hadamard_bank
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.ablation.names import BARE, JURY, PRUNED
from s2ap_train.redteam.attacks.catalogue import chosen_attacks
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.results import Evaluation
from s2ap_train.storage.parts import PartStore

pytestmark = pytest.mark.slow  # trains four networks

JURORS = 3
BELOW = "Below its own robust classifier alone, by label"
QUIET = Reporter(Console(file=io.StringIO()))


@dataclass(frozen=True)
class Trained:
    """The digits, a natural classifier, and robust ones of other seeds, as stages."""

    splits: Splits
    natural: ModelProto
    robust: tuple[ModelProto, ...]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Networks as recipe digits trains its classifiers."""
    recipe = load_recipe("digits")
    splits, store = recipe.load_data(), PartStore(tmp_path_factory.mktemp("networks"), QUIET)
    train = partial(train_dense, splits=splits, store=store)
    natural = train(recipe, name="natural", config=recipe.plain)
    robust = [
        train(recipe.model_copy(update={"seed": seed}), name=f"robust-{seed}", config=recipe.adversarial)
        for seed in range(JURORS)
    ]
    return Trained(splits, to_stage(natural.model), tuple(to_stage(one.model) for one in robust))


def write(
    path: Path, tiny: Path, classifier: ModelProto, jurors: list[ModelProto], weights: list[float], share: float
) -> Path:
    """A file whose answer is a mix of the classifier and these jurors, and whose test never flags."""
    file = open_model_file(tiny).manifest
    decision = DecisionDescription(answer="mixed", jury_share=share, amplification=1.0, purify="off", frontier=None)
    count = len(jurors)
    tables = file.test.model_copy(
        update={
            "edges": file.test.edges[:1] * count,
            "increments": file.test.increments[:1] * count,
            "lower": (None,) * count,
            "upper": (None,) * count,
            "truncation": "clean",
            "waves": (count,),
            "opening": count,
            "signals": (),
        }
    )
    member = file.members[0].model_copy(update={"role": "juror", "sees": "raw"})
    off = Purification(steps=0, bank_size=2)
    manifest = file.model_copy(
        update={
            "members": tuple(member.model_copy(update={"vote_weight": weight}) for weight in weights),
            "decision": decision,
            "test": tables,
            "purifier": file.purifier.model_copy(update={"steps": 0, "sigmas": (), "rho": 0.0, "bank_size": 2}),
        }
    )
    purifier = trace_purifier(UNet(1, 8, (1,), seed=0), hadamard_bank(2, SHAPE, 0), off, SHAPE, PURIFIER)
    model = compose(purifier, classifier, jurors, manifest.to_test(), sees=["raw"] * count, purify="off")
    write_model_file(model, manifest, path)
    return path


def evaluated(path: Path, splits: Splits) -> Evaluation:
    """Attacked on 60 test images with the recipe's eps."""
    names, eps = "pgd,apgd-ce,answer,unrolled-pgd", load_recipe("digits").eps
    budget = AdaptiveBudget(steps=20, cheap_steps=20, restarts=1, targets=1, thorough=False)
    plan = Plan("quick", chosen_attacks(names)[1], budget, eps, 1.0, 3, 0, "quick")
    return evaluate_file(path, splits.test.subset(slice(0, 60)), plan, folder=None, reporter=QUIET, workers=1)


def test_a_jury_of_robust_networks_keeps_its_labels_beside_a_tenth_of_a_natural_one(
    trained: Trained, tiny_model_path: Path, tmp_path: Path
) -> None:
    """The control: what the planted defects lose is lost to them."""
    path = write(tmp_path / "sound.onnx", tiny_model_path, trained.natural, [*trained.robust], [1.0] * JURORS, 0.9)
    found = evaluated(path, trained.splits)
    assert verdict(found).title != BELOW
    assert found.worst_case.label_accuracy > 0.7
    assert found.row(BARE).worst_case.label_accuracy < 0.2, "a natural network is the attacker's"


def test_a_natural_classifier_with_half_of_the_say_is_found(
    trained: Trained, tiny_model_path: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "half.onnx", tiny_model_path, trained.natural, [*trained.robust], [1.0] * JURORS, 0.5)
    found = evaluated(path, trained.splits)
    assert verdict(found).title == BELOW
    assert found.worst_case.label_accuracy < found.row(PRUNED).worst_case.label_accuracy - 0.2
    assert found.row(JURY).worst_case.label_accuracy > 0.7, "the vote of the jury alone has nothing planted in it"


def test_a_juror_of_full_weight_that_the_attacker_owns_is_found(
    trained: Trained, tiny_model_path: Path, tmp_path: Path
) -> None:
    jurors = [trained.robust[0], trained.natural, *trained.robust[1:]]
    weights = [0.25, 1.0, *[0.25] * (JURORS - 1)]
    path = write(tmp_path / "owned.onnx", tiny_model_path, trained.robust[0], jurors, weights, 0.9)
    found = evaluated(path, trained.splits)
    assert verdict(found).title == BELOW
    assert found.worst_case.label_accuracy < 0.2
    assert found.row(JURY).worst_case.label_accuracy < 0.2, "it has more than half of the votes"
