"""Processes that lease rollouts from the store, run the user's agent on them, and report.

Invariant: whatever an agent does (raise, hang, return nonsense, kill its process) ends as data in the
store, never as a runner that stops.
"""
