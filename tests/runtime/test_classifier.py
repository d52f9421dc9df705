import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from s2ap_defend import DefendedClassifier, EngineError, InputError, Verdicts
from s2ap_defend.engines import Device


@pytest.fixture(scope="module")
def classifier(tiny_model_path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(tiny_model_path, device="cpu")


def same(left: Verdicts, right: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


def test_the_tiny_file_decides_images_after_different_numbers_of_members(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    verdicts = classifier(random_images)
    assert 0 < verdicts.adversarial.mean() < 1
    assert len(np.unique(verdicts.members_used)) >= 3


def test_verdicts_have_the_documented_shapes_and_types(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    verdicts = classifier(random_images[:5])
    expected = {
        "label": (np.int64, (5,)),
        "adversarial": (np.bool_, (5,)),
        "base_label": (np.int64, (5,)),
        "probabilities": (np.float32, (5, 10)),
        "label_change_rate": (np.float32, (5,)),
        "log_likelihood_ratio": (np.float64, (5,)),
        "members_used": (np.int64, (5,)),
        "votes": (np.float64, (5, 10)),
        "purified": (np.float32, (5, 1, 8, 8)),
        "reconstruction_error": (np.float32, (5,)),
        "abstained": (np.bool_, (5,)),
    }
    assert set(expected) == set(Verdicts.FIELDS)
    for name, (kind, shape) in expected.items():
        assert getattr(verdicts, name).dtype == kind, name
        assert getattr(verdicts, name).shape == shape, name
    assert verdicts.probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    weights = np.cumsum([member.vote_weight for member in classifier.manifest.members])
    assert (verdicts.votes.sum(axis=1) == weights[verdicts.members_used - 1]).all()
    assert np.abs(verdicts.purified - random_images[:5]).max() <= 0.1 + 1e-6


def test_a_file_that_rejects_answers_neither_what_it_flags_nor_what_it_cannot_decide(
    abstaining_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    abstaining = DefendedClassifier.load(abstaining_model_path, device="cpu")
    verdicts, corrected = abstaining(random_images), classifier(random_images)
    assert 0 < verdicts.adversarial.mean() < verdicts.abstained.mean() < 1
    assert verdicts.abstained[verdicts.adversarial].all()
    assert not verdicts.corrected.any()
    assert 0 < corrected.corrected.sum() < (corrected.label != corrected.base_label).sum()  # the mix answers the rest
    assert not corrected.abstained.any()


def test_outputs_are_bit_identical_over_runs_batch_sizes_and_order(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    whole = classifier(random_images)
    for _ in range(2):
        same(classifier(random_images), whole)
    for size in (1, 7, 64):
        parts = [classifier(random_images[i : i + size]) for i in range(0, len(random_images), size)]
        same(Verdicts.concatenate(parts), whole)
    order = np.random.default_rng(1).permutation(len(random_images))
    same(classifier(random_images[order]), whole.rows(order))


def test_two_threads_give_the_bits_of_one(tiny_model_path: Path, random_images: np.ndarray) -> None:
    one = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images)
    same(DefendedClassifier.load(tiny_model_path, device="cpu", threads=2)(random_images), one)


def test_the_file_alone_in_plain_onnxruntime_gives_the_same_verdicts(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    session = onnxruntime.InferenceSession(str(tiny_model_path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(Verdicts.FIELDS)
    same(Verdicts(*session.run(None, {"image": random_images})), classifier(random_images))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_threads_that_are_no_number_are_refused(tiny_model_path: Path, threads: object) -> None:
    with pytest.raises(EngineError, match=rf"threads is {re.escape(repr(threads))}, expected a number from 1"):
        DefendedClassifier.load(tiny_model_path, threads=threads)  # type: ignore[arg-type]


def test_input_that_does_not_fit_is_refused_before_it_runs(classifier: DefendedClassifier) -> None:
    with pytest.raises(InputError, match=r"shape \[2, 1, 9, 8\], expected float32 \[N, 1, 8, 8\] in \[0, 1\]"):
        classifier(np.zeros((2, 1, 9, 8), dtype=np.float32))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a CUDA device")
@pytest.mark.parametrize(("device", "more"), [("cuda", ""), ("tensorrt", ", TensorRT's are installed separately")])
def test_a_device_that_is_not_there_is_refused_with_what_to_install(
    tiny_model_path: Path, device: Device, more: str
) -> None:
    install = f"pip install '.[gpu]' in a checkout (Linux, x86-64) brings the CUDA libraries{more}; or use --device cpu"
    with pytest.raises(EngineError, match=re.escape(install)):
        DefendedClassifier.load(tiny_model_path, device=device)


@pytest.mark.gpu
@pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists(), reason="needs a CUDA device and onnxruntime-gpu's CUDA libraries"
)
def test_cuda_gives_the_labels_and_flags_of_the_cpu(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    cuda = DefendedClassifier.load(tiny_model_path, device="cuda")(random_images)
    cpu = classifier(random_images)
    assert (cuda.label == cpu.label).mean() > 0.99
    assert (cuda.adversarial == cpu.adversarial).mean() > 0.99
