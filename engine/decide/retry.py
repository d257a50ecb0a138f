"""The retry rule. Pure: a failure in, what to do about it out.

Backoff: delay = first * 2^(attempt - 1), at most `max_delay_s`, times a jitter in 0.5 .. 1.5 that the caller draws.
A message counts its deliveries in the stream, so the count outlives the workers that tried.
"""

from dataclasses import dataclass

import msgspec

from streams.errors import Permanent


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_attempts: int = 4  # of work that fails
    max_deliveries: int = 20  # of a message whose workers never came back: beyond it, the message is what kills them
    first_delay_s: float = 0.25
    max_delay_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Again:
    """Try once more after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter it and publish a gap."""

    cause: str


def after_failure(error: Exception, attempt: int, policy: RetryPolicy, jitter: float) -> Again | GiveUp:
    """What follows the failure of attempt number `attempt` (from 1)."""
    cause = cause_of(error)
    if isinstance(error, Permanent):
        return GiveUp(cause)
    if attempt >= policy.max_attempts:
        return GiveUp(f"{cause} (tried {attempt} times)")
    num_doublings = min(attempt - 1, 64)
    return Again(min(policy.first_delay_s * 2**num_doublings, policy.max_delay_s) * jitter)


def cause_of(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def before_attempt(num_delivered: int, policy: RetryPolicy) -> GiveUp | None:
    """Whether a message has been taken too often without a word to be tried at all."""
    if num_delivered > policy.max_deliveries:
        return GiveUp(f"taken {num_delivered - 1} times, and each time the worker was lost before it finished")
    return None
