"""The command `plan` through the real command line."""

import json
import re

import pytest

from s2ap_defend.commands.main import run
from s2ap_defend.sequential.design import Design, operating_characteristic

EXAMPLE = ("--q0", ".05", "--q1", ".6", "--alpha", ".05", "--beta", ".05", "--n-max", "24")


def plan(*arguments: str) -> int:
    return run(["plan", *arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert plan(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """(standard output, standard error) of a plan that must fail with exit code 2 and one line."""
    assert plan(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("Error: ")
    return captured.out, captured.err


def test_plan_prints_the_numbers_of_the_specification(capsys) -> None:
    found = as_json(capsys, *EXAMPLE)
    assert found["fpr"] == pytest.approx(0.0169, abs=5e-5)
    assert found["fnr"] == pytest.approx(1.0 - 0.9697, abs=5e-5)
    assert found["asn_clean"] == pytest.approx(4.82, abs=5e-3)
    assert found["asn_adversarial"] == pytest.approx(3.54, abs=5e-3)
    assert found["feasible"] is True
    assert (found["smallest_n_max"], found["agreeing_members"], found["disagreeing_members"]) == (4, 4, 2)
    assert (found["wald"]["fpr"], found["wald"]["fnr"]) == pytest.approx((0.05, 0.05))
    assert found["wald"]["fpr_bound"] == pytest.approx(0.05 / 0.95)
    assert found["wald"]["asn_clean"] < found["asn_clean"]
    assert [row["p"] for row in found["curve"]] == pytest.approx([0.05, 0.1875, 0.325, 0.4625, 0.6])
    exact = operating_characteristic(Design(0.05, 0.6), 0.325)
    assert found["curve"][2]["adversarial"] == pytest.approx(exact.adversarial)
    assert found["curve"][2]["asn"] == pytest.approx(exact.mean_members)


def test_the_table_shows_the_same_numbers_and_says_that_votes_are_correlated(capsys) -> None:
    assert plan(*EXAMPLE) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "clean inputs flagged 0.0169 0.05 0.0500 0.0526" in text
    assert "adversarial inputs not flagged 0.0303 0.05 0.0500 0.0526" in text
    assert "0.05 (clean) 0.0169 0.9831 0.0000 0.0000 4.82 3.80" in text
    assert "0.6 (adversarial) 0.9697 0.0303 0.0000 0.0000 3.54 2.31" in text
    assert "'clean' takes 4 agreeing members at least, 'adversarial' 2 disagreeing ones" in text
    assert "vote independently" in text
    assert "s2ap-defend calibrate" in text


def test_the_table_fits_eighty_columns(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert plan("--q0", "0.123456789", "--q1", "0.6123456789", "--n-max", "2000") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_every_option_reaches_the_design(capsys) -> None:
    options = ("--q0", ".1", "--q1", ".5", "--alpha", ".02", "--beta", ".1", "--n-max", "9", "--truncation", "abstain")
    found = as_json(capsys, *options, "--min-accept", "3", "--boundary", "ville")
    design = Design(0.1, 0.5, 0.02, 0.1, 9, "abstain", 3, "ville")
    clean, adversarial = (operating_characteristic(design, p) for p in (0.1, 0.5))
    assert found["fpr"] == clean.adversarial
    assert found["asn_clean"] == clean.mean_members
    assert found["undecided_adversarial"] == adversarial.undecided > 0.0
    assert found["fnr"] == adversarial.clean + adversarial.undecided  # 'not flagged' takes in those without a verdict
    assert found["fnr"] == pytest.approx(1.0 - adversarial.adversarial)
    assert found["wald"]["fpr_bound"] == pytest.approx(0.02)


def test_truncation_as_adversarial_counts_as_false_alarms(capsys) -> None:
    found = as_json(capsys, "--q0", ".3", "--q1", ".4", "--n-max", "20", "--truncation", "adversarial")
    assert found["fpr"] >= found["truncated_clean"] > 0.5


def test_a_design_that_can_never_decide_is_refused_with_the_smallest_that_can(capsys) -> None:
    out, error = refused(capsys, "--q0", ".045", "--q1", ".055", "--n-max", "100")
    assert out == ""
    assert "'clean' takes 280 agreeing members" in error
    assert "the smallest n_max that can is 280" in error
    out, error = refused(capsys, "--q0", ".045", "--q1", ".055", "--n-max", "100", "--json")
    found = json.loads(out)
    assert found["feasible"] is False
    assert found["smallest_n_max"] == 280
    assert found["asn_clean"] == pytest.approx(100.0, abs=1e-3)
    assert as_json(capsys, "--q0", ".045", "--q1", ".055", "--n-max", "280")["feasible"] is True


def test_a_minimum_before_clean_makes_a_design_infeasible_too(capsys) -> None:
    _, error = refused(capsys, *EXAMPLE, "--min-accept", "25")
    assert "'clean' takes 25 agreeing members" in error
    _, error = refused(capsys, "--q0", ".05", "--q1", ".06", "--alpha", ".01", "--n-max", "24")
    assert re.search(r"'clean' takes \d+ agreeing members at least and 'adversarial' takes \d+ disagreeing", error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--q0", ".6", "--q1", ".05"), "0 < q0 < q1 < 1"),
        (("--q0", "nan", "--q1", ".6"), "q0 is nan"),
        (("--q0", ".05", "--q1", "inf"), "q1 is inf"),
        (("--q0", ".05", "--q1", ".6", "--alpha", ".5", "--beta", ".5"), "sum to less than 1"),
        (("--q0", ".05", "--q1", ".6", "--alpha", "-.1"), "alpha is -0.1"),
        (("--q0", ".05", "--q1", ".6", "--n-max", "0"), "n_max is 0; expected 1 to 2000"),
        (("--q0", ".05", "--q1", ".6", "--n-max", "1000000"), "n_max is 1000000; expected 1 to 2000"),
        (("--q0", ".05", "--q1", ".6", "--min-accept", "-3"), "min_accept is -3"),
        (("--q0", ".05", "--q1", ".6", "--truncation", "coin"), "'coin'"),
        (("--q0", ".05"), "--q1"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_values_out_of_range_are_one_clear_line(capsys, arguments, message, form) -> None:
    out, error = refused(capsys, *arguments, *form)
    assert out == ""
    assert message in error
