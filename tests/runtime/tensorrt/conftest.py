from pathlib import Path

import pytest

from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.tensorrt.plan import PlannedEngine, plan_engines


@pytest.fixture(scope="session", params=["version-4", "version-4-abstaining"])
def file(golden: Path, request: pytest.FixtureRequest) -> ModelFile:
    """A file in which all images are purified, and one in which suspicious ones are."""
    return open_model_file(golden / f"{request.param}.onnx")


@pytest.fixture(scope="session")
def planned(file: ModelFile) -> tuple[PlannedEngine, ...]:
    return plan_engines(file)
