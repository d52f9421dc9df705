"""A test in words."""

import numpy as np

from s2ap_defend.sequential.tables import SequentialTest


def asked_members(test: SequentialTest) -> str:
    """How many members give evidence, and how many an input is asked that is not flagged."""
    says = int((test.increments != 0.0).any(axis=1).sum())
    text = f"{says} of {test.members} members give evidence"
    closed = np.flatnonzero(test.closed)
    if not len(closed):
        return text
    last = int(closed[0]) + 1
    exactly = not np.isfinite(test.lower[: last - 1]).any()
    many = f"{'exactly' if exactly else 'at most'} {last} {'members' if last > 1 else 'member'}"
    return f"{text}; an input that is not flagged is asked {many}"
