"""`harden --max-cost`: a key of the decision, of a packaged recipe and of one's own data alike."""

from pathlib import Path

import pytest
from tests.export.commands.test_resize_option import own, photos  # noqa: F401  photos is a fixture

from s2ap_defend.commands.main import run
from s2ap_export.commands.own_recipe import tables_of


def test_the_most_that_an_image_may_cost_is_a_key_of_the_decision(photos: Path) -> None:  # noqa: F811
    assert tables_of("digits", own("--max-cost", "3"), ())["decision"]["max_cost"] == 3.0
    named = tables_of(None, own("--data", str(photos), "--image-size", "16", "--max-cost", "2.5"), ())
    assert named["decision"]["max_cost"] == 2.5
    assert "max_cost" not in tables_of("digits", own(), ())["decision"]


@pytest.mark.parametrize("given", ["1", "nothing"])
def test_a_file_cannot_cost_as_little_as_the_classifier_alone(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["harden", "digits", "-o", "m.onnx", "--max-cost", given]) == 2
    assert "--max-cost" in capsys.readouterr().err
