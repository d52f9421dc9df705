"""The same attack by libraries that others wrote: projected gradient descent on what answers, behind the purifier.

Where ours finds less than theirs, ours is wrong. The libraries are not among this package's dependencies.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float32
from s2ap_train.attacks.from_foolbox import quiet_import
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.candidates import into_ball
from s2ap_train.redteam.attacks.white_box_search import surrogates_of
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "MODULES", "RELATIVE_STEP", "Answering", "library"]

RELATIVE_STEP = 0.25
"""Length of a step, of eps; as that of our own PGD."""


def library(module: str, package: str) -> ModuleType:
    """An optional library.

    Args:
        module: What is imported.
        package: What is installed.

    Raises:
        RecipeError: If it is not installed, with the command that installs it.
    """
    try:
        with quiet_import():  # one of them imports foolbox
            return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"this cross-check needs {package}, which is not installed ({error}); install it with "
            "pip install '.[train,crosscheck]' in a checkout, or leave the attack out"
        ) from error


class Answering(nn.Module):
    """Images [N, C, H, W] -> log-probabilities [N, K] of which the answer is the largest, were nothing flagged.

    Those of the classifier, of its mix with the jury, or the jurors' mean, whichever answers; with the exact gradient
    of the purifier.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._answer = None if target.test is None else surrogates_of(target)[0]
        self._members = 0 if target.test is None or target.test.answer == "accurate" else None
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)  # libraries ask parameters where the network is

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [N, K] of images [N, C, H, W]."""
        classifier, members = self._target.view(images, self._target.path, self._members)
        return classifier if self._answer is None else self._answer.scores(classifier, members).log_softmax(1)


def _art(network: nn.Module, task: Task) -> Float32:
    """The Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069)."""
    evasion: Any = library("art.attacks.evasion", "adversarial-robustness-toolbox")
    estimators: Any = library("art.estimators.classification", "adversarial-robustness-toolbox")
    images, labels = task.data.images, task.data.labels
    with torch.no_grad():
        classes = network(torch.from_numpy(images[:1])).shape[1]
    estimator = estimators.PyTorchClassifier(
        model=network,
        loss=nn.NLLLoss(),
        input_shape=images.shape[1:],
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        estimator,
        norm=np.inf,
        eps=task.eps,
        eps_step=RELATIVE_STEP * task.eps,
        max_iter=task.budget.steps,
        num_random_init=task.budget.restarts,
        batch_size=task.budget.batch,
        verbose=False,
    )
    found: Float32 = attack.generate(images, labels)
    return found


def _secml(network: nn.Module, task: Task) -> Float32:
    """SecML-Torch (the authors of SecML, arXiv 1912.10013)."""
    pgd: Any = library("secmlt.adv.evasion.pgd", "secml-torch")
    backends: Any = library("secmlt.adv.backends", "secml-torch")
    models: Any = library("secmlt.models.pytorch.base_pytorch_nn", "secml-torch")
    attack = pgd.PGD(
        perturbation_model="linf",
        epsilon=task.eps,
        num_steps=task.budget.steps,
        step_size=RELATIVE_STEP * task.eps,
        random_start=True,
        backend=backends.Backends.NATIVE,
    )
    data = torch.utils.data.TensorDataset(torch.from_numpy(task.data.images), torch.from_numpy(task.data.labels))
    loader: Any = torch.utils.data.DataLoader(data, batch_size=task.budget.batch)
    attacked = attack(models.BasePyTorchClassifier(network), loader)
    found: Float32 = torch.cat([images for images, _ in attacked]).detach().numpy()
    return found


def _run(attack: Any, target: Target, task: Task) -> Found:  # noqa: ANN401 - a function of (network, task)
    if task.eps == 0.0:
        return Found(task.data.images.copy(), {"steps": 0})
    network = Answering(target).eval()
    with _set_apart(task.seed):
        images = attack(network, task).astype(np.float32)
    inside = into_ball(images, task.data.images, task.eps, "linf")
    return Found(inside, {"steps": task.budget.steps, "relative_step_size": RELATIVE_STEP})


@contextmanager
def _set_apart(seed: int) -> Iterator[None]:
    """The libraries draw from the global generators of torch and NumPy, which are given back untouched.

    What they call that will go away is none of the user's business.
    """
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


ATTACKS = (
    RedTeamAttack(
        name="art-pgd",
        run=partial(_run, _art),
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="PGD of the Adversarial Robustness Toolbox on what answers through the exact purifier; the test is "
        "not attacked",
        source="Nicolae et al. 2018, arXiv 1807.01069",
        needs="library",
        weight=3.0,
    ),
    RedTeamAttack(
        name="secml-pgd",
        run=partial(_run, _secml),
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="PGD of SecML-Torch on what answers through the exact purifier; the test is not attacked",
        source="Madry et al. 2018, arXiv 1706.06083",
        needs="library",
        weight=3.0,
    ),
)

MODULES = {"art-pgd": "art", "secml-pgd": "secmlt"}
"""What each of them imports; the libraries are optional."""
