"""What `--strict` refuses."""

from pathlib import Path

import pytest
from tests.train.made_evaluation import MASKED, PASSED, against, made_evaluation

from s2ap_defend.errors import RecipeError
from s2ap_export.hardening.announcement import check_worth
from s2ap_train.redteam.ablation.names import PRUNED

BELOW = against(PRUNED, "label right", 110, 90)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"comparisons": (BELOW,)}, "Below its own robust classifier alone"), ({"checks": (PASSED, MASKED)}, "Masked")],
)
def test_a_file_below_its_baselines_or_without_a_measure_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=rf"--strict: {said}.*it lies in work/model.onnx"):
        check_worth(made_evaluation(**changes), Path("work/model.onnx"))


def test_a_file_that_is_level_with_its_baselines_is_not() -> None:
    check_worth(made_evaluation(), Path("work/model.onnx"))
    check_worth(made_evaluation(comparisons=(against(PRUNED, "label right", 106, 106),)), Path("work/model.onnx"))
