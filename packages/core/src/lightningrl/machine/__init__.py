"""What every process of ours takes from its machine: time, disk, event loop, logs, and when to end.

Invariant: nothing here knows what the process is for.
"""
