"""What becomes of an attempt's events: transitions, which of them are trained, rows, and what did not merge.

Invariant: pure functions of the events, so that any stored run can be scored again years later.
"""
