"""The defended classifier that applications embed, also as a scikit-learn classifier."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from s2ap_defend.engines import Device
from s2ap_defend.errors import EngineError, InputError
from s2ap_defend.executors import Executor, ExecutorName
from s2ap_defend.executors.start import start_executor
from s2ap_defend.images import check_images
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32, Float64, Int64, Verdicts

_BATCH = 256  # images that `predict` and its like run at once


class DefendedClassifier:
    """A model file that purifies, detects and corrects.

        classifier = DefendedClassifier.load("model.onnx")
        verdicts = classifier(images)       # float32 [N, C, H, W] in [0, 1]
        verdicts.label, verdicts.adversarial

    It may be called from several threads. It also is a scikit-learn classifier that is fitted already: `predict`,
    `predict_proba`, `score` and `classes_` take images of any number, 256 at a time.

    Args:
        path: Where the model file was read.
        manifest: Its manifest.
        executor: What runs it.
        threads: CPU threads that were asked for; None: none were.
    """

    def __init__(self, path: Path, manifest: Manifest, executor: Executor, threads: int | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.executor = executor
        self.threads = threads

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        executor: ExecutorName | None = None,
        cache: bool = False,
        engines: Path | None = None,
        constant_time: bool = False,
    ) -> "DefendedClassifier":
        """Open, verify and start a defended model file.

        Args:
            path: The file; weights in external data lie next to it.
            device: 'auto', 'cpu', 'cuda' or 'tensorrt'.
            threads: CPU threads: inside one operator of the whole file, or stages and parts of a batch at a time; None:
                as many as this process has cores, inside an operator within OMP_NUM_THREADS.
            executor: 'whole', 'staged' or 'at_once', of the same verdicts; None: the faster one (docs/embedding.md).
            cache: Whether the staged executor keeps the graphs of its stages, as optimised for this machine, in the
                folder NAME.stages next to the model, and starts from them the next time. A folder that cannot be
                written is no error.
            engines: Folder of TensorRT's engines; None: NAME.tensorrt next to the model. What is missing is built.
            constant_time: Whether every stage is asked about every image, so that the time of a call does not tell how
                many members it needed; by the staged executor, unless 'at_once' is named. Verdicts are the same.

        Raises:
            ModelFileError: If the file is missing, broken, changed, undefended or of another version.
            EngineError: If the device cannot be used, there is no such executor, or `threads` is no number from 1.
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise EngineError(f"threads is {threads!r}, expected a number from 1, or None for one a core")
        model = open_model_file(Path(path))
        started = start_executor(
            model,
            executor,
            device=device,
            threads=threads,
            cache=cache,
            engines=engines,
            constant_time=constant_time,
        )
        return cls(model.path, model.manifest, started, threads)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.manifest.input.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.manifest.classes

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the model."""
        return self.executor.provider

    def validate(self, images: object) -> Float32:
        """Return `images` contiguous if the model takes them: float32 [N, C, H, W] in [0, 1], N > 0.

        Raises:
            InputError: With the first thing that is wrong.
        """
        return check_images(images, self.input_shape)

    def __call__(self, images: Float32) -> Verdicts:
        """Purify, detect and correct.

        Args:
            images: float32 [N, C, H, W] in [0, 1].

        Raises:
            InputError: If the images do not fit the model.
            EngineError: If the engine fails.
        """
        return self.executor.run(self.validate(images))

    @property
    def classes_(self) -> Int64:
        """The labels that `predict` gives: 0 to K - 1; their names are `classes`."""
        return np.arange(len(self.classes), dtype=np.int64)

    def fit(self, images: object, labels: object = None) -> "DefendedClassifier":  # noqa: ARG002
        """Nothing is fitted: a file is trained by `s2ap-defend harden`; scikit-learn's pipelines ask for this."""
        return self

    def predict(self, images: Float32) -> Int64:
        """Final label of each image [N].

        Flagged images get the label that the file gives them, and so do images to which it gives no answer: whoever
        may have to do with attacks calls the classifier itself and looks at `adversarial` and `abstained`.

        Raises:
            InputError: If the images do not fit the model.
            EngineError: If the engine fails.
        """
        return np.concatenate([one.label for one in self._verdicts(images)])

    def predict_proba(self, images: Float32) -> Float64:
        """Shares of whoever gave each label [N, K]; rows sum to 1, and the largest is that of `predict`.

        No calibrated probabilities. A file tells the classifier's probabilities and the jury's votes, so this is: where
        the jury's vote is the label, each class's share of the votes; where the classifier's answer is, its softmax;
        where they are mixed, softmax and votes in the weights of the mix. The mix itself is taken of the jurors'
        probabilities, which the file does not tell; where another class would lead than the label, the two change
        places.

        Raises:
            InputError: If the images do not fit the model.
            EngineError: If the engine fails.
        """
        return np.concatenate([self._shares(one) for one in self._verdicts(images)])

    def score(self, images: Float32, labels: ArrayLike) -> float:
        """Share of images that are answered, and rightly, flagged or not; images without an answer are wrong.

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            labels: Their labels [N], integers.

        Raises:
            InputError: If the images do not fit the model, or there is not one label of a class for each.
            EngineError: If the engine fails.
        """
        wanted = np.asarray(labels)
        if wanted.shape != (len(images),) or wanted.dtype.kind not in "iu":
            raise InputError(
                f"the labels are {wanted.dtype} of shape {list(wanted.shape)}, expected one integer for each of "
                f"{len(images)} images; `classes` has the names by label"
            )
        if wanted.min() < 0 or wanted.max() >= len(self.classes):
            raise InputError(
                f"the labels lie in {wanted.min()} to {wanted.max()}, this file has classes 0 to "
                f"{len(self.classes) - 1}; give labels in the order of `classes`"
            )
        given = self._verdicts(images)
        answered = np.concatenate([~one.abstained for one in given])
        return float((answered & (np.concatenate([one.label for one in given]) == wanted)).mean())

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - a class of scikit-learn, which alone asks
        tags = sys.modules["sklearn.utils"]
        return tags.Tags(
            estimator_type="classifier",
            target_tags=tags.TargetTags(required=True),
            classifier_tags=tags.ClassifierTags(),
            input_tags=tags.InputTags(two_d_array=False),
        )

    def _verdicts(self, images: Float32) -> list[Verdicts]:
        checked = self.validate(images)
        return [self(checked[start : start + _BATCH]) for start in range(0, len(checked), _BATCH)]

    def _shares(self, verdicts: Verdicts) -> Float64:
        decision, test = self.manifest.decision, self.manifest.test
        answered = verdicts.probabilities.astype(np.float64)
        total = verdicts.votes.sum(axis=1, keepdims=True)
        votes = np.where(total > 0, verdicts.votes / np.where(total > 0, total, 1.0), answered)
        jury = {"robust": 1.0, "mixed": decision.jury_share, "accurate": 0.0}[decision.answer]
        voted = verdicts.adversarial & (test.correction == "correct")
        share = np.where(voted, 1.0, jury)[:, None]
        return _led_by(verdicts.label, (1.0 - share) * answered + share * votes)


def _led_by(labels: Int64, shares: Float64) -> Float64:
    """The shares [N, K], of sum 1, with the largest at each label: it changes places with one that is as large."""
    rows, first = np.arange(len(labels)), shares.argmax(axis=1)
    led = shares / shares.sum(axis=1, keepdims=True)
    led[rows, first], led[rows, labels] = led[rows, labels], led[rows, first]
    tied = labels != led.argmax(axis=1)
    led[rows[tied], labels[tied]] = np.nextafter(led[rows[tied], labels[tied]], 2.0)
    return np.asarray(led)
