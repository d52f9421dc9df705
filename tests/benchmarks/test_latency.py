import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.slow
def test_growth_is_measured_in_all_directions_and_written(
    golden: Path, random_images: np.ndarray, tmp_path: Path
) -> None:
    from latency import main

    np.save(tmp_path / "images.npy", random_images)
    out, plot = tmp_path / "latency.json", tmp_path / "growth.png"
    model = shutil.copy(golden / "version-4.onnx", tmp_path / "model.onnx")
    sizes = ["--batches", "32,64", "--members", "2,5", "--sides", "8,12", "--soak", "4", "--rounds", "1"]
    where = ["--data", str(tmp_path / "images.npy"), "--json", str(out), "--plot", str(plot)]
    result = CliRunner().invoke(main, [str(model), *sizes, *where])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    growth = found["growth"]
    assert {name: of["sizes"] for name, of in growth.items()} == {
        "batch": [32, 64],
        "members not asked": [2, 5],
        "members asked": [2, 5],
        "pixels": [64, 144],
    }
    for of in growth.values():
        assert set(of["milliseconds"]) == {"bare classifier", "whole", "staged"}
        ratios = np.array(of["milliseconds"]["staged"]) / of["milliseconds"]["bare classifier"]
        np.testing.assert_allclose(of["times_bare"]["staged"], ratios, rtol=1e-3)
    assert all(one["identical"] and one["threads_identical"] for one in found["steady"].values())
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_images_ask_everybody_or_the_opening_alone(random_images: np.ndarray) -> None:
    from latency_files import OPENING, built

    for asks_all, asked in ((False, OPENING), (True, 6)):
        variants = built((1, 8, 8), 6, asks_all=asks_all).variants(random_images[:4])
        assert variants["staged"][0]().members_used.tolist() == [asked] * 4
        used = variants["whole"][0]()[6]
        assert used.tolist() == [asked] * 4


@pytest.mark.parametrize("sizes", ["", "0,4", "x"])
def test_a_list_that_is_none_of_sizes_is_refused(sizes: str, golden: Path) -> None:
    from latency import main

    result = CliRunner().invoke(main, [str(golden / "version-4.onnx"), "--batches", sizes])
    assert result.exit_code == 1
    assert "is no list of sizes, such as 4,8,16" in result.output
