from pathlib import Path

import numpy as np
import pytest

from s2ap_defend.model_file import ModelFile, open_model_file


@pytest.fixture(scope="session", params=["version-4", "version-4-keeping", "version-4-abstaining"])
def file(golden: Path, request: pytest.FixtureRequest) -> ModelFile:
    """Two files in which all images are purified, and one in which suspicious ones are and the rest may abstain."""
    return open_model_file(golden / f"{request.param}.onnx")


@pytest.fixture(scope="session")
def unsure_images() -> np.ndarray:
    """120 images [120, 1, 8, 8], some dark, and some with pixels that are no pixels."""
    rng = np.random.default_rng(3)
    images = rng.random((120, 1, 8, 8), dtype=np.float32) * rng.choice([0.3, 1.0], (120, 1, 1, 1)).astype(np.float32)
    images[7, 0, 0, 0], images[11, 0, 3, 3], images[12], images[40, 0, 7, 7] = np.nan, 1.5, np.inf, -0.25
    return images
