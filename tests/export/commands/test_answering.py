import json

import pytest
from tests.runtime.manifest_data import decision_data, manifest_data

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_export.commands.calibrate.answering import answered_by


def manifest(**changes: object) -> Manifest:
    return Manifest.model_validate_json(json.dumps(manifest_data() | changes))


def test_a_file_keeps_its_answer_where_no_other_is_asked_for() -> None:
    made = manifest()
    for answer in (None, "mixed"):
        assert answered_by(made, answer).decision == made.decision  # type: ignore[arg-type]


def test_another_answer_takes_the_row_of_the_frontier_that_has_it() -> None:
    found = answered_by(manifest(), "robust")
    assert (found.decision.answer, found.test.answer, found.test.await_vote) == ("robust", "robust", True)
    assert found.decision.frontier is not None
    assert found.decision.frontier.chosen == 1
    assert found.decision.frontier.reason.startswith("Asked for with calibrate --answer robust; it was: ")


def test_an_answer_that_was_not_compared_leaves_no_frontier() -> None:
    found = answered_by(manifest(), "accurate")
    assert (found.decision.answer, found.decision.frontier, found.test.await_vote) == ("accurate", None, False)


@pytest.mark.parametrize(
    ("before", "answer", "after"),
    [
        ("keep", "accurate", "correct"),
        ("keep", "robust", "correct"),
        ("correct", "accurate", "correct"),
        ("reject", "robust", "reject"),
    ],
)
def test_only_a_mix_keeps_its_answer_where_it_is_flagged(before: str, answer: str, after: str) -> None:
    data = manifest_data()
    data["test"]["correction"] = before
    made = Manifest.model_validate_json(json.dumps(data))
    assert answered_by(made, answer).test.correction == after  # type: ignore[arg-type]


def test_a_mix_that_is_asked_for_keeps_its_answer_unless_its_row_says_otherwise() -> None:
    data = manifest_data()
    data["decision"] = decision_data(answer="robust", frontier=None)
    made = Manifest.model_validate_json(json.dumps(data))
    assert answered_by(made, "mixed").test.correction == "keep"


def test_a_file_without_jurors_cannot_be_answered_by_a_jury() -> None:
    data = manifest_data()
    data["members"][0] |= {"role": "sensor", "vote_weight": 0.0}
    data["decision"] = decision_data(answer="accurate", frontier=None)
    data["test"]["correction"] = "reject"
    made = Manifest.model_validate_json(json.dumps(data))
    with pytest.raises(RecipeError, match="--answer robust needs a juror among the 1 members of the opening"):
        answered_by(made, "robust")
