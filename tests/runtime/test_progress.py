"""What long work says of itself where there is no terminal."""

import io
import math

import pytest
from rich.console import Console

from s2ap_defend import progress
from s2ap_defend.progress import Reporter, duration


class Clock:
    """Seconds that pass when it is said."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def reported(line_every_s: float = 0.0) -> tuple[Reporter, Clock, io.StringIO]:
    clock, told = Clock(), io.StringIO()
    return Reporter(Console(file=told, width=200), line_every_s=line_every_s, clock=clock), clock, told


def test_the_time_left_is_that_of_the_units_so_far() -> None:
    reporter, clock, told = reported()
    with reporter.step("training", 4) as step:
        clock.now += 100
        step.advance("accuracy 50%")
        clock.now += 100
        step.advance("accuracy 60%")
        clock.now += 200
        step.advance(done=4)
    assert told.getvalue().splitlines() == [
        "  training: 1/4 accuracy 50%; about 5 min left",
        "  training: 2/4 accuracy 60%; about 3 min left",
        "  training: 4/4 accuracy 60%",
        "training: 400.0 s  accuracy 60%",
    ]


def test_what_an_earlier_run_has_done_does_not_shorten_it() -> None:
    reporter, clock, told = reported()
    with reporter.step("training", 10) as step:
        clock.now += 30  # the network is made
        for _ in range(8):
            step.advance()
        clock.now += 80
        step.advance()
    assert "  training: 9/10 about 80 s left" in told.getvalue()


def test_units_that_differ_count_by_their_share() -> None:
    reporter, clock, told = reported()
    with reporter.step("attacks", 2) as step:
        clock.now += 30
        step.advance("short", share=0.1)
    assert "  attacks: 1/2 short; about 4 min left" in told.getvalue()


def test_the_time_left_falls_while_nothing_ends_and_is_no_longer_said_when_it_has_passed() -> None:
    reporter, clock, told = reported()
    with reporter.step("training", 4) as step:
        clock.now += 100
        step.advance()
        clock.now += 100
        step.still_at_work()
        clock.now += 250
        step.still_at_work()
    assert told.getvalue().splitlines()[:-1] == [
        "  training: 1/4 about 5 min left",
        "  training: 1/4 still at work after 3 min; about 3 min left",
        "  training: 1/4 still at work after 8 min",
    ]


def test_a_step_that_said_nothing_for_long_says_that_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, clock, told = reported(15.0)
    with reporter.step("attacks", 2) as step:
        clock.now += 59
        step.still_at_work()
        assert told.getvalue() == ""
        clock.now += 121
        step.still_at_work()
        step.still_at_work()
    assert told.getvalue().splitlines()[:-1] == ["  attacks: 0/2 still at work after 3 min"]
    monkeypatch.setattr(progress, "SILENT_S", 0.02)
    with reporter.step("attacks", 2):
        clock.now += 10
        while told.getvalue().count("still at work") < 2:  # from a thread of its own
            pass
    quiet, clock, told = reported(math.inf)
    with quiet.step("attacks", 2):
        clock.now += 1000
    assert "still" not in told.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded(seconds: float, said: str) -> None:
    assert duration(seconds) == said
