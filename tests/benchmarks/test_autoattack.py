"""AutoAttack on what answers in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from tests.benchmarks.test_caught import smooth_images
from tests.train.made_evaluation import made_evaluation

from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.shipped import shipped_file
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.redteam.report.console import to_json

pytestmark = pytest.mark.usefixtures("benchmarks")
FASHION = shipped_file(Path("fashion"))


def test_what_is_attacked_is_what_the_stages_of_the_file_say() -> None:
    from autoattack import Answering

    images = smooth_images(5)
    said = StageEngines.from_file(open_model_file(FASHION)).ask(images)
    with torch.no_grad():
        first, jury = (Answering(FASHION, which)(torch.from_numpy(images)).numpy() for which in ("first-juror", "jury"))
    np.testing.assert_allclose(first, said.members[0], atol=1e-4)
    mean = np.log(np.exp(said.members).mean(0))
    np.testing.assert_allclose(jury - jury.max(1, keepdims=True), 3 * (mean - mean.max(1, keepdims=True)), atol=1e-3)


@pytest.mark.parametrize("network", ["first-juror", "jury"])
def test_images_stay_in_the_ball_and_only_those_that_were_right_stay_right(network: Any) -> None:
    from autoattack import Answering, attacked

    images = smooth_images(8)
    with torch.no_grad():
        labels = Answering(FASHION, network)(torch.from_numpy(images)).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 10
    found = attacked(FASHION, network, ImageSet(images, labels), {"eps": 0.1, "iterations": 3, "queries": 5})
    assert found.arrays["clean"].tolist() == [False] + 7 * [True]
    assert not found.arrays["right"][0]
    assert found.arrays["right"].sum() < 7  # images without a garment on them are near a boundary
    assert np.abs(found.images - images).max() <= 0.1 + 1e-6
    assert found.notes["attacks"] == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_an_evaluation_counts_only_of_the_same_file_and_images(tmp_path: Path) -> None:
    from autoattack import _ours

    path = tmp_path / "evaluation.json"
    path.write_bytes(orjson.dumps(to_json(made_evaluation())))
    assert _ours(path, "ab" * 32, 0, 120, "first-juror") == 98 / 120
    with pytest.raises(RecipeError, match="of another model or other images"):
        _ours(path, "ab" * 32, 120, 120, "first-juror")
    path.write_text("{}")
    with pytest.raises(RecipeError, match="is no JSON of `evaluate` with its ablation"):
        _ours(path, "ab" * 32, 0, 120, "first-juror")
