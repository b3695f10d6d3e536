"""The trainer's loop, and what it learns from: collect, credit, update, checkpoint, sync, score; once per iteration.

Invariant: it starts no process and knows no engine, rank or cluster; those stand behind `Trainee`.
"""
