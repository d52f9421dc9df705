import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from tests.train.made_evaluation import against, made_evaluation

from s2ap_train.redteam.ablation.names import CONFIDENCE, PRUNED
from s2ap_train.redteam.report.console import to_json

pytestmark = pytest.mark.usefixtures("benchmarks")


def written(path: Path, **configuration: Any) -> Path:
    """An evaluation of 120 images whose label is right on 106, and on 98 for r."""
    made = made_evaluation()
    compared = (
        against(PRUNED, "clean accuracy", 116, 118),
        against(PRUNED, "label right", 98, 106),
        against(CONFIDENCE, "right or flagged", 101, 110),
    )
    made = replace(made, configuration=replace(made.configuration, **configuration), comparisons=compared)
    path.write_bytes(orjson.dumps(to_json(made)))
    return path


def run(*arguments: Path | str) -> Result:
    from evaluations import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_images_of_all_seeds_count_once_and_rows_are_means_with_their_range(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.json", seed=i, first=120 * i, weights_sha256=f"{i}") for i in range(3)]
    second = json.loads(files[1].read_bytes())
    for row in second["ablation"]:
        row["clean_accuracy"] = 0.953
    files[1].write_text(json.dumps(second))
    result = run(*files, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out.json").read_text())
    (label,) = [one["effect"] for one in document["comparisons"] if one["measure"] == "label right"]
    assert (label["samples"], label["gained"], label["lost"]) == (360, 24, 0)
    assert document["rows"][0]["clean_accuracy"] == {"mean": 0.973, "smallest": 0.953, "largest": 0.983}
    assert [one["first"] for one in document["files"].values()] == [0, 120, 240]
    assert "97.3 (95.3 to 98.3)" in result.output
    assert "holds: label right: not below 'robust classifier alone': 81.7 and 88.3 %" in result.output
    assert "holds: right or flagged: above 'least confident flagged': 84.2 and 91.7 %, +7.5 points" in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights_sha256": "0"}, "of the same model file"),
        ({"first": 119}, "share test images; evaluate one of them with another --first"),
        ({"preset": "standard"}, "not measured alike: preset is 'quick' and 'standard'"),
    ],
)
def test_evaluations_that_cannot_be_pooled_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    one = written(tmp_path / "0.json", weights_sha256="0")
    other = written(tmp_path / "1.json", **{"weights_sha256": "1", "first": 120} | changes)
    result = run(one, other, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "out.json").exists()


def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"configuration": {}, "runs": []}')
    assert "other.json lacks ablation, comparisons" in run(tmp_path / "other.json").output
    (tmp_path / "other.json").write_text("[1]")
    assert "cannot be read" in run(tmp_path / "other.json").output
