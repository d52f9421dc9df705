"""Model files that come with the package answer by their names."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.errors import ModelFileError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.shipped import SHIPPED, shipped_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_means_the_shipped_file(name: str) -> None:
    path = shipped_file(Path(name))
    assert path.is_absolute()
    assert path.name == SHIPPED[name]
    classifier = DefendedClassifier.load(name)
    assert classifier.path == path
    verdicts = classifier(np.zeros((1, *classifier.input_shape), np.float32))
    assert 0 <= verdicts.label[0] < len(classifier.classes)


@pytest.mark.parametrize("name", SHIPPED)
def test_commands_take_the_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    channels, height, width = open_model_file(Path(name)).manifest.input.shape
    Image.new("L" if channels == 1 else "RGB", (width, height)).save("black.png")
    assert run(["classify", name, "black.png"]) == 0
    assert "black.png" in capsys.readouterr().out
    assert run(["verify", name]) == 0


def test_a_file_of_that_name_comes_first() -> None:
    Path("fashion").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="fashion is truncated or no ONNX model"):
        open_model_file(Path("fashion"))
    with pytest.raises(ModelFileError, match="fashions does not exist"):
        open_model_file(Path("fashions"))


def test_the_folder_holds_what_is_listed_and_is_small() -> None:
    files = list((ROOT / "models").glob("*.onnx"))
    assert {file.name for file in files} == set(SHIPPED.values())
    assert sum(file.stat().st_size for file in files) < 12e6
    listed = (ROOT / "models/README.md").read_text()
    assert set(re.findall(r"\w[\w-]*\.onnx", listed)) >= set(SHIPPED.values())
