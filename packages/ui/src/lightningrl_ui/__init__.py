"""A local page of runs: from the reward curve down to a single model call.

Invariants:
- It only reads: folders and stores are opened read-only, and nothing that trains knows of it.
- What a model, a tool or a user wrote is text: escaped in every page, never run.
"""
