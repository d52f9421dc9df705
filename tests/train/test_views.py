"""Attacks of other libraries on a defended file, by its views."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from s2ap_defend import DefendedClassifier, RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_train.adaptive.plans import surrogates
from s2ap_train.attacks.from_foolbox import quiet_import
from s2ap_train.views import DefendedModule, art_black_box, as_foolbox

EPS = 0.1


@pytest.fixture(scope="module")
def images(random_images: np.ndarray) -> np.ndarray:
    return random_images[:32]


def scores_of(module: DefendedModule, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.from_numpy(images))


def test_the_module_gives_the_label_of_the_file_where_nothing_is_flagged_and_as_many_are_asked(
    tiny_model_path: Path, random_images: np.ndarray
) -> None:
    verdicts = DefendedClassifier.load(tiny_model_path, device="cpu")(random_images)
    answered = {}
    for asked in (2, None):
        module = DefendedModule.load(tiny_model_path, asked=asked)
        answered[asked] = scores_of(module, random_images).argmax(1).numpy() == verdicts.label
    early = ~verdicts.adversarial & (verdicts.members_used == 2)
    late = ~verdicts.adversarial & (verdicts.members_used > 3)  # the last juror is the fourth member
    assert min(early.sum(), late.sum()) >= 10
    assert answered[2][early].all()
    assert answered[None][late].all()
    assert not answered[None][early].all()


def test_gradients_flow_through_purifier_classifier_and_jurors_as_the_path_says(
    tiny_model_path: Path, images: np.ndarray
) -> None:
    gradients = {}
    for path in ("exact", "straight_through", "identity", "none"):
        x = torch.from_numpy(images).requires_grad_()
        module = DefendedModule.load(tiny_model_path, gradient=path)
        (gradients[path],) = torch.autograd.grad(module(x).amax(1).sum(), x)
        assert gradients[path].isfinite().all()
        assert (gradients[path] != 0).flatten(1).any(1).all()
    assert not torch.equal(gradients["exact"], gradients["identity"])
    assert not torch.equal(gradients["exact"], gradients["none"])


def test_sensors_have_a_gradient_only_where_being_flagged_is_a_class(tiny_model_path: Path, images: np.ndarray) -> None:
    file = open_model_file(tiny_model_path)
    for flag in (False, True):
        module = DefendedModule.of(file, flag=flag)
        c, m = module.twin.answers(torch.from_numpy(images))
        leaves = c.detach().requires_grad_(), m.detach().requires_grad_()
        module.twin.answers = lambda *_, leaves=leaves: leaves
        (of_members,) = torch.autograd.grad(module(torch.from_numpy(images))[:, -1].sum(), leaves[1:])
        jurors = [member.vote_weight > 0 for member in file.manifest.members]
        told = (of_members != 0).flatten(1).any(1).tolist()
        assert all(one for one, juror in zip(told, jurors, strict=True) if juror)
        assert any(one for one, juror in zip(told, jurors, strict=True) if not juror) is flag


def test_the_class_flagged_leads_by_the_nats_that_the_evidence_is_above_its_alarm(
    tiny_model_path: Path, images: np.ndarray
) -> None:
    module = DefendedModule.load(tiny_model_path, flag=True)
    scores = scores_of(module, images)
    assert scores.shape == (32, 11)
    assert torch.equal(scores[:, :10], scores_of(DefendedModule.load(tiny_model_path), images))
    answer, evidence = surrogates(module.twin.test)
    with torch.no_grad():
        c, m = module.twin.answers(torch.from_numpy(images))
        left = evidence.until_alarm(c, m, answer.first_answer(c, m))
    torch.testing.assert_close(scores[:, :10].amax(1) - scores[:, 10], left)


def test_foolbox_attacks_the_file_by_its_module_and_the_file_says_what_succeeded(
    tiny_model_path: Path, images: np.ndarray
) -> None:
    with quiet_import():
        from foolbox.attacks import LinfPGD
        from foolbox.criteria import Misclassification

    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    labels = classifier.predict(images)
    model = as_foolbox(DefendedModule.load(tiny_model_path))
    attack = LinfPGD(steps=10, rel_stepsize=0.25, random_start=False)
    _, attacked, _ = attack(model, torch.from_numpy(images), Misclassification(torch.from_numpy(labels)), epsilons=EPS)
    assert (attacked - torch.from_numpy(images)).abs().max() <= EPS + 1e-6
    verdicts = classifier(attacked.numpy())
    assert (verdicts.label != labels).mean() > (classifier(images).label != labels).mean()


def art_or_skip() -> None:
    if importlib.util.find_spec("art") is None:
        pytest.skip("art is not installed: pip install -e '.[crosscheck]'")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_art_attacks_the_served_file_as_a_black_box(tiny_model_path: Path, images: np.ndarray) -> None:
    art_or_skip()
    from art.attacks.evasion import HopSkipJump

    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    box = art_black_box(classifier)
    assert np.array_equal(box.predict(images).argmax(1), classifier.predict(images))
    state = np.random.get_state()
    np.random.seed(0)
    attack = HopSkipJump(box, max_iter=2, max_eval=50, init_eval=10, verbose=False)
    attacked = attack.generate(images[:2])
    np.random.set_state(state)
    assert (classifier.predict(attacked.astype(np.float32)) != classifier.predict(images[:2])).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_flagged_is_a_class_of_the_black_box_on_request(tiny_model_path: Path, images: np.ndarray) -> None:
    art_or_skip()
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    verdicts, box = classifier(images), art_black_box(classifier, flag=True)
    assert box.nb_classes == 11
    assert 0 < verdicts.adversarial.mean() < 1
    assert np.array_equal(box.predict(images).argmax(1) == 10, verdicts.adversarial | verdicts.abstained)


@pytest.mark.skipif(importlib.util.find_spec("art") is not None, reason="ART is installed")
def test_without_art_the_black_box_says_how_to_install_it(tiny_model_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"needs adversarial-robustness-toolbox, which is not installed"):
        art_black_box(DefendedClassifier.load(tiny_model_path, device="cpu"))
