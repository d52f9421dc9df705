"""`harden --max-cost`: a key of the decision, of a packaged recipe and of one's own data alike."""

from pathlib import Path

import pytest
from tests.export.commands.test_resize_option import own, photos  # noqa: F401  photos is a fixture

from s2ap_defend.commands.main import run
from s2ap_export.commands.own_recipe import tables_of


def test_the_most_that_an_image_may_cost_is_a_key_of_the_decision(photos: Path) -> None:  # noqa: F811
    for given, expected in (("3", (3.0, "time")), ("2.5flops", (2.5, "operations"))):
        packaged = tables_of("digits", own("--max-cost", given), ())["decision"]
        named = tables_of(None, own("--data", str(photos), "--image-size", "16", "--max-cost", given), ())["decision"]
        assert (packaged["max_cost"], packaged["cost_in"]) == (named["max_cost"], named["cost_in"]) == expected
    assert "max_cost" not in tables_of("digits", own(), ())["decision"]


@pytest.mark.parametrize("given", ["1", "nothing", "inf", "nan", "flops"])
def test_a_file_cannot_cost_as_little_as_the_classifier_alone(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["harden", "digits", "-o", "m.onnx", "--max-cost", given]) == 2
    assert f"'--max-cost': '{given}' is not a number above 1, such as 3" in capsys.readouterr().err
