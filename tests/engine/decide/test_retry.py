"""The retry rule, as a table and as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.retry import Again, GiveUp, RetryPolicy, after_failure, before_attempt
from streams.errors import Permanent, Transient

POLICY = RetryPolicy(max_attempts=4, max_deliveries=20, first_delay_s=0.25, max_delay_s=10.0)


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (Transient("busy"), 1, Again(0.25)),
        (Transient("busy"), 2, Again(0.5)),
        (Transient("busy"), 3, Again(1.0)),
        (Transient("busy"), 4, GiveUp("busy (tried 4 times)")),
        (Transient("busy"), 9, GiveUp("busy (tried 9 times)")),
        (OSError("cable"), 1, Again(0.25)),
        (Permanent("no such codec"), 1, GiveUp("no such codec")),
        (Permanent("first line\nsecond"), 1, GiveUp("first line second")),
        (Permanent(""), 1, GiveUp("Permanent")),
    ],
)
def test_what_follows_a_failure(error: Exception, attempt: int, expected: Again | GiveUp) -> None:
    assert after_failure(error, attempt, POLICY, jitter=1.0) == expected


@given(st.integers(1, 60), st.floats(0.5, 1.5), st.floats(0.001, 10), st.floats(0.001, 100))
def test_the_delay_doubles_up_to_its_limit(attempt: int, jitter: float, first_s: float, max_s: float) -> None:
    policy = RetryPolicy(max_attempts=100, first_delay_s=first_s, max_delay_s=max_s)
    verdict = after_failure(Transient("busy"), attempt, policy, jitter)
    following = after_failure(Transient("busy"), attempt + 1, policy, jitter)
    assert isinstance(verdict, Again)
    assert isinstance(following, Again)
    assert 0 < verdict.delay_s <= max_s * jitter
    assert following.delay_s in (2 * verdict.delay_s, max_s * jitter)


def test_ever_more_attempts_never_overflow() -> None:
    policy = RetryPolicy(max_attempts=10**6)
    assert after_failure(Transient("busy"), 10**5, policy, jitter=1.0) == Again(policy.max_delay_s)


@pytest.mark.parametrize(("num_delivered", "given_up"), [(1, False), (20, False), (21, True), (500, True)])
def test_a_message_that_loses_its_workers_is_given_up(num_delivered: int, given_up: bool) -> None:
    verdict = before_attempt(num_delivered, POLICY)
    assert (verdict is not None) == given_up
    if verdict is not None:
        assert f"taken {num_delivered - 1} times" in verdict.cause
