from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("version", [1])
def test_every_released_format_is_still_read_and_gives_the_same_verdicts(version: int) -> None:
    classifier = DefendedClassifier.load(GOLDEN / f"version-{version}.onnx", device="cpu")
    with np.load(GOLDEN / f"version-{version}.npz") as expected:
        verdicts = classifier(expected["images"])
        for name in ("label", "adversarial", "members_used", "votes", "log_likelihood_ratio"):
            assert np.array_equal(getattr(verdicts, name), expected[name]), name
        assert np.abs(verdicts.purified - expected["purified"]).max() <= 1e-5
