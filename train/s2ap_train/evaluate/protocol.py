"""The evaluation that counts: every attack against the served file, the bare classifier in the same table."""

import difflib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images import check_images
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32
from s2ap_train.data import ImageSet
from s2ap_train.evaluate import oblivious
from s2ap_train.evaluate.adaptive import (
    AdaptiveBudget,
    Descent,
    View,
    adaptive_attack,
    bare_plan,
    bare_view,
    defended_plan,
    twin_view,
)
from s2ap_train.evaluate.figures import SystemFigures, attack_figures, clean_figures, worst_case
from s2ap_train.evaluate.systems import BareSystem, DefendedSystem, Outcome, System
from s2ap_train.threads import one_thread
from s2ap_train.twin import Twin

ATTACKS = ("clean", "fgsm", "pgd", "unrolled-pgd", "square")
"""Names of all attacks, in the order in which they run."""

OBLIVIOUS = {"fgsm": oblivious.fgsm, "pgd": oblivious.pgd}

OnProgress = Callable[[str, int, int], None]
"""(attack, steps done, steps in total)."""

_LIBRARIES = ("s2ap-defend", "torch", "onnxruntime-gpu", "onnxruntime", "foolbox", "pyautoattack", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """Figures of a defended file and of the bare classifier inside it, on the same images under the same attacks.

    Attributes:
        defended: The file as it is served.
        bare: Its classifier stage alone, attacked directly.
        samples: Number of images.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of all attacks.
        seconds: Time of the whole evaluation.
        weights_sha256: Which file it was.
        versions: Of the libraries that took part.
    """

    defended: SystemFigures
    bare: SystemFigures
    samples: int
    eps: float
    seed: int
    seconds: float
    weights_sha256: str
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: the defended file's figures at the top, the bare classifier's under `bare`."""
        return asdict(self.defended) | {
            "bare": asdict(self.bare),
            "samples": self.samples,
            "norm": "linf",
            "eps": self.eps,
            "seed": self.seed,
            "seconds": self.seconds,
            "weights_sha256": self.weights_sha256,
            "versions": self.versions,
        }


def evaluate_file(
    path: Path,
    data: ImageSet,
    *,
    attacks: Sequence[str] = ATTACKS,
    eps: float,
    seed: int = 0,
    budget: AdaptiveBudget | None = None,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Attack a defended file, and the bare classifier inside it, with images in [0, 1] and in the l_inf ball.

    'fgsm' and 'pgd' are made on the bare classifier and replayed on the file; 'unrolled-pgd' knows everything and
    starts from them; 'square' asks the file only. The clean images are always measured and count in the worst case.

    Args:
        path: The defended model file.
        data: Test images and labels; images that are misclassified anyway stay in.
        attacks: Names out of ATTACKS.
        eps: l_inf budget, pixels in [0, 1].
        seed: Of all attacks.
        budget: Work of the adaptive attacks; None is AdaptiveBudget.standard().
        threads: Threads that share the images; None takes as many as torch would.
        on_progress: Called as attacks go on.

    Raises:
        RecipeError: If an attack is not known or eps is not in [0, 1].
        InputError: If the images do not fit the model.
        ModelFileError: If the file cannot be used.
    """
    names = _known(attacks)
    if not 0.0 <= eps <= 1.0:
        raise RecipeError(f"eps is {eps}; it is an l_inf budget in [0, 1] pixels, 8/255 is {8 / 255:.4f}")
    began = time.perf_counter()
    file = open_model_file(path)
    images = check_images(data.images, file.manifest.input.shape)
    _check_labels(data, len(file.manifest.classes))
    workers = threads or torch.get_num_threads()
    with one_thread():
        session = _Session(
            ImageSet(images, data.labels),
            eps,
            seed,
            budget or AdaptiveBudget.standard(),
            Twin.from_file(file),
            workers,
            on_progress,
        )
        needed = [name for name in OBLIVIOUS if name in names or "unrolled-pgd" in names]
        made = {name: session.oblivious(name) for name in needed}
        served = DefendedSystem(DefendedClassifier.load(path, device="cpu", threads=1), workers=workers)
        bare = session.figures("bare", BareSystem(file, threads=1), bare_view(session.twin), names, made)
        defended = session.figures("defended", served, twin_view(session.twin), names, made)
    return Evaluation(
        defended=defended,
        bare=bare,
        samples=len(images),
        eps=eps,
        seed=seed,
        seconds=time.perf_counter() - began,
        weights_sha256=file.manifest.weights_sha256,
        versions=_versions(),
    )


@dataclass(frozen=True)
class _Made:
    """Images of an attack with what it took to make them."""

    images: Float32
    seconds: float
    configuration: dict[str, Any]


@dataclass(frozen=True)
class _Session:
    data: ImageSet
    eps: float
    seed: int
    budget: AdaptiveBudget
    twin: Twin
    workers: int
    on_progress: OnProgress | None
    transfer: list[Float32] = field(default_factory=list)  # what the bare classifier fell for

    def oblivious(self, name: str) -> _Made:
        began = time.perf_counter()
        self._tell(name, 0, 1)
        images = OBLIVIOUS[name](self.twin.classify, self.data, eps=self.eps, seed=self.seed)
        self._tell(name, 1, 1)
        steps = (
            {"steps": 1}
            if name == "fgsm"
            else {
                "steps": oblivious.PGD_STEPS,
                "relative_step_size": oblivious.PGD_RELATIVE_STEP,
            }
        )
        return _Made(images, time.perf_counter() - began, {"made_on": "bare classifier"} | steps)

    def figures(
        self, title: str, system: System, view: View, names: Sequence[str], made: dict[str, _Made]
    ) -> SystemFigures:
        """All attacks on one system."""
        attacked: dict[str, _Made] = {name: made[name] for name in OBLIVIOUS if name in names}
        if "unrolled-pgd" in names:
            plan = bare_plan(self.budget) if title == "bare" else defended_plan(self.twin.test, self.budget)
            attacked["unrolled-pgd"] = self._adaptive(title, system, view, plan, [m.images for m in made.values()])
        if "square" in names:
            attacked["square"] = self._square(title, system)
        outcomes: dict[str, Outcome] = {"clean": system(self.data.images, self.data.labels)}
        figures = {}
        for name, attack in attacked.items():
            outcomes[name] = system(attack.images, self.data.labels)
            figures[name] = attack_figures(
                outcomes[name], self.data.labels, seconds=attack.seconds, configuration=attack.configuration
            )
        clean = clean_figures(outcomes["clean"], self.data.labels)
        return SystemFigures(clean, figures, worst_case(outcomes, self.data.labels))

    def _adaptive(
        self, title: str, system: System, view: View, plan: list[Descent], candidates: list[Float32]
    ) -> _Made:
        began = time.perf_counter()
        name = f"unrolled-pgd, {title}"
        self._tell(name, 0, 1)
        result = adaptive_attack(
            system,
            view,
            plan,
            self.data,
            eps=self.eps,
            budget=self.budget,
            seed=self.seed,
            candidates=[*candidates, *self.transfer],
            workers=self.workers,
            on_progress=lambda done, total: self._tell(name, done, total),
        )
        self.transfer.append(result.images)
        configuration = asdict(self.budget) | {"broken_by": result.broken_by}
        return _Made(result.images, time.perf_counter() - began, configuration)

    def _square(self, title: str, system: System) -> _Made:
        from s2ap_train.evaluate.square import square

        began = time.perf_counter()
        name = f"square, {title}"
        self._tell(name, 0, 1)
        images = square(system, self.data, eps=self.eps, queries=self.budget.square_queries, seed=self.seed)
        self._tell(name, 1, 1)
        images = oblivious.project(images, self.data.images, self.eps)
        return _Made(images, time.perf_counter() - began, {"queries": self.budget.square_queries})

    def _tell(self, attack: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(attack, done, total)


def _known(attacks: Sequence[str]) -> list[str]:
    for name in attacks:
        if name not in ATTACKS:
            nearest = difflib.get_close_matches(name, ATTACKS, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else "choose from them"
            raise RecipeError(f"attack {name!r} is not known, there are {', '.join(ATTACKS)}; {hint}")
    return [name for name in ATTACKS if name in attacks]


def _check_labels(data: ImageSet, classes: int) -> None:
    labels = data.labels
    if labels.shape != (len(data.images),) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels have shape {list(labels.shape)}, expected one of 0..{classes - 1} for each of {len(data.images)} "
            "images"
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
