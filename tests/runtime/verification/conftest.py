from pathlib import Path

import pytest

from s2ap_defend.model_file import open_model_file
from s2ap_defend.verification.golden import write_with_golden


@pytest.fixture(scope="session")
def answered(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file with golden inputs, answered on this machine."""
    file, path = open_model_file(tiny_model_path), tmp_path_factory.mktemp("answered") / "model.onnx"
    write_with_golden(file.proto, file.manifest, path)
    return path
