import numpy as np
import pytest
from hypothesis import given, settings
from tests.runtime.sequential_cases import OUTCOME, cases, said, sequential_test

from s2ap_defend.sequential import (
    Path,
    SequentialTest,
    Signal,
    SinglePath,
    SingleTables,
    StageAnswers,
    run_sequential_test,
)


def started(tables: SingleTables, answers: StageAnswers, row: int, classifier: np.ndarray) -> SinglePath:
    error = None if answers.reconstruction_error is None else float(answers.reconstruction_error[row])
    opening = answers.members[: tables.test.opening, row].tolist()
    return SinglePath(tables, classifier[row].tolist(), opening, reconstruction_error=error)


def decided(tables: SingleTables, answers: StageAnswers, row: int) -> SinglePath:
    """One input, asked wave by wave; one that its raw image is not accepted for begins anew behind the purifier."""
    test, logs = tables.test, answers.members[:, row].tolist()
    path = started(tables, answers, row, answers.classifier)
    if answers.on_raw is not None:
        raw = started(tables, answers, row, answers.on_raw)
        raw.scan(0, logs[: test.opening])
        if raw.decided and not raw.adversarial:
            return raw
    first = 0
    for size in test.waves:
        if path.waits(first, size):
            path.scan(first, logs[first : first + size])
        first += size
    return path


def outcome(path: SinglePath) -> dict[str, object]:
    label, adversarial, abstained = path.verdict()
    return {
        "label": label,
        "adversarial": adversarial,
        "base_label": path.base_label,
        "label_change_rate": np.float32(path.label_change_rate),
        "log_likelihood_ratio": path.ratio,
        "members_used": path.used,
        "votes": path.votes,
        "abstained": abstained,
        "first_answer": path.first_answer,
    }


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_an_input_alone_is_decided_as_among_many_to_the_last_bit(case: tuple[SequentialTest, StageAnswers]) -> None:
    test, answers = case
    expected, tables = run_sequential_test(test, answers), SingleTables(test)
    rows = np.flatnonzero(answers.valid)
    found = [outcome(decided(tables, answers, row)) for row in rows]
    for name in OUTCOME:
        wanted = getattr(expected, name)[rows]
        assert np.array([one[name] for one in found], dtype=wanted.dtype).tobytes() == wanted.tobytes(), name


def test_members_that_were_not_run_for_an_input_are_passed_over() -> None:
    upper = np.array([1.0, np.inf, np.inf])
    test = sequential_test(3, answer="accurate", vote_weights=np.array([1.0, 0.0, 1.0]), upper=upper)
    answers = said([[1], [1], [1]], [0])
    tables = SingleTables(test)
    full, partly = (started(tables, answers, 0, answers.classifier) for _ in range(2))
    logs = answers.members[:, 0].tolist()
    full.scan(0, logs)
    partly.scan(0, [logs[0]])
    partly.scan(1, [None, logs[2]])
    assert outcome(full) == outcome(partly)
    assert full.adversarial
    assert full.used == 2


def test_a_test_that_counts_the_reconstruction_error_wants_it_of_an_input_alone() -> None:
    signal = Signal("reconstruction error", np.zeros(1, dtype=np.float32), np.zeros(2))
    tables, answers = SingleTables(sequential_test(signals=(signal,))), said([[0]], [0])
    with pytest.raises(ValueError, match="counts the reconstruction error"):
        started(tables, answers, 0, answers.classifier)


@pytest.mark.parametrize("amplification", [0.5, 3.0, 16.0])
@pytest.mark.parametrize("jury_share", [0.0, 1e-3, 0.5, 1.0])
def test_the_mix_of_networks_that_hardly_prefer_a_label_is_that_among_many(
    amplification: float, jury_share: float
) -> None:
    rng = np.random.default_rng(0)
    mix = {"answer": "mixed", "jury_share": jury_share, "amplification": amplification}
    test = sequential_test(2, opening=2, lower=np.array([-np.inf, -2.0]), upper=np.array([np.inf, 2.0]), **mix)
    tops = rng.choice([0.0, 1e-7, 5e-7, 1e-6, 2e-6, 1.0], (3, 200, 3)) - rng.choice([0.5, 1.5, 38.9, 60.0], (200, 1))
    classifier, *opening = tops.astype(np.float32)
    expected = Path(test, classifier, np.stack(opening))
    tables = SingleTables(test)
    found = [
        SinglePath(tables, own, [one[row].tolist() for one in opening]).first_answer
        for row, own in enumerate(classifier.tolist())
    ]
    assert found == expected.first_answer.tolist()
    assert len(set(found)) == 3
