import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.export.graph.spoken_images import (
    OUTCOME,
    SCALE,
    UNREAD,
    Case,
    decisions,
    images,
    model_of,
    session,
    verdicts,
)
from tests.runtime.sequential_cases import ROWS, said, sequential_test

from s2ap_defend.sequential import accepted_raw, run_sequential_test
from s2ap_defend.types import Verdicts


@settings(max_examples=150, deadline=None)
@given(case=decisions())
def test_waves_of_any_sizes_decide_and_vote_as_the_sequential_loop_to_the_last_bit(case: Case) -> None:
    test, answers, purify, sees = case
    found = verdicts(session(model_of(case)), images(answers, purify, sees))
    expected = run_sequential_test(test, answers)
    for name in OUTCOME:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@settings(max_examples=30, deadline=None)
@given(case=decisions(), seed=st.integers(0, 2**32 - 1), size=st.integers(1, ROWS - 1))
def test_an_image_gets_the_same_verdict_alone_in_any_batch_and_at_any_place(case: Case, seed: int, size: int) -> None:
    _, answers, purify, sees = case
    runner, batch = session(model_of(case)), images(answers, purify, sees)
    together, order = verdicts(runner, batch), np.random.default_rng(seed).permutation(ROWS)
    parts = Verdicts.concatenate([verdicts(runner, batch[i : i + size]) for i in range(0, ROWS, size)])
    permuted = verdicts(runner, batch[order])
    for name in Verdicts.FIELDS:
        assert not np.isnan(getattr(together, name)).any(), name
        np.testing.assert_array_equal(getattr(parts, name), getattr(together, name), err_msg=name)
        np.testing.assert_array_equal(getattr(permuted, name), getattr(together, name)[order], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(case=decisions())
def test_only_images_that_are_not_accepted_in_the_opening_are_purified_where_only_suspicious_ones_are(
    case: Case,
) -> None:
    test, answers, purify, sees = case
    batch = images(answers, purify, sees)
    found = verdicts(session(model_of(case)), batch)
    clean = np.clip(np.where(np.isnan(batch), np.float32(0.5), batch), 0, 1)
    untouched = np.full(ROWS, purify == "off") if purify != "suspicious" else accepted_raw(test, answers)
    np.testing.assert_array_equal(found.purified[untouched], clean[untouched])
    assert not found.reconstruction_error[untouched].any()
    said_by = (
        answers.classifier
        if answers.on_raw is None
        else np.where(untouched[:, None], answers.on_raw, answers.classifier)
    )
    np.testing.assert_allclose(found.probabilities, np.exp(said_by.astype(np.float64)), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(case=decisions())
def test_a_wave_sees_only_images_that_its_first_member_asks_where_all_vote(case: Case) -> None:
    test, answers, purify, sees = case
    test = replace(test, vote_weights=np.where(test.vote_weights > 0, test.vote_weights, 0.25))  # asked without gaps
    expected = run_sequential_test(test, answers)
    first = np.repeat(np.cumsum((0, *test.waves[:-1])), test.waves)  # of the wave of each member [n]
    unread = answers.members.copy()
    unread[first[:, None] >= expected.members_used] = -SCALE * UNREAD  # a member that reads it stops the run
    batch = images(replace(answers, members=unread), purify, sees)
    found = verdicts(session(model_of((test, answers, purify, sees))), batch)
    for name in OUTCOME:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


LABELS = [f"member_{i:03d}" for i in range(6)]


def asked_in_vote(tmp_path: Path, labels: list[int], **changes: object) -> list[str]:
    """Members that run for three equal images that the first member flags, in waves of 3, 2 and 1."""
    never = np.full(6, np.inf)
    tables = {"lower": -never, "upper": np.where(np.arange(6) == 0, 1.0, never), "waves": (3, 2, 1)}
    test = sequential_test(6, **(tables | {"answer": "accurate"} | changes))
    answered = said([[label] * 3 for label in labels], [0] * 3)
    case: Case = (test, answered, "off", ("raw",) * 6)
    runner = session(model_of(case), tmp_path / "run")
    assert verdicts(runner, images(answered, "off", ("raw",) * 6)).adversarial.all()
    events = json.loads(Path(runner.end_profiling()).read_text())
    return sorted({event["name"].partition("/")[0] for event in events if event["name"].startswith("member_")})


def test_a_wave_is_skipped_when_only_settled_votes_are_left(tmp_path: Path) -> None:
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 0, 0], curtail=False) == LABELS
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 0, 0]) == LABELS[:5]  # 4 : 0 with two left, in the second wave
    assert asked_in_vote(tmp_path, [1, 1, 1, 2, 0, 1]) == LABELS[:5]  # 3 : 1 with one left
    assert asked_in_vote(tmp_path, [1, 1, 1, 2, 2, 1]) == LABELS  # 3 : 2 with one left could be tied
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 1, 1], correction="reject") == LABELS[:3]


def test_sensors_are_not_asked_for_the_vote_on_flagged_images(tmp_path: Path) -> None:
    weights = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    assert asked_in_vote(tmp_path, [1, 2, 1, 1, 1, 2], vote_weights=weights) == [*LABELS[:3], LABELS[5]]
